//! When to write: the first change after a quiet time at once, those of a burst together. Pure.
//!
//! In a burst Docker announces what is to come: it connects a container's networks before it starts it,
//! and reports the signal before the end. While something is announced, more follows within milliseconds,
//! and waiting for it saves the readers a reload. When nothing is announced, there is nothing to wait for.

use std::time::{Duration, Instant};

/// Gathers the changes of a burst.
#[derive(Debug)]
pub struct Gather {
    /// The longest that a change is held back, and how long a time without a write is quiet.
    window: Duration,
    written: Option<Instant>,
    pending_since: Option<Instant>,
}

impl Gather {
    /// Gathers for at most `window`; zero writes every change at once.
    pub fn new(window: Duration) -> Self {
        Self { window, written: None, pending_since: None }
    }

    /// There is something to write. Gives when: a time that is not after `now` means at once.
    pub fn due(&mut self, now: Instant, expects_more: bool) -> Instant {
        let since = *self.pending_since.get_or_insert(now);
        let quiet = self.written.is_none_or(|written| now.duration_since(written) >= self.window);
        if quiet || !expects_more { now } else { since + self.window }
    }

    /// What was pending has resolved itself.
    pub fn on_nothing(&mut self) {
        self.pending_since = None;
    }

    /// Everything up to now was written.
    pub fn on_written(&mut self, now: Instant) {
        self.written = Some(now);
        self.pending_since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_change_after_a_quiet_time_goes_at_once() {
        let mut gather = Gather::new(WINDOW);
        let start = Instant::now();
        assert_eq!(gather.due(start, true), start);
        gather.on_written(start);
        assert_eq!(gather.due(start + WINDOW, true), start + WINDOW);
    }

    #[test]
    fn in_a_burst_what_is_announced_is_waited_for_but_not_for_ever() {
        let mut gather = Gather::new(WINDOW);
        let start = Instant::now();
        gather.on_written(start);
        let first = start + Duration::from_millis(10);
        assert_eq!(gather.due(first, true), first + WINDOW);
        assert_eq!(gather.due(first + Duration::from_millis(500), true), first + WINDOW);
        assert!(gather.due(first + WINDOW, true) <= first + WINDOW);
    }

    #[test]
    fn nothing_waits_when_nothing_is_announced() {
        let mut gather = Gather::new(WINDOW);
        let start = Instant::now();
        gather.on_written(start);
        let soon = start + Duration::from_millis(10);
        assert_eq!(gather.due(soon, true), soon + WINDOW);
        let last = soon + Duration::from_millis(5);
        assert_eq!(gather.due(last, false), last);
    }
}
