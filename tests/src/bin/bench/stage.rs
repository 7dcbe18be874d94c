//! What is measured, set up: etcd, agent, consumer and the container that is signalled.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rollcall_tests::{Etcd, Program, until};
use tempfile::TempDir;

use crate::engine::Made;

const SOON: Duration = Duration::from_secs(30);

/// Where registrations go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// An agent, an etcd on loopback, a consumer.
    Etcd,
    /// A consumer with an agent inside.
    Embedded,
}

/// Rollcall at work. Dropped in the order of the fields.
#[derive(Debug)]
pub struct Stage {
    /// The consumer.
    pub consumer: Program,
    /// The agent, where it is a process of its own.
    pub agent: Option<Program>,
    /// etcd, where there is one.
    _etcd: Option<Etcd>,
    /// The container that is signalled.
    _target: Made,
    dir: TempDir,
}

impl Stage {
    /// Starts everything and waits until it is ready. Only containers named `bench-...` count.
    pub fn start(mode: Mode) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let etcd = if mode == Mode::Etcd { Some(Etcd::start()?) } else { None };
        let hups = format!("{}:/out", dir.path().display());
        let labels = serde_json::json!({ "rollcall.signal": "HUP", "rollcall.ignore": "true" });
        let target = Made::new("bench-target", &["HUP_LOG=/out/hups"], labels, &[hups])?;
        target.start()?;
        let agent_flags = ["--only-name", "^bench-", "--advertise", "127.0.0.1"];
        let agent = match &etcd {
            Some(etcd) => {
                let mut command = Program::agent()?;
                command.args(["--etcd", &etcd.endpoint(), "--listen", "off"]).args(agent_flags);
                let mut agent = Program::start("agent", command)?.silent();
                agent.wait_log("holds the node's claim", SOON)?;
                Some(agent)
            }
            None => None,
        };
        let config = dir.path().join("targets.toml");
        fs::write(&config, config_text(&dir.path().join("upstream.conf"), true))?;
        let consumer = match &etcd {
            Some(etcd) => consumer(&config, &["--etcd", &etcd.endpoint()])?,
            None => consumer(&config, &agent_flags)?,
        };
        let stage = Self { consumer, agent, _etcd: etcd, _target: target, dir };
        until("the file is there", SOON, || Ok(stage.file().exists()))?;
        until("the target was signalled", SOON, || Ok(!stage.hups()?.is_empty()))?;
        Ok(stage)
    }

    /// The rendered file.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("upstream.conf")
    }

    /// When the target had its signals, since 1970.
    pub fn hups(&self) -> Result<Vec<Duration>> {
        let Ok(text) = fs::read_to_string(self.dir.path().join("hups")) else { return Ok(Vec::new()) };
        text.lines().map(|line| Ok(Duration::from_nanos(line.parse().context("a time")?))).collect()
    }
}

/// Starts a consumer with its state beside its configuration.
pub fn consumer(config: &Path, flags: &[&str]) -> Result<Program> {
    let state_dir = config.parent().context("a folder")?;
    let mut command = Program::consumer()?;
    command.arg("--config").arg(config).arg("--state-dir").arg(state_dir);
    command.args(["--listen", "off"]).args(flags);
    Ok(Program::start("consumer", command)?.silent())
}

/// A target of all instances.
pub fn config_text(dest: &Path, signal: bool) -> String {
    let notify = "[target.notify]\ncontainer = \"bench-target\"\nsignal = \"HUP\"\n";
    format!(
        "[[target]]\nname = \"bench\"\ndest = \"{}\"\nformat = \"nginx-upstream\"\n{}",
        dest.display(),
        if signal { notify } else { "" }
    )
}
