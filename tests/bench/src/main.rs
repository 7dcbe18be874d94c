//! The bench: how long Rollcall takes from a change of a container to the file and the signal, beside the floors of
//! Docker, etcd and the disk, measured in the same run. It prints figures and judges nothing.

mod figures;

mod client;
mod clock;
mod container;
mod docker;
mod event;
mod file_watch;
mod registration_watch;

mod bare_target;
mod floors;
mod relay;

mod consumer;
mod setup;

mod burst;
mod changes;
mod citus;
mod idle;
mod latency;
mod pace;
mod recovery;
mod runtime;
mod scale;
mod traffic;

use std::num::NonZeroUsize;

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};

/// Measures Rollcall beside the same steps by hand, on this machine's Docker engine.
#[derive(Debug, Parser)]
#[command(name = "bench", max_term_width = 110)]
struct Cli {
    /// What to measure [default: everything]
    #[arg(value_enum, value_name = "PART")]
    parts: Vec<Part>,
    /// How many starts and kills; burst makes a fifth as many rounds, scale and runtime half
    /// as many changes, recovery a twentieth of each
    #[arg(long, value_name = "N", default_value = "100")]
    runs: NonZeroUsize,
    /// How many changes the traffic goes through
    #[arg(long, value_name = "N", default_value = "1000")]
    changes: NonZeroUsize,
    /// The proxy that the traffic goes through
    #[arg(long, value_enum, value_name = "PROXY", default_value = "nginx")]
    proxy: traffic::ProxyKind,
    /// Measures a debug build too, for a first look
    #[arg(long)]
    debug: bool,
}

/// A part of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Changes about a second apart, with 1 and with 50 other containers
    Latency,
    /// A change every 300 ms
    Pace,
    /// 50 starts, then 50 kills, from 8 threads
    Burst,
    /// One change among 10,000 and 100,000 instances, and a cold start
    Scale,
    /// Memory and processor time of a minute without a change
    Idle,
    /// How soon all is right after a restore, a member that hangs, and the loss of the leader
    Recovery,
    /// One change of HAProxy at run time, among 10 and among 10,000 instances
    Runtime,
    /// Workers of a Citus coordinator that come and move, and rounds without a change
    Citus,
    /// Requests through a real proxy while instances come and go
    Traffic,
}

fn main() -> Result<()> {
    let Cli { parts, runs, changes, proxy, debug } = Cli::parse();
    if cfg!(debug_assertions) && !debug {
        bail!("this is a debug build: expected cargo run --release");
    }
    let runs = runs.get();
    let wants = |part: Part| parts.is_empty() || parts.contains(&part);
    changes::run(runs, wants(Part::Latency), wants(Part::Pace))?;
    if wants(Part::Burst) {
        burst::run(runs.div_ceil(5))?;
    }
    if wants(Part::Scale) {
        scale::run(runs.div_ceil(2))?;
    }
    if wants(Part::Idle) {
        idle::run()?;
    }
    if wants(Part::Recovery) {
        recovery::run(runs.div_ceil(20))?;
    }
    if wants(Part::Runtime) {
        runtime::run(runs.div_ceil(2))?;
    }
    if wants(Part::Citus) {
        citus::run()?;
    }
    if wants(Part::Traffic) {
        traffic::run(proxy, changes.get())?;
    }
    Ok(())
}
