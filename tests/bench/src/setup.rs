//! What is measured: an agent, etcd, a consumer, and the container that the consumer's target signals.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use rollcall_tests::{Etcd, Program, until};
use serde_json::json;
use tempfile::TempDir;

use crate::consumer::{BenchConsumer, ConsumerDir, TARGET_CONTAINER};
use crate::container::BenchContainer;

/// How long to wait until everything runs.
const SETUP_TIMEOUT: Duration = Duration::from_secs(30);

/// An address that no other host reaches.
const LOOPBACK: &str = "127.0.0.1";
/// Only containers of the bench are registered.
const AGENT_FLAGS: [&str; 4] = ["--only-name", "^bench-", "--advertise", LOOPBACK];

/// Where registrations go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// An agent, an etcd on loopback, a consumer.
    Etcd,
    /// A consumer with an agent inside.
    Embedded,
}

impl Mode {
    /// What it is called in headings.
    pub fn title(self) -> &'static str {
        match self {
            Mode::Etcd => "etcd on loopback",
            Mode::Embedded => "embedded",
        }
    }
}

/// Rollcall at work. Dropped in the order of the fields.
#[derive(Debug)]
pub struct Setup {
    /// The consumer.
    pub consumer: BenchConsumer,
    /// The agent, where it is a process of its own.
    agent: Option<Program>,
    /// etcd, where there is one.
    etcd: Option<Etcd>,
    /// The container that is signalled.
    _target: BenchContainer,
    /// The folder of the log that it keeps of its signals.
    signal_log: TempDir,
}

impl Setup {
    /// Starts everything and waits until the first file and the first signal were there.
    pub fn start(mode: Mode) -> Result<Self> {
        let signal_log = tempfile::tempdir()?;
        let binds = [format!("{}:/out", signal_log.path().display())];
        let labels = json!({ "rollcall.signal": "HUP", "rollcall.ignore": "true" });
        let target = BenchContainer::with(TARGET_CONTAINER, &["HUP_LOG=/out/hups"], &labels, &binds)?;
        target.start()?;
        let etcd = if mode == Mode::Etcd { Some(Etcd::start()?) } else { None };
        let agent = etcd.as_ref().map(start_agent).transpose()?;
        let dir = ConsumerDir::new(true)?;
        let consumer = match &etcd {
            Some(etcd) => dir.start("bench", &["--etcd", &etcd.endpoint()])?,
            None => dir.start("bench", &AGENT_FLAGS)?,
        };
        let mut setup = Self { consumer, agent, etcd, _target: target, signal_log };
        setup.consumer.wait_file()?;
        until("the target was signalled", SETUP_TIMEOUT, || Ok(!setup.received_signals()?.is_empty()))?;
        Ok(setup)
    }

    /// The agent's process, where it is one of its own.
    pub fn agent_pid(&self) -> Result<u32> {
        Ok(self.agent.as_ref().context("the agent is embedded")?.pid())
    }

    /// etcd, where there is one.
    pub fn etcd(&self) -> Result<&Etcd> {
        self.etcd.as_ref().context("embedded mode has no etcd")
    }

    /// When the target received its signals, since 1970.
    pub fn received_signals(&self) -> Result<Vec<Duration>> {
        let Ok(text) = fs::read_to_string(self.signal_log.path().join("hups")) else { return Ok(Vec::new()) };
        text.lines()
            .map(|line| Ok(Duration::from_nanos(line.parse().context("the log has no time")?)))
            .collect()
    }
}

/// Starts an agent of the bench's containers.
pub fn start_agent(etcd: &Etcd) -> Result<Program> {
    start_agent_at(etcd, LOOPBACK)
}

/// Starts an agent of the bench's containers, which are reached at this address.
pub fn start_agent_at(etcd: &Etcd, address: &str) -> Result<Program> {
    let mut command = Program::agent()?;
    command.args(["--etcd", &etcd.endpoint(), "--listen", "off", "--loopback"]);
    command.args(["--only-name", "^bench-", "--advertise", address]);
    let mut agent = Program::start("agent", command)?.silent();
    agent.wait_log("claimed the name", SETUP_TIMEOUT)?;
    Ok(agent)
}
