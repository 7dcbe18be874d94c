//! Whether so much of a service was lost that it is held, and whether so little is left that the whole target is.
//!
//! A loss is measured against the most there was within the hold time, so that ten hosts that are lost one by one count
//! as ten. Known departures are no loss. Plain values: it is told the time and the numbers, and touches no file.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    str::FromStr,
    time::Duration,
};

use rollcall_shared::{
    model::name::ServiceName,
    process::{setting::SettingError, time},
};
use serde::Deserialize;
use tokio::time::Instant;

use crate::config::toml::parsed;

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

/// How long a loss is held, as `60s` or `forever`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldTime {
    /// For this long.
    For(Duration),
    /// Until it is made up.
    Forever,
}

/// The longest time that is not for ever.
const MAX_HOLD: Duration = Duration::from_secs(366 * 24 * 60 * 60);

impl FromStr for HoldTime {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "forever" {
            return Ok(HoldTime::Forever);
        }
        let read = time::parse(text).ok().filter(|time| !time.is_zero() && *time <= MAX_HOLD);
        read.map(HoldTime::For).ok_or_else(|| {
            format!("{text:?} is not a time to hold: expected one such as 60s or 5m, or forever")
        })
    }
}

impl HoldTime {
    /// When something that begins now is over; `None` where it never is.
    fn end(self, begin: Instant) -> Option<Instant> {
        match self {
            HoldTime::For(time) => Some(begin + time),
            HoldTime::Forever => None,
        }
    }

    fn is_over(self, begin: Instant, now: Instant) -> bool {
        self.end(begin).is_some_and(|end| end <= now)
    }
}

/// What is held, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardSettings {
    /// A target that has fewer instances than this, and had more, is held as a whole.
    pub min_instances: usize,
    /// A service that has lost a greater share of its instances than this is held.
    pub max_loss: Option<Share>,
    /// For how long.
    pub hold: HoldTime,
}

impl Default for GuardSettings {
    fn default() -> Self {
        Self { min_instances: 0, max_loss: None, hold: HoldTime::For(Duration::from_secs(60)) }
    }
}

/// The settings as TOML has them: `[target.guard]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawGuard {
    /// The fewest instances.
    pub min_instances: Option<usize>,
    /// The greatest loss.
    #[serde(default, deserialize_with = "parsed")]
    pub max_loss: Option<Share>,
    /// How long a loss is held.
    #[serde(default, deserialize_with = "parsed")]
    pub hold: Option<HoldTime>,
}

impl RawGuard {
    /// What it means.
    ///
    /// # Errors
    /// A guard without a limit.
    pub fn parse(self) -> Result<GuardSettings, SettingError> {
        let Self { min_instances, max_loss, hold } = self;
        if min_instances.is_none() && max_loss.is_none() {
            return Err(SettingError::missing("guard.max_loss", "it, guard.min_instances or both"));
        }
        let default = GuardSettings::default();
        Ok(GuardSettings {
            min_instances: min_instances.unwrap_or(default.min_instances),
            max_loss,
            hold: hold.unwrap_or(default.hold),
        })
    }
}

/// Something that stays as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// When to look again: some of it may go then. `None` where time alone changes nothing.
    pub until: Option<Instant>,
    /// Why, on one line.
    pub reason: String,
}

/// How the instances of a service came and went, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many came.
    pub came: usize,
    /// How many left for a reason that is known.
    pub left: usize,
    /// How many were lost with their nodes.
    pub lost: usize,
}

/// Measures losses.
#[derive(Debug, Clone)]
pub struct LossGuard {
    settings: GuardSettings,
    /// The services that have lost something within the hold time.
    services: BTreeMap<ServiceName, Losses>,
    total: Total,
}

/// What a service has lost.
#[derive(Debug, Clone, Default)]
struct Losses {
    /// How many instances there are.
    count: usize,
    /// How many known departures nothing has replaced since.
    left: usize,
    /// The most there were, falling, each since a later time.
    peaks: VecDeque<Peak>,
}

/// A level that was lost: the instances, and the known departures that nothing had replaced.
#[derive(Debug, Clone, Copy)]
struct Peak {
    level: usize,
    /// Until when there were so many.
    last_at: Instant,
}

/// How many instances the target has.
#[derive(Debug, Clone, Default)]
struct Total {
    count: usize,
    /// How many it had when it was not held.
    passed: Option<usize>,
    /// Since when they are too few.
    short_since: Option<Instant>,
}

impl LossGuard {
    /// A guard that was told nothing yet.
    pub fn new(settings: GuardSettings) -> Self {
        Self { settings, services: BTreeMap::new(), total: Total::default() }
    }

    /// What it was told to hold.
    pub fn settings(&self) -> GuardSettings {
        self.settings
    }

    /// Whether services are measured: else [`LossGuard::measure`] need not be told.
    pub fn measures_services(&self) -> bool {
        self.settings.max_loss.is_some()
    }

    /// When something that is held from now on goes; `None` where time does not end it.
    pub fn end(&self, now: Instant) -> Option<Instant> {
        self.settings.hold.end(now)
    }

    /// Takes in how the instances of a service came and went; `count` of them are there now.
    pub fn measure(&mut self, service: &ServiceName, tally: Tally, count: usize, now: Instant) {
        let hold = self.settings.hold;
        if let Some(losses) = self.services.get_mut(service) {
            losses.forget(hold, now);
            if losses.peaks.is_empty() {
                self.services.remove(service);
            }
        }
        if !self.services.contains_key(service) {
            if tally.lost == 0 {
                return;
            }
            let before = (count + tally.left + tally.lost).saturating_sub(tally.came);
            self.services.insert(service.clone(), Losses { count: before, ..Losses::default() });
        }
        if let Some(losses) = self.services.get_mut(service) {
            losses.take(tally, count, now);
            if hold == HoldTime::Forever {
                // The first never goes, so that the others do not matter.
                losses.peaks.truncate(1);
            }
            if losses.peaks.is_empty() {
                self.services.remove(service);
            }
        }
    }

    /// Takes in how many instances there are in the whole target. To be called last, and each time.
    pub fn measure_total(&mut self, count: usize, now: Instant) {
        let GuardSettings { min_instances, max_loss: _, hold } = self.settings;
        self.services.retain(|_, losses| {
            losses.forget(hold, now);
            !losses.peaks.is_empty()
        });
        let total = &mut self.total;
        if total.short_since.is_some_and(|since| hold.is_over(since, now)) {
            *total = Total { passed: Some(total.count), short_since: None, count };
        }
        total.count = count;
        if count >= min_instances || total.passed.is_none_or(|passed| count >= passed) {
            total.passed = Some(count);
            total.short_since = None;
        } else {
            total.short_since.get_or_insert(now);
        }
    }

    /// How many instances of a service were lost that nothing has made up for.
    pub fn missing(&self, service: &ServiceName, now: Instant) -> usize {
        let Some(losses) = self.services.get(service) else { return 0 };
        losses.peaks_at(self.settings.hold, now).next().map_or(0, |peak| losses.missing(peak))
    }

    /// The services that are held.
    pub fn services(&self, now: Instant) -> impl Iterator<Item = (&ServiceName, Hold)> {
        let GuardSettings { min_instances: _, max_loss, hold } = self.settings;
        let held =
            move |(service, losses)| Some((service, Losses::hold(losses, service, max_loss?, hold, now)?));
        self.services.iter().filter_map(held)
    }

    /// Whether the whole target is held.
    pub fn floor(&self, now: Instant) -> Option<Hold> {
        let GuardSettings { min_instances, max_loss: _, hold } = self.settings;
        let Total { count, passed, short_since } = self.total;
        let since = short_since.filter(|since| !hold.is_over(*since, now))?;
        let passed = passed.unwrap_or_default();
        let reason = format!(
            "{count} instances are left of {passed}: fewer than guard.min_instances, {min_instances}"
        );
        Some(Hold { until: hold.end(since), reason })
    }
}

impl Losses {
    fn level(&self) -> usize {
        self.count + self.left
    }

    fn take(&mut self, Tally { came, left, lost: _ }: Tally, count: usize, now: Instant) {
        let was = self.level();
        // What comes replaces those first that left for a known reason: a rolling update makes up for no loss.
        self.left += left;
        self.left -= self.left.min(came);
        self.count = count;
        let level = self.level();
        while self.peaks.back().is_some_and(|peak| peak.level <= level.max(was)) {
            self.peaks.pop_back();
        }
        if level < was {
            self.peaks.push_back(Peak { level: was, last_at: now });
        }
    }

    /// Drops the peaks that are older than the hold time.
    fn forget(&mut self, hold: HoldTime, now: Instant) {
        while self.peaks.front().is_some_and(|peak| hold.is_over(peak.last_at, now)) {
            self.peaks.pop_front();
        }
    }

    /// The peaks within the hold time, the highest first.
    fn peaks_at(&self, hold: HoldTime, now: Instant) -> impl Iterator<Item = &Peak> {
        self.peaks.iter().skip_while(move |peak| hold.is_over(peak.last_at, now))
    }

    fn missing(&self, peak: &Peak) -> usize {
        peak.level.saturating_sub(self.level())
    }

    fn hold(&self, service: &ServiceName, share: Share, hold: HoldTime, now: Instant) -> Option<Hold> {
        let most = |peak: &Peak| self.missing(peak) + self.count;
        let exceeds = |peak: &&Peak| self.missing(peak) * 100 > most(peak) * usize::from(share.0);
        let peak = self.peaks_at(hold, now).next().filter(exceeds)?;
        let (missing, most) = (self.missing(peak), most(peak));
        let last = self.peaks_at(hold, now).take_while(exceeds).last()?;
        let reason = format!(
            "service {service} has lost {missing} of {most} instances: more than guard.max_loss, {share}"
        );
        Some(Hold { until: hold.end(last.last_at), reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_secs(60);

    /// A guard of one service, on a clock of seconds.
    struct Service {
        guard: LossGuard,
        start: Instant,
        count: usize,
    }

    impl Service {
        fn new(max_loss: &str, hold: &str, count: usize) -> Self {
            let max_loss = Some(max_loss.parse().expect("a share"));
            let hold = hold.parse().expect("a time");
            let settings = GuardSettings { max_loss, hold, ..GuardSettings::default() };
            Self { guard: LossGuard::new(settings), start: Instant::now(), count }
        }

        fn at(&self, second: u64) -> Instant {
            self.start + Duration::from_secs(second)
        }

        fn change(&mut self, second: u64, tally: Tally) {
            self.count = self.count + tally.came - tally.left - tally.lost;
            self.guard.measure(&name(), tally, self.count, self.at(second));
            self.guard.measure_total(self.count, self.at(second));
        }

        /// Until which second it is held, if it is.
        fn held(&self, second: u64) -> Option<u64> {
            let held = self.guard.services(self.at(second)).next();
            held.map(|(_, hold)| hold.until.map_or(u64::MAX, |until| (until - self.start).as_secs()))
        }
    }

    fn name() -> ServiceName {
        "web".parse().expect("a name")
    }

    fn came(came: usize) -> Tally {
        Tally { came, ..Tally::default() }
    }

    fn left(left: usize) -> Tally {
        Tally { left, ..Tally::default() }
    }

    fn lost(lost: usize) -> Tally {
        Tally { lost, ..Tally::default() }
    }

    #[test]
    fn a_loss_up_to_the_share_passes_and_a_greater_one_is_held() {
        for (max_loss, count, loses, is_held) in [
            ("50%", 10, 5, false),
            ("50%", 10, 6, true),
            ("50%", 1, 1, true),
            ("0%", 100, 1, true),
            ("99%", 100, 99, false),
            ("99%", 1, 1, true),
        ] {
            let mut service = Service::new(max_loss, "60s", count);
            service.change(0, lost(loses));
            assert_eq!(service.held(0), is_held.then_some(60), "{loses} of {count}, {max_loss}");
        }
    }

    #[test]
    fn ten_hosts_that_are_lost_one_by_one_count_as_ten() {
        let mut service = Service::new("50%", "60s", 10);
        for host in 0..10 {
            service.change(host * 5, lost(1));
            assert_eq!(service.held(host * 5).is_some(), host >= 5, "after {} losses", host + 1);
        }
        let held = service.guard.services(service.at(45)).next().expect("it is held").1;
        assert_eq!(held.reason, "service web has lost 10 of 10 instances: more than guard.max_loss, 50%");
        assert_eq!(held.until, Some(service.at(105)), "the last loss alone was all there was");
    }

    #[test]
    fn a_peak_counts_until_it_is_older_than_the_hold_time() {
        let mut service = Service::new("50%", "60s", 10);
        service.change(0, lost(4));
        service.change(50, lost(2));
        assert_eq!(service.held(50), Some(60), "six of ten");
        assert_eq!(service.held(60), None, "two of six");
        service.change(70, lost(2));
        assert_eq!(service.held(70), Some(110), "four of six");
        service.change(80, came(1));
        assert_eq!(service.held(80), None, "three of six");
        service.change(200, came(1));
        assert!(service.guard.services.is_empty(), "nothing is left to remember");
    }

    #[test]
    fn slow_losses_never_count_together() {
        let mut service = Service::new("50%", "60s", 10);
        for host in 0..7 {
            service.change(host * 61, lost(1));
            assert_eq!(service.held(host * 61), None, "{} are left", service.count);
        }
    }

    #[test]
    fn known_departures_are_no_loss_and_lower_what_a_loss_is_measured_against() {
        let mut service = Service::new("50%", "60s", 10);
        service.change(0, left(9));
        assert_eq!(service.held(0), None);
        let mut service = Service::new("50%", "60s", 10);
        service.change(0, lost(3));
        assert_eq!(service.held(0), None, "three of ten");
        service.change(1, left(5));
        assert_eq!(service.held(1), Some(60), "three of five");
    }

    #[test]
    fn a_loss_that_is_made_up_is_held_no_more() {
        let mut service = Service::new("50%", "forever", 10);
        service.change(0, lost(8));
        assert_eq!(service.held(0), Some(u64::MAX));
        service.change(1, came(2));
        assert_eq!(service.held(1), Some(u64::MAX), "six are missing still");
        service.change(2, came(1));
        assert_eq!(service.held(2), None, "five are missing");
        assert_eq!(service.guard.missing(&name(), service.at(2)), 5);
        service.change(3, came(5));
        assert!(service.guard.services.is_empty());
    }

    #[test]
    fn a_rolling_update_makes_up_for_no_loss() {
        let mut service = Service::new("50%", "60s", 10);
        service.change(0, lost(6));
        for second in 1..5 {
            service.change(second, left(1));
            assert_eq!(service.held(second), Some(60));
            service.change(second, came(1));
            assert_eq!(service.held(second), Some(60), "the new one replaces the one that left");
        }
        assert_eq!(service.guard.missing(&name(), service.at(5)), 6);
    }

    #[test]
    fn what_comes_in_the_same_moment_makes_up_for_what_is_lost() {
        let mut service = Service::new("0%", "60s", 4);
        service.change(0, Tally { came: 4, left: 0, lost: 4 });
        assert_eq!(service.held(0), None);
        assert!(service.guard.services.is_empty());
    }

    #[test]
    fn a_hold_for_ever_is_a_floor_and_remembers_one_peak() {
        let mut service = Service::new("50%", "forever", 10);
        for second in 0..9 {
            service.change(second * 1000, lost(1));
        }
        assert_eq!(service.held(1_000_000), Some(u64::MAX));
        assert_eq!(service.guard.services[&name()].peaks.len(), 1);
    }

    fn floor(min_instances: usize, counts: &[(u64, usize)]) -> Vec<bool> {
        let mut guard = LossGuard::new(GuardSettings { min_instances, ..GuardSettings::default() });
        let start = Instant::now();
        let judge = |&(second, count)| {
            let now = start + Duration::from_secs(second);
            guard.measure_total(count, now);
            guard.floor(now).is_some()
        };
        counts.iter().map(judge).collect()
    }

    #[test]
    fn fewer_than_the_minimum_are_held_but_never_what_is_no_loss() {
        for (min_instances, counts, expected) in [
            (3, vec![(0, 5), (1, 3), (2, 2)], vec![false, false, true]),
            (3, vec![(0, 2), (1, 2), (2, 1), (3, 2)], vec![false, false, true, false]),
            (3, vec![(0, 5), (1, 2), (60, 1), (61, 1), (62, 0)], vec![false, true, true, false, true]),
            (0, vec![(0, 5), (1, 0)], vec![false, false]),
        ] {
            let judged = floor(min_instances, &counts);
            assert_eq!(judged, expected, "{min_instances}: {counts:?}");
        }
    }

    #[test]
    fn the_hold_of_the_whole_target_runs_from_the_first_moment() {
        let settings = GuardSettings { min_instances: 3, ..GuardSettings::default() };
        let mut guard = LossGuard::new(settings);
        let now = Instant::now();
        for (second, count) in [(0, 5), (1, 2), (30, 1)] {
            guard.measure_total(count, now + Duration::from_secs(second));
        }
        let hold = guard.floor(now + Duration::from_secs(30)).expect("it is held");
        assert_eq!(hold.until, Some(now + Duration::from_secs(1) + HOLD));
        assert_eq!(hold.reason, "1 instances are left of 5: fewer than guard.min_instances, 3");
        assert_eq!(guard.floor(now + Duration::from_secs(61)), None);
    }

    #[test]
    fn the_settings_are_read_and_what_cannot_be_meant_is_refused() {
        let read = |text: &str| -> Result<GuardSettings, String> {
            let raw: RawGuard = toml::from_str(text).map_err(|error| error.message().to_owned())?;
            raw.parse().map_err(|error| error.to_string())
        };
        let settings = read("min_instances = 2\nmax_loss = \"50%\"\nhold = \"forever\"").expect("a guard");
        assert_eq!(
            settings,
            GuardSettings { min_instances: 2, max_loss: Some(Share(50)), hold: HoldTime::Forever }
        );
        assert_eq!(read("max_loss = \"5%\"").expect("a guard").hold, HoldTime::For(HOLD));
        for (text, expected) in [
            ("hold = \"1m\"", "guard.max_loss is not given: expected it, guard.min_instances or both"),
            ("max_loss = \"100%\"", "\"100%\" is not a share: expected 0% to 99%"),
            ("hold = \"0s\"", "\"0s\" is not a time to hold: expected one such as 60s or 5m, or forever"),
            (
                "hold = \"9999y\"",
                "\"9999y\" is not a time to hold: expected one such as 60s or 5m, or forever",
            ),
            ("min_instance = 2", "unknown field `min_instance`"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
