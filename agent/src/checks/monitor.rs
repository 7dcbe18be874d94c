//! What the probes of one port come to: its health, and when to ask again. Pure: it is told the time.

use std::time::Duration;

use tokio::time::Instant;

use super::{Health, Spec};

/// How often a port is asked that has just been started.
const MIN_STARTING_DELAY: Duration = Duration::from_millis(50);
/// Later the delay is this part of the time since: it adds a twentieth to what a start takes.
const STARTING_SHARE: u32 = 20;

/// What has changed, worth a line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// It passes, for the first time or again.
    Passes,
    /// It fails, having passed before.
    Fails,
    /// It should have passed for the first time by now.
    IsLate,
}

/// Follows the probes of one port.
#[derive(Debug)]
pub struct Monitor {
    health: Health,
    /// How many probes in a row have said otherwise.
    contradictions: u32,
    began: Instant,
    is_late: bool,
}

impl Monitor {
    /// One of a port that was so far like this.
    pub fn new(health: Health, now: Instant) -> Self {
        Self { health, contradictions: 0, began: now, is_late: false }
    }

    /// What the probes have come to.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Takes the outcome of a probe; gives what has changed. The first probe that passes is enough: nobody has been
    /// sent there before.
    pub fn take(&mut self, has_passed: bool, spec: &Spec, now: Instant) -> Option<News> {
        match (self.health, has_passed) {
            (Health::Passing, true) | (Health::Failing, false) => {
                self.contradictions = 0;
                None
            }
            (Health::Starting, true) => self.become_(Health::Passing),
            (Health::Starting, false) => {
                let is_late = now.duration_since(self.began) >= spec.interval * spec.fall;
                let is_news = is_late && !self.is_late;
                self.is_late = is_late;
                is_news.then_some(News::IsLate)
            }
            (Health::Passing, false) => self.contradict(spec.fall, Health::Failing),
            (Health::Failing, true) => self.contradict(spec.rise, Health::Passing),
        }
    }

    fn contradict(&mut self, needed: u32, health: Health) -> Option<News> {
        self.contradictions += 1;
        if self.contradictions >= needed { self.become_(health) } else { None }
    }

    fn become_(&mut self, health: Health) -> Option<News> {
        (self.health, self.contradictions) = (health, 0);
        Some(if health == Health::Passing { News::Passes } else { News::Fails })
    }

    /// How long after the start of this probe to ask again; `None` where nothing is asked any more.
    pub fn delay(&self, spec: &Spec, now: Instant) -> Option<Duration> {
        match self.health {
            Health::Passing if spec.is_once => None,
            Health::Passing | Health::Failing => Some(spec.interval),
            Health::Starting => {
                let share = now.duration_since(self.began) / STARTING_SHARE;
                Some(share.clamp(MIN_STARTING_DELAY, spec.interval))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{checks::Ready, inventory::container::testing::container};

    fn spec(rise: u32, fall: u32) -> Spec {
        let mut web = container("web");
        web.labels.insert("rollcall.check".to_owned(), "tcp".to_owned());
        let spec = Spec::of(&web, "80".parse().expect("a port"), Ready::None);
        Spec { rise, fall, ..spec.expect("good labels").expect("a check") }
    }

    fn told(monitor: &mut Monitor, outcomes: &str, spec: &Spec) -> Vec<Option<News>> {
        let now = Instant::now();
        outcomes.chars().map(|outcome| monitor.take(outcome == '+', spec, now)).collect()
    }

    #[test]
    fn it_passes_with_the_first_probe_and_later_with_as_many_as_rise_says() {
        let (spec, mut monitor) = (spec(2, 3), Monitor::new(Health::Starting, Instant::now()));
        assert_eq!(told(&mut monitor, "-+", &spec), [None, Some(News::Passes)]);
        assert_eq!(told(&mut monitor, "--+--", &spec), [None; 5], "no three in a row");
        assert_eq!(told(&mut monitor, "-", &spec), [Some(News::Fails)]);
        assert_eq!(told(&mut monitor, "-+-++", &spec), [None, None, None, None, Some(News::Passes)]);
    }

    #[test]
    fn one_that_has_never_passed_is_starting_however_long_it_takes_and_is_named_once() {
        let (spec, began) = (spec(2, 3), Instant::now());
        let mut monitor = Monitor::new(Health::Starting, began);
        let mut at = |seconds| monitor.take(false, &spec, began + Duration::from_secs(seconds));
        assert_eq!([29, 30, 31, 3000].map(&mut at), [None, Some(News::IsLate), None, None]);
        assert_eq!(monitor.health(), Health::Starting);
    }

    #[test]
    fn a_start_is_followed_closely_and_then_less_and_less() {
        let (spec, began) = (spec(1, 1), Instant::now());
        let monitor = Monitor::new(Health::Starting, began);
        let delay = |millis| monitor.delay(&spec, began + Duration::from_millis(millis)).expect("it goes on");
        let delays = [0, 1000, 10_000, 100_000, 1_000_000].map(|millis| delay(millis).as_millis());
        assert_eq!(delays, [50, 50, 500, 5000, 10_000]);
        let passing = Monitor::new(Health::Passing, began);
        assert_eq!(passing.delay(&spec, began), Some(spec.interval));
        assert_eq!(passing.delay(&Spec { is_once: true, ..spec }, began), None);
    }

    proptest! {
        #[test]
        fn it_changes_only_after_as_many_in_a_row_as_are_asked_for(
            rise in 1u32..5, fall in 1u32..5, outcomes in proptest::collection::vec(any::<bool>(), 0..60),
        ) {
            let (spec, now) = (spec(rise, fall), Instant::now());
            let mut monitor = Monitor::new(Health::Passing, now);
            for (at, outcome) in outcomes.iter().enumerate() {
                let before = monitor.health();
                monitor.take(*outcome, &spec, now);
                let needed = if before == Health::Passing { fall } else { rise };
                let agree = outcomes[..=at].iter().rev().take_while(|other| *other == outcome).count();
                let is_contrary = *outcome != (before == Health::Passing);
                let has_changed = monitor.health() != before;
                prop_assert_eq!(has_changed, is_contrary && agree >= needed as usize);
            }
        }
    }
}
