//! The proxies under test: how each is configured, started, told and counted.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use rollcall_tests::{Process, http, port, tool, until};
use tempfile::TempDir;

/// How long a proxy may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Which proxy, and how it takes changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProxyKind {
    /// A current nginx, which reloads its file.
    Nginx,
    /// HAProxy 2.8, which is told at its runtime socket.
    Haproxy,
}

/// A proxy that runs. Dropped in the order of the fields.
#[derive(Debug)]
pub struct Proxy {
    kind: ProxyKind,
    process: Process,
    /// Where it serves.
    pub port: u16,
    dir: TempDir,
}

/// What a proxy is at a moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// Its processes, without a master.
    pub workers: usize,
    /// Those that shut down among them.
    pub draining: usize,
}

impl Proxy {
    /// Starts it with a file that has no servers yet.
    pub fn start(kind: ProxyKind, dest: &Path) -> Result<Self> {
        let (dir, port) = (tempfile::tempdir()?, port::free(Ipv4Addr::LOCALHOST.into())?);
        let command = match kind {
            ProxyKind::Nginx => nginx(dir.path(), dest, port)?,
            ProxyKind::Haproxy => haproxy(dir.path(), dest, port)?,
        };
        let process = Process::start("proxy", command, &dir.path().join("log"))?;
        let mut proxy = Self { kind, process, port, dir };
        let answers = || http::get(&format!("http://127.0.0.1:{port}/"));
        let started = until("the proxy answers", START_TIMEOUT, || answers().map(drop).map(|()| true));
        started.with_context(|| format!("its log ends with:\n{}", proxy.process.log_tail(10)))?;
        anyhow::ensure!(proxy.process.exited()?.is_none(), "the proxy has ended");
        Ok(proxy)
    }

    /// The consumer's target for it, in TOML, but for the file's name.
    pub fn target(&self) -> String {
        let path = |name: &str| self.dir.path().join(name);
        match self.kind {
            ProxyKind::Nginx => format!(
                "format = \"nginx-upstream\"\nselect = {{ service = \"web\" }}\n\
                 [target.notify]\npid_file = {:?}\nprocess = \"nginx\"\nsignal = \"HUP\"\n",
                path("nginx.pid")
            ),
            ProxyKind::Haproxy => format!(
                "format = \"haproxy-backend\"\nsink = \"haproxy\"\nselect = {{ service = \"web\" }}\n\
                 [target.runtime]\nsocket = {:?}\n",
                path("admin.sock")
            ),
        }
    }

    /// How many reloads there were.
    pub fn reloads(&self) -> usize {
        match self.kind {
            ProxyKind::Nginx => self.process.log().matches("signal 1 (SIGHUP) received").count(),
            // It has no master that could reload it; whoever ends it ends the run.
            ProxyKind::Haproxy => 0,
        }
    }

    /// Its processes now.
    pub fn sample(&self) -> Sample {
        if self.kind == ProxyKind::Haproxy {
            return Sample { workers: 1, draining: 0 };
        }
        let titles: Vec<String> = self.children().iter().filter_map(|child| title(*child)).collect();
        let are_workers = |title: &&String| title.starts_with("nginx: worker process");
        Sample {
            workers: titles.iter().filter(are_workers).count(),
            draining: titles.iter().filter(|title| title.contains("shutting down")).count(),
        }
    }

    /// The memory of all its processes, in MB: what they share is counted once.
    pub fn memory(&self) -> f64 {
        let all = self.children().into_iter().chain([self.process.pid()]);
        all.filter_map(proportional_memory).sum()
    }

    fn children(&self) -> Vec<u32> {
        let pid = self.process.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children.split_whitespace().filter_map(|child| child.parse().ok()).collect()
    }
}

impl Drop for Proxy {
    /// Killed, nginx would leave its workers behind.
    fn drop(&mut self) {
        let _ = self.process.terminate(START_TIMEOUT);
    }
}

fn nginx(dir: &Path, dest: &Path, port: u16) -> Result<Command> {
    fs::write(dest, "upstream web {\n    server 127.0.0.1:9 down;\n}\n")?;
    let text = format!(
        "daemon off; user root; worker_processes 2; pid nginx.pid; error_log stderr notice;\n\
         events {{}}\nhttp {{\n  access_log off;\n  include {dest:?};\n  server {{\n    \
         listen 127.0.0.1:{port} backlog=1024;\n    location / {{ proxy_pass http://web; proxy_http_version 1.1; \
         proxy_set_header Connection \"\"; }}\n  }}\n}}\n"
    );
    fs::write(dir.join("nginx.conf"), text)?;
    let mut command = Command::new(tool::part("nginx-1.31/nginx")?);
    command.arg("-p").arg(dir).args(["-c", "nginx.conf"]);
    Ok(command)
}

fn haproxy(dir: &Path, dest: &Path, port: u16) -> Result<Command> {
    fs::write(dest, "backend web\n")?;
    let socket = dir.join("admin.sock");
    let text = format!(
        "global\n    stats socket {} mode 600 level admin\n    nbthread 2\n\
         defaults\n    mode http\n    balance roundrobin\n    timeout connect 5s\n    timeout client 50s\n    \
         timeout server 50s\n    retries 3\n    option redispatch 1\n    retry-on conn-failure\n\
         frontend http\n    bind 127.0.0.1:{port}\n    default_backend web\n",
        socket.display()
    );
    let main: PathBuf = dir.join("haproxy.cfg");
    fs::write(&main, text)?;
    let mut command = Command::new(tool::part("haproxy-2.8/haproxy")?);
    command.env("LD_LIBRARY_PATH", tool::part("haproxy-2.8/lib")?);
    command.arg("-db").arg("-f").arg(main).arg("-f").arg(dest);
    Ok(command)
}

fn title(pid: u32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()
}

/// The share of memory that a process has, in MB (proc_pid_smaps_rollup(5)).
fn proportional_memory(pid: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<f64>().ok()? * 1024.0 / 1e6)
}
