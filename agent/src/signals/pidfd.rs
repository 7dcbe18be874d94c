//! Signals containers' first processes straight, where this agent shares the host's PID namespace: that takes some
//! microseconds, and Docker some milliseconds.

use std::{collections::BTreeMap, fs, os::fd::OwnedFd};

use rollcall_shared::model::signal::Signal;
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};

use crate::inventory::container::{Container, FullId};

/// Handles of processes that are surely their containers' own, kept for the next signal.
#[derive(Debug, Default)]
pub struct ProcessHandles(BTreeMap<FullId, Process>);

#[derive(Debug)]
struct Process {
    pid: Pid,
    handle: OwnedFd,
}

impl ProcessHandles {
    /// Drops the handles of containers that do not run.
    pub fn retain(&mut self, is_running: impl Fn(&FullId) -> bool) {
        self.0.retain(|id, _| is_running(id));
    }

    /// Signals the container's process, if that is surely its own; tells whether it did.
    pub fn signal(&mut self, container: &Container, signal: Signal) -> bool {
        let Some(pid) = container.pid.and_then(Pid::from_raw) else { return false };
        let Some(signal) = rustix::process::Signal::from_named_raw(signal.number()) else { return false };
        if self.0.get(&container.id).is_none_or(|known| known.pid != pid) {
            let Some(process) = Process::of_container(pid, &container.id) else { return false };
            self.0.insert(container.id.clone(), process);
        }
        let known = self.0.get(&container.id);
        let is_sent = known.is_some_and(|known| pidfd_send_signal(&known.handle, signal).is_ok());
        if !is_sent {
            self.0.remove(&container.id);
        }
        is_sent
    }
}

impl Process {
    /// The process of this number, if it is in the container's control group, whose path has the container's full ID
    /// with every cgroup driver.
    fn of_container(pid: Pid, id: &str) -> Option<Self> {
        // First the handle, then the check: the process that was checked is the one that is signalled. In another PID
        // namespace the number is another process, or none, and the check fails.
        let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())).ok()?;
        groups.contains(id).then_some(Self { pid, handle })
    }
}

/// Kills a process of that number, if it is surely the container's; tells whether it did.
pub fn kill_in(pid: i32, id: &str) -> bool {
    let process = Pid::from_raw(pid).and_then(|pid| Process::of_container(pid, id));
    process.is_some_and(|process| pidfd_send_signal(&process.handle, rustix::process::Signal::KILL).is_ok())
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;
    use crate::inventory::container::testing::container;

    fn process() -> Child {
        Command::new("sleep").arg("60").spawn().expect("a process")
    }

    fn container_of(process: &Child, id: &str) -> Container {
        Container { id: id.into(), pid: i32::try_from(process.id()).ok(), ..container("proxy") }
    }

    #[test]
    fn a_process_of_the_container_is_signalled_and_its_handle_kept_while_it_lives() {
        // Stands for an ID: every process has it in its control groups.
        let id = ":";
        let mut handles = ProcessHandles::default();
        let mut first = process();
        let proxy = container_of(&first, id);
        assert!(handles.signal(&proxy, Signal::HUP));
        assert_eq!(handles.0.len(), 1);
        assert!(!first.wait().expect("it ends").success(), "it was signalled");
        assert!(!handles.signal(&proxy, Signal::HUP), "whatever has its number now is another process");
        assert!(handles.0.is_empty());
        let mut second = process();
        assert!(handles.signal(&container_of(&second, id), Signal::HUP), "the container was restarted");
        assert!(!second.wait().expect("it ends").success(), "it was signalled");
    }

    #[test]
    fn a_process_outside_the_container_is_not_signalled() {
        let mut other = process();
        let proxy = container_of(&other, &"0123456789abcdef".repeat(4));
        assert!(!ProcessHandles::default().signal(&proxy, Signal::TERM));
        assert!(other.try_wait().expect("a process").is_none());
        other.kill().and_then(|()| other.wait()).expect("it ends");
    }

    #[test]
    fn handles_of_containers_that_have_ended_are_dropped() {
        let mut process = process();
        let mut handles = ProcessHandles::default();
        assert!(handles.signal(&container_of(&process, ":"), Signal::HUP));
        handles.retain(|_| false);
        assert!(handles.0.is_empty());
        process.wait().expect("it ends");
    }
}
