//! The bench: how long Rollcall takes from a container's start to the file and the signal, beside the floors
//! of Docker, etcd and the disk, measured in the same run. It prints figures and judges nothing.
//!
//! `cargo run --release -p rollcall-tests --bin bench -- [latency] [burst] [scale] [idle] [--runs N]`

mod burst;
mod engine;
mod figures;
mod floors;
mod idle;
mod latency;
mod scale;
mod stage;
mod watched;

use anyhow::{Result, bail};

/// How many starts and kills, and what else, unless asked otherwise.
const RUNS: usize = 100;

fn main() -> Result<()> {
    if cfg!(debug_assertions) {
        bail!("this is a debug build: expected cargo run --release");
    }
    let mut runs = RUNS;
    let mut wanted = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--runs" => runs = args.next().unwrap_or_default().parse()?,
            "latency" | "burst" | "scale" | "idle" => wanted.push(arg),
            other => bail!("{other:?}: expected latency, burst, scale, idle or --runs N"),
        }
    }
    let wants = |part: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == part);
    if wants("latency") {
        latency::run(runs)?;
    }
    if wants("burst") {
        burst::run(runs.div_ceil(5))?;
    }
    if wants("scale") {
        scale::run(runs.div_ceil(2))?;
    }
    if wants("idle") {
        idle::run()?;
    }
    Ok(())
}
