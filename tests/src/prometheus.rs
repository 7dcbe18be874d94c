//! A real Prometheus as a process of this host.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::Result;

use crate::{DockerHost, Process, http, port, tool, until};

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A running Prometheus, killed when dropped.
#[derive(Debug)]
pub struct Prometheus {
    _process: Process,
    address: SocketAddr,
}

impl Prometheus {
    /// Prometheus with this configuration, its data beside it; ready when this returns.
    ///
    /// # Errors
    /// It is missing, or does not become ready.
    pub fn start(config: &Path) -> Result<Self> {
        let address = (Ipv4Addr::LOCALHOST, port::free(Ipv4Addr::LOCALHOST.into())?).into();
        Self::launch(command(config, address)?, config, address)
    }

    /// The same in a host's network, at this port of the host's address.
    ///
    /// # Errors
    /// As [`Prometheus::start`].
    pub fn start_on(host: &DockerHost, config: &Path, port: u16) -> Result<Self> {
        let address = (host.ip(), port).into();
        Self::launch(host.run_in_netns(command(config, address)?)?, config, address)
    }

    fn launch(command: Command, config: &Path, address: SocketAddr) -> Result<Self> {
        let process = Process::start("prometheus", command, &config.with_extension("log"))?;
        let prometheus = Self { _process: process, address };
        until("Prometheus is ready", START_TIMEOUT, || {
            Ok(http::get(&format!("{}/-/ready", prometheus.url()))?.status == 200)
        })?;
        Ok(prometheus)
    }

    /// Its API.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn command(config: &Path, address: SocketAddr) -> Result<Command> {
    let mut command = Command::new(tool::part("prometheus/usr/bin/prometheus")?);
    command.args([
        format!("--config.file={}", config.display()),
        format!("--storage.tsdb.path={}", config.with_extension("data").display()),
        format!("--web.listen-address={address}"),
    ]);
    Ok(command)
}
