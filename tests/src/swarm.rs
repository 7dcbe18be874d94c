//! A Docker Swarm of hosts: the first is its manager.
//!
//! Overlay networks work between the hosts of a bridge. Where the kernel has no IPVS, a service has no virtual address
//! and no ingress: tests use `endpoint_mode: dnsrr` and ports of mode `host`.

use std::path::Path;

use anyhow::{Context, Result};

use crate::{DockerHost, tool};

/// A swarm. Each host leaves it with its engine, when that is dropped.
#[derive(Debug)]
pub struct Swarm<'h> {
    manager: &'h DockerHost,
}

impl<'h> Swarm<'h> {
    /// Makes a swarm of the hosts.
    ///
    /// # Errors
    /// There is none, or an engine refuses.
    pub fn start(hosts: &'h [DockerHost]) -> Result<Self> {
        let (manager, workers) = hosts.split_first().context("a swarm needs a host")?;
        let address = manager.ip().to_string();
        manager.docker(&["swarm", "init", "--advertise-addr", &address])?;
        let token = manager.docker(&["swarm", "join-token", "--quiet", "worker"])?;
        for worker in workers {
            worker.docker(&["swarm", "join", "--token", &token, &format!("{address}:2377")])?;
        }
        Ok(Self { manager })
    }

    /// Deploys a stack from its file, with these environment variables. No registry is asked for the images.
    ///
    /// # Errors
    /// As [`DockerHost::docker`].
    pub fn deploy(&self, stack: &str, file: &Path, env: &[(&str, &str)]) -> Result<()> {
        let mut docker = self.manager.docker_command()?;
        docker.args(["stack", "deploy", "--resolve-image", "never", "--compose-file"]).arg(file).arg(stack);
        tool::run(docker.envs(env.iter().copied())).map(drop)
    }
}
