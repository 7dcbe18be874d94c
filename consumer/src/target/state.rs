//! What is remembered of a target over restarts: what was applied, and who has acked it.
//!
//! One file a target, in the state folder. It is written once a change was acked, or a moment after a change that was
//! not: the way to the reader does not wait for it. While what is installed is not what is remembered as acked, a
//! notification is due, also after a restart. All of this blocks.
//!
//! ```text
//! install B after A was acked:  file B, remembered A   due
//! B was acked:                  file B, remembered B   done
//! ```
//!
//! Only going back needs care: before A is installed over a B that is not remembered yet, the memory of A is removed, or
//! a crash would leave both at A while the reader runs with B.

use std::{collections::BTreeSet, fmt, io, sync::Arc};

use rollcall_shared::{
    codec::V1,
    model::{name::TargetName, signal::Incarnation},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::generation::Generation;
use crate::state_dir::StateDir;

/// The SHA-256 of a content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest(String);

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        use fmt::Write as _;
        let mut text = String::with_capacity(64);
        for byte in Sha256::digest(bytes) {
            write!(text, "{byte:02x}").expect("a text takes what is written");
        }
        Self(text)
    }
}

/// Which content was applied, and as which change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedContent {
    /// The change.
    pub generation: Generation,
    /// The content.
    pub sha256: Digest,
}

/// Which change was acked, and by whom.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acked {
    /// Whether everybody who was to be notified has been.
    pub is_complete: bool,
    /// The receivers that have taken it, where containers are signalled.
    pub receivers: BTreeSet<Incarnation>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    v: V1,
    /// What is written and who is notified: another subject makes what is remembered void.
    subject: String,
    applied: AppliedContent,
    acked: Acked,
}

/// What is remembered of one target.
#[derive(Debug)]
pub struct TargetState {
    dir: Arc<StateDir>,
    file: String,
    subject: String,
    /// What the file has, or should have.
    remembered: Option<Remembered>,
    /// What was applied last, whether or not the file has it.
    applied: Option<AppliedContent>,
}

impl TargetState {
    /// Opens the state of a target in the state folder. `subject` names what is written and who is notified. A file that
    /// cannot be read or understood counts as none: then a notification is due, which does no harm.
    pub fn open(dir: Arc<StateDir>, target: &TargetName, subject: String) -> Self {
        let file = format!("{target}.state.json");
        let read = dir.read(&file).unwrap_or_else(|error| {
            tracing::warn!(file, %error, "cannot read what was acked: notifying again");
            None
        });
        let remembered = read.and_then(|bytes| serde_json::from_slice::<Remembered>(&bytes).ok());
        let mut state = Self { dir, file, subject, remembered, applied: None };
        if state.remembered.as_ref().is_some_and(|remembered| remembered.subject != state.subject) {
            state.forget();
        }
        state.applied = state.remembered.as_ref().map(|remembered| remembered.applied.clone());
        state
    }

    /// What was applied last.
    pub fn applied(&self) -> Option<&AppliedContent> {
        self.applied.as_ref()
    }

    /// What was acked of a change, as far as that is remembered.
    pub fn acked(&self, generation: Generation) -> Option<&Acked> {
        let remembered =
            self.remembered.as_ref().filter(|remembered| remembered.applied.generation == generation);
        remembered.map(|remembered| &remembered.acked)
    }

    /// To be called before a content replaces another. A state folder that cannot be written does not keep it from being
    /// installed; after a crash it may then be taken for acked.
    pub fn before_apply(&mut self, next: &Digest) {
        if self.remembered.as_ref().is_some_and(|remembered| remembered.applied.sha256 == *next) {
            self.forget();
        }
    }

    /// A content was applied. It is remembered with the next [`TargetState::remember`].
    pub fn on_applied(&mut self, applied: AppliedContent) {
        self.applied = Some(applied);
    }

    /// Remembers what was applied last, and who has acked it.
    ///
    /// # Errors
    /// The operating system's; a notification is due after a restart then.
    pub fn remember(&mut self, acked: Acked) -> io::Result<()> {
        let Some(applied) = self.applied.clone() else { return Ok(()) };
        let remembered = Remembered { v: V1, subject: self.subject.clone(), applied, acked };
        if self.remembered.as_ref() == Some(&remembered) {
            return Ok(());
        }
        self.dir.write(&self.file, |to| Ok(serde_json::to_writer(to, &remembered)?))?;
        self.remembered = Some(remembered);
        Ok(())
    }

    fn forget(&mut self) {
        self.remembered = None;
        // The state folder reports it.
        let _ = self.dir.remove(&self.file);
    }
}

impl Drop for TargetState {
    fn drop(&mut self) {
        self.dir.release(&self.file);
    }
}

#[cfg(test)]
mod tests {
    use rollcall_shared::process::readiness::Readiness;
    use tempfile::TempDir;

    use super::*;
    use crate::testing;

    fn folder() -> (TempDir, Arc<StateDir>) {
        let dir = tempfile::tempdir().expect("a folder");
        let state = testing::state_dir(dir.path());
        (dir, state)
    }

    fn open(dir: &Arc<StateDir>) -> TargetState {
        open_of(dir, "subject")
    }

    fn open_of(dir: &Arc<StateDir>, subject: &str) -> TargetState {
        TargetState::open(dir.clone(), &"web".parse().expect("a name"), subject.to_owned())
    }

    fn apply(state: &mut TargetState, generation: u64, bytes: &[u8]) {
        let sha256 = Digest::of(bytes);
        state.before_apply(&sha256);
        state.on_applied(AppliedContent { generation: Generation(generation), sha256 });
    }

    fn ack(state: &mut TargetState) {
        state.remember(Acked { is_complete: true, receivers: BTreeSet::new() }).expect("a folder");
    }

    /// The generation that is remembered of a content, and whether it was acked.
    fn remembered(dir: &Arc<StateDir>, bytes: &[u8]) -> Option<(u64, bool)> {
        let state = open(dir);
        let AppliedContent { generation, .. } =
            state.applied().filter(|applied| applied.sha256 == Digest::of(bytes))?.clone();
        Some((generation.0, state.acked(generation).is_some_and(|acked| acked.is_complete)))
    }

    #[test]
    fn what_was_acked_outlives_a_restart_and_nothing_else_does() {
        let (_dir, dir) = folder();
        let mut state = open(&dir);
        apply(&mut state, 1, b"a");
        assert_eq!(remembered(&dir, b"a"), None);
        ack(&mut state);
        apply(&mut state, 2, b"b");
        assert_eq!(remembered(&dir, b"a"), Some((1, true)));
        assert_eq!(remembered(&dir, b"b"), None, "a crash kept it from being acked");
        state.remember(Acked::default()).expect("a folder");
        assert_eq!(remembered(&dir, b"b"), Some((2, false)));
    }

    #[test]
    fn going_back_to_the_acked_content_is_not_taken_for_acked() {
        let (_dir, dir) = folder();
        let mut state = open(&dir);
        apply(&mut state, 1, b"a");
        ack(&mut state);
        apply(&mut state, 2, b"b");
        apply(&mut state, 3, b"a");
        assert_eq!(remembered(&dir, b"a"), None, "the reader may run with b");
    }

    #[test]
    fn another_destination_or_notification_makes_it_void() {
        let (_dir, dir) = folder();
        let mut state = open(&dir);
        apply(&mut state, 1, b"a");
        ack(&mut state);
        assert_eq!(open_of(&dir, "other").applied(), None);
    }

    #[test]
    fn a_state_that_cannot_be_read_counts_as_none() {
        let (_dir, dir) = folder();
        dir.write("web.state.json", |to| to.write_all(b"{")).expect("a folder");
        assert_eq!(open(&dir).applied(), None);
    }

    #[test]
    fn a_target_that_goes_takes_along_that_its_state_could_not_be_written() {
        let (folder, readiness) = (tempfile::tempdir().expect("a folder"), Readiness::default());
        let (name, part) = ("c1".parse().expect("a name"), readiness.part("state"));
        let dir = Arc::new(StateDir::open(folder.path(), &name, part).expect("a folder"));
        std::fs::create_dir(folder.path().join("web.state.json")).expect("a folder");
        let mut state = open(&dir);
        state.on_applied(AppliedContent { generation: Generation(1), sha256: Digest::of(b"one") });
        state.remember(Acked::default()).expect_err("a folder is in the way");
        assert!(!readiness.conditions().is_ready());
        drop(state);
        assert!(readiness.conditions().is_ready());
    }
}
