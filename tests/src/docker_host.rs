//! Docker hosts: this machine's own engine, and hosts with a network namespace, an address and an engine of
//! their own.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::docker_cli::{docker_command, local_socket};
use crate::netns::nsenter;
use crate::own_host::OwnHost;
use crate::{Bridge, Container, Process, leftovers, tool};

/// A Docker host. One with an engine of its own goes, with all its containers, when dropped.
#[derive(Debug)]
pub struct DockerHost {
    ip: IpAddr,
    socket: PathBuf,
    own: Option<OwnHost>,
}

impl DockerHost {
    /// This machine's own engine, at 127.0.0.1; nothing of it is started or stopped.
    ///
    /// # Errors
    /// Docker is missing or does not answer.
    pub fn local() -> Result<Self> {
        let host = Self { ip: Ipv4Addr::LOCALHOST.into(), socket: local_socket(), own: None };
        host.docker(&["version", "--format", "{{.Server.Version}}"])
            .context("no Docker engine answers: run tests/parts")?;
        leftovers::clear();
        Ok(host)
    }

    /// Host `n` (1 to 250) on a bridge: a network namespace with address 10.77.x.n and an engine in it, which
    /// answers when this returns.
    ///
    /// # Errors
    /// Not root, a tool is missing, or the engine does not come up.
    pub fn start(n: u8, bridge: &Bridge) -> Result<Self> {
        Self::start_with(n, bridge, &[])
    }

    /// As [`DockerHost::start`], with further arguments for dockerd.
    ///
    /// # Errors
    /// As [`DockerHost::start`].
    pub fn start_with(n: u8, bridge: &Bridge, extra: &[String]) -> Result<Self> {
        ensure!((1..=250).contains(&n), "a host's number is 1 to 250, not {n}");
        let own = OwnHost::start(n, bridge, extra)?;
        Ok(Self { ip: bridge.address(n).into(), socket: own.socket(), own: Some(own) })
    }

    /// Hosts 1 to `count` on a bridge, started at the same time.
    ///
    /// # Errors
    /// As [`DockerHost::start`].
    pub fn start_several(count: u8, bridge: &Bridge) -> Result<Vec<Self>> {
        thread::scope(|scope| {
            let starts: Vec<_> = (1..=count).map(|n| scope.spawn(move || Self::start(n, bridge))).collect();
            starts.into_iter().map(|start| start.join().expect("starting a host does not panic")).collect()
        })
    }

    /// The engine's unix socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The socket as DOCKER_HOST wants it.
    pub fn docker_host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// The host's address.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// The file of the host's network namespace; this machine has none.
    pub fn netns(&self) -> Option<&Path> {
        self.own.as_ref().map(|own| own.netns.as_path())
    }

    /// A folder of the host's own, for files of a test that are to go with it; this machine has none.
    pub fn dir(&self) -> Option<&Path> {
        self.own.as_ref().map(|own| own.dir.path())
    }

    /// Unplugs the host from the bridge: a partition.
    ///
    /// # Errors
    /// This machine itself cannot be cut off.
    pub fn cut_off(&self) -> Result<()> {
        self.own("be cut off")?.plug("down")
    }

    /// Plugs it in again.
    ///
    /// # Errors
    /// As [`DockerHost::cut_off`].
    pub fn heal(&self) -> Result<()> {
        self.own("be healed")?.plug("up")
    }

    /// Runs the docker CLI against this host's engine and gives what it printed.
    ///
    /// # Errors
    /// It failed; the message says how.
    pub fn docker(&self, args: &[&str]) -> Result<String> {
        tool::run(self.docker_command()?.args(args))
    }

    /// The docker CLI, pointed at this host's engine.
    ///
    /// # Errors
    /// docker is missing.
    pub fn docker_command(&self) -> Result<Command> {
        docker_command(&self.socket)
    }

    /// Starts a container with `docker run --detach` and these arguments: options, image, command.
    ///
    /// # Errors
    /// As [`DockerHost::docker`].
    pub fn run(&self, args: &[&str]) -> Result<Container> {
        Container::run(self, args)
    }

    /// Copies an image from this machine's engine to this host's.
    ///
    /// # Errors
    /// There is no such image, or the copy fails.
    pub fn load_image(&self, name: &str) -> Result<()> {
        let local = Self::local()?;
        if self.socket == local.socket {
            return Ok(());
        }
        let mut save = local.docker_command()?.args(["save", name]).stdout(Stdio::piped()).spawn()?;
        let image = save.stdout.take().expect("it was piped above");
        let loaded = tool::run(self.docker_command()?.args(["load", "--quiet"]).stdin(image));
        // The saving side's failure is the cause, if both failed.
        ensure!(save.wait()?.success(), "docker save {name} failed");
        loaded.map(drop)
    }

    /// The command as it is started on this host's network: the same program, arguments, environment and
    /// folder, its process ID too. Redirections must be made on the result.
    ///
    /// # Errors
    /// nsenter is missing.
    pub fn run_in_netns(&self, command: Command) -> Result<Command> {
        match self.netns() {
            Some(netns) => nsenter(netns, &command),
            None => Ok(command),
        }
    }

    /// The engine's process ID.
    ///
    /// # Errors
    /// It does not run, or is not the harness's.
    pub fn engine_pid(&self) -> Result<u32> {
        let engine = self.own("tell its engine's process")?.engine.as_ref();
        engine.map(Process::pid).context("the engine does not run")
    }

    /// Stops the engine (SIGTERM): its containers stop too.
    ///
    /// # Errors
    /// It is not the harness's, or does not stop.
    pub fn stop_engine(&mut self) -> Result<()> {
        self.own_mut("be stopped")?.stop_engine()
    }

    /// Kills the engine (SIGKILL): a crash, which its containers outlive.
    ///
    /// # Errors
    /// It is not the harness's.
    pub fn kill_engine(&mut self) -> Result<()> {
        self.own_mut("be killed")?.engine = None;
        Ok(())
    }

    /// Starts an engine that was stopped or killed, with its data.
    ///
    /// # Errors
    /// It is not the harness's, or does not come up.
    pub fn start_engine(&mut self) -> Result<()> {
        self.own_mut("be started")?.start_engine()
    }

    fn own(&self, what: &str) -> Result<&OwnHost> {
        self.own.as_ref().with_context(|| format!("this machine's own engine cannot {what}"))
    }

    fn own_mut(&mut self, what: &str) -> Result<&mut OwnHost> {
        self.own.as_mut().with_context(|| format!("this machine's own engine cannot {what}"))
    }
}
