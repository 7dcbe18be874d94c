//! What there is to a Docker host that is not this machine itself: a network namespace on a bridge, and an
//! engine in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::docker_cli::{docker_command, local_command, remove_containers};
use crate::netns::nsenter;
use crate::{Bridge, Process, leftovers, tool, until};

const START_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// What there is to a host that is not this machine itself.
#[derive(Debug)]
pub(crate) struct OwnHost {
    n: u8,
    pub(crate) netns: PathBuf,
    extra: Vec<String>,
    pub(crate) engine: Option<Process>,
    pub(crate) dir: TempDir,
    bridge: Bridge,
}

impl OwnHost {
    /// Makes the namespace and starts the engine, with further arguments for dockerd.
    pub(crate) fn start(n: u8, bridge: &Bridge, extra: &[String]) -> Result<Self> {
        let name = bridge.netns(n);
        let dir = tempfile::Builder::new().prefix(&leftovers::prefix()).tempdir()?;
        let netns = Path::new("/run/netns").join(&name);
        let mut own = Self { n, netns, extra: extra.to_vec(), engine: None, dir, bridge: bridge.clone() };
        own.connect(&name)?;
        own.start_engine()?;
        Ok(own)
    }

    /// The engine's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    /// Sets the host's end on the bridge `up` or `down`.
    pub(crate) fn plug(&self, state: &str) -> Result<()> {
        tool::run_line(&format!("ip link set {} {state}", self.bridge.veth(self.n))).map(drop)
    }

    /// Stops the engine (SIGTERM) and waits for its end.
    pub(crate) fn stop_engine(&mut self) -> Result<()> {
        self.engine.take().context("the engine does not run")?.terminate(STOP_TIMEOUT).map(drop)
    }

    /// Makes the namespace and its one link, to the bridge.
    fn connect(&self, netns: &str) -> Result<()> {
        let (veth, bridge) = (self.bridge.veth(self.n), self.bridge.name());
        let address = self.bridge.address(self.n);
        for line in [
            format!("ip netns add {netns}"),
            format!("ip -n {netns} link set lo up"),
            format!("ip link add {veth} type veth peer name eth0 netns {netns}"),
            format!("ip link set {veth} master {bridge} up"),
            format!("ip -n {netns} addr add {address}/24 dev eth0"),
            format!("ip -n {netns} link set eth0 up"),
        ] {
            tool::run_line(&line)?;
        }
        Ok(())
    }

    /// Starts dockerd in the namespace and waits until it answers.
    pub(crate) fn start_engine(&mut self) -> Result<()> {
        ensure!(self.engine.is_none(), "the engine runs already");
        let dir = self.dir.path();
        // A file of its own, as the machine's would be read otherwise. Before version 23 an engine's ID is
        // that of a key in /etc/docker, which all engines of one machine would share; here each has its own.
        let mut config = serde_json::json!({});
        if engine_version()? < 23 {
            config["deprecated-key-path"] = dir.join("key.json").to_string_lossy().into();
        }
        fs::write(dir.join("daemon.json"), config.to_string())?;
        // After a crash these name dead processes. Until init has reaped them, dockerd would take them for alive
        // and wait for 15 s.
        for stale in ["pid", "exec/containerd/containerd.pid"] {
            let _ = fs::remove_file(dir.join(stale));
        }
        let mut command = tool::command("dockerd")?;
        let flag = |command: &mut Command, name: &str, file: &str| {
            command.arg(name).arg(dir.join(file));
        };
        flag(&mut command, "--config-file", "daemon.json");
        flag(&mut command, "--data-root", "data");
        flag(&mut command, "--exec-root", "exec");
        flag(&mut command, "--pidfile", "pid");
        command.args(["--host", &format!("unix://{}", self.socket().display())]);
        command.args(["--bip", &format!("172.30.{}.1/24", self.n)]);
        // This one is never chosen by itself, so that where it was configured the others are of no use.
        if storage_driver()? == "fuse-overlayfs" {
            command.args(["--storage-driver", "fuse-overlayfs"]);
        }
        command.args(&self.extra);
        let command = named(&format!("host-{}", self.n), &command)?;
        // `ip netns exec` would remount /sys and hide the cgroups from dockerd.
        let command = nsenter(&self.netns, &command)?;
        let mut engine =
            Process::start(&format!("dockerd of host {}", self.n), command, &dir.join("dockerd.log"))?;
        let socket = self.socket();
        until(&format!("the engine of host {} answers", self.n), START_TIMEOUT, || {
            if let Some(status) = engine.exited()? {
                return Ok(Some(Err(status)));
            }
            tool::run(docker_command(&socket)?.arg("version")).map(|_| Some(Ok(())))
        })
        .with_context(|| format!("its log ends with:\n{}", engine.log_tail(20)))?
        .or_else(|status| {
            bail!("dockerd of host {} ended with {status}:\n{}", self.n, engine.log_tail(20))
        })?;
        self.engine = Some(engine);
        Ok(())
    }
}

impl Drop for OwnHost {
    fn drop(&mut self) {
        // Best effort throughout: what stays is cleared by the next run.
        // The engine removes its containers, for it alone knows all that belongs to one (cgroups, sockets). One
        // that a test crashed is started once more for that.
        if self.engine.is_some() || self.start_engine().is_ok() {
            let _ = remove_containers(&self.socket());
        }
        // Killed, as with its containers gone nothing is lost, and a shutdown takes it a second.
        self.engine = None;
        leftovers::clear_dir(self.dir.path());
        let _ = tool::run_line(&format!("ip link del {}", self.bridge.veth(self.n)));
        let _ = tool::run_line(&format!("ip netns del {}", self.bridge.netns(self.n)));
    }
}

/// The command with a host name of its own, which an engine reports as its own and Swarm knows a node by.
fn named(host: &str, command: &Command) -> Result<Command> {
    let mut wrapped = tool::command("unshare")?;
    wrapped.args(["--uts", "sh", "-c", "hostname \"$0\" && exec \"$@\"", host]);
    wrapped.arg(command.get_program()).args(command.get_args());
    Ok(wrapped)
}

/// The major version of the installed dockerd.
fn engine_version() -> Result<u32> {
    let printed = tool::run_line("dockerd --version")?;
    let version = printed.split("version ").nth(1).and_then(|rest| rest.split('.').next());
    version.and_then(|major| major.parse().ok()).with_context(|| format!("no version in {printed:?}"))
}

/// The storage driver of this machine's own engine, known to work here.
fn storage_driver() -> Result<String> {
    tool::run(local_command()?.args(["info", "--format", "{{.Driver}}"]))
}
