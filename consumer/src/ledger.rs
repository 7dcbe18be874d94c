//! Which content's notification was acked: the fact that must outlive a crash.
//!
//! What is installed is the file itself. What was acked stands here, as the digest of that file's bytes.
//! While the two differ a notification is owed, also after a restart and also while the file stays as it
//! is. One file a target, in the state folder; nothing else is read or written. All of this blocks.
//!
//! ```text
//! install B after A was acked:  file B, ledger A   owed
//! acked:                        file B, ledger B   settled
//! ```
//!
//! Only going back to the acked content needs care: before A is installed over a B whose notification was
//! not acked, the ledger's A is removed, or a crash would leave both at A while the target runs with B.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use rollcall_shared::{name::TargetName, wire::V1};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The SHA-256 of a file's bytes.
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

/// What stands in the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Acked {
    v: V1,
    /// The file and its notification: another one makes what is here void.
    subject: String,
    sha256: Digest,
    /// How many instances the file has.
    instances: usize,
}

/// One target's ledger.
#[derive(Debug)]
pub struct Ledger {
    file: PathBuf,
    subject: String,
    acked: Option<Acked>,
}

impl Ledger {
    /// Opens a target's ledger in the state folder. `subject` says which file and which notification it is
    /// about.
    ///
    /// # Errors
    /// The operating system's. A ledger that cannot be understood counts as empty: then a notification is
    /// owed, which is harmless.
    pub fn open(dir: &Path, target: &TargetName, subject: String) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        tempfile::tempfile_in(dir)?;
        let file = dir.join(format!("{target}.acked.json"));
        let acked = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice::<Acked>(&bytes).ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let mut ledger = Self { file, subject, acked };
        if ledger.acked.as_ref().is_some_and(|acked| acked.subject != ledger.subject) {
            ledger.forget()?;
        }
        Ok(ledger)
    }

    /// Whether a file with these bytes was installed without its notification being acked.
    pub fn owes(&self, installed: &Digest) -> bool {
        self.acked.as_ref().is_none_or(|acked| acked.sha256 != *installed)
    }

    /// How many instances the acked file has.
    pub fn instances(&self) -> Option<usize> {
        self.acked.as_ref().map(|acked| acked.instances)
    }

    /// To be called before these bytes replace others.
    ///
    /// # Errors
    /// The operating system's; the bytes must not be installed then.
    pub fn before_install(&mut self, next: &Digest) -> io::Result<()> {
        if self.owes(next) { Ok(()) } else { self.forget() }
    }

    /// The notification of the file with these bytes, which is still installed, was acked.
    ///
    /// # Errors
    /// The operating system's; the notification is still owed then, after a restart.
    pub fn settle(&mut self, installed: Digest, instances: usize) -> io::Result<()> {
        let acked = Acked { v: V1, subject: self.subject.clone(), sha256: installed, instances };
        let mut staged = tempfile::NamedTempFile::new_in(self.dir())?;
        staged.write_all(&serde_json::to_vec(&acked)?)?;
        staged.as_file().sync_all()?;
        staged.persist(&self.file)?;
        self.acked = Some(acked);
        self.sync_dir()
    }

    fn forget(&mut self) -> io::Result<()> {
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => self.acked = None,
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

    fn open(dir: &Path) -> Ledger {
        Ledger::open(dir, &"web".parse().expect("a name"), "subject".to_owned()).expect("a folder")
    }

    #[test]
    fn what_was_acked_outlives_a_restart_and_nothing_else_does() {
        let dir = tempfile::tempdir().expect("a folder");
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let mut ledger = open(dir.path());
        assert!(ledger.owes(&a), "nothing was acked yet");
        ledger.settle(a.clone(), 3).expect("a folder");
        ledger.before_install(&b).expect("a folder");
        let ledger = open(dir.path());
        assert!(!ledger.owes(&a));
        assert!(ledger.owes(&b), "b was installed, and a crash kept it from being acked");
        assert_eq!(ledger.instances(), Some(3));
    }

    #[test]
    fn going_back_to_the_acked_content_makes_it_owed_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let mut ledger = open(dir.path());
        ledger.settle(a.clone(), 1).expect("a folder");
        ledger.before_install(&b).expect("a folder");
        ledger.before_install(&a).expect("a folder");
        assert!(open(dir.path()).owes(&a), "the target may run with b");
    }

    #[test]
    fn another_destination_or_notification_owes_what_the_old_one_had() {
        let dir = tempfile::tempdir().expect("a folder");
        let a = Digest::of(b"a");
        open(dir.path()).settle(a.clone(), 1).expect("a folder");
        let other = Ledger::open(dir.path(), &"web".parse().expect("a name"), "other".to_owned());
        assert!(other.expect("a folder").owes(&a));
    }

    #[test]
    fn a_ledger_that_cannot_be_read_counts_as_empty() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("web.acked.json"), "{").expect("a folder");
        assert!(open(dir.path()).owes(&Digest::of(b"a")));
    }
}
