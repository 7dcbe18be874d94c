//! What the roll was, kept in the state folder over restarts: a restart while the store is away changes no target.
//!
//! One file, `roll.json`; nothing else is read or written. All of this blocks.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
    sync::Arc,
};

use rollcall_shared::{
    codec::V1,
    model::{instance::Instance, name::NodeName, node::NodeRecord},
    store::Position,
};
use serde::{Deserialize, Serialize};

/// The file's name in the state folder.
const FILE_NAME: &str = "roll.json";

/// What the roll was: the instances that some target shows, and their nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    pub(super) v: V1,
    /// Of when it is. There is none where some instances were unconfirmed: what the next listing lacks is so again.
    pub(super) position: Option<Position>,
    pub(super) nodes: BTreeMap<NodeName, NodeRecord>,
    pub(super) instances: Vec<RememberedInstance>,
}

/// An instance and its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RememberedInstance {
    pub(super) key: String,
    pub(super) instance: Arc<Instance>,
}

impl Remembered {
    /// Reads what is remembered in a state folder. A file that cannot be read counts as none.
    pub fn load(dir: &Path) -> Option<Self> {
        let path = dir.join(FILE_NAME);
        let read = fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        match read {
            Ok(remembered) => Some(remembered),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                let path = path.display();
                tracing::warn!(%path, %error, "cannot read what the roll was: starting without it");
                None
            }
        }
    }

    /// Writes it into a state folder, in the place of what was remembered before.
    ///
    /// # Errors
    /// The operating system's; what was remembered before is still there then.
    pub fn save(dir: &Path, remembered: &Self) -> io::Result<()> {
        // Readable by its owner alone.
        let staged = tempfile::NamedTempFile::new_in(dir)?;
        let mut writer = BufWriter::new(staged.as_file());
        serde_json::to_writer(&mut writer, remembered)?;
        writer.flush()?;
        drop(writer);
        staged.as_file().sync_all()?;
        staged.persist(dir.join(FILE_NAME))?;
        File::open(dir)?.sync_all()
    }

    /// How many instances are remembered.
    pub fn len(&self) -> usize {
        self.instances.len()
    }

    /// Whether no instance is remembered.
    pub fn is_empty(&self) -> bool {
        self.instances.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rollcall_shared::store::{Revision, StoreId};

    use super::*;
    use crate::testing;

    fn remembered() -> Remembered {
        let instance = Arc::new(testing::instance(1, "web"));
        Remembered {
            position: Some(Position { store: StoreId(u64::MAX), revision: Revision(5) }),
            nodes: [("h1".parse().expect("a name"), testing::node_record(60))].into(),
            instances: vec![RememberedInstance { key: testing::key(1), instance }],
            ..Remembered::default()
        }
    }

    #[test]
    fn what_is_saved_is_loaded_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(Remembered::load(dir.path()), None);
        Remembered::save(dir.path(), &Remembered::default()).expect("a folder");
        Remembered::save(dir.path(), &remembered()).expect("a folder");
        assert_eq!(Remembered::load(dir.path()), Some(remembered()));
        let files: Vec<_> = fs::read_dir(dir.path()).expect("a folder").flatten().collect();
        let [file] = files.as_slice() else { panic!("nothing is left beside it: {files:?}") };
        assert_eq!(file.metadata().expect("a file").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_cannot_be_read_counts_as_none() {
        let dir = tempfile::tempdir().expect("a folder");
        for bad in ["", "{", "{\"v\":2,\"position\":null,\"nodes\":{},\"instances\":[]}"] {
            fs::write(dir.path().join(FILE_NAME), bad).expect("a folder");
            assert_eq!(Remembered::load(dir.path()), None, "{bad:?} was taken");
        }
    }
}
