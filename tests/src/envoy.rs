//! A real Envoy as a process of this host: started with a configuration, killed and started again.

use std::{path::Path, time::Duration};

use anyhow::Result;

use crate::{Process, http, tool, until};

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A running Envoy, killed when dropped.
#[derive(Debug)]
pub struct Envoy {
    _process: Process,
    admin: u16,
}

impl Envoy {
    /// Envoy with a configuration whose administration interface is at this port of 127.0.0.1; ready when this returns.
    ///
    /// # Errors
    /// It is missing, or does not become ready.
    pub fn start(config: &Path, admin: u16) -> Result<Self> {
        let mut command = std::process::Command::new(tool::part("envoy/envoy")?);
        command.args(["--disable-hot-restart", "--concurrency", "1", "-l", "warning", "-c"]).arg(config);
        let mut process = Process::start("envoy", command, &config.with_extension("log"))?;
        let envoy = |process| Self { _process: process, admin };
        let ready = format!("http://127.0.0.1:{admin}/ready");
        until("Envoy is ready", START_TIMEOUT, || {
            anyhow::ensure!(process.exited()?.is_none(), "it ended:\n{}", process.log_tail(80));
            Ok(http::get(&ready)?.body.starts_with("LIVE"))
        })?;
        Ok(envoy(process))
    }

    /// Its administration interface.
    pub fn admin(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin)
    }

    /// A counter or gauge.
    ///
    /// # Errors
    /// It does not answer.
    pub fn stats(&self, filter: &str) -> Result<Vec<(String, u64)>> {
        let body = http::get(&format!("{}/stats?filter={filter}", self.admin()))?.body;
        let stat = |line: &str| {
            let (name, value) = line.rsplit_once(": ")?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Ok(body.lines().filter_map(stat).collect())
    }
}
