//! Puts bytes into a file: staged beside it, synced and renamed, so that a reader sees the old file or the
//! new one and nothing between.
//!
//! The same bytes are not written again. Only a file that cannot be renamed over, such as one that is
//! mounted by itself into a container, is rewritten in place. All of this blocks.

use std::{
    ffi::OsString,
    fs::{self, Metadata, OpenOptions},
    io::{self, ErrorKind, Write},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, OFlags},
    io::Errno,
};
use tempfile::{NamedTempFile, TempPath};

use rollcall_shared::{
    model::{check::STAGED, name::TargetName},
    process::setting::SettingError,
};

use super::{Attributes, Backups};

/// Why a file is not installed. Most of it is worth another try, once someone has looked.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {path}", path = path.display())]
pub struct InstallError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

pub(super) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError + use<> {
    let path = path.to_owned();
    move |source| InstallError { doing, path, source }
}

/// Installs one file.
#[derive(Debug, Clone)]
pub struct Installer {
    /// The file.
    pub dest: PathBuf,
    /// Whose it is.
    pub target: TargetName,
    /// What it has beside its bytes.
    pub attributes: Attributes,
    /// Where the files that it replaces are kept.
    pub backups: Option<Backups>,
}

/// What tells at a glance whether a file is still the one that was left: where and what it is, how long, and when it
/// was changed.
#[derive(Debug, PartialEq, Eq)]
pub struct Stamp {
    file: (u64, u64),
    len: u64,
    times: [(i64, i64); 2],
}

impl Stamp {
    /// The stamp of a file, if it is there.
    pub fn at(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().as_ref().map(Self::of)
    }

    fn of(found: &Metadata) -> Self {
        Self {
            file: (found.dev(), found.ino()),
            len: found.len(),
            times: [(found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec())],
        }
    }
}

/// What was done for a staged file.
#[derive(Debug)]
pub struct Installed {
    /// A handle of the file that was replaced: the file system frees it when the last goes, which takes ten times as long
    /// as the rename and need not be waited for.
    pub replaced: Option<OwnedFd>,
    /// Why the file that was replaced is not kept, if it was to be.
    pub not_kept: Option<InstallError>,
}

/// A staged file that is yet to be installed. Dropping it removes it.
#[derive(Debug)]
pub struct Staged {
    path: TempPath,
    /// Where it goes: the destination, or what that is a link to.
    dest: PathBuf,
    /// Whether the destination must be rewritten in place.
    in_place: bool,
}

impl Staged {
    /// Where it is staged.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it goes: the destination, or what that is a link to.
    pub fn dest(&self) -> &Path {
        &self.dest
    }
}

impl Installer {
    /// Checks, without touching anything, that the destination is a file, or can be one.
    ///
    /// # Errors
    /// A destination that cannot be written.
    pub fn check(&self) -> Result<(), SettingError> {
        let expected = |what: String| Err(SettingError::new("dest", self.dest.display(), what));
        let dest =
            self.resolved().map_err(|error| SettingError::caused("dest", self.dest.display(), error))?;
        let may = |path: &Path, access| rustix::fs::access(path, access).is_ok();
        match fs::metadata(&dest) {
            Ok(found) if !found.is_file() => return expected("a file, or nothing there yet".to_owned()),
            Ok(_) if !may(&dest, Access::READ_OK) => return expected("permission to read it".to_owned()),
            _ => {}
        }
        let dir = folder(&dest);
        if !dir.is_dir() {
            return expected(format!("the folder {} to be there", dir.display()));
        }
        let elsewhere = std::env::temp_dir();
        if !may(dir, Access::WRITE_OK) && !may(&dest, Access::WRITE_OK) {
            return expected(format!("permission to write in {}", dir.display()));
        }
        if !may(dir, Access::WRITE_OK) && !may(&elsewhere, Access::WRITE_OK) {
            let (dir, elsewhere) = (dir.display(), elsewhere.display());
            return expected(format!("permission to write in {dir} or, to stage it there, in {elsewhere}"));
        }
        Ok(())
    }

    /// Removes what a run that crashed left staged.
    pub fn clear_leftovers(&self) {
        let Ok(dest) = self.resolved() else { return };
        let prefix = staged_prefix(&dest);
        let Ok(entries) = fs::read_dir(folder(&dest)) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let ours = name.as_encoded_bytes().starts_with(prefix.as_encoded_bytes());
            if ours
                && entry.file_type().is_ok_and(|kind| kind.is_file())
                && fs::remove_file(entry.path()).is_ok()
            {
                tracing::info!(file = %entry.path().display(), "removed what a crashed run had staged");
            }
        }
    }

    /// Whether the names of the file and of what is staged for it are short enough.
    pub fn fits(&self) -> bool {
        /// What a name may have in bytes on Linux (limits.h(0P), NAME_MAX).
        const MAX_NAME_BYTES: usize = 255;
        /// What tempfile puts into a name.
        const RANDOM_BYTES: usize = 6;
        let staged = staged_prefix(&self.dest).len() + RANDOM_BYTES + staged_suffix(&self.dest).len();
        staged <= MAX_NAME_BYTES
    }

    /// The bytes that are installed, if any are.
    ///
    /// # Errors
    /// A file that is there and cannot be read.
    pub fn installed(&self) -> Result<Option<Vec<u8>>, InstallError> {
        match fs::read(&self.dest) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("cannot read", &self.dest)(error)),
        }
    }

    /// The stamp of the file that is installed, if any is.
    pub fn stamp(&self) -> Option<Stamp> {
        Stamp::at(&self.dest)
    }

    /// Whether the file has something in it that these bytes would replace.
    ///
    /// # Errors
    /// A file that is there and cannot be read.
    pub fn loses_content(&self, bytes: &[u8]) -> Result<bool, InstallError> {
        Ok(self.installed()?.is_some_and(|found| !found.is_empty() && found != bytes))
    }

    /// Whether the file has other bytes, or another mode or owner than it should have.
    ///
    /// # Errors
    /// A file that is there and cannot be read.
    pub fn differs(&self, bytes: &[u8]) -> Result<bool, InstallError> {
        let found = fs::metadata(&self.dest).ok();
        let is_alike = |found: Metadata| found.len() == bytes.len() as u64 && self.attributes.are_met(&found);
        Ok(!found.is_some_and(is_alike) || self.installed()?.as_deref() != Some(bytes))
    }

    /// Stages the bytes, or does nothing where the file has them already.
    ///
    /// # Errors
    /// The operating system's.
    pub fn stage(&self, bytes: &[u8]) -> Result<Option<Staged>, InstallError> {
        if !self.differs(bytes)? {
            return Ok(None);
        }
        let dest = self.resolved()?;
        match self.stage_in(folder(&dest), bytes, false) {
            // The folder is closed to us but the file is open: it can still be rewritten in place.
            Err(error) if dest.exists() && is_closed(&error.source) => self.stage_elsewhere(bytes),
            staged => staged,
        }
        .map(Some)
    }

    /// Stages the bytes in the folder of temporary files, and touches nothing else.
    ///
    /// # Errors
    /// The operating system's.
    pub fn stage_elsewhere(&self, bytes: &[u8]) -> Result<Staged, InstallError> {
        self.stage_in(&std::env::temp_dir(), bytes, true)
    }

    fn stage_in(&self, dir: &Path, bytes: &[u8], is_elsewhere: bool) -> Result<Staged, InstallError> {
        let dest = self.resolved()?;
        let (prefix, suffix) = (staged_prefix(&dest), staged_suffix(&dest));
        let mut builder = tempfile::Builder::new();
        let file = builder.prefix(&prefix).suffix(&suffix).tempfile_in(dir).map_err(plain);
        let mut file = file.map_err(failed("cannot stage in", dir))?;
        let unwritten = failed("cannot write", file.path());
        let found = fs::metadata(&dest).ok();
        let in_place = !self.attributes.dress(file.as_file(), &dest, found.as_ref())? || is_elsewhere;
        file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(unwritten)?;
        Ok(Staged { path: NamedTempFile::into_temp_path(file), dest, in_place })
    }

    /// Puts a staged file in place, after keeping the one that it replaces.
    ///
    /// # Errors
    /// The operating system's; the old file is still there then, unless it had to be rewritten in place.
    pub fn install(&self, Staged { path, dest, in_place }: Staged) -> Result<Installed, InstallError> {
        let not_kept = self.keep(&dest);
        let replaced = if in_place { self.rewrite(&path, &dest)? } else { self.replace(path, &dest)? };
        Ok(Installed { replaced, not_kept })
    }

    /// Keeps a file that is about to go; gives why it is not kept, if it was to be.
    pub fn keep(&self, dest: &Path) -> Option<InstallError> {
        self.backups.as_ref().and_then(|backups| backups.keep(&self.target, dest).err())
    }

    fn replace(&self, path: TempPath, dest: &Path) -> Result<Option<OwnedFd>, InstallError> {
        let replaced = rustix::fs::open(dest, OFlags::PATH | OFlags::CLOEXEC, rustix::fs::Mode::empty()).ok();
        match path.persist(dest) {
            Ok(()) => Ok(replaced),
            Err(error) if is_mounted(&error.error) => self.rewrite(&error.path, dest),
            Err(error) => Err(failed("cannot replace", dest)(error.error)),
        }
    }

    /// Writes the staged bytes over the file itself, in one write, and cuts off what is left of the old ones.
    fn rewrite(&self, staged: &Path, dest: &Path) -> Result<Option<OwnedFd>, InstallError> {
        let bytes = fs::read(staged).map_err(failed("cannot read", staged))?;
        let write = || {
            let mut file = OpenOptions::new().write(true).open(dest)?;
            file.write_all(&bytes)?;
            file.set_len(bytes.len() as u64)?;
            self.attributes.set(&file)?;
            file.sync_all()
        };
        write().map(|()| None).map_err(failed("cannot rewrite in place", dest))
    }

    /// The destination, or the file that it is a link to, whether or not that is there.
    fn resolved(&self) -> Result<PathBuf, InstallError> {
        let mut path = self.dest.clone();
        for _ in 0..40 {
            match fs::read_link(&path) {
                Ok(link) => path = folder(&path).join(link),
                Err(_) => return Ok(path),
            }
        }
        Err(failed("cannot follow", &self.dest)(io::Error::from(Errno::LOOP)))
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A hidden name, so that no glob over the folder picks the staged file up.
fn staged_prefix(dest: &Path) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(dest.file_name().unwrap_or_default());
    prefix.push(STAGED);
    prefix
}

/// The extension of the file: some programs judge by it.
fn staged_suffix(dest: &Path) -> OsString {
    let mut suffix = OsString::new();
    if let Some(extension) = dest.extension() {
        suffix.push(".");
        suffix.push(extension);
    }
    suffix
}

/// An error without the path that tempfile adds to it, and we do as well.
fn plain(error: io::Error) -> io::Error {
    if error.get_ref().is_some() { error.kind().into() } else { error }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
}

fn is_mounted(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ResourceBusy | ErrorKind::CrossesDevices)
}

#[cfg(test)]
pub(super) mod testing {
    //! Installs files in a folder of a test's own.

    use super::*;

    /// An installer of the folder's file `list`.
    pub fn installer_in(dir: &Path) -> Installer {
        let target = "web".parse().expect("a name");
        Installer { dest: dir.join("list"), target, attributes: Attributes::default(), backups: None }
    }

    /// Stages and installs; tells whether there was anything to do.
    pub fn put(installer: &Installer, bytes: &[u8]) -> bool {
        match installer.stage(bytes).expect("it can be staged") {
            Some(staged) => {
                installer.install(staged).expect("it can be installed");
                true
            }
            None => false,
        }
    }

    /// Installs as where the file cannot be renamed over.
    pub fn rewrite_in_place(installer: &Installer, bytes: &[u8]) {
        let staged = installer.stage(bytes).expect("it can be staged").expect("it is new");
        installer.install(Staged { in_place: true, ..staged }).expect("it can be rewritten");
    }

    /// The names in a folder.
    pub fn names(dir: &Path) -> Vec<OsString> {
        let mut names: Vec<_> =
            fs::read_dir(dir).expect("a folder").flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::*, *};

    #[test]
    fn the_file_that_was_replaced_is_given_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let installer = installer_in(dir.path());
        let install = |bytes: &[u8]| {
            let staged = installer.stage(bytes).expect("it can be staged").expect("it is new");
            installer.install(staged).expect("it can be installed").replaced
        };
        assert!(install(b"one").is_none());
        let one = fs::metadata(&installer.dest).expect("a file").ino();
        let replaced = install(b"two").expect("a handle");
        assert_eq!(rustix::fs::fstat(replaced).expect("a file").st_ino, one);
    }

    #[test]
    fn the_same_bytes_are_not_written_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let installer = installer_in(dir.path());
        assert!(put(&installer, b"one"));
        let inode = fs::metadata(&installer.dest).expect("a file").ino();
        assert!(!put(&installer, b"one"));
        assert_eq!(fs::metadata(&installer.dest).expect("a file").ino(), inode);
        assert!(put(&installer, b"two"));
        assert_eq!(names(dir.path()), ["list"]);
    }

    #[test]
    fn what_is_staged_and_not_installed_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let installer = installer_in(dir.path());
        let staged = installer.stage(b"one").expect("it can be staged").expect("it is new");
        assert!(staged.path().file_name().expect("a name").to_string_lossy().starts_with(".list.rollcall-"));
        drop(staged);
        assert_eq!(names(dir.path()), [""; 0]);
        for name in [".list.rollcall-abc", ".list.rollcall-abc.conf", ".other.rollcall-abc"] {
            fs::write(dir.path().join(name), "").expect("a file");
        }
        installer.clear_leftovers();
        assert_eq!(names(dir.path()), [".other.rollcall-abc"]);
    }

    #[test]
    fn what_is_rewritten_in_place_stays_the_same_file_and_is_cut_to_its_length() {
        let dir = tempfile::tempdir().expect("a folder");
        let installer = installer_in(dir.path());
        put(&installer, b"a longer one");
        let inode = fs::metadata(&installer.dest).expect("a file").ino();
        rewrite_in_place(&installer, b"short");
        assert_eq!(fs::read(&installer.dest).expect("a file"), b"short");
        assert_eq!(fs::metadata(&installer.dest).expect("a file").ino(), inode);
        assert_eq!(names(dir.path()), ["list"]);
    }

    #[test]
    fn a_staged_file_is_hidden_beside_the_file_and_has_its_extension() {
        let dir = tempfile::tempdir().expect("a folder");
        let installer = Installer { dest: dir.path().join("xds.conf.yaml"), ..installer_in(dir.path()) };
        let staged = installer.stage(b"one").expect("it can be staged").expect("it is new");
        assert_eq!(staged.path().parent(), Some(dir.path()));
        assert_eq!(staged.path().extension(), Some("yaml".as_ref()));
        assert!(staged.path().file_name().expect("a name").to_string_lossy().starts_with('.'));
    }

    #[test]
    fn a_backup_that_fails_is_told_and_stands_in_no_ones_way() {
        let dir = tempfile::tempdir().expect("a folder");
        let blocked = dir.path().join("blocked");
        fs::write(&blocked, "a file is no folder").expect("a file");
        let backups = Some(Backups { dir: blocked, keep: 2 });
        let installer = Installer { backups, ..installer_in(dir.path()) };
        let install = |bytes: &[u8]| {
            let staged = installer.stage(bytes).expect("it can be staged").expect("it is new");
            installer.install(staged).expect("it can be installed").not_kept
        };
        assert!(install(b"one").is_none(), "there is nothing to keep yet");
        let error = install(b"two").expect("it is told").to_string();
        assert!(error.starts_with("cannot make the backup folder "), "{error}");
        assert_eq!(fs::read(&installer.dest).expect("a file"), b"two");
    }
}
