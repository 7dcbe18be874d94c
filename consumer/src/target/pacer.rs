//! When to apply what has changed: a token bucket, for targets whose reload costs.
//!
//! A few changes go at once, then one each interval, sooner after a quiet moment; the last is never left out. Plain
//! values: it is told the time and sleeps nowhere.

use std::{fmt, str::FromStr, time::Duration};

use rollcall_shared::process::{setting::SettingError, time};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};
use tokio::time::Instant;

use crate::config::toml;

/// How the reloads of a target are paced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PaceSettings {
    /// How many reloads may follow each other at once; 1 or more.
    pub burst: u32,
    /// The time after which one more may; zero where reloads are not paced.
    pub interval: Duration,
    /// How long without a change or a reload is quiet: a change goes at once after it, and what waits goes once it is
    /// over. `None` where only the interval counts.
    pub quiet: Option<Duration>,
}

impl PaceSettings {
    /// For a target that reloads.
    pub fn reload() -> Self {
        Self { burst: 2, interval: Duration::from_secs(2), quiet: Some(Duration::from_millis(250)) }
    }

    /// Each change at once.
    pub fn none() -> Self {
        Self { burst: 1, interval: Duration::ZERO, quiet: None }
    }

    /// One reload in this time.
    pub fn heartbeat(interval: Duration) -> Self {
        Self { burst: 1, interval, quiet: None }
    }

    /// What a target's settings mean; `None` where they leave it open.
    ///
    /// # Errors
    /// Settings that contradict each other, or are out of range.
    pub fn parse(pace: Option<RawPace>, heartbeat: Option<Duration>) -> Result<Option<Self>, SettingError> {
        match (pace, heartbeat) {
            (None, None) => Ok(None),
            (Some(raw), None) => raw.parse().map(Some),
            (None, Some(interval)) => Ok(Some(Self::heartbeat(bounded("heartbeat", interval)?))),
            (Some(_), Some(interval)) => {
                Err(SettingError::new("heartbeat", time::show(interval), "it or pace, not both"))
            }
        }
    }
}

/// The largest burst.
const MAX_BURST: u32 = 1000;
/// How far below zero the balance may go, so that hours of changes after quiet moments are not followed by hours
/// without a token.
const MAX_OVERDRAFT: u32 = 4;
/// The longest time of a pace.
const MAX_TIME: Duration = Duration::from_secs(24 * 60 * 60);

fn bounded(setting: &str, value: Duration) -> Result<Duration, SettingError> {
    if value <= MAX_TIME {
        Ok(value)
    } else {
        Err(SettingError::new(setting, time::show(value), "1day or less"))
    }
}

/// A pace as it is written: as `BURST/INTERVAL` or `none`, in TOML also as a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawPace {
    /// How many reloads may follow each other at once.
    pub burst: Option<u32>,
    /// The time after which one more may.
    pub interval: Option<Duration>,
    /// How long without a change is quiet.
    pub quiet: Option<Quiet>,
}

/// A quiet time as it is written: a time, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quiet(pub Option<Duration>);

impl FromStr for Quiet {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Quiet(None)),
            _ => match time::parse(text) {
                Ok(time) => Ok(Quiet(Some(time))),
                Err(_) => Err(format!("{text:?} is not a quiet time: expected one such as 250ms, or off")),
            },
        }
    }
}

impl FromStr for RawPace {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            let PaceSettings { burst, interval, quiet } = PaceSettings::none();
            return Ok(Self { burst: Some(burst), interval: Some(interval), quiet: Some(Quiet(quiet)) });
        }
        let read = |(burst, interval): (&str, &str)| Some((burst.parse().ok()?, time::parse(interval).ok()?));
        let (burst, interval) = text.split_once('/').and_then(read).ok_or_else(|| {
            format!("{text:?} is not a pace: expected BURST/INTERVAL such as 2/2s, or none")
        })?;
        Ok(Self { burst: Some(burst), interval: Some(interval), quiet: None })
    }
}

impl<'de> Deserialize<'de> for RawPace {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            burst: Option<u32>,
            #[serde(default, deserialize_with = "toml::time")]
            interval: Option<Duration>,
            #[serde(default, deserialize_with = "toml::parsed")]
            quiet: Option<Quiet>,
        }
        struct TextOrTable;
        impl<'de> Visitor<'de> for TextOrTable {
            type Value = RawPace;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a pace such as { burst = 2, interval = \"2s\", quiet = \"250ms\" }, or \"none\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawPace, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawPace, A::Error> {
                let Table { burst, interval, quiet } = Table::deserialize(MapAccessDeserializer::new(map))?;
                Ok(RawPace { burst, interval, quiet })
            }
        }
        from.deserialize_any(TextOrTable)
    }
}

impl RawPace {
    fn parse(self) -> Result<PaceSettings, SettingError> {
        let default = PaceSettings::reload();
        let burst = self.burst.unwrap_or(default.burst);
        if !(1..=MAX_BURST).contains(&burst) {
            return Err(SettingError::new("pace.burst", burst, format!("1 to {MAX_BURST}")));
        }
        let interval = bounded("pace.interval", self.interval.unwrap_or(default.interval))?;
        let quiet = self.quiet.map_or(default.quiet, |Quiet(quiet)| quiet);
        let quiet = quiet.map(|quiet| bounded("pace.quiet", quiet)).transpose()?;
        Ok(PaceSettings { burst, interval, quiet })
    }
}

/// The pace of a target that is given by flags.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct PaceFlags {
    /// Least time between two reloads of the target
    #[arg(long, env = "ROLLCALL_HEARTBEAT", value_name = "TIME", value_parser = time::parse)]
    #[arg(conflicts_with = "pace")]
    pub heartbeat: Option<Duration>,
    /// How many reloads may follow each other at once, and the time after which one more may, or none [default: 2/2s
    /// where something is notified, else none]
    #[arg(long, env = "ROLLCALL_PACE", value_name = "BURST/INTERVAL")]
    pub pace: Option<RawPace>,
}

impl PaceFlags {
    /// Whether any of them is given.
    pub fn is_given(&self) -> bool {
        self.heartbeat.is_some() || self.pace.is_some()
    }
}

/// Says when to apply what has changed.
#[derive(Debug)]
pub struct Pacer {
    settings: PaceSettings,
    /// How long it took from `debt_at` until the bucket were full, if nothing else were taken.
    debt: Duration,
    debt_at: Option<Instant>,
    last_change: Option<Instant>,
    last_reload: Option<Instant>,
    pending: Option<Pending>,
}

/// A change that is not applied yet.
#[derive(Debug, Clone, Copy)]
enum Pending {
    /// It came after a quiet moment, then.
    AtOnce(Instant),
    /// It waits for a token or for a quiet moment.
    Waiting,
}

impl Pacer {
    /// A pacer with all its tokens.
    pub fn new(settings: PaceSettings) -> Self {
        Self {
            settings,
            debt: Duration::ZERO,
            debt_at: None,
            last_change: None,
            last_reload: None,
            pending: None,
        }
    }

    /// Something changed.
    pub fn changed(&mut self, now: Instant) {
        if self.pending.is_none() {
            let is_at_once = self.has_token(now) || self.is_quiet(now);
            self.pending = Some(if is_at_once { Pending::AtOnce(now) } else { Pending::Waiting });
        }
        self.last_change = Some(now);
    }

    /// When to apply what has changed; `None` where nothing has.
    pub fn due(&self) -> Option<Instant> {
        match self.pending? {
            Pending::AtOnce(at) => Some(at),
            Pending::Waiting => {
                let quiet_at = self.settings.quiet.and_then(|quiet| Some(self.last_change? + quiet));
                self.token_at().into_iter().chain(quiet_at).min()
            }
        }
    }

    /// What has changed so far is being applied.
    pub fn taken(&mut self) {
        self.pending = None;
    }

    /// The target has reloaded: that costs a token.
    pub fn reloaded(&mut self, now: Instant) {
        let PaceSettings { burst, interval, quiet: _ } = self.settings;
        let most = interval * (burst + MAX_OVERDRAFT);
        self.debt = (self.debt(now) + interval).min(most);
        self.debt_at = Some(now);
        self.last_reload = Some(now);
        // It came in the middle of this reload, and was not asked then whether another one may follow.
        if self.pending.is_some() {
            self.pending = Some(Pending::Waiting);
        }
    }

    fn debt(&self, now: Instant) -> Duration {
        let passed = self.debt_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.debt.saturating_sub(passed)
    }

    /// The debt with which there is one token left.
    fn last_token_debt(&self) -> Duration {
        self.settings.interval * self.settings.burst.saturating_sub(1)
    }

    fn has_token(&self, now: Instant) -> bool {
        self.debt(now) <= self.last_token_debt()
    }

    /// When a token is there; `None` before the first reload, when all are.
    fn token_at(&self) -> Option<Instant> {
        Some(self.debt_at? + self.debt.saturating_sub(self.last_token_debt()))
    }

    fn is_quiet(&self, now: Instant) -> bool {
        let Some(quiet) = self.settings.quiet else { return false };
        let is_past = |last: Option<Instant>| last.is_none_or(|last| now >= last + quiet);
        is_past(self.last_change) && is_past(self.last_reload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Recorded: when 50 containers started, from 8 threads, in milliseconds.
    const STARTS: [u64; 50] = [
        0, 174, 359, 380, 691, 707, 708, 881, 914, 1289, 1378, 1500, 1503, 1607, 1610, 1629, 1667, 1959,
        2211, 2484, 2520, 2523, 2528, 2584, 2638, 2656, 2864, 3017, 3179, 3304, 3389, 3470, 3740, 3740, 3775,
        3785, 3980, 4095, 4118, 4302, 4475, 4515, 4792, 4793, 4991, 4998, 5030, 5067, 5091, 5114,
    ];

    /// Plays changes at these milliseconds and gives those at which it reloads.
    fn play(settings: PaceSettings, changes: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let start = Instant::now();
        let mut pacer = Pacer::new(settings);
        let mut reloads = Vec::new();
        let mut changes = changes.into_iter().map(|ms| start + MS * ms as u32).peekable();
        loop {
            match (pacer.due(), changes.peek().copied()) {
                (Some(due), next) if next.is_none_or(|next| due <= next) => {
                    reloads.push((due - start).as_millis() as u64);
                    pacer.taken();
                    pacer.reloaded(due);
                }
                (_, Some(next)) => {
                    changes.next();
                    pacer.changed(next);
                }
                (_, None) => return reloads,
            }
        }
    }

    fn bucket(burst: u32, interval: u32, quiet: Option<u32>) -> PaceSettings {
        PaceSettings { burst, interval: MS * interval, quiet: quiet.map(|quiet| MS * quiet) }
    }

    #[test]
    fn a_burst_of_starts_reloads_a_few_times_and_shortly_after_the_last() {
        let reloads = play(PaceSettings::reload(), STARTS);
        assert!(reloads.len() <= 12, "{reloads:?}");
        let (last_start, last_reload) = (STARTS[STARTS.len() - 1], reloads[reloads.len() - 1]);
        assert!((last_start..=last_start + 250).contains(&last_reload), "{reloads:?}");
    }

    #[test]
    fn changes_with_quiet_between_them_all_go_at_once() {
        let changes: Vec<u64> = (0..200).map(|n| n * 300).collect();
        assert_eq!(play(PaceSettings::reload(), changes.clone()), changes);
    }

    #[test]
    fn a_few_changes_go_at_once_and_then_one_each_interval() {
        for (settings, changes, expected) in [
            (bucket(2, 1000, None), vec![0, 10, 20, 30], vec![0, 10, 1000]),
            (bucket(2, 1000, None), vec![0, 10, 20, 1500, 2000, 2001], vec![0, 10, 1000, 2000, 3000]),
            (bucket(3, 1000, None), vec![0, 1, 2, 3], vec![0, 1, 2, 1000]),
            (bucket(2, 1000, Some(100)), vec![0, 10, 20, 80], vec![0, 10, 180]),
            (bucket(1, 1000, Some(100)), vec![0, 50, 120, 190], vec![0, 290]),
            (bucket(1, 1000, Some(100)), vec![0, 100, 200, 250], vec![0, 100, 200, 350]),
        ] {
            assert_eq!(play(settings, changes.clone()), expected, "{settings:?}: {changes:?}");
        }
    }

    #[test]
    fn a_steady_stream_without_quiet_waits_for_the_tokens_alone() {
        let stream = (0..50).map(|n| n * 100);
        assert_eq!(play(bucket(1, 1000, Some(250)), stream), [0, 1000, 2000, 3000, 4000, 5000]);
    }

    #[test]
    fn a_reload_out_of_turn_is_paid_back() {
        // Those at 0 and 300 leave a debt of 1.4 intervals, so that the next token is there at 2000.
        assert_eq!(
            play(bucket(1, 1000, Some(250)), [0, 300, 400, 500, 600, 700, 800, 900, 1000, 1100]),
            [0, 300, 1350]
        );
        let stream = [0, 300].into_iter().chain((4..30).map(|n| n * 100));
        assert_eq!(play(bucket(1, 1000, Some(250)), stream), [0, 300, 2000, 3000]);
    }

    #[test]
    fn hours_of_reloads_out_of_turn_leave_no_hours_without_a_token() {
        let lone = (0..40_000).map(|n| n * 300);
        let stream = (0..500).map(|n| 40_000 * 300 + n * 100);
        let reloads = play(PaceSettings::reload(), lone.chain(stream));
        let longest = reloads.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert!(longest <= Some(2000 * u64::from(MAX_OVERDRAFT + 1)), "{longest:?}");
    }

    #[test]
    fn a_heartbeat_bounds_how_often_and_the_last_change_is_applied() {
        let heartbeat = PaceSettings::heartbeat(MS * 1000);
        assert_eq!(play(heartbeat, [0, 100, 300, 1500]), [0, 1000, 2000]);
        assert_eq!(play(heartbeat, [0, 5000]), [0, 5000]);
    }

    #[test]
    fn without_a_pace_each_change_goes_at_once() {
        assert_eq!(play(PaceSettings::none(), [0, 1, 2, 2, 3]), [0, 1, 2, 2, 3]);
    }

    #[test]
    fn a_change_in_the_middle_of_a_reload_waits_as_one_after_it_does() {
        let start = Instant::now();
        let mut pacer = Pacer::new(PaceSettings::heartbeat(MS * 1000));
        pacer.changed(start);
        pacer.taken();
        pacer.changed(start + MS * 20);
        assert_eq!(pacer.due(), Some(start + MS * 20), "nothing is known of a reload yet");
        pacer.reloaded(start + MS * 30);
        assert_eq!(pacer.due(), Some(start + MS * 1030));
    }

    #[test]
    fn what_changed_nothing_costs_nothing() {
        let start = Instant::now();
        let mut pacer = Pacer::new(PaceSettings::heartbeat(MS * 1000));
        for ms in 0..3 {
            pacer.changed(start + MS * ms);
            assert_eq!(pacer.due(), Some(start + MS * ms));
            pacer.taken();
            assert_eq!(pacer.due(), None);
        }
    }

    #[test]
    fn a_change_that_led_to_no_reload_is_no_quiet_moment_either() {
        let start = Instant::now();
        let mut pacer = Pacer::new(bucket(1, 1000, Some(250)));
        pacer.changed(start);
        pacer.taken();
        pacer.reloaded(start);
        pacer.changed(start + MS * 300);
        assert_eq!(pacer.due(), Some(start + MS * 300));
        pacer.taken();
        pacer.changed(start + MS * 400);
        assert_eq!(pacer.due(), Some(start + MS * 650));
    }

    fn read(text: &str) -> Result<Option<PaceSettings>, String> {
        #[derive(Deserialize)]
        struct Target {
            pace: Option<RawPace>,
            #[serde(default, deserialize_with = "toml::time")]
            heartbeat: Option<Duration>,
        }
        let Target { pace, heartbeat } =
            ::toml::from_str(text).map_err(|error| error.message().to_owned())?;
        PaceSettings::parse(pace, heartbeat).map_err(|error| error.to_string())
    }

    #[test]
    fn a_pace_is_read_as_a_text_or_a_table() {
        for (text, expected) in [
            ("", None),
            ("pace = \"none\"", Some(PaceSettings::none())),
            ("pace = \"2/2s\"", Some(PaceSettings::reload())),
            ("pace = { burst = 2 }", Some(PaceSettings::reload())),
            ("pace = { burst = 3, interval = \"1s\", quiet = \"off\" }", Some(bucket(3, 1000, None))),
            ("heartbeat = \"30s\"", Some(PaceSettings::heartbeat(MS * 30_000))),
        ] {
            assert_eq!(read(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_pace_that_cannot_be_meant_is_refused() {
        for (text, expected) in [
            ("pace = \"fast\"", "\"fast\" is not a pace: expected BURST/INTERVAL such as 2/2s, or none"),
            ("pace = { burst = 0 }", "pace.burst is 0: expected 1 to 1000"),
            ("pace = { interval = \"9999y\" }", "pace.interval is 9999years: expected 1day or less"),
            ("pace = { quiet = \"no\" }", "\"no\" is not a quiet time: expected one such as 250ms, or off"),
            ("pace = { min = \"1s\" }", "unknown field `min`"),
            ("pace = 3", "invalid type: integer `3`, expected a pace such as { burst = 2"),
            ("pace = \"none\"\nheartbeat = \"2s\"", "heartbeat is 2s: expected it or pace, not both"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
