//! A real Prometheus as a process of this host.

use std::{net::Ipv4Addr, path::Path, time::Duration};

use anyhow::Result;

use crate::{Process, http, port, tool, until};

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A running Prometheus, killed when dropped.
#[derive(Debug)]
pub struct Prometheus {
    _process: Process,
    port: u16,
}

impl Prometheus {
    /// Prometheus with this configuration, its data beside it; ready when this returns.
    ///
    /// # Errors
    /// It is missing, or does not become ready.
    pub fn start(config: &Path) -> Result<Self> {
        let port = port::free(Ipv4Addr::LOCALHOST.into())?;
        let mut command = std::process::Command::new(tool::part("prometheus/usr/bin/prometheus")?);
        command.args([
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", config.with_extension("data").display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
        ]);
        let process = Process::start("prometheus", command, &config.with_extension("log"))?;
        let prometheus = Self { _process: process, port };
        until("Prometheus is ready", START_TIMEOUT, || {
            Ok(http::get(&format!("{}/-/ready", prometheus.url()))?.status == 200)
        })?;
        Ok(prometheus)
    }

    /// Its API.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}
