//! When to render: the first change after a quiet time at once, those that follow gathered.
//!
//! Plain values: it is told the time and sleeps nowhere.

use std::{str::FromStr, time::Duration};

use tokio::time::Instant;

/// How changes are gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DebounceSettings {
    /// How long it must be quiet before what was gathered is rendered; also the quiet time after which a
    /// change goes at once.
    pub min: Duration,
    /// How long a change may be held back at most, for want of quiet.
    pub max: Duration,
    /// The least time between two reloads.
    pub heartbeat: Duration,
}

impl Default for DebounceSettings {
    fn default() -> Self {
        Self { min: Duration::from_millis(20), max: Duration::from_millis(200), heartbeat: Duration::ZERO }
    }
}

/// The quiet and the longest time, as `MIN:MAX`, or `MIN` alone, which means ten times as long at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MinMax {
    /// The quiet time.
    pub min: Duration,
    /// The longest time.
    pub max: Duration,
}

impl MinMax {
    /// Checks that the times fit together; without a longest time it is ten times the quiet one.
    ///
    /// # Errors
    /// A sentence, where the longest time is shorter than the quiet one.
    pub fn new(min: Duration, max: Option<Duration>) -> Result<Self, String> {
        let max = max.unwrap_or(min * 10);
        if max < min {
            let show = |time| humantime::format_duration(time).to_string();
            return Err(format!("max is {}: expected at least min ({})", show(max), show(min)));
        }
        Ok(Self { min, max })
    }
}

impl FromStr for MinMax {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let time =
            |text: &str| humantime::parse_duration(text).map_err(|_| "expected MIN:MAX, such as 20ms:200ms");
        match text.split_once(':') {
            Some((min, max)) => Self::new(time(min)?, Some(time(max)?)),
            None => Self::new(time(text)?, None),
        }
    }
}

/// Gathers changes and says when to render.
#[derive(Debug)]
pub struct Debounce {
    settings: DebounceSettings,
    /// When the last change came.
    last_change: Option<Instant>,
    /// When the last reload was.
    last_reload: Option<Instant>,
    /// When what has not been rendered yet is due.
    pending: Option<Pending>,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    first: Instant,
    due: Instant,
}

impl Debounce {
    /// A debounce that has seen nothing.
    pub fn new(settings: DebounceSettings) -> Self {
        Self { settings, last_change: None, last_reload: None, pending: None }
    }

    /// Something changed.
    pub fn change(&mut self, now: Instant) {
        let DebounceSettings { min, max, .. } = self.settings;
        let quiet = self.last_change.is_none_or(|last| now >= last + min);
        self.last_change = Some(now);
        self.pending = Some(match self.pending {
            Some(Pending { first, .. }) => Pending { first, due: (now + min).min(first + max) },
            None if quiet => Pending { first: now, due: now },
            None => Pending { first: now, due: now + min },
        });
    }

    /// When to render, if anything has changed since the last time.
    pub fn due(&self) -> Option<Instant> {
        let Pending { due, .. } = self.pending?;
        Some(self.last_reload.map_or(due, |last| due.max(last + self.settings.heartbeat)))
    }

    /// What has changed so far is being rendered.
    pub fn rendered(&mut self) {
        self.pending = None;
    }

    /// The target is being reloaded.
    pub fn reloaded(&mut self, now: Instant) {
        self.last_reload = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn debounce(heartbeat: Duration) -> Debounce {
        Debounce::new(DebounceSettings { heartbeat, ..DebounceSettings::default() })
    }

    /// Plays changes at these milliseconds and gives those at which it renders.
    fn play(mut debounce: Debounce, changes: &[u32]) -> Vec<u128> {
        let start = Instant::now();
        let mut rendered = Vec::new();
        let mut changes = changes.iter().map(|ms| start + MS * *ms).peekable();
        loop {
            match (debounce.due(), changes.peek().copied()) {
                (Some(due), next) if next.is_none_or(|next| due < next) => {
                    rendered.push((due - start).as_millis());
                    debounce.rendered();
                    debounce.reloaded(due);
                }
                (_, Some(next)) => {
                    changes.next();
                    debounce.change(next);
                }
                (_, None) => return rendered,
            }
        }
    }

    #[test]
    fn a_lone_change_goes_at_once() {
        assert_eq!(play(debounce(Duration::ZERO), &[0, 100, 200]), [0, 100, 200]);
    }

    #[test]
    fn what_follows_the_first_change_is_gathered_until_it_is_quiet() {
        assert_eq!(play(debounce(Duration::ZERO), &[0, 5, 15, 30]), [0, 50]);
    }

    #[test]
    fn a_stream_of_changes_is_rendered_in_the_longest_time() {
        let stream: Vec<u32> = (0..50).map(|n| n * 10).collect();
        assert_eq!(play(debounce(Duration::ZERO), &stream), [0, 210, 420, 510]);
    }

    #[test]
    fn the_heartbeat_bounds_how_often_and_the_last_change_is_rendered() {
        assert_eq!(play(debounce(MS * 1000), &[0, 100, 300, 1500]), [0, 1000, 2000]);
    }

    #[test]
    fn min_and_max_are_read_and_must_fit_together() {
        let read = |text: &str| text.parse::<MinMax>();
        assert_eq!(read("20ms:200ms"), Ok(MinMax { min: MS * 20, max: MS * 200 }));
        assert_eq!(read("20ms"), Ok(MinMax { min: MS * 20, max: MS * 200 }));
        assert_eq!(read("2s:1s"), Err("max is 1s: expected at least min (2s)".to_owned()));
        assert_eq!(read("soon"), Err("expected MIN:MAX, such as 20ms:200ms".to_owned()));
    }
}
