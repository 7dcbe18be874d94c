//! Who a consumer is over restarts: an ID that is kept in its state folder, under a lock that one process has.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::Path,
};

use rollcall_shared::process::setting::SettingError;
use rustix::fs::FlockOperation;

/// A consumer's identity. The state folder is this process's own for as long as this lives.
#[derive(Debug)]
pub struct Identity {
    id: String,
    _lock: File,
}

impl Identity {
    /// Makes the state folder if it is not there, locks it, and reads or makes the ID.
    ///
    /// # Errors
    /// A state folder that cannot be written, or that another consumer uses.
    pub fn open(state_dir: &Path) -> Result<Self, SettingError> {
        let failed = |error: io::Error| SettingError::caused("--state-dir", state_dir.display(), error);
        fs::create_dir_all(state_dir).map_err(failed)?;
        let path = state_dir.join("id");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let expected = "a folder of its own for each consumer that runs; another one uses this";
            return Err(SettingError::new("--state-dir", state_dir.display(), expected));
        }
        let mut id = String::new();
        file.read_to_string(&mut id).map_err(failed)?;
        let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_id {
            id = format!("{:032x}", fastrand::u128(..));
            file.rewind().and_then(|()| file.set_len(0)).map_err(failed)?;
            file.write_all(id.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        }
        Ok(Self { id, _lock: file })
    }

    /// The ID.
    pub fn id(&self) -> &str {
        &self.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_outlives_a_restart_and_a_second_process_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let state = dir.path().join("state");
        let first = Identity::open(&state).expect("a folder");
        let id = first.id().to_owned();
        let refused = Identity::open(&state).expect_err("it is in use").to_string();
        assert!(refused.contains("expected a folder of its own for each consumer"), "{refused}");
        drop(first);
        assert_eq!(Identity::open(&state).expect("it is free").id(), id);
    }

    #[test]
    fn a_broken_id_is_replaced_and_a_file_in_the_way_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("id"), "half").expect("a file");
        assert_eq!(Identity::open(dir.path()).expect("a folder").id().len(), 32);
        let blocked = Identity::open(&dir.path().join("id")).expect_err("it is no folder").to_string();
        assert!(blocked.starts_with("--state-dir is "), "{blocked}");
    }
}
