//! One process that the harness started: its log, its signals, and its end when the value is dropped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{leftovers, until};

/// A running (or ended) process, killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command; what it prints is appended to `log`.
    ///
    /// # Errors
    /// The log cannot be opened or the program cannot be started.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write the log of {name}, {}", log.display()))?;
        let (marker, owner) = leftovers::mark();
        let child = command
            .env(marker, owner)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Its process ID. Commands wrapped by nsenter keep it, as nsenter replaces itself.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, or `None` while it runs.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot ask how {} fares", self.name))
    }

    /// Sends a signal, or does nothing when it has ended.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.exited()?.is_none() {
            kill_process(Pid::from_child(&self.child), signal)
                .with_context(|| format!("cannot send {signal:?} to {}", self.name))?;
        }
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It still runs after `deadline`; the message has the end of its log.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        until(&format!("{} ends", self.name), deadline, || self.exited())
            .with_context(|| format!("its log ends with:\n{}", self.log_tail(20)))
    }

    /// SIGTERM, then [`Process::wait`].
    ///
    /// # Errors
    /// As [`Process::wait`].
    pub fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(deadline)
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until the log has a line with `needle` in it, and gives that line.
    ///
    /// # Errors
    /// It never came, or the process ended without it; the message has the end of the log.
    pub fn wait_log(&mut self, needle: &str, deadline: Duration) -> Result<String> {
        let mut ended = None;
        let what = format!("{} logs {needle:?}", self.name);
        let line = until(&what, deadline, || {
            // Asked before the log is read, so that its last words are seen.
            ended = self.exited()?;
            let line = self.log().lines().find(|line| line.contains(needle)).map(str::to_owned);
            Ok(match (line, ended) {
                (None, Some(_)) => Some(None),
                (line, _) => line.map(Some),
            })
        })
        .with_context(|| format!("the log ends with:\n{}", self.log_tail(20)))?;
        match line {
            Some(line) => Ok(line),
            None => {
                bail!("{} ended ({ended:?}) and never logged {needle:?}:\n{}", self.name, self.log_tail(20))
            }
        }
    }

    /// All that it has printed so far.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The last lines of the log.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
