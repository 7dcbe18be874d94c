//! Single changes, beside one and beside fifty other containers, with the floors taken just before.

use anyhow::Result;

use crate::container::BenchContainer;
use crate::floors::{self, Floors};
use crate::setup::Mode;
use crate::{latency, pace};

/// Measures and prints what is wanted.
pub fn run(runs: usize, latency: bool, pace: bool) -> Result<()> {
    for others in [1, 50] {
        let pace = pace && others == 1;
        if latency || pace {
            beside(others, runs, latency, pace)?;
        }
    }
    Ok(())
}

fn beside(others: usize, runs: usize, latency: bool, pace: bool) -> Result<()> {
    println!("\n=== {others} other container{} running", if others == 1 { "" } else { "s" });
    let others = BenchContainer::several("bench-other", others)?;
    others.iter().try_for_each(BenchContainer::start)?;
    floors::measure_quiet(runs)?;
    let floors = Floors::measure(Mode::Etcd, runs)?;
    if latency {
        latency::run(Mode::Etcd, runs, &floors)?;
    }
    if pace {
        pace::run(runs, &floors)?;
    }
    if latency {
        let floors = Floors::measure(Mode::Embedded, runs)?;
        latency::run(Mode::Embedded, runs, &floors)?;
    }
    Ok(())
}
