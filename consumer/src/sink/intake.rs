//! What a sink without a file of its own takes out of a selection: what is held, what is new, and whether it may be
//! emptied.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::{
    config::TargetConfig,
    roll::{Selection, Verdict},
    state_dir::StateDir,
    target::matched::Matched,
};

/// Takes out of a target's selection what its sink needs.
#[derive(Debug)]
pub struct Intake {
    /// What decides whether the sink may be emptied; `None` where it always may.
    matched: Option<Matched>,
    /// The selection's step that the sink has.
    shown: u64,
}

/// What was taken out of a selection.
#[derive(Debug)]
pub struct Taken {
    /// What the loss guard holds.
    pub verdict: Verdict,
    /// The selection's step.
    pub step: u64,
    /// Why nothing has ever matched, where that keeps the sink from being emptied.
    pub mismatch: Option<String>,
    /// Services that keep what is not wanted, on one line each.
    pub notes: Vec<String>,
    /// When the containers started that the sink does not have yet.
    pub started: Vec<Timestamp>,
}

impl Taken {
    /// Services that keep what they have lost, and why, on one line each.
    pub fn held(&self) -> Vec<String> {
        self.verdict.services.values().map(|hold| hold.reason.clone()).collect()
    }
}

impl Intake {
    /// An intake for a target that has shown nothing yet.
    pub fn open(target: &TargetConfig, state_dir: Arc<StateDir>) -> Self {
        let matched = (!target.allow_empty).then(|| Matched::open(state_dir, target));
        Self { matched, shown: 0 }
    }

    /// Takes what there is now.
    pub fn take(&mut self, selection: &Selection, now: Instant) -> Taken {
        if let Some(matched) = self.matched.as_mut().filter(|_| selection.has_matched()) {
            matched.on_match();
        }
        let never_matched = self.matched.as_ref().is_some_and(|matched| !matched.has_matched());
        Taken {
            verdict: selection.verdict(now),
            step: selection.step(),
            mismatch: if never_matched { selection.mismatch() } else { None },
            notes: selection.kept_notes(),
            started: selection.newer_than(self.shown).map(|row| row.instance.started_at).collect(),
        }
    }

    /// The sink has what was taken at this step.
    pub fn shown(&mut self, step: u64) {
        self.shown = step;
    }

    /// Remembers over restarts whether anything has ever matched. The state folder reports what fails.
    pub async fn remember(&mut self) {
        let Some(mut matched) = self.matched.take_if(|matched| matched.is_due()) else { return };
        let remembering = tokio::task::spawn_blocking(move || {
            matched.remember();
            matched
        });
        self.matched = Some(remembering.await.expect("remembering does not panic"));
    }
}
