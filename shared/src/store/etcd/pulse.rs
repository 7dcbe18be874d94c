//! Whether a member still answers: when it was last heard, and whether it was asked for a sign of life. Pure.
//!
//! A member that hangs keeps its connections open, and a watch of a quiet range cannot tell that from silence. HTTP/2's
//! own pings may be sent every five seconds at most, or etcd ends the connection.

use std::time::Duration;

use tokio::time::Instant;

/// How long a member may be silent before it is asked.
const MAX_SILENCE: Duration = Duration::from_millis(2500);
/// How long it may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1500);

/// A member's signs of life.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pulse {
    heard: Instant,
    asked: Option<Instant>,
}

/// What to do about a silent member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// Look again then.
    Wait(Instant),
    /// Ask it for a sign of life.
    Ask,
    /// It has not answered: leave it.
    Leave,
}

impl Pulse {
    /// The pulse of a member that was heard now.
    pub(super) fn new(now: Instant) -> Self {
        Self { heard: now, asked: None }
    }

    /// It was heard.
    pub(super) fn hear(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    /// What to do now. Whoever is told to ask does so for all who share the pulse.
    pub(super) fn check(&mut self, now: Instant) -> Check {
        match self.asked {
            Some(asked) if now >= asked + ANSWER_TIMEOUT => Check::Leave,
            Some(asked) => Check::Wait(asked + ANSWER_TIMEOUT),
            None if now >= self.heard + MAX_SILENCE => {
                self.asked = Some(now);
                Check::Ask
            }
            None => Check::Wait(self.heard + MAX_SILENCE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_member_is_asked_once_and_left_if_it_does_not_answer() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        assert_eq!(pulse.check(start), Check::Wait(start + MAX_SILENCE));
        let asked = start + MAX_SILENCE;
        assert_eq!(pulse.check(asked), Check::Ask);
        assert_eq!(pulse.check(asked), Check::Wait(asked + ANSWER_TIMEOUT), "another watch need not ask");
        assert_eq!(pulse.check(asked + ANSWER_TIMEOUT), Check::Leave);
        pulse.hear(asked + ANSWER_TIMEOUT);
        assert_eq!(
            pulse.check(asked + ANSWER_TIMEOUT),
            Check::Wait(asked + ANSWER_TIMEOUT + MAX_SILENCE),
            "a late answer is an answer"
        );
    }

    #[test]
    fn a_member_that_hangs_is_left_within_five_seconds() {
        assert!(MAX_SILENCE + ANSWER_TIMEOUT < Duration::from_secs(5));
    }
}
