//! The proxies under test: how each is started, told and counted.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;
use rollcall_tests::{Process, http, port, until};
use tempfile::TempDir;

use super::{haproxy, nginx};

/// How long a proxy may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Which proxy, and how it takes changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProxyKind {
    /// A current nginx, which reloads its file.
    Nginx,
    /// HAProxy 2.8, which is told at its runtime socket.
    Haproxy,
}

/// A proxy that runs. Dropped in the order of the fields.
#[derive(Debug)]
pub struct Proxy {
    kind: ProxyKind,
    process: Process,
    /// Where it serves.
    pub port: u16,
    dir: TempDir,
}

/// What a proxy is at a moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// Its processes, without a master.
    pub workers: usize,
    /// Those that shut down among them.
    pub draining: usize,
    /// The memory of all its processes, in MB: what they share is counted once.
    pub memory: f64,
}

impl Proxy {
    /// Starts it with a file that has no servers yet.
    pub fn start(kind: ProxyKind, dest: &Path) -> Result<Self> {
        let (dir, port) = (tempfile::tempdir()?, port::free(Ipv4Addr::LOCALHOST.into())?);
        let command = match kind {
            ProxyKind::Nginx => nginx::command(dir.path(), dest, port)?,
            ProxyKind::Haproxy => haproxy::command(dir.path(), dest, port)?,
        };
        let process = Process::start("proxy", command, &dir.path().join("log"))?;
        let mut proxy = Self { kind, process, port, dir };
        let answers = || http::get(&format!("http://127.0.0.1:{port}/"));
        let started = until("the proxy answers", START_TIMEOUT, || answers().map(drop).map(|()| true));
        started.with_context(|| format!("its log ends with:\n{}", proxy.process.log_tail(10)))?;
        anyhow::ensure!(proxy.process.exited()?.is_none(), "the proxy has ended");
        Ok(proxy)
    }

    /// The consumer's target for it, in TOML, but for the file's name.
    pub fn target(&self) -> String {
        match self.kind {
            ProxyKind::Nginx => nginx::target(self.dir.path()),
            ProxyKind::Haproxy => haproxy::target(self.dir.path()),
        }
    }

    /// How many reloads there were.
    pub fn reloads(&self) -> usize {
        self.process
            .log()
            .matches(match self.kind {
                ProxyKind::Nginx => "signal 1 (SIGHUP) received",
                ProxyKind::Haproxy => "Reloading HAProxy",
            })
            .count()
    }

    /// What it is now.
    pub fn sample(&self) -> Sample {
        let workers = self.workers();
        let is_draining = |pid: &&u32| title(**pid).is_some_and(|title| title.contains("shutting down"));
        let draining = match self.kind {
            ProxyKind::Nginx => workers.iter().filter(is_draining).count(),
            // All but one serve out what they have.
            ProxyKind::Haproxy => workers.len().saturating_sub(1),
        };
        let all = workers.iter().copied().chain([self.process.pid()]);
        Sample { workers: workers.len(), draining, memory: all.filter_map(proportional_memory).sum() }
    }

    /// The socket at which HAProxy is told.
    pub fn socket(&self) -> Option<PathBuf> {
        (self.kind == ProxyKind::Haproxy).then(|| haproxy::socket(self.dir.path()))
    }

    /// What the proxy says of its servers, where it can be asked, on one line.
    pub fn account(&self) -> Result<Option<String>> {
        self.socket().map(|socket| haproxy::account(&socket)).transpose()
    }

    /// How long its socket takes for a small question, from connecting to the whole answer.
    pub fn round_trips(&self, count: usize) -> Result<Vec<Duration>> {
        let Some(socket) = self.socket() else { return Ok(vec![]) };
        (0..count)
            .map(|_| {
                let begun = Instant::now();
                rollcall_tests::haproxy::ask(&socket, "show info")?;
                Ok(begun.elapsed())
            })
            .collect()
    }

    fn workers(&self) -> Vec<u32> {
        let pid = self.process.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|child| child.parse().ok());
        let is_worker = |pid: &u32| match self.kind {
            ProxyKind::Nginx => title(*pid).is_some_and(|title| title.starts_with("nginx: worker process")),
            ProxyKind::Haproxy => true,
        };
        children.filter(is_worker).collect()
    }
}

impl Drop for Proxy {
    /// Killed, nginx would leave its workers behind.
    fn drop(&mut self) {
        let _ = self.process.terminate(START_TIMEOUT);
    }
}

fn title(pid: u32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()
}

/// The share of memory that a process has, in MB (proc_pid_smaps_rollup(5)).
fn proportional_memory(pid: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<f64>().ok()? * 1024.0 / 1e6)
}
