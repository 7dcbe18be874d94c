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

use std::{
    collections::BTreeSet,
    fmt,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use rollcall_shared::{
    codec::V1,
    model::{name::TargetName, signal::Incarnation},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::generation::Generation;

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
    file: PathBuf,
    subject: String,
    /// What the file has.
    remembered: Option<Remembered>,
    /// What was applied last, whether or not the file has it.
    applied: Option<AppliedContent>,
}

impl TargetState {
    /// Opens the state of a target in the state folder, which is there. `subject` names what is written and who is
    /// notified.
    ///
    /// # Errors
    /// The operating system's. A file that cannot be understood counts as none: then a notification is due, which does
    /// no harm.
    pub fn open(dir: &Path, target: &TargetName, subject: String) -> io::Result<Self> {
        let file = dir.join(format!("{target}.state.json"));
        let remembered = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice::<Remembered>(&bytes).ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let mut state = Self { file, subject, remembered, applied: None };
        if state.remembered.as_ref().is_some_and(|remembered| remembered.subject != state.subject) {
            state.forget()?;
        }
        state.applied = state.remembered.as_ref().map(|remembered| remembered.applied.clone());
        Ok(state)
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

    /// To be called before a content replaces another.
    ///
    /// # Errors
    /// The operating system's; the content must not be installed then.
    pub fn before_apply(&mut self, next: &Digest) -> io::Result<()> {
        let is_remembered =
            self.remembered.as_ref().is_some_and(|remembered| remembered.applied.sha256 == *next);
        if is_remembered { self.forget() } else { Ok(()) }
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
        let mut staged = tempfile::NamedTempFile::new_in(self.dir())?;
        staged.write_all(&serde_json::to_vec(&remembered)?)?;
        staged.as_file().sync_all()?;
        staged.persist(&self.file)?;
        self.remembered = Some(remembered);
        self.sync_dir()
    }

    fn forget(&mut self) -> io::Result<()> {
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => self.remembered = None,
        }
        self.sync_dir()
    }

    fn dir(&self) -> &Path {
        self.file.parent().expect("the file was joined to its folder")
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(self.dir())?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> TargetState {
        TargetState::open(dir, &"web".parse().expect("a name"), "subject".to_owned()).expect("a folder")
    }

    fn apply(state: &mut TargetState, generation: u64, bytes: &[u8]) {
        let sha256 = Digest::of(bytes);
        state.before_apply(&sha256).expect("a folder");
        state.on_applied(AppliedContent { generation: Generation(generation), sha256 });
    }

    fn ack(state: &mut TargetState) {
        state.remember(Acked { is_complete: true, receivers: BTreeSet::new() }).expect("a folder");
    }

    /// The generation that is remembered of a content, and whether it was acked.
    fn remembered(dir: &Path, bytes: &[u8]) -> Option<(u64, bool)> {
        let state = open(dir);
        let AppliedContent { generation, .. } =
            state.applied().filter(|applied| applied.sha256 == Digest::of(bytes))?.clone();
        Some((generation.0, state.acked(generation).is_some_and(|acked| acked.is_complete)))
    }

    #[test]
    fn what_was_acked_outlives_a_restart_and_nothing_else_does() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut state = open(dir.path());
        apply(&mut state, 1, b"a");
        assert_eq!(remembered(dir.path(), b"a"), None);
        ack(&mut state);
        apply(&mut state, 2, b"b");
        assert_eq!(remembered(dir.path(), b"a"), Some((1, true)));
        assert_eq!(remembered(dir.path(), b"b"), None, "a crash kept it from being acked");
        state.remember(Acked::default()).expect("a folder");
        assert_eq!(remembered(dir.path(), b"b"), Some((2, false)));
    }

    #[test]
    fn going_back_to_the_acked_content_is_not_taken_for_acked() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut state = open(dir.path());
        apply(&mut state, 1, b"a");
        ack(&mut state);
        apply(&mut state, 2, b"b");
        apply(&mut state, 3, b"a");
        assert_eq!(remembered(dir.path(), b"a"), None, "the reader may run with b");
    }

    #[test]
    fn another_destination_or_notification_makes_it_void() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut state = open(dir.path());
        apply(&mut state, 1, b"a");
        ack(&mut state);
        let other = TargetState::open(dir.path(), &"web".parse().expect("a name"), "other".to_owned());
        assert_eq!(other.expect("a folder").applied(), None);
    }

    #[test]
    fn a_state_that_cannot_be_read_counts_as_none() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("web.state.json"), "{").expect("a folder");
        assert_eq!(open(dir.path()).applied(), None);
    }
}
