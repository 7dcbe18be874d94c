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
    known: BTreeMap<FullId, Process>,
}

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
        if self.directly(to, signal) {
            tracing::debug!(container = &*to.id, %signal, "signalled the process");
            return Ok(());
        }
        self.docker.kill(&to.id, signal).await
    }

    /// Signals the process, if it is surely the container's own.
    fn directly(&mut self, to: &Recipient, signal: Signal) -> bool {
        let Some(pid) = to.pid.and_then(Pid::from_raw) else { return false };
        let Some(signal) = rustix::process::Signal::from_named_raw(signal.number()) else { return false };
        if self.known.get(&to.id).is_none_or(|known| known.pid != pid) {
            let Some(process) = Process::of_container(pid, &to.id) else { return false };
            self.known.insert(to.id.clone(), process);
        }
        let is_sent =
            self.known.get(&to.id).is_some_and(|known| pidfd_send_signal(&known.handle, signal).is_ok());
        if !is_sent {
            self.known.remove(&to.id);
        }
        is_sent
    }
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
