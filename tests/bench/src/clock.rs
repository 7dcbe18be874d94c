//! The clock that all times of the bench are taken by: the machine's own, which Docker's events and the target's log
//! use too.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time since 1970.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is set later than 1970")
}
