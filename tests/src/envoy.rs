//! A real Envoy as a process of this host: started with a configuration, killed and started again.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::Result;

use crate::{DockerHost, Process, http, tool, until};

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A running Envoy, killed when dropped.
#[derive(Debug)]
pub struct Envoy {
    _process: Process,
    admin: SocketAddr,
}

impl Envoy {
    /// Envoy with a configuration whose administration interface is at this port of 127.0.0.1; ready when this returns.
    ///
    /// # Errors
    /// It is missing, or does not become ready.
    pub fn start(config: &Path, admin: u16) -> Result<Self> {
        Self::launch(command(config)?, config, (Ipv4Addr::LOCALHOST, admin).into())
    }

    /// The same in a host's network, at the host's address.
    ///
    /// # Errors
    /// As [`Envoy::start`].
    pub fn start_on(host: &DockerHost, config: &Path, admin: u16) -> Result<Self> {
        Self::launch(host.run_in_netns(command(config)?)?, config, (host.ip(), admin).into())
    }

    fn launch(command: Command, config: &Path, admin: SocketAddr) -> Result<Self> {
        let mut process = Process::start("envoy", command, &config.with_extension("log"))?;
        let ready = format!("http://{admin}/ready");
        until("Envoy is ready", START_TIMEOUT, || {
            anyhow::ensure!(process.exited()?.is_none(), "it ended:\n{}", process.log_tail(80));
            Ok(http::get(&ready)?.body.starts_with("LIVE"))
        })?;
        Ok(Self { _process: process, admin })
    }

    /// Its administration interface.
    pub fn admin(&self) -> String {
        format!("http://{}", self.admin)
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

fn command(config: &Path) -> Result<Command> {
    let mut command = Command::new(tool::part("envoy/envoy")?);
    command.args(["--disable-hot-restart", "--concurrency", "1", "-l", "warning", "-c"]).arg(config);
    Ok(command)
}
