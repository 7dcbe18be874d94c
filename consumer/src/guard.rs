//! Whether a new roll may replace the last good file, or so much vanished at once that the file is held.
//!
//! Plain values: it is told the time and the numbers, and touches no file.

use std::{fmt, str::FromStr, time::Duration};

use tokio::time::Instant;

/// A share of the whole, as `50%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u8);

impl FromStr for Share {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let percent = text.strip_suffix('%').and_then(|number| number.parse().ok());
        percent
            .filter(|percent| *percent < 100)
            .map(Share)
            .ok_or_else(|| format!("{text:?} is not a share: expected 0% to 99%"))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// What is held back, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardSettings {
    /// Fewer instances than this are not installed.
    pub min_instances: usize,
    /// A greater loss than this share of the file's instances is not installed.
    pub max_loss: Option<Share>,
    /// How long they are held back.
    pub hold: Duration,
    /// How long a listing without any instance is held back: the time in which the agents notice that a
    /// store has lost its data and register again. Zero where the store cannot lose it.
    pub hold_suspect: Duration,
}

impl Default for GuardSettings {
    fn default() -> Self {
        Self { min_instances: 0, max_loss: None, hold: Duration::from_secs(60), hold_suspect: Duration::ZERO }
    }
}

/// What to do with a new roll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Install it.
    Pass,
    /// Keep the last good file.
    Hold {
        /// When to look again, at the latest.
        until: Instant,
        /// Why.
        reason: String,
    },
}

/// Judges each roll against what is installed.
#[derive(Debug)]
pub struct Guard {
    settings: GuardSettings,
    /// How many instances the installed file has, as far as is known.
    installed: Option<usize>,
    /// Since when rolls are held back.
    held_since: Option<Instant>,
}

impl Guard {
    /// A guard of a file that has `installed` instances, if that is known.
    pub fn new(settings: GuardSettings, installed: Option<usize>) -> Self {
        Self { settings, installed, held_since: None }
    }

    /// Judges a roll of which the target selects `selected` instances. `suspect` tells that the whole
    /// store was found empty.
    pub fn judge(&mut self, selected: usize, suspect: bool, now: Instant) -> Verdict {
        let Some((reason, hold)) = self.objection(selected, suspect) else {
            self.held_since = None;
            return Verdict::Pass;
        };
        let until = *self.held_since.get_or_insert(now) + hold;
        if now >= until { Verdict::Pass } else { Verdict::Hold { until, reason } }
    }

    /// A file with this many instances was installed.
    pub fn installed(&mut self, instances: usize) {
        self.installed = Some(instances);
        self.held_since = None;
    }

    fn objection(&self, selected: usize, suspect: bool) -> Option<(String, Duration)> {
        let GuardSettings { min_instances, max_loss, hold, hold_suspect } = self.settings;
        let installed = self.installed?;
        if selected >= installed {
            return None;
        }
        if suspect && !hold_suspect.is_zero() {
            return Some(("the store was found without any instance".to_owned(), hold_suspect));
        }
        if selected < min_instances {
            return Some((
                format!(
                    "{selected} instances are left of {installed}: fewer than guard.min_instances, {min_instances}"
                ),
                hold,
            ));
        }
        let lost = installed - selected;
        match max_loss {
            Some(share) if lost * 100 > installed * usize::from(share.0) => Some((
                format!(
                    "{lost} of {installed} instances vanished at once: more than guard.max_loss, {share}"
                ),
                hold,
            )),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_secs(60);

    fn guard(min_instances: usize, max_loss: &str, installed: usize) -> Guard {
        let max_loss = Some(max_loss.parse().expect("a share"));
        let settings = GuardSettings { min_instances, max_loss, hold: HOLD, hold_suspect: HOLD };
        Guard::new(settings, Some(installed))
    }

    fn holds(guard: &mut Guard, selected: usize, now: Instant) -> bool {
        matches!(guard.judge(selected, false, now), Verdict::Hold { .. })
    }

    #[test]
    fn a_loss_up_to_the_share_passes_and_a_greater_one_is_held() {
        let now = Instant::now();
        assert!(!holds(&mut guard(0, "50%", 10), 5, now));
        assert!(holds(&mut guard(0, "50%", 10), 4, now));
        assert!(holds(&mut guard(0, "50%", 1), 0, now));
        assert!(!holds(&mut guard(0, "99%", 1), 1, now));
    }

    #[test]
    fn fewer_than_the_minimum_are_held_but_never_what_is_no_loss() {
        let now = Instant::now();
        assert!(holds(&mut guard(3, "99%", 5), 2, now));
        assert!(!holds(&mut guard(3, "99%", 2), 2, now));
    }

    #[test]
    fn the_hold_time_runs_from_the_first_objection_and_a_recovery_ends_it() {
        let now = Instant::now();
        let mut guard = guard(0, "50%", 10);
        assert!(holds(&mut guard, 1, now));
        assert!(holds(&mut guard, 0, now + HOLD / 2));
        assert!(!holds(&mut guard, 0, now + HOLD));
        assert!(!holds(&mut guard, 9, now + HOLD));
        assert!(holds(&mut guard, 1, now + HOLD), "a new loss is held anew");
    }

    #[test]
    fn an_empty_store_is_suspect_even_without_a_guard() {
        let now = Instant::now();
        let settings = GuardSettings { hold_suspect: HOLD, ..GuardSettings::default() };
        let mut guard = Guard::new(settings, Some(3));
        assert!(matches!(guard.judge(0, true, now), Verdict::Hold { until, .. } if until == now + HOLD));
        assert_eq!(guard.judge(0, false, now), Verdict::Pass);
        assert_eq!(Guard::new(settings, None).judge(0, true, now), Verdict::Pass);
    }
}
