//! What a run that was killed could not remove: found by the dead owner's process ID, which every name and
//! process of the harness bears, and removed by the next run. Nothing of a living run is touched.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process;
use std::sync::Once;

use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process};

use crate::docker_cli::local_command;
use crate::tool;

/// The environment variable that marks every process of a run.
const OWNER: &str = "HARNESS_OWNER";

/// The label that marks every container of a run. Not a `rollcall.` one, so that Rollcall reads nothing into
/// it.
const LABEL: &str = "harness.owner";

/// The start of the name of every temporary folder of this run.
pub(crate) fn prefix() -> String {
    format!("rollcall-{}-", process::id())
}

/// The label of every container of this run: `name=value`.
pub fn label() -> String {
    format!("{LABEL}={}", process::id())
}

/// The environment variable of every process of this run.
pub(crate) fn mark() -> (&'static str, String) {
    (OWNER, process::id().to_string())
}

/// Removes what dead runs left, once in each process. What cannot be removed is left.
pub fn clear() {
    static ONCE: Once = Once::new();
    ONCE.call_once(clear_now);
}

fn clear_now() {
    for folder in names(&std::env::temp_dir()).filter(|name| is_of_dead(name, "rollcall-")) {
        let folder = std::env::temp_dir().join(folder);
        clear_dir(&folder);
        let _ = fs::remove_dir_all(folder);
    }
    for pid in pids() {
        let marked = variable(pid, OWNER).is_some_and(|owner| is_of_dead(&owner, ""));
        if marked {
            kill(pid);
        }
    }
    for netns in names(Path::new("/run/netns")).filter(|name| is_of_dead(name, "rc")) {
        let _ = tool::run_line(&format!("ip netns del {netns}"));
    }
    for link in names(Path::new("/sys/class/net")).filter(|name| is_of_dead(name, "rc")) {
        let _ = tool::run_line(&format!("ip link del {link}"));
    }
    for rule in tool::run_line("iptables -w -S FORWARD").unwrap_or_default().lines() {
        if rule.strip_prefix("-A FORWARD -i ").is_some_and(|rest| is_of_dead(rest, "rc")) {
            let _ = tool::run_line(&format!("iptables -w {}", rule.replacen("-A", "-D", 1)));
        }
    }
    // Without Docker there are no containers either.
    let _ = clear_containers();
}

fn clear_containers() -> Result<()> {
    let format = format!("{{{{.ID}}}} {{{{.Label \"{LABEL}\"}}}}");
    let filter = format!("label={LABEL}");
    let listed = tool::run(local_command()?.args(["ps", "--all", "--filter", &filter, "--format", &format]))?;
    for (id, owner) in listed.lines().filter_map(|line| line.split_once(' ')) {
        if is_of_dead(owner, "") {
            tool::run(local_command()?.args(["rm", "--force", "--volumes", id]))?;
        }
    }
    Ok(())
}

/// Ends every process whose command line names `dir`, the containers of such shims too, and unmounts all
/// below it.
pub(crate) fn clear_dir(dir: &Path) {
    let named: Vec<u32> = pids().filter(|pid| command_line(*pid).contains(&*dir.to_string_lossy())).collect();
    let contained: Vec<u32> = pids()
        .filter(|pid| {
            parent(*pid).is_some_and(|parent| {
                named.contains(&parent) && command_line(parent).contains("containerd-shim")
            })
        })
        .collect();
    contained.into_iter().chain(named).for_each(kill);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let inside = |line: &&str| line.split(' ').nth(1).is_some_and(|point| Path::new(point).starts_with(dir));
    // Later mounts may lie on earlier ones.
    for mount in mounts.lines().filter(inside).collect::<Vec<_>>().into_iter().rev() {
        let point = mount.split(' ').nth(1).unwrap_or_default();
        let _ = tool::run_line(&format!("umount --lazy {point}"));
    }
}

/// Whether a name is `start`, then the ID of a process that does not live, then no more digits.
fn is_of_dead(name: &str, start: &str) -> bool {
    let Some(rest) = name.strip_prefix(start) else { return false };
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse::<u32>().is_ok_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

fn names(folder: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

fn pids() -> impl Iterator<Item = u32> {
    names(Path::new("/proc")).filter_map(|name| name.parse().ok())
}

fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

fn variable(pid: u32, name: &str) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let found = bytes
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
    found.map(|value| std::ffi::OsStr::from_bytes(value).to_string_lossy().into_owned())
}

fn parent(pid: u32) -> Option<u32> {
    // `pid (name) state ppid ...`, where the name may hold spaces and brackets.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_dead_processes_count_as_leftovers() {
        assert!(is_of_dead("rc4999999b1", "rc"), "no process has an ID above 4194304");
        assert!(is_of_dead("4999999", ""));
        assert!(!is_of_dead(&format!("rc{}b1", process::id()), "rc"));
        assert!(!is_of_dead("rcd", "rc"));
        assert!(!is_of_dead("docker0", "rc"));
    }
}
