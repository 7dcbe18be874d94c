//! A host where a container starts or dies every 300 ms: from each change to the file, and to the signal.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::clock::now;
use crate::container::BenchContainer;
use crate::event::{Action, Event, past_events};
use crate::figures::{Figures, heading};
use crate::file_watch::{FileWatch, Version};
use crate::floors::Floors;
use crate::latency::CHANGE_INTERVAL;
use crate::setup::{Mode, Setup};

/// The time from one change to the next.
const PACE_INTERVAL: Duration = Duration::from_millis(300);

/// How many changes there are before the bench looks at events, files and signals. Docker remembers more events.
const BLOCK_CHANGES: usize = 40;

/// How many changes show how long Docker takes from a call to its event.
const CALIBRATION_CHANGES: usize = 10;

/// Measures and prints as many starts as there are runs, and as many kills.
pub fn run(runs: usize, floors: &Floors) -> Result<()> {
    let setup = Setup::start(Mode::Etcd)?;
    let file = FileWatch::start(&setup.consumer.dest())?;
    let container = BenchContainer::new("bench-subject")?;
    // From here on each call is made so much earlier that its event is due at its time: Docker takes longer to start a
    // container than to kill it.
    let mut lags = [Duration::ZERO; 2];
    block(&setup, &file, &container, CALIBRATION_CHANGES, &mut lags, &mut PaceFigures::default())?;
    let mut figures = PaceFigures::default();
    let mut remaining = 2 * runs;
    while remaining > 0 {
        let changes = remaining.min(BLOCK_CHANGES);
        block(&setup, &file, &container, changes, &mut lags, &mut figures)?;
        remaining -= changes;
    }
    figures.print(floors);
    Ok(())
}

/// What all blocks came to.
#[derive(Default)]
struct PaceFigures {
    between_events: Figures,
    start_to_file: Figures,
    start_to_signal: Figures,
    file_to_signal: Figures,
    die_to_file: Figures,
    /// Changes that no file showed before the next change.
    missed_files: usize,
    /// Starts whose file no signal followed before the next change.
    missed_signals: usize,
}

impl PaceFigures {
    fn add(&mut self, change: &Change) {
        let Change { event, file, signal } = change;
        let Some(file) = file else {
            self.missed_files += 1;
            return;
        };
        let to_file = file.saturating_sub(event.at);
        match (event.action, signal) {
            (Action::Die, _) => self.die_to_file.add(to_file),
            (Action::Start, signal) => {
                self.start_to_file.add(to_file);
                match signal {
                    Some(signal) => {
                        self.start_to_signal.add(signal.saturating_sub(event.at));
                        self.file_to_signal.add(signal.saturating_sub(*file));
                    }
                    None => self.missed_signals += 1,
                }
            }
        }
    }

    fn print(&self, floors: &Floors) {
        heading(&format!("a change every {} ms, {}", PACE_INTERVAL.as_millis(), Mode::Etcd.title()));
        self.between_events.print("from one event to the next", None);
        self.start_to_file.print("start -> file", Some(floors.start_to_file));
        self.die_to_file.print("die -> file", Some(floors.die_to_file));
        let floor = self.start_to_file.median() + floors.file_to_signal;
        self.start_to_signal.print("start -> SIGHUP received", Some(floor));
        self.file_to_signal.print("file -> SIGHUP received", Some(floors.file_to_signal));
        println!(
            "  changes that no file showed before the next: {}; starts that no SIGHUP followed: {}",
            self.missed_files, self.missed_signals
        );
    }
}

/// Makes the changes, and looks at what came of them when all is over.
fn block(
    setup: &Setup,
    file: &FileWatch,
    container: &BenchContainer,
    changes: usize,
    lags: &mut [Duration; 2],
    figures: &mut PaceFigures,
) -> Result<()> {
    thread::sleep(CHANGE_INTERVAL);
    file.take();
    let (since, before) = (now(), setup.received_signals()?.len());
    let mut calls = Vec::new();
    let mut due = Instant::now() + CHANGE_INTERVAL;
    for number in 0..changes {
        let call_at = due.checked_sub(lags[number % 2]).unwrap_or(due);
        thread::sleep(call_at.saturating_duration_since(Instant::now()));
        calls.push(now());
        container.act(if number % 2 == 0 { Action::Start } else { Action::Die })?;
        due += PACE_INTERVAL;
    }
    thread::sleep(CHANGE_INTERVAL);
    let events: Vec<Event> =
        past_events(since)?.into_iter().filter(|event| event.id == container.id).collect();
    ensure!(events.len() == changes, "Docker remembers {} events of {changes}", events.len());
    for (which, lag) in lags.iter_mut().enumerate() {
        let of_kind = events.iter().zip(&calls).skip(which).step_by(2);
        let mut found: Vec<Duration> = of_kind.map(|(event, call)| event.at.saturating_sub(*call)).collect();
        found.sort_unstable();
        *lag = found[found.len() / 2];
    }
    events.windows(2).for_each(|pair| figures.between_events.add(pair[1].at.saturating_sub(pair[0].at)));
    let lists = |version: &Version| Ok((version.at, version.ports()?.contains(&container.port)));
    let versions = file.take().iter().map(lists).collect::<Result<Vec<_>>>()?;
    let signals = &setup.received_signals()?[before..];
    match_changes(events, &versions, signals).iter().for_each(|change| figures.add(change));
    Ok(())
}

/// A change, and what followed from it before the next one.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    event: Event,
    /// When a version of the file showed it.
    file: Option<Duration>,
    /// When the target received a signal after that.
    signal: Option<Duration>,
}

/// Finds what followed from each change. The versions say when they were in place and whether they list the container.
fn match_changes(events: Vec<Event>, versions: &[(Duration, bool)], signals: &[Duration]) -> Vec<Change> {
    let ends: Vec<Duration> = events.iter().skip(1).map(|event| event.at).chain([Duration::MAX]).collect();
    let change = |(event, end): (Event, Duration)| {
        let shows = |(at, lists): &&(Duration, bool)| {
            (event.at..end).contains(at) && *lists == (event.action == Action::Start)
        };
        let file = versions.iter().find(shows).map(|(at, _)| *at);
        let signal = file.and_then(|file| signals.iter().find(|at| (file..end).contains(*at)).copied());
        Change { event, file, signal }
    };
    events.into_iter().zip(ends).map(change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_matched_with_what_came_before_the_next_one() {
        let ms = Duration::from_millis;
        let event =
            |action, at| Event { id: "c0".to_owned(), action, at: ms(at), read_at: Duration::default() };
        let events = vec![
            event(Action::Start, 100),
            event(Action::Die, 400),
            event(Action::Start, 700),
            event(Action::Die, 1000),
        ];
        // The second start is shown only after the container has died again, and one signal is missing.
        let versions = [(ms(110), true), (ms(405), false), (ms(1001), true), (ms(1002), false)];
        let signals = [ms(111), ms(1003)];
        let found: Vec<_> = match_changes(events, &versions, &signals)
            .into_iter()
            .map(|change| (change.file, change.signal))
            .collect();
        let expected = [
            (Some(ms(110)), Some(ms(111))),
            (Some(ms(405)), None),
            (None, None),
            (Some(ms(1002)), Some(ms(1003))),
        ];
        assert_eq!(found, expected);
    }
}
