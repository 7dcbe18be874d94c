//! One container of a Docker host, removed when the value is dropped.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::docker_cli::docker_command;
use crate::{DockerHost, leftovers, tool};

/// A container that a test started.
#[derive(Debug)]
pub struct Container {
    id: String,
    ip: IpAddr,
    socket: PathBuf,
}

impl Container {
    pub(crate) fn run(host: &DockerHost, args: &[&str]) -> Result<Self> {
        let label = leftovers::label();
        let id = host.docker(&[&["run", "--detach", "--label", label.as_str()], args].concat())?;
        Ok(Self { id, ip: host.ip(), socket: host.socket().to_owned() })
    }

    /// The whole ID, 64 characters.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The 12 characters that Rollcall's keys and `docker ps` show.
    pub fn short_id(&self) -> &str {
        &self.id[..12]
    }

    /// Where a published TCP port of it is reached from this machine and the other hosts.
    ///
    /// # Errors
    /// The port is not published, or the container does not run.
    pub fn published(&self, port: u16) -> Result<SocketAddr> {
        let format = format!("{{{{(index (index .NetworkSettings.Ports \"{port}/tcp\") 0).HostPort}}}}");
        let host_port = self.inspect(&format).with_context(|| format!("port {port} is not published"))?;
        Ok(SocketAddr::new(self.ip, host_port.parse()?))
    }

    /// What `docker inspect` says, by a Go template such as `{{.State.Status}}`.
    ///
    /// # Errors
    /// As [`DockerHost::docker`].
    pub fn inspect(&self, format: &str) -> Result<String> {
        self.docker(&["inspect", "--format", format, &self.id])
    }

    /// Its logs, both streams.
    ///
    /// # Errors
    /// As [`DockerHost::docker`].
    pub fn logs(&self) -> Result<String> {
        let output = docker_command(&self.socket)?.args(["logs", &self.id]).output()?;
        Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    /// Runs a command in it and gives what it printed.
    ///
    /// # Errors
    /// As [`DockerHost::docker`].
    pub fn exec(&self, args: &[&str]) -> Result<String> {
        self.docker(&[&["exec", &self.id], args].concat())
    }

    /// `docker stop`: its stop signal, and SIGKILL after `seconds`.
    ///
    /// # Errors
    /// As [`DockerHost::docker`].
    pub fn stop(&self, seconds: u32) -> Result<()> {
        self.docker(&["stop", "--time", &seconds.to_string(), &self.id]).map(drop)
    }

    /// `docker kill` with this signal.
    ///
    /// # Errors
    /// As [`DockerHost::docker`].
    pub fn kill(&self, signal: &str) -> Result<()> {
        self.docker(&["kill", "--signal", signal, &self.id]).map(drop)
    }

    /// `docker start`, for one that has stopped. A port that was not given by number changes.
    ///
    /// # Errors
    /// As [`DockerHost::docker`].
    pub fn start(&self) -> Result<()> {
        self.docker(&["start", &self.id]).map(drop)
    }

    fn docker(&self, args: &[&str]) -> Result<String> {
        tool::run(docker_command(&self.socket)?.args(args))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // It may have gone already, by --rm or with its host.
        let _ = self.docker(&["rm", "--force", "--volumes", &self.id]);
    }
}
