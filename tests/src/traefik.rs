//! A real Traefik as a process of this host, with the file provider.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::Result;

use crate::{DockerHost, Process, http, port, tool, until};

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A running Traefik, killed when dropped.
#[derive(Debug)]
pub struct Traefik {
    _process: Process,
    api: SocketAddr,
    web: SocketAddr,
}

impl Traefik {
    /// Traefik with its own API and an entry point `web`, each at a port of 127.0.0.1; it answers when this returns.
    ///
    /// # Errors
    /// It is missing, or does not answer.
    pub fn start(file: &Path) -> Result<Self> {
        let address =
            || Ok::<_, anyhow::Error>((Ipv4Addr::LOCALHOST, port::free(Ipv4Addr::LOCALHOST.into())?));
        let (api, web) = (address()?.into(), address()?.into());
        Self::launch(command(file, api, web)?, file, api, web)
    }

    /// The same in a host's network, at these ports of the host's address.
    ///
    /// # Errors
    /// As [`Traefik::start`].
    pub fn start_on(host: &DockerHost, file: &Path, api: u16, web: u16) -> Result<Self> {
        let (api, web) = ((host.ip(), api).into(), (host.ip(), web).into());
        Self::launch(host.run_in_netns(command(file, api, web)?)?, file, api, web)
    }

    fn launch(command: Command, file: &Path, api: SocketAddr, web: SocketAddr) -> Result<Self> {
        let process = Process::start("traefik", command, &file.with_extension("traefik.log"))?;
        let traefik = Self { _process: process, api, web };
        until("Traefik answers", START_TIMEOUT, || {
            Ok(http::get(&format!("{}/api/overview", traefik.api()))?.status == 200)
        })?;
        Ok(traefik)
    }

    /// Its API.
    pub fn api(&self) -> String {
        format!("http://{}", self.api)
    }

    /// Its entry point.
    pub fn web(&self) -> String {
        format!("http://{}/", self.web)
    }
}

fn command(file: &Path, api: SocketAddr, web: SocketAddr) -> Result<Command> {
    let mut command = Command::new(tool::part("traefik/traefik")?);
    command.args([
        format!("--entrypoints.web.address={web}"),
        format!("--entrypoints.traefik.address={api}"),
        "--api.insecure=true".to_owned(),
        "--providers.providersThrottleDuration=100ms".to_owned(),
        format!("--providers.file.filename={}", file.display()),
    ]);
    Ok(command)
}
