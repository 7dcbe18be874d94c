//! The state folder: what a consumer remembers over restarts, and who it is, under a lock that one process has.
//!
//! A folder that cannot be written stops nothing: what was remembered last counts, and the readiness report says why
//! nothing newer is. A folder that was removed is made again. All of this blocks.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, ErrorKind, Read, Seek, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rollcall_shared::{
    model::name::ConsumerName,
    process::{error::one_line, host, readiness::Part, setting::SettingError},
};
use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};

/// The file that has the ID, and bears the lock.
const ID_FILE: &str = "id";

/// A consumer's state folder. It is this process's own for as long as this lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    id: String,
    /// The locked file of the ID; `None` where it cannot even be made.
    lock: Mutex<Option<File>>,
    /// The files that could not be written, and why.
    failing: Mutex<BTreeMap<String, String>>,
    part: Part,
}

/// Why a state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// It is no folder. Nothing but another setting helps.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// Another consumer uses it.
    #[error(
        "--state-dir is {}: another consumer that runs uses it; expected a folder and a --name of its own for each",
        path.display()
    )]
    InUse {
        /// The folder.
        path: PathBuf,
    },
}

impl StateDir {
    /// Makes the folder if it is not there, locks it, and reads or makes the consumer's ID. Where the ID cannot be kept,
    /// it is derived from the names of host and consumer, so that a restart has the same one.
    ///
    /// # Errors
    /// A path that is no folder, and a folder that another consumer uses.
    pub fn open(path: &Path, consumer: &ConsumerName, part: Part) -> Result<Self, StateDirError> {
        let (id, lock, problem) = match keep_id(path, None) {
            Ok((id, lock)) => (Some(id), Some(lock), None),
            Err(error) if matches!(error.kind(), ErrorKind::NotADirectory | ErrorKind::AlreadyExists) => {
                return Err(SettingError::caused("--state-dir", path.display(), error).into());
            }
            Err(error) => match read_id(path) {
                Ok((id, lock)) => (id, Some(lock), Some(error)),
                Err(in_use) if in_use.kind() == ErrorKind::WouldBlock => {
                    return Err(StateDirError::InUse { path: path.to_owned() });
                }
                Err(_) => (None, None, Some(error)),
            },
        };
        let id = id.unwrap_or_else(|| derived_id(consumer));
        let failing = Mutex::default();
        let dir = Self { path: path.to_owned(), id, lock: Mutex::new(lock), failing, part };
        dir.report(ID_FILE, problem.as_ref());
        Ok(dir)
    }

    /// The consumer's ID.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What a file has, if it is there.
    ///
    /// # Errors
    /// The operating system's.
    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.path.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts a file in the place of the one before. Only its owner can read it.
    ///
    /// # Errors
    /// The operating system's, which the readiness report has as well; the file before is still there then.
    pub fn write(&self, name: &str, write: impl Fn(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        self.reported(name, || self.replace(name, &write))
    }

    /// Removes a file, if it is there.
    ///
    /// # Errors
    /// The operating system's, which the readiness report has as well.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        self.reported(name, || match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => self.sync(),
        })
    }

    /// Nobody keeps a file any more, so it cannot fail.
    pub fn release(&self, name: &str) {
        self.report(name, None);
    }

    fn replace(&self, name: &str, write: impl Fn(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let staged = tempfile::NamedTempFile::new_in(&self.path)?;
        let mut writer = BufWriter::new(staged.as_file());
        write(&mut writer)?;
        writer.flush()?;
        drop(writer);
        staged.as_file().sync_all()?;
        staged.persist(self.path.join(name))?;
        self.sync()
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    /// Does it, again where the folder was removed and could be made anew, and reports how that went.
    fn reported(&self, name: &str, change: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let changed = match change() {
            Err(error) if error.kind() == ErrorKind::NotFound => self.restored(&change),
            changed => changed,
        };
        self.report(name, changed.as_ref().err());
        if changed.is_ok() && locked(&self.failing).contains_key(ID_FILE) {
            self.report(ID_FILE, self.keep_own_id().as_ref().err());
        }
        changed
    }

    /// Does it in a folder that was removed and is made again, unless another thread has made it by now.
    fn restored(&self, change: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let mut lock = locked(&self.lock);
        match change() {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            changed => return changed,
        }
        *lock = Some(keep_id(&self.path, Some(&self.id))?.1);
        // As a text, so that it is escaped in the log.
        let path = &*self.path.display().to_string();
        tracing::warn!(path, "the state folder was removed: made it again");
        change()
    }

    /// Keeps the ID that could not be kept at the start.
    fn keep_own_id(&self) -> io::Result<()> {
        let mut lock = locked(&self.lock);
        if lock.is_some() && self.read(ID_FILE)?.as_deref() == Some(self.id.as_bytes()) {
            return Ok(());
        }
        // The lock of another open file would refuse it, this process's own as well.
        *lock = None;
        *lock = Some(keep_id(&self.path, Some(&self.id))?.1);
        Ok(())
    }

    /// A file could be written or not; it is ready while each one could.
    fn report(&self, name: &str, error: Option<&io::Error>) {
        let mut failing = locked(&self.failing);
        match error {
            Some(error) => drop(failing.insert(name.to_owned(), one_line(error))),
            None => drop(failing.remove(name)),
        }
        let Some(error) = failing.values().next() else { return self.part.ready() };
        let path = self.path.display();
        self.part.failed(format!(
            "cannot write --state-dir {path}: {error}; what was remembered last counts after a restart"
        ));
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks the file of the ID, and reads the ID from it, or writes this one or a new one to it.
fn keep_id(dir: &Path, known: Option<&str>) -> io::Result<(String, File)> {
    fs::create_dir_all(dir)?;
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).create(true).truncate(false).open(dir.join(ID_FILE))?;
    if let Some(id) = locked_id(&mut file)?.filter(|id| known.is_none_or(|known| known == id)) {
        return Ok((id, file));
    }
    let id = known.map_or_else(|| format!("{:032x}", fastrand::u128(..)), str::to_owned);
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(id.as_bytes())?;
    file.sync_all()?;
    Ok((id, file))
}

/// Locks the file of the ID where it can only be read, and reads the ID from it, if it has one.
fn read_id(dir: &Path) -> io::Result<(Option<String>, File)> {
    let mut file = File::open(dir.join(ID_FILE))?;
    Ok((locked_id(&mut file)?, file))
}

/// Locks a file, and reads the ID from it, if it has one.
fn locked_id(file: &mut File) -> io::Result<Option<String>> {
    rustix::fs::flock(&*file, FlockOperation::NonBlockingLockExclusive)?;
    let mut id = Vec::new();
    file.read_to_end(&mut id)?;
    let is_id = id.len() == 32 && id.iter().all(u8::is_ascii_hexdigit);
    Ok(String::from_utf8(id).ok().filter(|_| is_id))
}

/// An ID for a consumer that can keep none.
fn derived_id(consumer: &ConsumerName) -> String {
    let digest = Sha256::digest(format!("{}\0{consumer}", host::name()));
    digest[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread};

    use rollcall_shared::process::readiness::Readiness;

    use super::*;

    fn open(path: &Path, readiness: &Readiness) -> Result<StateDir, StateDirError> {
        StateDir::open(path, &"c1".parse().expect("a name"), readiness.part("state"))
    }

    fn opened(path: &Path) -> StateDir {
        open(path, &Readiness::default()).expect("a folder")
    }

    fn write(dir: &StateDir, text: &str) -> io::Result<()> {
        dir.write("file", |to| to.write_all(text.as_bytes()))
    }

    #[test]
    fn the_id_outlives_a_restart_and_a_second_process_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let state = dir.path().join("state");
        let first = opened(&state);
        let id = first.id().to_owned();
        let refused = open(&state, &Readiness::default()).expect_err("it is in use").to_string();
        assert!(refused.contains("another consumer that runs uses it"), "{refused}");
        drop(first);
        assert_eq!(opened(&state).id(), id);
    }

    #[test]
    fn a_broken_id_is_replaced_and_a_file_in_the_way_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        for broken in [b"half".as_slice(), b"\xff"] {
            fs::write(dir.path().join("id"), broken).expect("a file");
            assert_eq!(opened(dir.path()).id().len(), 32);
        }
        let blocked = open(&dir.path().join("id"), &Readiness::default()).expect_err("it is no folder");
        assert!(matches!(&blocked, StateDirError::Setting(_)), "{blocked}");
        assert!(blocked.to_string().starts_with("--state-dir is "), "{blocked}");
    }

    #[test]
    fn what_is_written_is_read_and_only_its_owner_can() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a folder");
        let state = opened(dir.path());
        assert_eq!(state.read("file").expect("a folder"), None);
        write(&state, "one").expect("a folder");
        write(&state, "two").expect("a folder");
        assert_eq!(state.read("file").expect("a folder").as_deref(), Some(b"two".as_slice()));
        let mode = fs::metadata(dir.path().join("file")).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 2, "nothing is left beside them");
        state.remove("file").expect("a folder");
        state.remove("file").expect("it is gone already");
        assert_eq!(state.read("file").expect("a folder"), None);
    }

    #[test]
    fn a_folder_that_was_removed_is_made_again_with_the_same_id_and_lock() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("state");
        let readiness = Readiness::default();
        let state = open(&path, &readiness).expect("a folder");
        fs::remove_dir_all(&path).expect("a folder");
        write(&state, "one").expect("it is made again");
        assert!(readiness.conditions().is_ready());
        open(&path, &Readiness::default()).expect_err("it is locked");
        let id = state.id().to_owned();
        drop(state);
        assert_eq!(opened(&path).id(), id);
    }

    #[test]
    fn writers_that_find_the_folder_removed_at_once_all_write_to_the_new_one() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("state");
        let state = opened(&path);
        for _ in 0..100 {
            fs::remove_dir_all(&path).expect("a folder");
            let barrier = Barrier::new(2);
            thread::scope(|scope| {
                for name in ["one", "two"] {
                    let (state, barrier) = (&state, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        state.write(name, |to| to.write_all(b"x")).expect("it is made again");
                    });
                }
            });
            open(&path, &Readiness::default()).expect_err("it is locked");
        }
    }

    #[test]
    fn a_file_that_is_written_does_not_hide_another_one_that_is_not_until_nobody_keeps_that() {
        let dir = tempfile::tempdir().expect("a folder");
        let readiness = Readiness::default();
        let state = open(dir.path(), &readiness).expect("a folder");
        let full = |_: &mut dyn Write| Err(io::Error::from(ErrorKind::StorageFull));
        for mended in [true, false] {
            state.write("big", full).expect_err("the disk is full");
            write(&state, "small").expect("there is room for it");
            state.remove("other").expect("it is not there");
            let conditions = readiness.conditions();
            assert!(conditions.reason("state").is_some_and(|reason| reason.contains("no storage space")));
            match mended {
                true => state.write("big", |to| to.write_all(b"big")).expect("there is room again"),
                false => state.release("big"),
            }
            assert!(readiness.conditions().is_ready());
        }
    }

    #[test]
    fn an_id_that_could_not_be_kept_is_kept_once_it_can_be() {
        let dir = tempfile::tempdir().expect("a folder");
        let readiness = Readiness::default();
        fs::create_dir(dir.path().join("id")).expect("a folder");
        let state = open(dir.path(), &readiness).expect("it goes on");
        write(&state, "one").expect("a folder");
        assert!(!readiness.conditions().is_ready(), "the ID is not kept");
        fs::remove_dir(dir.path().join("id")).expect("a folder");
        write(&state, "two").expect("a folder");
        assert!(readiness.conditions().is_ready());
        assert_eq!(state.read("id").expect("a file").as_deref(), Some(state.id().as_bytes()));
        open(dir.path(), &Readiness::default()).expect_err("it is locked");
    }

    #[test]
    fn a_write_that_fails_keeps_what_was_there_and_is_reported_until_one_works() {
        let dir = tempfile::tempdir().expect("a folder");
        let readiness = Readiness::default();
        let state = open(dir.path(), &readiness).expect("a folder");
        write(&state, "one").expect("a folder");
        let full = |_: &mut dyn Write| Err(io::Error::from(ErrorKind::StorageFull));
        state.write("file", full).expect_err("the disk is full");
        let reason = readiness.conditions().reason("state").expect("not ready").to_owned();
        assert!(
            reason.contains("cannot write --state-dir") && reason.contains("no storage space"),
            "{reason}"
        );
        assert_eq!(state.read("file").expect("a folder").as_deref(), Some(b"one".as_slice()));
        write(&state, "two").expect("there is room again");
        assert!(readiness.conditions().is_ready());
    }

    #[test]
    fn a_consumer_that_can_keep_no_id_has_the_same_one_at_each_start_and_another_name_another() {
        let derived = |name: &str| derived_id(&name.parse().expect("a name"));
        assert_eq!(derived("c1"), derived("c1"));
        assert_ne!(derived("c1"), derived("c2"));
        assert_eq!(derived("c1").len(), 32);
        // Nobody can make a folder there, not even root.
        let readiness = Readiness::default();
        let state = open(Path::new("/proc/none/state"), &readiness).expect("it goes on");
        assert_eq!(state.id(), derived("c1"));
        assert!(!readiness.conditions().is_ready());
    }
}
