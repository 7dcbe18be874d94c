//! Bursts: 50 starts from 8 threads, then 50 kills, again and again.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::engine::{self, Made};
use crate::stage::{Mode, Stage};
use crate::watched::{self, Version};

const SIZE: usize = 50;
const THREADS: usize = 8;
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
    println!("  {:<8} {:>9} {:>16} {:>22}", "", "wrong", "rewrites (max)", "last event to right, ms");
    let (mut starts, mut kills) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        starts.push(burst(&made, "start", Made::start, &events, &versions)?);
        kills.push(burst(&made, "die", Made::kill, &events, &versions)?);
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
    /// From the last event to the first version that was right and stayed so.
    delay: Duration,
}

fn burst(
    made: &[Made],
    action: &str,
    act: impl Fn(&Made) -> Result<()> + Sync,
    events: &std::sync::mpsc::Receiver<engine::Event>,
    versions: &std::sync::mpsc::Receiver<Version>,
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
    let mut last = Duration::ZERO;
    for _ in made {
        let event = loop {
            let event = events.recv_timeout(Duration::from_secs(20)).context("an event of each")?;
            if event.action == action && made.iter().any(|made| made.id == event.id) {
                break event;
            }
        };
        last = last.max(event.at);
    }
    std::thread::sleep(SETTLE);
    let expected = if action == "start" { made.len() } else { 0 };
    let seen: Vec<Version> = versions.try_iter().collect();
    let servers = |version: &Version| {
        version.text.matches("server 127.0.0.1:").count() - version.text.matches(" down;").count()
    };
    let right = seen.last().is_some_and(|version| servers(version) == expected);
    let first_right =
        seen.iter().rposition(|version| servers(version) != expected).map_or(0, |wrong| wrong + 1);
    let delay = seen.get(first_right).map_or(Duration::MAX, |version| version.at.saturating_sub(last));
    Ok(Outcome { right, rewrites: seen.len(), delay })
}

fn print(name: &str, outcomes: &[Outcome]) {
    let wrong = outcomes.iter().filter(|outcome| !outcome.right).count();
    let mut rewrites: Vec<usize> = outcomes.iter().map(|outcome| outcome.rewrites).collect();
    rewrites.sort_unstable();
    let mut delays: Vec<Duration> = outcomes.iter().map(|outcome| outcome.delay).collect();
    delays.sort_unstable();
    let (median, most) = (rewrites[rewrites.len() / 2], rewrites[rewrites.len() - 1]);
    let ms = |delay: Duration| delay.as_secs_f64() * 1e3;
    println!(
        "  {name:<8} {wrong:>4} of {:<3} {median:>8} ({most:>4}) {:>12.1} (max {:.1})",
        outcomes.len(),
        ms(delays[delays.len() / 2]),
        ms(delays[delays.len() - 1])
    );
}
