//! A consumer with one target, of all instances.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use rollcall_tests::{Program, until};
use tempfile::TempDir;

/// How long to wait for the first file.
const FIRST_FILE_TIMEOUT: Duration = Duration::from_secs(60);

/// The container that a target with a notifier signals.
pub const TARGET_CONTAINER: &str = "bench-target";

/// The folder of a consumer that does not run yet: its configuration, its state and its file.
#[derive(Debug)]
pub struct ConsumerDir(TempDir);

impl ConsumerDir {
    /// Writes the configuration, of a target that signals its container or that needs no reload.
    pub fn new(signals: bool) -> Result<Self> {
        let dir = Self::empty()?;
        let notify = format!("[target.notify]\ncontainer = \"{TARGET_CONTAINER}\"\nsignal = \"HUP\"\n");
        let notify = if signals { &notify } else { "" };
        dir.configure(&format!("format = \"nginx-upstream\"\n{notify}"))?;
        Ok(dir)
    }

    /// A folder without a configuration.
    pub fn empty() -> Result<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    /// Writes the configuration, of one target of its file and with these settings.
    pub fn configure(&self, settings: &str) -> Result<()> {
        self.configure_without_file(&format!("dest = {:?}\n{settings}", self.dest()))
    }

    /// Writes the configuration, of one target with these settings.
    pub fn configure_without_file(&self, settings: &str) -> Result<()> {
        Ok(fs::write(self.config(), format!("[[target]]\nname = \"bench\"\n{settings}"))?)
    }

    /// The rendered file.
    pub fn dest(&self) -> PathBuf {
        self.0.path().join("upstream.conf")
    }

    /// Starts a consumer there, which listens at no port.
    pub fn start(self, name: &str, flags: &[&str]) -> Result<BenchConsumer> {
        self.start_at("off", name, flags)
    }

    /// Starts a consumer there, which answers at this address.
    pub fn start_at(self, listen: &str, name: &str, flags: &[&str]) -> Result<BenchConsumer> {
        let mut command = Program::consumer()?;
        command.args(["--name", name, "--listen", listen]).args(flags);
        command.arg("--config").arg(self.config()).arg("--state-dir").arg(self.0.path());
        Ok(BenchConsumer { program: Program::start("consumer", command)?.silent(), dir: self })
    }

    fn config(&self) -> PathBuf {
        self.0.path().join("targets.toml")
    }
}

/// A running consumer. Dropped in the order of the fields.
#[derive(Debug)]
pub struct BenchConsumer {
    program: Program,
    dir: ConsumerDir,
}

impl BenchConsumer {
    /// The rendered file.
    pub fn dest(&self) -> PathBuf {
        self.dir.dest()
    }

    /// The process ID.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// Waits for the first file.
    pub fn wait_file(&mut self) -> Result<()> {
        let dest = self.dest();
        let program = &mut self.program;
        let what = "the consumer has written its file";
        let ended = until(what, FIRST_FILE_TIMEOUT, || Ok(dest.exists() || program.exited()?.is_some()));
        match program.exited()? {
            Some(status) => anyhow::bail!("the consumer ended with {status}:\n{}", program.log_tail(20)),
            None => ended,
        }
    }
}
