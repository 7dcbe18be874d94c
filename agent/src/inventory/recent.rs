//! The events that were read last. After a break the engine repeats what it remembers, and after its clock went back all
//! of it: each is taken once, and no clock but the engine's counts. Pure.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};

use super::container::Event;

/// As many as Docker remembers and repeats.
const MAX_REMEMBERED: usize = 256;
/// How far back the events of a subscription reach: nothing between subscribing and listing is missed, and events whose
/// times are not in their order are not either.
const OVERLAP: SignedDuration = SignedDuration::from_secs(2);
/// How far back those of the first one do: which containers were told to stop before this process began, Docker alone may
/// know. It also forgives a small difference of the clocks.
const FIRST_OVERLAP: SignedDuration = SignedDuration::from_mins(15);

/// The events that were read last.
#[derive(Debug)]
pub struct RecentEvents {
    events: VecDeque<Event>,
    begun: Timestamp,
}

impl RecentEvents {
    /// None yet. `now` is by the engine's clock, or by one that is close to it.
    pub fn new(now: Timestamp) -> Self {
        Self { events: VecDeque::new(), begun: now }
    }

    /// From when on to subscribe, by the engine's clock.
    pub fn since(&self) -> Timestamp {
        let (last, overlap) = match self.events.back() {
            Some(event) => (event.at, OVERLAP),
            None => (self.begun, FIRST_OVERLAP),
        };
        last.saturating_sub(overlap).expect("seconds can be subtracted from a timestamp")
    }

    /// Takes an event; tells whether it was not read before.
    pub fn take(&mut self, event: &Event) -> bool {
        if self.events.contains(event) {
            return false;
        }
        if self.events.len() == MAX_REMEMBERED {
            self.events.pop_front();
        }
        self.events.push_back(event.clone());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::container::Action;

    fn event(action: Action, at: i64) -> Event {
        Event { id: "c1".into(), action, at: Timestamp::from_second(at).expect("a time") }
    }

    #[test]
    fn an_event_is_taken_once_and_another_at_the_same_time_as_well() {
        let mut recent = RecentEvents::new(Timestamp::UNIX_EPOCH);
        for (taken, event) in [
            (true, event(Action::Start, 5)),
            (true, event(Action::Die, 5)),
            (true, event(Action::Start, 7)),
            (false, event(Action::Start, 5)),
            (false, event(Action::Die, 5)),
            (false, event(Action::Start, 7)),
        ] {
            assert_eq!(recent.take(&event), taken, "{event:?}");
        }
    }

    #[test]
    fn a_subscription_begins_before_the_last_event_whatever_the_clock_did() {
        let mut recent = RecentEvents::new(Timestamp::from_second(2000).expect("a time"));
        assert_eq!(recent.since().as_second(), 1100, "what was told to stop before is told of");
        for at in [200, 5000, 150] {
            recent.take(&event(Action::Start, at));
            assert_eq!(recent.since().as_second(), at - 2);
        }
    }

    #[test]
    fn as_many_are_remembered_as_docker_repeats() {
        let mut recent = RecentEvents::new(Timestamp::UNIX_EPOCH);
        (0..=256).for_each(|at| assert!(recent.take(&event(Action::Start, at))));
        assert!(!recent.take(&event(Action::Start, 1)), "the last 256 are");
        assert!(recent.take(&event(Action::Start, 0)), "those before are not");
    }
}
