//! Sends a signal to a container's first process: straight to the process where this agent shares the
//! host's PID namespace (some microseconds), else through Docker (some milliseconds).

use std::fs;

use rollcall_shared::signal::Signal;
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};

use crate::{
    deliveries::Recipient,
    docker::{Docker, DockerError},
};

/// Sends the signal.
///
/// # Errors
/// Docker's, where the process could not be signalled straight.
pub async fn kill(docker: &Docker, to: &Recipient, signal: Signal) -> Result<(), DockerError> {
    if directly(to, signal) {
        tracing::debug!(container = to.id, %signal, "signalled the process");
        return Ok(());
    }
    docker.kill(&to.id, signal).await
}

/// Signals the process, if it is surely the container's own.
fn directly(to: &Recipient, signal: Signal) -> bool {
    let Some(pid) = to.pid.and_then(Pid::from_raw) else { return false };
    let Some(signal) = rustix::process::Signal::from_named_raw(signal.number()) else { return false };
    // First the handle, then the check: the process that was checked is the one that is signalled. In
    // another PID namespace the number is another process, or none, and the check fails.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    is_of_container(pid, &to.id) && pidfd_send_signal(&process, signal).is_ok()
}

/// Whether a process is in the container's control group, whose path has the container's full ID with
/// every cgroup driver.
fn is_of_container(pid: Pid, id: &str) -> bool {
    fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero()))
        .is_ok_and(|groups| groups.contains(id))
}
