//! What agent and consumer cost when nothing happens: memory, and processor time in a minute.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::container::BenchContainer;
use crate::setup::{Mode, Setup};

const CONTAINERS: usize = 100;
const MINUTE: Duration = Duration::from_secs(60);

/// Measures and prints a minute.
pub fn run() -> Result<()> {
    let containers = BenchContainer::several("bench-idle", CONTAINERS)?;
    containers.iter().try_for_each(BenchContainer::start)?;
    let setup = Setup::start(Mode::Etcd)?;
    let (agent, consumer) = (setup.agent_pid()?, setup.consumer.pid());
    std::thread::sleep(Duration::from_secs(3));
    let before = [cpu(agent)?, cpu(consumer)?];
    std::thread::sleep(MINUTE);
    println!("\n{CONTAINERS} containers, a minute without a change");
    for ((name, pid), before) in [("agent", agent), ("consumer", consumer)].into_iter().zip(before) {
        let seconds = cpu(pid)? - before;
        println!("  {name:<10} {:6.1} MB resident, {seconds:.3} CPU-seconds", resident(pid)?);
    }
    Ok(())
}

/// Processor time so far, in seconds, as the scheduler counts it.
pub fn cpu(pid: u32) -> Result<f64> {
    let mut nanoseconds = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let schedstat = fs::read_to_string(task?.path().join("schedstat"))?;
        nanoseconds += schedstat.split(' ').next().context("schedstat has no time")?.parse::<u64>()?;
    }
    Ok(nanoseconds as f64 / 1e9)
}

/// Resident memory, in MB.
pub fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("status has no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0 / 1e6)
}
