//! Bursts: 50 starts from 8 threads, then 50 kills, again and again.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::Receiver;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::engine::{self, Event, Made};
use crate::stage::{Mode, Stage};
use crate::watched::{self, Version};

const SIZE: usize = 50;
const THREADS: usize = 8;
/// How soon after the last event the file is to be right.
const SOON: Duration = Duration::from_millis(50);
/// How long the file is watched after the last event.
const SETTLE: Duration = Duration::from_secs(2);

/// Runs the bursts on etcd and prints what came of them.
pub fn run(rounds: usize) -> Result<()> {
    let stage = Stage::start(Mode::Etcd)?;
    let versions = watched::watch(&stage.file())?;
    let events = engine::events()?;
    let made: Vec<Made> = (0..SIZE)
        .map(|number| Made::new(&format!("bench-burst-{number}"), &[], serde_json::json!({}), &[]))
        .collect::<Result<_>>()?;
    println!("\nbursts of {SIZE} from {THREADS} threads, {rounds} rounds");
    println!(
        "  {:<8} {:>9} {:>16} {:>16} {:>24}",
        "", "wrong", "rewrites (max)", "at least (max)", "last event to right, ms"
    );
    let (mut starts, mut kills) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        starts.push(burst(&made, ["connect", "start"], Made::start, &events, &versions)?);
        kills.push(burst(&made, ["kill", "die"], Made::kill, &events, &versions)?);
    }
    print("starts", &starts);
    print("kills", &kills);
    Ok(())
}

/// What came of a burst.
struct Outcome {
    /// Whether the file was right in the end.
    right: bool,
    rewrites: usize,
    /// See [`fewest_rewrites`].
    fewest: usize,
    /// From the last event to the first version that was right and stayed so.
    delay: Duration,
}

fn burst(
    made: &[Made],
    [announcing, action]: [&str; 2],
    act: impl Fn(&Made) -> Result<()> + Sync,
    events: &Receiver<Event>,
    versions: &Receiver<Version>,
) -> Result<Outcome> {
    while versions.try_recv().is_ok() {}
    let queue = Mutex::new(made.iter().collect::<VecDeque<_>>());
    std::thread::scope(|scope| {
        let work = || -> Result<()> {
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some(next) = next else { return Ok(()) };
                act(next)?;
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no thread panics"))
    })?;
    let (mut announced, mut happened) = (HashMap::new(), HashMap::new());
    while happened.len() < made.len() {
        let event = events.recv_timeout(Duration::from_secs(20)).context("an event of each")?;
        if made.iter().any(|made| made.id == event.id) {
            if event.action == action {
                happened.insert(event.id, event.at);
            } else if event.action == announcing {
                announced.insert(event.id, event.at);
            }
        }
    }
    let last = happened.values().max().copied().unwrap_or_default();
    let fewest = fewest_rewrites(&announced, &happened);
    std::thread::sleep(SETTLE);
    let expected = if action == "start" { made.len() } else { 0 };
    let is_right = |version: Version| -> Result<(Duration, bool)> {
        let text = version.text()?;
        let servers = text.matches("server 127.0.0.1:").count() - text.matches(" down;").count();
        Ok((version.at, servers == expected))
    };
    let seen = versions.try_iter().map(is_right).collect::<Result<Vec<_>>>()?;
    let right = seen.last().is_some_and(|(_, right)| *right);
    let first_right = seen.iter().rposition(|(_, right)| !right).map_or(0, |wrong| wrong + 1);
    let delay = seen.get(first_right).map_or(Duration::MAX, |(at, _)| at.saturating_sub(last));
    Ok(Outcome { right, rewrites: seen.len(), fewest, delay })
}

/// What nobody gets by with less who is right within [`SOON`] of every event that may be the last: those after which
/// nothing happens, is announced, or has been announced and is still to come, for that long.
fn fewest_rewrites(announced: &HashMap<String, Duration>, happened: &HashMap<String, Duration>) -> usize {
    let may_be_last = |at: Duration| {
        let soon = |then: &Duration| (at + Duration::from_nanos(1)..=at + SOON).contains(then);
        let is_awaited = |(id, then): (&String, &Duration)| {
            *then > at && announced.get(id).is_some_and(|announced| *announced <= at + SOON)
        };
        !happened.values().any(soon) && !happened.iter().any(is_awaited)
    };
    happened.values().filter(|at| may_be_last(**at)).count()
}

fn print(name: &str, outcomes: &[Outcome]) {
    let wrong = outcomes.iter().filter(|outcome| !outcome.right).count();
    let [rewrites, fewest] = [|o: &Outcome| o.rewrites, |o: &Outcome| o.fewest].map(|of| {
        let mut counts: Vec<usize> = outcomes.iter().map(of).collect();
        counts.sort_unstable();
        format!("{} ({})", counts[counts.len() / 2], counts[counts.len() - 1])
    });
    let mut delays: Vec<Duration> = outcomes.iter().map(|outcome| outcome.delay).collect();
    delays.sort_unstable();
    let ms = |delay: Duration| delay.as_secs_f64() * 1e3;
    println!(
        "  {name:<8} {wrong:>4} of {:<3} {rewrites:>14} {fewest:>16} {:>14.1} (max {:.1})",
        outcomes.len(),
        ms(delays[delays.len() / 2]),
        ms(delays[delays.len() - 1])
    );
}
