//! One etcd member: a real etcd with a data folder of its own, which can be stopped, killed, started again
//! and wiped.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::netns::nsenter;
use crate::{Etcdctl, Process, Tls, http, leftovers, port, tool, until};

/// A member that is not healthy by then will not be.
const START_TIMEOUT: Duration = Duration::from_secs(20);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Where and how a member runs.
#[derive(Debug, Clone)]
pub struct EtcdConfig {
    /// The member's name, unique within its cluster.
    pub name: String,
    /// The address it listens on and advertises.
    pub listen_ip: IpAddr,
    /// The network namespace to run in. Ports are then etcd's own (2379, 2380); elsewhere they are picked.
    pub netns: Option<PathBuf>,
    /// Serves clients by TLS and asks for their certificates, signed by the same authority.
    pub tls: Option<Arc<Tls>>,
    /// Further arguments.
    pub extra: Vec<String>,
    /// Whether it is etcd 3.5 and not the machine's own.
    pub is_3_5: bool,
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self {
            name: "etcd".to_owned(),
            listen_ip: Ipv4Addr::LOCALHOST.into(),
            netns: None,
            tls: None,
            extra: Vec::new(),
            is_3_5: false,
        }
    }
}

/// A member, stopped and removed with its data when dropped.
///
/// Its election time-out is 500 ms, so that the shortest lease is 1 s; fsync is on.
#[derive(Debug)]
pub struct Etcd {
    config: EtcdConfig,
    ports: [u16; 3],
    cluster: String,
    // Before the folder, which can be removed only once etcd writes no more.
    process: Option<Process>,
    dir: TempDir,
    pid: u32,
    root_password: Option<String>,
}

impl Etcd {
    /// A cluster of one on 127.0.0.1, healthy when this returns.
    ///
    /// # Errors
    /// etcd is missing, or does not become healthy.
    pub fn start() -> Result<Self> {
        Self::start_with(EtcdConfig::default())
    }

    /// A cluster of one as configured, healthy when this returns.
    ///
    /// # Errors
    /// As [`Etcd::start`].
    pub fn start_with(config: EtcdConfig) -> Result<Self> {
        let mut etcd = Self::new(config)?;
        etcd.cluster = etcd.peer();
        etcd.spawn()?;
        etcd.wait_healthy()?;
        Ok(etcd)
    }

    /// A member that does not run yet and belongs to no cluster.
    pub(crate) fn new(config: EtcdConfig) -> Result<Self> {
        leftovers::clear();
        let ports = match config.netns {
            Some(_) => [2379, 2380, 2381],
            None => {
                [port::free(config.listen_ip)?, port::free(config.listen_ip)?, port::free(config.listen_ip)?]
            }
        };
        let dir = tempfile::Builder::new().prefix(&leftovers::prefix()).tempdir()?;
        Ok(Self { config, ports, cluster: String::new(), dir, process: None, pid: 0, root_password: None })
    }

    /// This member's part of `--initial-cluster`.
    pub(crate) fn peer(&self) -> String {
        format!("{}=http://{}", self.config.name, self.address(1))
    }

    pub(crate) fn join(&mut self, cluster: String) {
        self.cluster = cluster;
    }

    /// Starts the process, without waiting for anything.
    pub(crate) fn spawn(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "{} runs already", self.config.name);
        let peer = format!("http://{}", self.address(1));
        let mut command = if self.config.is_3_5 { tool::etcd_3_5()? } else { tool::command("etcd")? };
        command
            .args(["--name", &self.config.name, "--data-dir"])
            .arg(self.dir.path().join("data"))
            .args(["--listen-client-urls", &self.endpoint(), "--advertise-client-urls", &self.endpoint()])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--listen-metrics-urls", &format!("http://{}", self.address(2))])
            .args(["--initial-cluster", &self.cluster])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .args(["--logger", "zap", "--log-outputs", "stderr", "--log-level", "warn"]);
        if let Some(tls) = &self.config.tls {
            let (certificate, key) = tls.server();
            command.arg("--cert-file").arg(certificate).arg("--key-file").arg(key);
            command.arg("--trusted-ca-file").arg(tls.ca()).arg("--client-cert-auth");
        }
        command.args(&self.config.extra);
        if let Some(netns) = &self.config.netns {
            command = nsenter(netns, &command)?;
        }
        let process = Process::start(&self.config.name, command, &self.dir.path().join("log"))?;
        self.pid = process.pid();
        self.process = Some(process);
        Ok(())
    }

    /// Waits until the member has a leader and answers reads.
    ///
    /// # Errors
    /// It ended or did not become healthy in time; the message has the end of its log.
    pub fn wait_healthy(&mut self) -> Result<()> {
        let name = self.config.name.clone();
        let health = format!("http://{}/health", self.address(2));
        let process = self.process.as_mut().with_context(|| format!("{name} does not run"))?;
        let mut ended = None;
        until(&format!("etcd member {name} is healthy"), START_TIMEOUT, || {
            ended = process.exited()?;
            Ok(ended.is_some() || http::get(&health)?.body.contains("\"true\""))
        })
        .with_context(|| format!("its log ends with:\n{}", process.log_tail(20)))?;
        if let Some(status) = ended {
            bail!("etcd member {name} ended with {status}:\n{}", process.log_tail(20));
        }
        Ok(())
    }

    /// The client URL.
    pub fn endpoint(&self) -> String {
        let scheme = if self.config.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address(0))
    }

    /// Where it serves `/metrics` and `/health` without TLS.
    pub fn metrics_url(&self) -> String {
        format!("http://{}/metrics", self.address(2))
    }

    /// The sum of its metrics whose line starts with `prefix`.
    ///
    /// # Errors
    /// It does not answer, or has no such metric.
    pub fn metric(&self, prefix: &str) -> Result<f64> {
        let body = crate::http::get(&self.metrics_url())?.body;
        let value = |line: &str| line.strip_prefix(prefix)?.rsplit(' ').next()?.parse::<f64>().ok();
        body.lines()
            .filter_map(value)
            .reduce(|sum, next| sum + next)
            .with_context(|| format!("no metric {prefix}"))
    }

    /// The process ID, or the last one when it does not run.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub fn stop(&mut self) -> Result<()> {
        let mut process =
            self.process.take().with_context(|| format!("{} does not run", self.config.name))?;
        process.terminate(STOP_TIMEOUT)?;
        Ok(())
    }

    /// SIGKILL: a crash. Its data and ports stay.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again with the same data and ports, and waits until it is healthy.
    ///
    /// # Errors
    /// It runs, or does not become healthy.
    pub fn start_again(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_healthy()
    }

    /// Removes the data of a member that does not run: it comes back empty, at revision 1.
    ///
    /// # Errors
    /// It runs.
    pub fn wipe(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "{} still runs: stop it before wiping it", self.config.name);
        self.root_password = None;
        fs::remove_dir_all(self.dir.path().join("data")).context("cannot remove etcd's data")
    }

    /// Saves a snapshot of its data, and gives the file.
    ///
    /// # Errors
    /// etcdctl fails.
    pub fn snapshot(&self) -> Result<PathBuf> {
        let file = self.dir.path().join("snapshot");
        let path = file.to_str().context("a path in UTF-8")?;
        self.etcdctl(&["snapshot", "save", path])?;
        Ok(file)
    }

    /// Replaces the data of a member that does not run by those of a snapshot, as an operator would: under the same name
    /// and addresses, so that the cluster's ID stays.
    ///
    /// # Errors
    /// It runs, or etcdctl fails.
    pub fn restore(&mut self, snapshot: &Path) -> Result<()> {
        self.wipe()?;
        let mut restore = tool::command("etcdctl")?;
        restore.env("ETCDCTL_API", "3").args(["snapshot", "restore"]).arg(snapshot);
        restore.args(["--name", &self.config.name, "--initial-cluster", &self.cluster]);
        restore.args(["--initial-advertise-peer-urls", &format!("http://{}", self.address(1))]);
        restore.arg("--data-dir").arg(self.dir.path().join("data"));
        tool::run(&mut restore).map(drop)
    }

    /// Has a member that does not run serve with other certificates from its next start on.
    pub fn set_tls(&mut self, tls: Arc<Tls>) {
        self.config.tls = Some(tls);
    }

    /// Has the process hang (SIGSTOP) until it is resumed: its connections stay open.
    ///
    /// # Errors
    /// It does not run.
    pub fn hang(&mut self) -> Result<()> {
        self.process.as_mut().context("it does not run")?.signal(Signal::STOP)
    }

    /// Lets a process that hangs go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&mut self) -> Result<()> {
        self.process.as_mut().context("it does not run")?.signal(Signal::CONT)
    }

    /// Turns authentication on, with a user `root` of this password, whom [`Etcd::ctl`] uses from then on.
    ///
    /// # Errors
    /// etcd refuses.
    pub fn enable_auth(&mut self, root_password: &str) -> Result<()> {
        let ctl = self.ctl();
        ctl.run(&["user", "add", &format!("root:{root_password}")])?;
        ctl.run(&["user", "grant-role", "root", "root"])?;
        ctl.run(&["auth", "enable"])?;
        self.root_password = Some(root_password.to_owned());
        Ok(())
    }

    /// A client of this member alone.
    pub fn ctl(&self) -> Etcdctl {
        let ctl = Etcdctl::new(vec![self.endpoint()], self.config.tls.clone());
        match &self.root_password {
            Some(password) => ctl.as_user("root", password),
            None => ctl,
        }
    }

    /// Runs `etcdctl` against this member and gives what it printed.
    ///
    /// # Errors
    /// etcdctl fails.
    pub fn etcdctl(&self, args: &[&str]) -> Result<String> {
        self.ctl().run(args)
    }

    pub(crate) fn tls(&self) -> Option<Arc<Tls>> {
        self.config.tls.clone()
    }

    fn address(&self, port: usize) -> SocketAddr {
        SocketAddr::new(self.config.listen_ip, self.ports[port])
    }
}
