//! Bursts: 50 starts from 8 threads, then as many kills, again and again, for a target that reloads and one that does not.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::clock::now;
use crate::consumer::{BenchConsumer, ConsumerDir};
use crate::container::BenchContainer;
use crate::event::{Action, past_events};
use crate::figures::{Figures, heading};
use crate::file_watch::FileWatch;
use crate::registration_watch::RegistrationWatch;
use crate::setup::{Mode, Setup};

const SIZE: usize = 50;
const THREADS: usize = 8;
/// How long files and signals are still noted after the last call.
const WATCH_TIME: Duration = Duration::from_secs(2);

/// Runs the bursts on etcd and prints what came of them.
pub fn run(rounds: usize) -> Result<()> {
    let bench = BurstBench::start()?;
    let (mut starts, mut kills) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        starts.push(bench.round(Action::Start)?);
        kills.push(bench.round(Action::Die)?);
    }
    println!(
        "\nbursts of {SIZE} from {THREADS} threads, {rounds} rounds; {SIZE} starts take {:.1} s, {SIZE} kills {:.1} s",
        seconds(&starts),
        seconds(&kills)
    );
    println!(
        "  {:<26} {:>9} {:>15} {:>15} {:>23}",
        "", "wrong", "reloads (max)", "rewrites (max)", "last event to right, ms"
    );
    print_outcomes("starts, with reloads", starts.iter().map(|round| &round.reloading));
    print_outcomes("starts, without reloads", starts.iter().map(|round| &round.plain));
    print_outcomes("kills, with reloads", kills.iter().map(|round| &round.reloading));
    print_outcomes("kills, without reloads", kills.iter().map(|round| &round.plain));
    heading("each change of a burst");
    let all = |rounds: &[Round], of: fn(&Round) -> &Vec<Duration>| -> Figures {
        rounds.iter().flat_map(of).copied().collect()
    };
    all(&starts, |round| &round.to_etcd).print("start -> registered in etcd", None);
    all(&starts, |round| &round.to_file).print("start -> file, target without reloads", None);
    all(&kills, |round| &round.to_etcd).print("die -> withdrawn from etcd", None);
    all(&kills, |round| &round.to_file).print("die -> file, target without reloads", None);
    Ok(())
}

/// Everything that a burst needs and that watches it. Dropped in the order of the fields.
struct BurstBench {
    /// Its consumer's target is signalled, and so paced.
    setup: Setup,
    /// A second consumer, whose target does not reload.
    _plain: BenchConsumer,
    reloading_file: FileWatch,
    plain_file: FileWatch,
    registrations: RegistrationWatch,
    containers: Vec<BenchContainer>,
}

/// What came of one burst.
struct Round {
    /// From the first event to the last.
    span: Duration,
    /// From each event to the change of its key.
    to_etcd: Vec<Duration>,
    /// From each event to the first file that shows it, of the target that does not reload.
    to_file: Vec<Duration>,
    reloading: Outcome,
    plain: Outcome,
}

/// What a burst came to at a target.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    rewrites: usize,
    reloads: usize,
    /// From the last event to the moment since which the target is right; `None` where it is wrong in the end.
    delay: Option<Duration>,
}

/// A version of a file: when it was in place, and the ports of its servers.
type Snapshot = (Duration, BTreeSet<u16>);

impl BurstBench {
    fn start() -> Result<Self> {
        let setup = Setup::start(Mode::Etcd)?;
        let flags = ["--etcd", &setup.etcd()?.endpoint()];
        let mut plain = ConsumerDir::new(false)?.start("bench-plain", &flags)?;
        plain.wait_file()?;
        Ok(Self {
            reloading_file: FileWatch::start(&setup.consumer.dest())?,
            plain_file: FileWatch::start(&plain.dest())?,
            registrations: RegistrationWatch::start(setup.etcd()?)?,
            containers: BenchContainer::several("bench-burst", SIZE)?,
            setup,
            _plain: plain,
        })
    }

    fn round(&self, action: Action) -> Result<Round> {
        self.reloading_file.take();
        self.plain_file.take();
        self.registrations.take();
        let (since, before) = (now(), self.setup.received_signals()?.len());
        self.act(action)?;
        thread::sleep(WATCH_TIME);
        let events = self.events(since, action)?;
        let expected = match action {
            Action::Start => self.containers.iter().map(|container| container.port).collect(),
            Action::Die => BTreeSet::new(),
        };
        let (reloading, plain) = (snapshots(&self.reloading_file)?, snapshots(&self.plain_file)?);
        let signals = &self.setup.received_signals()?[before..];
        let first = events.values().min().copied().context("a burst has events")?;
        let last = events.values().max().copied().context("a burst has events")?;
        Ok(Round {
            span: last - first,
            to_etcd: self.to_etcd(&events, action)?,
            to_file: self.to_file(&events, action, &plain),
            reloading: outcome(&reloading, Some(signals), &expected, last),
            plain: outcome(&plain, None, &expected, last),
        })
    }

    /// Acts on every container, from several threads.
    fn act(&self, action: Action) -> Result<()> {
        let queue = Mutex::new(self.containers.iter().collect::<VecDeque<_>>());
        let work = || -> Result<()> {
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some(container) = next else { return Ok(()) };
                container.act(action)?;
            }
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("acting does not panic"))
        })
    }

    /// When it happened to each container, by Docker.
    fn events(&self, since: Duration, action: Action) -> Result<BTreeMap<String, Duration>> {
        let ours = |id: &String| self.containers.iter().any(|container| container.id == *id);
        let events =
            past_events(since)?.into_iter().filter(|event| event.action == action && ours(&event.id));
        let events: BTreeMap<String, Duration> = events.map(|event| (event.id, event.at)).collect();
        ensure!(events.len() == SIZE, "Docker remembers {} events of {SIZE}", events.len());
        Ok(events)
    }

    fn to_etcd(&self, events: &BTreeMap<String, Duration>, action: Action) -> Result<Vec<Duration>> {
        let changes = self.registrations.take();
        let time = |container: &BenchContainer| {
            let change = changes.iter().find(|change| {
                change.container == container.short_id() && change.is_put == (action == Action::Start)
            });
            let change = change.with_context(|| format!("etcd shows no {action:?} of {}", container.id))?;
            Ok(change.at.saturating_sub(events[&container.id]))
        };
        self.containers.iter().map(time).collect()
    }

    fn to_file(
        &self,
        events: &BTreeMap<String, Duration>,
        action: Action,
        snapshots: &[Snapshot],
    ) -> Vec<Duration> {
        let time = |container: &BenchContainer| {
            let event = events[&container.id];
            let shows = |(at, ports): &&Snapshot| {
                *at >= event && ports.contains(&container.port) == (action == Action::Start)
            };
            snapshots.iter().find(shows).map(|(at, _)| at.saturating_sub(event))
        };
        self.containers.iter().filter_map(time).collect()
    }
}

fn snapshots(file: &FileWatch) -> Result<Vec<Snapshot>> {
    file.take().iter().map(|version| Ok((version.at, version.ports()?))).collect()
}

/// Judges a target by its versions and, where it reloads, by the signals that it received: it is right once the file is
/// right for good, and it was signalled after that.
fn outcome(
    snapshots: &[Snapshot],
    signals: Option<&[Duration]>,
    expected: &BTreeSet<u16>,
    last_event: Duration,
) -> Outcome {
    let first_right = snapshots.iter().rposition(|(_, ports)| ports != expected).map_or(0, |wrong| wrong + 1);
    let file = snapshots.get(first_right).map(|(at, _)| *at);
    let right = match signals {
        Some(signals) => file.and_then(|file| signals.iter().find(|at| **at >= file).copied()),
        None => file,
    };
    Outcome {
        rewrites: snapshots.len(),
        reloads: signals.map_or(0, <[Duration]>::len),
        delay: right.map(|at| at.saturating_sub(last_event)),
    }
}

/// The median of the time from the first event to the last.
fn seconds(rounds: &[Round]) -> f64 {
    rounds.iter().map(|round| round.span).collect::<Figures>().median() / 1e3
}

fn print_outcomes<'a>(name: &str, outcomes: impl Iterator<Item = &'a Outcome> + Clone) {
    let wrong = outcomes.clone().filter(|outcome| outcome.delay.is_none()).count();
    let reloads = median_and_max(outcomes.clone().map(|outcome| outcome.reloads));
    let rewrites = median_and_max(outcomes.clone().map(|outcome| outcome.rewrites));
    let delays: Figures = outcomes.clone().filter_map(|outcome| outcome.delay).collect();
    let (median, max) = (delays.median(), delays.quantile(1.0));
    println!(
        "  {name:<26} {wrong:>2} of {:<3} {reloads:>15} {rewrites:>15} {median:>10.1} (max {max:.1})",
        outcomes.count()
    );
}

fn median_and_max(counts: impl Iterator<Item = usize>) -> String {
    let mut counts: Vec<usize> = counts.collect();
    counts.sort_unstable();
    let median = counts.get(counts.len().saturating_sub(1) / 2).copied().unwrap_or_default();
    format!("{median} ({})", counts.last().copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(at: u64, ports: &[u16]) -> Snapshot {
        (Duration::from_millis(at), ports.iter().copied().collect())
    }

    #[test]
    fn a_target_is_right_once_its_file_is_right_for_good_and_it_has_reloaded() {
        let ms = Duration::from_millis;
        let expected = BTreeSet::from([1, 2]);
        let versions = [snapshot(10, &[1]), snapshot(20, &[1, 2]), snapshot(30, &[2]), snapshot(40, &[1, 2])];
        let delay = |snapshots: &[Snapshot], signals: Option<&[Duration]>| {
            outcome(snapshots, signals, &expected, ms(35)).delay
        };
        assert_eq!(delay(&versions, None), Some(ms(5)));
        assert_eq!(delay(&versions, Some(&[ms(21), ms(42)])), Some(ms(7)));
        assert_eq!(delay(&versions, Some(&[ms(21)])), None, "the last version was not read");
        assert_eq!(delay(&versions[..3], None), None, "the last version is wrong");
        assert_eq!(delay(&[], None), None);
    }
}
