//! How a server leaves: it drains, takes nothing more, and is deleted once nothing is connected. Nothing is forced.
//!
//! Each state is kept for a while, so that what is read back right after a step is final for the moment, and so that
//! the sample by which a server is deleted was taken after it went into maintenance.

use std::time::Duration;

use super::{observed::Server, state::Load, step::Action};

/// How long a server drains at least, and is in maintenance before it is deleted.
const SETTLE: Duration = Duration::from_secs(1);
/// How seldom a server that leaves is looked at, at most and at least.
const LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What becomes of a server that nobody wants any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leaving {
    /// This is done now.
    Now(Action),
    /// It is looked at again then.
    Later(Duration),
    /// It stays as it is, as a slot or because HAProxy cannot delete it.
    Stays,
}

/// What becomes of it, where servers drain that long.
pub fn leave(server: &Server, drain_timeout: Duration) -> Leaving {
    let Server { state, load, leaves_for, is_pinned, .. } = server;
    if state.is_forced_out() {
        return match load {
            _ if server.is_slot() && load.is_some_and(Load::is_none) => Leaving::Stays,
            _ if *is_pinned => Leaving::Stays,
            Some(load) if !server.is_slot() && load.is_none() && *leaves_for >= SETTLE => {
                Leaving::Now(Action::Delete)
            }
            _ => Leaving::Later(pause(*leaves_for)),
        };
    }
    if drain_timeout.is_zero() || (state.drains() && *leaves_for >= drain_timeout) {
        return Leaving::Now(Action::Maintain);
    }
    if !state.drains() {
        return Leaving::Now(Action::Drain);
    }
    if load.is_some_and(Load::is_idle) && *leaves_for >= SETTLE {
        return Leaving::Now(Action::Maintain);
    }
    Leaving::Later(pause(*leaves_for).min(drain_timeout.saturating_sub(*leaves_for)))
}

/// The longer it takes, the less a second matters.
fn pause(leaves_for: Duration) -> Duration {
    if leaves_for < SETTLE { SETTLE - leaves_for } else { (leaves_for / 10).clamp(LOOK.0, LOOK.1) }
}
