//! Whether HAProxy is to be reloaded now: for what it cannot be told at run time, at the target's pace, and not again for
//! what it is being reloaded for. Pure.

use std::time::Duration;

use tokio::time::Instant;

use crate::target::{
    generation::Generation,
    pacer::{PaceSettings, Pacer},
};

/// How long a reload has to bring what it was asked for, before another file is tried for the same.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The reloads of a HAProxy.
#[derive(Debug)]
pub struct Reloads {
    pacer: Pacer,
    last: Option<Asked>,
}

/// A reload that was asked for.
#[derive(Debug)]
struct Asked {
    generation: Generation,
    reasons: Vec<String>,
    at: Instant,
}

/// Whether HAProxy is to be reloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// It is, or was, to read the file of this generation.
    Reload(Generation),
    /// Not before this moment.
    Later(Instant),
    /// It has all that there is.
    Never,
}

impl Reloads {
    /// None were asked for yet.
    pub fn new(pace: PaceSettings) -> Self {
        Self { pacer: Pacer::new(pace), last: None }
    }

    /// Whether to reload for these reasons, with the file as it is.
    pub fn ask(&mut self, file: Generation, reasons: &[String], now: Instant) -> Ask {
        if reasons.is_empty() {
            self.last = None;
            self.pacer.taken();
            return Ask::Never;
        }
        if let Some(last) = &self.last {
            let is_asked = reasons.iter().all(|reason| last.reasons.contains(reason));
            if last.generation == file || (is_asked && now < last.at + RELOAD_TIMEOUT) {
                return Ask::Reload(last.generation);
            }
        }
        if self.pacer.due().is_none() {
            self.pacer.changed(now);
        }
        match self.pacer.due() {
            Some(due) if due > now => Ask::Later(due),
            _ => {
                self.pacer.taken();
                self.pacer.reloaded(now);
                self.last = Some(Asked { generation: file, reasons: reasons.to_vec(), at: now });
                Ask::Reload(file)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reasons(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_reload_is_asked_for_once_for_each_file_and_not_again_for_what_it_is_under_way_for() {
        let mut reloads = Reloads::new(PaceSettings::reload());
        let (one, two, begun) = (Generation(1), Generation(2), Instant::now());
        assert_eq!(reloads.ask(one, &[], begun), Ask::Never);
        assert_eq!(reloads.ask(one, &reasons("web"), begun), Ask::Reload(one));
        assert_eq!(reloads.ask(two, &reasons("web"), begun), Ask::Reload(one), "it is under way");
        assert_eq!(reloads.ask(two, &reasons("web api"), begun), Ask::Reload(two));
        let later = begun + RELOAD_TIMEOUT;
        assert_eq!(reloads.ask(two, &reasons("web"), later), Ask::Reload(two), "it does not help again");
        assert_eq!(reloads.ask(Generation(3), &reasons("web"), later), Ask::Reload(Generation(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn reloads_keep_to_the_targets_pace() {
        let mut reloads = Reloads::new(PaceSettings::heartbeat(Duration::from_secs(9)));
        let begun = Instant::now();
        assert_eq!(reloads.ask(Generation(1), &reasons("a"), begun), Ask::Reload(Generation(1)));
        let due = begun + Duration::from_secs(9);
        assert_eq!(reloads.ask(Generation(2), &reasons("a b"), begun), Ask::Later(due));
        assert_eq!(reloads.ask(Generation(2), &reasons("a b"), due), Ask::Reload(Generation(2)));
    }
}
