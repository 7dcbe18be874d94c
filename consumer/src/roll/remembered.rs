//! What the roll was, kept in the state folder over restarts: a restart while the store is away changes no target.
//!
//! One file, `roll.json`; nothing else is read or written. All of this blocks.

use std::{collections::BTreeMap, io, sync::Arc};

use rollcall_shared::{
    codec::V1,
    model::{instance::Instance, name::NodeName, node::NodeRecord},
    store::Position,
};
use serde::{Deserialize, Serialize};

use crate::state_dir::StateDir;

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
    pub fn load(dir: &StateDir) -> Option<Self> {
        let read = dir.read(FILE_NAME).and_then(|bytes| match bytes {
            Some(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            None => Ok(None),
        });
        read.unwrap_or_else(|error| {
            tracing::warn!(file = FILE_NAME, %error, "cannot read what the roll was: starting without it");
            None
        })
    }

    /// Writes it into a state folder, in the place of what was remembered before.
    ///
    /// # Errors
    /// The operating system's; what was remembered before is still there then.
    pub fn save(&self, dir: &StateDir) -> io::Result<()> {
        dir.write(FILE_NAME, |to| Ok(serde_json::to_writer(to, self)?))
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
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().expect("a folder");
        let state = testing::state_dir(dir.path());
        assert_eq!(Remembered::load(&state), None);
        Remembered::default().save(&state).expect("a folder");
        remembered().save(&state).expect("a folder");
        assert_eq!(Remembered::load(&state), Some(remembered()));
    }

    #[test]
    fn a_file_that_cannot_be_read_counts_as_none() {
        let dir = tempfile::tempdir().expect("a folder");
        let state = testing::state_dir(dir.path());
        for bad in ["", "{", "{\"v\":2,\"position\":null,\"nodes\":{},\"instances\":[]}"] {
            state.write(FILE_NAME, |to| to.write_all(bad.as_bytes())).expect("a folder");
            assert_eq!(Remembered::load(&state), None, "{bad:?} was taken");
        }
    }
}
