//! Says how a target fares: on `/readyz`, in metrics and on `/v1/targets`.

use std::time::Duration;

use jiff::Timestamp;
use rollcall_shared::process::readiness::Part;
use tokio::time::Instant;

use super::status::{BoardEntry, State};

/// How long the program behind a target may take to have what was applied before the process is not ready: some look
/// every few seconds only.
const READ_BACK_GRACE: Duration = Duration::from_secs(10);

/// What became of the last selection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It was applied. What is worth a look, on one line each.
    Good(Vec<String>),
    /// The target, or a part of it, stays as it is; why.
    Held(String),
    /// It could not be applied, or not all of it; why.
    Failed(String),
}

/// Says how a target fares.
#[derive(Debug)]
pub struct Reporter {
    part: Part,
    entry: BoardEntry,
    standing: Option<Standing>,
    instances: usize,
    /// Whether everybody who is to be notified has taken what was applied.
    is_taken: bool,
    unread: Option<Unread>,
}

/// The program behind the target does not have what was applied.
#[derive(Debug)]
struct Unread {
    reason: String,
    since: Timestamp,
    until: Instant,
}

impl Reporter {
    /// Says nothing yet.
    pub fn new(part: Part, entry: BoardEntry) -> Self {
        Self { part, entry, standing: None, instances: 0, is_taken: false, unread: None }
    }

    /// The target has this many instances, and everybody has taken that, or not.
    pub fn has(&mut self, instances: usize, is_taken: bool) {
        (self.instances, self.is_taken) = (instances, is_taken);
    }

    /// Everybody has taken what was applied.
    pub fn taken(&mut self) {
        self.is_taken = true;
        self.report();
    }

    /// What became of the last selection.
    pub fn set(&mut self, standing: Standing) {
        self.standing = Some(standing);
        self.report();
    }

    /// The program behind the target has what was applied or, for a reason, does not.
    pub fn unread(&mut self, reason: Option<String>) {
        self.unread = reason.map(|reason| match self.unread.take() {
            Some(before) => Unread { reason, ..before },
            None => Unread { reason, since: Timestamp::now(), until: Instant::now() + READ_BACK_GRACE },
        });
        self.report();
    }

    /// Why the program behind the target does not have what was applied, if it does not.
    pub fn unread_reason(&self) -> Option<&str> {
        self.unread.as_ref().map(|unread| unread.reason.as_str())
    }

    fn report(&self) {
        let (state, reason) = self.state();
        self.entry.set(state, reason, self.instances);
        match &self.standing {
            None => {}
            Some(Standing::Held(reason) | Standing::Failed(reason)) => self.part.failed(reason),
            Some(Standing::Good(notes)) => match self.overdue() {
                Some(Unread { reason, since, .. }) => {
                    let since = since.round(jiff::Unit::Second).unwrap_or(*since);
                    self.part.failed(format!("stale since {since}: {reason}"));
                }
                None if notes.is_empty() => self.part.ready(),
                None => self.part.noted(notes.join("; ")),
            },
        }
    }

    fn overdue(&self) -> Option<&Unread> {
        self.unread.as_ref().filter(|unread| unread.until <= Instant::now())
    }

    fn state(&self) -> (State, Option<String>) {
        match (&self.standing, &self.unread) {
            (None, _) => (State::Stale, Some("starting".to_owned())),
            (Some(Standing::Held(reason)), _) => (State::Held, Some(reason.clone())),
            (Some(Standing::Failed(reason)), _) => (State::Failed, Some(reason.clone())),
            (Some(Standing::Good(_)), _) if !self.is_taken => {
                (State::Stale, Some("not everybody who is notified has taken it".to_owned()))
            }
            (Some(Standing::Good(_)), Some(unread)) => (State::Stale, Some(unread.reason.clone())),
            (Some(Standing::Good(notes)), None) => {
                (State::Synced, (!notes.is_empty()).then(|| notes.join("; ")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rollcall_shared::process::readiness::Readiness;

    use super::*;
    use crate::{target::status::Board, testing};

    #[tokio::test(start_paused = true)]
    async fn a_program_that_does_not_follow_makes_a_target_stale_and_after_a_while_not_ready() {
        let (board, readiness) = (Board::default(), Readiness::default());
        let name = testing::target_name("web");
        let mut reporter = Reporter::new(readiness.part("target web"), board.entry(name.clone()));
        let state = || board.all()[&name].state;
        reporter.has(1, false);
        reporter.set(Standing::Good(vec![]));
        assert_eq!((state(), readiness.conditions().is_ready()), (State::Stale, true));
        reporter.taken();
        assert_eq!(state(), State::Synced);
        reporter.unread(Some("Envoy has none of it".to_owned()));
        assert_eq!((state(), readiness.conditions().is_ready()), (State::Stale, true));
        tokio::time::advance(READ_BACK_GRACE).await;
        reporter.unread(Some("Envoy has none of it".to_owned()));
        let conditions = readiness.conditions();
        let reason = conditions.reason("target web").expect("it is not ready");
        assert!(reason.starts_with("stale since ") && reason.ends_with(": Envoy has none of it"), "{reason}");
        reporter.unread(None);
        assert_eq!((state(), readiness.conditions().is_ready()), (State::Synced, true));
        reporter.set(Standing::Failed("it is away".to_owned()));
        assert_eq!((state(), readiness.conditions().is_ready()), (State::Failed, false));
    }
}
