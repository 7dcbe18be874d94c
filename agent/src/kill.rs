//! Sends signals to containers' first processes: straight to the process where this agent shares the host's
//! PID namespace (some microseconds), else through Docker (some milliseconds).

use std::{collections::BTreeMap, fs, os::fd::OwnedFd};

use rollcall_shared::signal::Signal;
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};

use crate::{
    container::FullId,
    deliveries::Recipient,
    docker::{Docker, DockerError},
};

/// Sends signals to the containers of one host.
#[derive(Debug)]
pub struct Killer {
    docker: Docker,
    /// Handles of processes that are surely their containers' own, kept for the next signal.
    known: Known,
}

type Known = BTreeMap<FullId, Process>;

#[derive(Debug)]
struct Process {
    pid: Pid,
    handle: OwnedFd,
}

impl Killer {
    /// One for the containers of this engine.
    pub fn new(docker: Docker) -> Self {
        Self { docker, known: BTreeMap::new() }
    }

    /// Lets the handles go of containers that are not running.
    pub fn retain(&mut self, is_running: impl Fn(&FullId) -> bool) {
        self.known.retain(|id, _| is_running(id));
    }

    /// Sends the signal.
    ///
    /// # Errors
    /// Docker's, where the process could not be signalled straight.
    pub async fn kill(&mut self, to: &Recipient, signal: Signal) -> Result<(), DockerError> {
        if directly(&mut self.known, to, signal) {
            tracing::debug!(container = &*to.id, %signal, "signalled the process");
            return Ok(());
        }
        self.docker.kill(&to.id, signal).await
    }
}

/// Signals the process, if it is surely the container's own.
fn directly(known: &mut Known, to: &Recipient, signal: Signal) -> bool {
    let Some(pid) = to.pid.and_then(Pid::from_raw) else { return false };
    let Some(signal) = rustix::process::Signal::from_named_raw(signal.number()) else { return false };
    if known.get(&to.id).is_none_or(|known| known.pid != pid) {
        let Some(process) = Process::of_container(pid, &to.id) else { return false };
        known.insert(to.id.clone(), process);
    }
    let is_sent = known.get(&to.id).is_some_and(|known| pidfd_send_signal(&known.handle, signal).is_ok());
    if !is_sent {
        known.remove(&to.id);
    }
    is_sent
}

impl Process {
    /// The process of this number, if it is in the container's control group, whose path has the container's
    /// full ID with every cgroup driver.
    fn of_container(pid: Pid, id: &str) -> Option<Self> {
        // First the handle, then the check: the process that was checked is the one that is signalled. In
        // another PID namespace the number is another process, or none, and the check fails.
        let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())).ok()?;
        groups.contains(id).then_some(Self { pid, handle })
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn process() -> Child {
        Command::new("sleep").arg("60").spawn().expect("a process")
    }

    fn recipient(process: &Child, id: &str) -> Recipient {
        let pid = i32::try_from(process.id()).ok();
        Recipient { id: id.into(), short_id: "0123456789ab".parse().expect("an ID"), pid }
    }

    #[test]
    fn a_process_of_the_container_is_signalled_and_its_handle_kept_while_it_lives() {
        // Stands for an ID: every process has it in its control groups.
        let id = ":";
        let mut known = Known::new();
        let mut first = process();
        let to = recipient(&first, id);
        assert!(directly(&mut known, &to, Signal::HUP));
        assert_eq!(known.len(), 1);
        assert!(!first.wait().expect("it ends").success(), "it was signalled");
        assert!(!directly(&mut known, &to, Signal::HUP), "whoever has its number now is another");
        assert!(known.is_empty());
        let mut second = process();
        assert!(directly(&mut known, &recipient(&second, id), Signal::HUP), "the container was restarted");
        assert!(!second.wait().expect("it ends").success(), "it was signalled");
    }

    #[test]
    fn a_process_outside_the_container_is_not_signalled() {
        let mut other = process();
        let to = recipient(&other, &"0123456789abcdef".repeat(4));
        assert!(!directly(&mut Known::new(), &to, Signal::TERM));
        assert!(other.try_wait().expect("a process").is_none());
        other.kill().and_then(|()| other.wait()).expect("it ends");
    }
}
