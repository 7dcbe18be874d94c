//! The programs that the harness calls: where they are found, and running one to its end.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// The workspace's root.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is a folder of the workspace")
}

/// Cargo's target folder: CARGO_TARGET_DIR, else the workspace's `target`.
pub fn target_dir() -> PathBuf {
    workspace().join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// The folder where `tests/parts` and the harness keep what is costly to make.
pub fn parts_dir() -> PathBuf {
    target_dir().join("parts")
}

/// The path of a program: on PATH, in the folders of the system's own programs, or unpacked by `tests/parts`.
///
/// # Errors
/// It is nowhere; the message says that `tests/parts` installs it.
pub fn find(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let unpacked = parts_dir().join("etcd/usr/bin");
    env::split_paths(&path)
        .chain(system)
        .chain([unpacked])
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} not found: run tests/parts"))
}

/// The path of a file that `tests/parts` unpacks, such as `haproxy-2.8/haproxy`.
///
/// # Errors
/// It is not there; the message says that `tests/parts` installs it.
pub fn part(name: &str) -> Result<PathBuf> {
    let path = parts_dir().join(name);
    ensure!(path.exists(), "{} not found: run tests/parts", path.display());
    Ok(path)
}

/// A command for the etcd 3.5 that `tests/parts` unpacks.
///
/// # Errors
/// As [`part`].
pub fn etcd_3_5() -> Result<Command> {
    Ok(Command::new(part("etcd-3.5/etcd")?))
}

/// A command for a program that [`find`] finds.
///
/// # Errors
/// It is nowhere.
pub fn command(name: &str) -> Result<Command> {
    Ok(Command::new(find(name)?))
}

/// Runs a command to its end and gives what it printed, without the last newline.
///
/// # Errors
/// It could not be started or failed; the message has the command and what it said.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let printed = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed with {}: {}{}", output.status, said.trim_end(), printed.trim_end());
    }
    Ok(printed.trim_end_matches('\n').to_owned())
}

/// Runs a program that [`find`] finds with these arguments, split at spaces.
///
/// # Errors
/// As [`find`] and [`run`].
pub fn run_line(line: &str) -> Result<String> {
    let mut words = line.split(' ');
    let name = words.next().unwrap_or_default();
    run(command(name)?.args(words))
}

/// Refuses to go on without root, which namespaces, bridges and Docker engines need.
///
/// # Errors
/// The process is not root's.
pub fn need_root() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "Docker hosts of their own need root: run the tests as root"
    );
    Ok(())
}
