//! Rollcall's own programs, built once and run as a user runs them.

use std::env;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Result, anyhow};
use tempfile::TempDir;

use crate::{Process, leftovers, tool};

/// How much of the log is shown in the end.
const MAX_SHOWN_LINES: usize = 200;

/// A running `rollcall-agent` or `rollcall-consumer`: a [`Process`] with its own log, whose end is printed
/// when the value is dropped. Cargo shows what a test prints if the test fails, and only then.
#[derive(Debug)]
pub struct Program {
    name: String,
    process: Process,
    silent: bool,
    _dir: TempDir,
}

impl Program {
    /// `rollcall-agent`, to which arguments and environment are added. No setting of the caller's own
    /// environment reaches it.
    ///
    /// # Errors
    /// It does not build.
    pub fn agent() -> Result<Command> {
        command("rollcall-agent")
    }

    /// `rollcall-consumer`, likewise.
    ///
    /// # Errors
    /// It does not build.
    pub fn consumer() -> Result<Command> {
        command("rollcall-consumer")
    }

    /// Starts such a command, or one that [`crate::DockerHost::run_in_netns`] made of it, under a name for
    /// messages.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(name: &str, command: Command) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix(&leftovers::prefix()).tempdir()?;
        let process = Process::start(name, command, &dir.path().join("log"))?;
        Ok(Self { name: name.to_owned(), process, silent: false, _dir: dir })
    }

    /// Does not print its log in the end; for the bench, which prints figures only.
    pub fn silent(mut self) -> Self {
        self.silent = true;
        self
    }
}

impl Deref for Program {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Program {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.silent {
            eprintln!(
                "--- log of {} ---\n{}\n--- end ---",
                self.name,
                self.process.log_tail(MAX_SHOWN_LINES)
            );
        }
    }
}

/// The folder with the built programs, of the caller's own profile: a release bench measures a release.
///
/// # Errors
/// They do not build; the message has what cargo said.
pub fn built() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    built.clone().map_err(|error| anyhow!("Rollcall's programs do not build: {error}"))
}

fn build() -> Result<PathBuf> {
    let release = !cfg!(debug_assertions);
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "build",
        "--quiet",
        "--package",
        "rollcall-agent",
        "--package",
        "rollcall-consumer",
        "--bins",
    ]);
    if release {
        cargo.arg("--release");
    }
    cargo.arg("--target-dir").arg(tool::target_dir()).current_dir(tool::workspace());
    tool::run(&mut cargo)?;
    Ok(tool::target_dir().join(if release { "release" } else { "debug" }))
}

fn command(name: &str) -> Result<Command> {
    let mut command = Command::new(built()?.join(name));
    let settings = ["ROLLCALL_", "ETCDCTL_", "DOCKER_", "CITUS_", "DEBUG", "RUST_LOG"];
    for (variable, _) in env::vars_os() {
        if settings.iter().any(|start| variable.to_string_lossy().starts_with(start)) {
            command.env_remove(variable);
        }
    }
    Ok(command)
}
