//! The service manager, such as systemd: is told when the process is ready, reloads or ends, how it fares, and, for as long
//! as its main thread gets round to it, that it is alive. The protocol is that of sd_notify(3); where no service manager
//! listens, nothing is said.

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{
    error::one_line,
    readiness::{Conditions, Readiness},
};

/// How long it may take to tell it something where its queue is full.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);

/// The service manager that has started this process, if one has.
#[derive(Debug, Clone, Copy)]
pub struct ServiceManager {
    /// How long the process may be silent.
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// The one that the environment names.
    pub fn from_env() -> Self {
        Self { watchdog: sd_notify::watchdog_enabled().filter(|time| !time.is_zero()) }
    }

    /// The process is ready, for the first time or after a reload.
    pub fn ready(&self) {
        notify(&[NotifyState::Ready]);
    }

    /// The process reads its settings anew, until it is ready again.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(%error, "cannot tell the service manager of a reload"),
        }
    }

    /// Tells how the process fares and that it is alive, until it is stopped, and then that it ends.
    pub async fn run(self, readiness: Readiness, stop: CancellationToken) {
        let mut conditions = readiness.subscribe();
        conditions.mark_changed();
        // Half the time, so that one that is late does no harm.
        let mut alive = self.watchdog.map(|time| tokio::time::interval(time / 2));
        if let Some(alive) = &mut alive {
            alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                // Every branch is cancel safe: a token, a watch and a timer.
                () = stop.cancelled() => break,
                Ok(()) = conditions.changed() => {
                    let status = status(&conditions.borrow_and_update());
                    notify(&[NotifyState::Status(&status)]);
                }
                () = tick(&mut alive) => ping(),
            }
        }
        notify(&[NotifyState::Stopping]);
        // It ends with the process, which still has to be seen to be alive.
        loop {
            tick(&mut alive).await;
            ping();
        }
    }
}

/// Tells it that the process is alive. A ping that is lost because the queue is full does no harm.
fn ping() {
    tell(&[NotifyState::Watchdog], without_waiting);
}

fn without_waiting(socket: &UnixDatagram) -> io::Result<()> {
    socket.set_nonblocking(true)
}

fn notify(state: &[NotifyState]) {
    tell(state, |socket| socket.set_write_timeout(Some(SEND_TIMEOUT)));
}

fn tell(state: &[NotifyState], set_wait: impl FnOnce(&UnixDatagram) -> io::Result<()>) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&path, state, set_wait) {
        tracing::debug!(error = one_line(&error), "cannot tell the service manager");
    }
}

/// Sends a state to where it listens: the path of a socket, or `@` and an abstract name. By default a socket waits for as
/// long as the queue is full.
fn send(
    path: &OsStr,
    state: &[NotifyState],
    set_wait: impl FnOnce(&UnixDatagram) -> io::Result<()>,
) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address(path)?)?;
    set_wait(&socket)?;
    let lines: String = state.iter().map(|state| format!("{state}\n")).collect();
    socket.send(lines.as_bytes()).map(drop)
}

fn address(path: &OsStr) -> io::Result<SocketAddr> {
    match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(path),
    }
}

async fn tick(interval: &mut Option<tokio::time::Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}

/// How the process fares, on one line.
fn status(conditions: &Conditions) -> String {
    let mut reasons = conditions.iter().filter_map(|(part, condition)| Some((part, condition.reason()?)));
    match reasons.next() {
        Some((part, reason)) => format!("not ready: {part}: {}", reason.replace(char::is_control, " ")),
        None => "ready".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_the_first_reason_for_not_being_ready() {
        let readiness = Readiness::default();
        let (docker, etcd) = (readiness.part("docker"), readiness.part("etcd"));
        docker.noted("one is left out");
        etcd.failed("unreachable\nREADY=1");
        assert_eq!(status(&readiness.conditions()), "not ready: etcd: unreachable READY=1");
        etcd.ready();
        assert_eq!(status(&readiness.conditions()), "ready");
    }

    #[test]
    fn a_manager_that_does_not_listen_holds_nobody_up_and_gets_what_fits() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        let begun = std::time::Instant::now();
        // More than any queue takes.
        for _ in 0..5000 {
            let _ = send(path.as_os_str(), &[NotifyState::Watchdog], without_waiting);
        }
        assert!(begun.elapsed() < Duration::from_secs(10));
        let mut bytes = [0; 64];
        let read = socket.recv(&mut bytes).expect("it was told something");
        assert_eq!(&bytes[..read], b"WATCHDOG=1\n");
    }
}
