//! A real Traefik as a process of this host, with the file provider.

use std::{net::Ipv4Addr, path::Path, time::Duration};

use anyhow::Result;

use crate::{Process, http, port, tool, until};

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A running Traefik, killed when dropped.
#[derive(Debug)]
pub struct Traefik {
    _process: Process,
    api: u16,
    web: u16,
}

impl Traefik {
    /// Traefik with its own API and an entry point `web`, each at a port of 127.0.0.1; it answers when this returns.
    ///
    /// # Errors
    /// It is missing, or does not answer.
    pub fn start(file: &Path) -> Result<Self> {
        let (api, web) = (port::free(Ipv4Addr::LOCALHOST.into())?, port::free(Ipv4Addr::LOCALHOST.into())?);
        let mut command = std::process::Command::new(tool::part("traefik/traefik")?);
        command.args([
            format!("--entrypoints.web.address=127.0.0.1:{web}"),
            format!("--entrypoints.traefik.address=127.0.0.1:{api}"),
            "--api.insecure=true".to_owned(),
            "--providers.providersThrottleDuration=100ms".to_owned(),
            format!("--providers.file.filename={}", file.display()),
        ]);
        let log = file.with_extension("traefik.log");
        let process = Process::start("traefik", command, &log)?;
        let traefik = Self { _process: process, api, web };
        until("Traefik answers", START_TIMEOUT, || {
            Ok(http::get(&format!("{}/api/overview", traefik.api()))?.status == 200)
        })?;
        Ok(traefik)
    }

    /// Its API.
    pub fn api(&self) -> String {
        format!("http://127.0.0.1:{}", self.api)
    }

    /// Its entry point.
    pub fn web(&self) -> String {
        format!("http://127.0.0.1:{}/", self.web)
    }
}
