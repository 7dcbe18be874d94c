//! The numbers of a target's changes: by them an ack is told from that of an earlier one.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The number of a change. It says nothing but which one it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// A number greater than the last one, from the microseconds of the time, so that a run takes no number that an
    /// earlier one has used.
    pub fn after(last: Option<Generation>, now: Timestamp) -> Self {
        let now = u64::try_from(now.as_microsecond()).unwrap_or_default();
        Self(last.map_or(now, |Generation(last)| now.max(last + 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_grow_even_while_the_clock_stands_or_goes_back() {
        let now = Timestamp::from_microsecond(5000).expect("a time");
        let first = Generation::after(None, now);
        let second = Generation::after(Some(first), now);
        assert_eq!((first, second), (Generation(5000), Generation(5001)));
        assert_eq!(Generation::after(Some(second), Timestamp::UNIX_EPOCH), Generation(5002));
    }
}
