//! When to write: the first change after a quiet time at once, those of a burst together. Pure.
//!
//! In a burst Docker announces what is to come: it connects a container's networks before it starts it,
//! and reports SIGKILL before the end. While something is announced, more follows within milliseconds,
//! and waiting for it saves the readers a reload. When nothing is announced, a short quiet is enough.

use std::time::{Duration, Instant};

/// How long nothing must change, in a burst, before it is written. As long as a burst's last change may be
/// held back without anyone minding: nginx takes longer for one reload.
const QUIET: Duration = Duration::from_millis(35);

/// Gathers the changes of a burst.
#[derive(Debug)]
pub struct Gather {
    /// The longest that a change is held back, and how long a time without a write is quiet.
    window: Duration,
    written: Option<Instant>,
    pending: Option<Pending>,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    first: Instant,
    last: Instant,
}

impl Gather {
    /// Gathers for at most `window`; zero writes every change at once.
    pub fn new(window: Duration) -> Self {
        Self { window, written: None, pending: None }
    }

    /// There is something to write, which `changed` just now or is what it was. Gives when: a time that is
    /// not after `now` means at once.
    pub fn due(&mut self, now: Instant, changed: bool, expects_more: bool) -> Instant {
        let pending = self.pending.get_or_insert(Pending { first: now, last: now });
        if changed {
            pending.last = now;
        }
        let quiet = self.written.is_none_or(|written| now.duration_since(written) >= self.window);
        let latest = pending.first + self.window;
        match (quiet, expects_more) {
            (true, _) => now,
            (false, true) => latest,
            (false, false) => latest.min(pending.last + QUIET),
        }
    }

    /// What was pending has resolved itself.
    pub fn on_nothing(&mut self) {
        self.pending = None;
    }

    /// Everything up to now was written.
    pub fn on_written(&mut self, now: Instant) {
        self.written = Some(now);
        self.pending = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(1);
    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_first_change_after_a_quiet_time_goes_at_once() {
        let mut gather = Gather::new(WINDOW);
        let start = Instant::now();
        assert_eq!(gather.due(start, true, true), start);
        gather.on_written(start);
        assert_eq!(gather.due(start + WINDOW, true, true), start + WINDOW);
    }

    #[test]
    fn in_a_burst_what_is_announced_is_waited_for_but_not_for_ever() {
        let mut gather = Gather::new(WINDOW);
        let start = Instant::now();
        gather.on_written(start);
        let first = start + 10 * MS;
        assert_eq!(gather.due(first, true, true), first + WINDOW);
        assert_eq!(gather.due(first + 500 * MS, true, true), first + WINDOW);
        assert!(gather.due(first + WINDOW, true, true) <= first + WINDOW);
    }

    #[test]
    fn when_nothing_is_announced_a_short_quiet_is_enough() {
        let mut gather = Gather::new(WINDOW);
        let start = Instant::now();
        gather.on_written(start);
        let soon = start + 10 * MS;
        assert_eq!(gather.due(soon, true, true), soon + WINDOW);
        let last = soon + 5 * MS;
        assert_eq!(gather.due(last, true, false), last + QUIET);
        assert_eq!(gather.due(last + 10 * MS, false, false), last + QUIET, "nothing has changed since");
        assert!(gather.due(soon + WINDOW, true, false) <= soon + WINDOW, "not for ever");
    }

    #[test]
    fn without_a_window_nothing_is_gathered() {
        let mut gather = Gather::new(Duration::ZERO);
        let start = Instant::now();
        gather.on_written(start);
        assert_eq!(gather.due(start, true, true), start);
    }
}
