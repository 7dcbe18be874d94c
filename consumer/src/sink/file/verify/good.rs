//! The last content of a target that was verified, and the one that was not: both outlive a restart, in the state folder.
//! All of this blocks.

use std::{io, sync::Arc};

use rollcall_shared::{codec::V1, model::name::TargetName};
use serde::{Deserialize, Serialize};

use crate::{state_dir::StateDir, target::state::Digest};

/// What is known of a target's contents.
#[derive(Debug)]
pub struct LastGood {
    dir: Arc<StateDir>,
    /// The file of what is known.
    known_file: String,
    /// The file with the good bytes.
    bytes_file: String,
    known: Known,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    v: V1,
    /// How contents are verified, and where they go: by another way, other contents are good.
    subject: String,
    good: Option<Digest>,
    bad: Option<Bad>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Bad {
    sha256: Digest,
    reason: String,
}

impl LastGood {
    /// What is remembered of a target. What cannot be read or understood counts as nothing.
    pub fn open(dir: Arc<StateDir>, target: &TargetName, subject: String) -> Self {
        let (known_file, bytes_file) = (format!("{target}.verified.json"), format!("{target}.good"));
        let read = dir.read(&known_file).ok().flatten();
        let known = read.and_then(|bytes| serde_json::from_slice::<Known>(&bytes).ok());
        let known = known.filter(|known| known.subject == subject);
        let known = known.unwrap_or(Known { v: V1, subject, good: None, bad: None });
        Self { dir, known_file, bytes_file, known }
    }

    /// Whether no content is known to be good.
    pub fn is_none(&self) -> bool {
        self.known.good.is_none()
    }

    /// Whether a content has been judged.
    pub fn is_known(&self, digest: &Digest) -> bool {
        self.known.good.as_ref() == Some(digest) || self.refusal(digest).is_some()
    }

    /// Why a content is bad, if it is.
    pub fn refusal(&self, digest: &Digest) -> Option<&str> {
        self.known.bad.as_ref().filter(|bad| bad.sha256 == *digest).map(|bad| bad.reason.as_str())
    }

    /// The bytes of the last good content, if there is one.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        let bytes = self.dir.read(&self.bytes_file).ok().flatten()?;
        // A crash may have left those of another content.
        self.known.good.as_ref().filter(|good| **good == Digest::of(&bytes)).map(|_| bytes)
    }

    /// A content is good. What was bad before may work beside what has changed since: it is no longer refused.
    ///
    /// # Errors
    /// The operating system's; then what was good before is what there is to go back to.
    pub fn keep(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.dir.write(&self.bytes_file, |to| to.write_all(bytes))?;
        (self.known.good, self.known.bad) = (Some(Digest::of(bytes)), None);
        self.write()
    }

    /// A content is bad.
    ///
    /// # Errors
    /// The operating system's; after a restart it is tried again then.
    pub fn refuse(&mut self, sha256: Digest, reason: String) -> io::Result<()> {
        self.known.bad = Some(Bad { sha256, reason });
        self.write()
    }

    fn write(&self) -> io::Result<()> {
        self.dir.write(&self.known_file, |to| Ok(serde_json::to_writer(to, &self.known)?))
    }
}

impl Drop for LastGood {
    fn drop(&mut self) {
        self.dir.release(&self.known_file);
        self.dir.release(&self.bytes_file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn open(dir: &Arc<StateDir>, subject: &str) -> LastGood {
        LastGood::open(dir.clone(), &"web".parse().expect("a name"), subject.to_owned())
    }

    #[test]
    fn what_is_good_and_what_is_bad_outlives_a_restart_and_no_other_way_to_verify() {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = testing::state_dir(folder.path());
        let mut good = open(&dir, "x");
        assert!(good.is_none() && good.bytes().is_none());
        good.keep(b"good").expect("a folder");
        good.refuse(Digest::of(b"bad"), "because".to_owned()).expect("a folder");
        let good = open(&dir, "x");
        assert_eq!(good.bytes().as_deref(), Some(&b"good"[..]));
        assert_eq!(good.refusal(&Digest::of(b"bad")), Some("because"));
        assert!(good.is_known(&Digest::of(b"good")) && !good.is_known(&Digest::of(b"new")));
        assert!(open(&dir, "y").is_none());
        let mut good = open(&dir, "x");
        good.keep(b"better").expect("a folder");
        assert_eq!(good.refusal(&Digest::of(b"bad")), None, "it may work by now");
        good.keep(b"good").expect("a folder");
        dir.write("web.good", |to| to.write_all(b"half")).expect("a folder");
        assert_eq!(open(&dir, "x").bytes(), None);
    }

    #[test]
    fn a_content_that_cannot_be_kept_leaves_the_one_before_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = testing::state_dir(folder.path());
        let mut good = open(&dir, "x");
        good.keep(b"good").expect("a folder");
        good.bytes_file = "x".repeat(300);
        good.keep(b"better").expect_err("no file has such a name");
        assert!(good.is_known(&Digest::of(b"good")) && !good.is_known(&Digest::of(b"better")));
    }
}
