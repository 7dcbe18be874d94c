//! One consumer to a socket: two would take each other's servers for their own that nobody wants any more.
//!
//! The lock is a file beside the socket, so that it holds for all who can reach that, in whichever container they run.
//! It ends with the process that has it.

use std::{
    fs::File,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

/// The lock of a socket.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    held: Option<File>,
}

/// Another consumer has the lock.
#[derive(Debug, thiserror::Error)]
#[error("another consumer tells HAProxy on this socket already: it has locked {}", .0.display())]
pub struct Locked(PathBuf);

impl Lock {
    /// The lock of the socket at this path, which is not taken yet.
    pub fn of(socket: &Path) -> Self {
        let mut path = socket.as_os_str().to_owned();
        path.push(".rollcall-lock");
        Self { path: path.into(), held: None }
    }

    /// Takes the lock, unless it is held already. A folder that cannot be written has none: whoever set that up answers
    /// for it.
    ///
    /// # Errors
    /// Another consumer has it.
    pub fn take(&mut self) -> Result<(), Locked> {
        if self.held.is_some() {
            return Ok(());
        }
        let file = match File::options().create(true).append(true).open(&self.path) {
            Ok(file) => file,
            Err(error) => {
                if !matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) {
                    tracing::debug!(path = %self.path.display(), %error, "the socket is not locked");
                }
                return Ok(());
            }
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Locked(self.path.clone())),
            // A file system without locks has none.
            Err(_) => Ok(()),
            Ok(()) => {
                self.held = Some(file);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_told_by_one_until_that_has_gone() {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("admin.sock");
        let (mut one, mut two) = (Lock::of(&socket), Lock::of(&socket));
        one.take().expect("nobody has it");
        one.take().expect("it has it");
        let error = two.take().expect_err("the other has it").to_string();
        assert!(error.ends_with("admin.sock.rollcall-lock"), "{error}");
        drop(one);
        two.take().expect("nobody has it");
    }

    #[test]
    fn a_folder_that_is_not_there_has_no_lock() {
        Lock::of(Path::new("/no/such/folder/sock")).take().expect("whoever asks finds out by the socket");
    }
}
