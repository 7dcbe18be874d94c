//! Whether anything has matched a target's selection since it was configured, remembered over restarts.
//!
//! One file a target, in the state folder. A label that is misspelled matches nothing, and is not to empty a good file;
//! what goes after it has matched is. All of this blocks.

use std::{path::Path, sync::Arc};

use rollcall_shared::codec::V1;
use serde::{Deserialize, Serialize};

use super::state::Digest;
use crate::{config::TargetConfig, state_dir::StateDir};

/// Whether anything has matched.
#[derive(Debug)]
pub struct Matched {
    dir: Arc<StateDir>,
    file: String,
    subject: Digest,
    has_matched: bool,
    is_remembered: bool,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Remembered {
    v: V1,
    /// The selection and the file that it was: another one starts anew.
    subject: Digest,
}

impl Matched {
    /// What the state folder remembers of a target. A file that cannot be read counts as none.
    pub fn open(dir: Arc<StateDir>, target: &TargetConfig) -> Self {
        let (file, subject) = (file_name(target), subject(target));
        let is_remembered = dir.read(&file).is_ok_and(|bytes| is_of(bytes, &subject));
        Self { dir, file, subject, has_matched: is_remembered, is_remembered }
    }

    /// The same of a state folder that is not opened.
    pub fn is_remembered_in(dir: &Path, target: &TargetConfig) -> bool {
        is_of(std::fs::read(dir.join(file_name(target))).ok(), &subject(target))
    }

    /// Whether anything has.
    pub fn has_matched(&self) -> bool {
        self.has_matched
    }

    /// Something has.
    pub fn on_match(&mut self) {
        self.has_matched = true;
    }

    /// Whether there is something to remember.
    pub fn is_due(&self) -> bool {
        self.has_matched && !self.is_remembered
    }

    /// Remembers whether something has. The state folder reports what fails.
    pub fn remember(&mut self) {
        if self.is_due() {
            let remembered = Remembered { v: V1, subject: self.subject.clone() };
            let written = self.dir.write(&self.file, |to| Ok(serde_json::to_writer(to, &remembered)?));
            self.is_remembered = written.is_ok();
        }
    }
}

impl Drop for Matched {
    fn drop(&mut self) {
        self.dir.release(&self.file);
    }
}

fn file_name(target: &TargetConfig) -> String {
    format!("{}.matched.json", target.name)
}

fn subject(target: &TargetConfig) -> Digest {
    Digest::of(format!("{} {:?}", target.sink, target.select).as_bytes())
}

fn is_of(bytes: Option<Vec<u8>>, subject: &Digest) -> bool {
    let remembered = bytes.and_then(|bytes| serde_json::from_slice::<Remembered>(&bytes).ok());
    remembered.is_some_and(|remembered| remembered.subject == *subject)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::RawTarget, testing};

    #[test]
    fn what_has_matched_is_remembered_until_the_selection_is_another_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = testing::state_dir(folder.path());
        let target = |port: u16| {
            let mut raw = RawTarget::json("web", "/x");
            raw.select.port = vec![port];
            raw.parse().expect("a target")
        };
        let open = |port| Matched::open(dir.clone(), &target(port));
        let mut matched = open(80);
        matched.remember();
        assert!(!open(80).has_matched());
        matched.on_match();
        matched.remember();
        assert!(open(80).has_matched() && Matched::is_remembered_in(folder.path(), &target(80)));
        assert!(!open(81).has_matched() && !Matched::is_remembered_in(folder.path(), &target(81)));
    }
}
