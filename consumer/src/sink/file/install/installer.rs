//! Puts bytes into a file: staged beside it, synced and renamed, so that a reader sees the old file or the
//! new one and nothing between.
//!
//! The same bytes are not written again. Only a file that cannot be renamed over, such as one that is
//! mounted by itself into a container, is rewritten in place. All of this blocks.

use std::{
    ffi::OsString,
    fs::{self, File, Metadata, OpenOptions, Permissions},
    io::{self, ErrorKind, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, PermissionsExt, fchown},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, OFlags},
    io::Errno,
};
use tempfile::{NamedTempFile, TempPath};

use rollcall_shared::process::setting::SettingError;

use super::owner::{Mode, Owner};

/// Earlier files that are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backups {
    /// The folder.
    pub dir: PathBuf,
    /// How many.
    pub keep: usize,
}

/// Why a file is not installed. Most of it is worth another try, once someone has looked.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {path}", path = path.display())]
pub struct InstallError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError + use<> {
    let path = path.to_owned();
    move |source| InstallError { doing, path, source }
}

/// Installs one file.
#[derive(Debug, Clone)]
pub struct Installer {
    /// The file.
    pub dest: PathBuf,
    /// Its permission bits [default: as it has them, else 0644].
    pub mode: Option<Mode>,
    /// Its owner [default: as it has one].
    pub owner: Option<Owner>,
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
    fn of(found: &Metadata) -> Self {
        Self {
            file: (found.dev(), found.ino()),
            len: found.len(),
            times: [(found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec())],
        }
    }
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
}

/// A new file's permission bits.
const MODE: u32 = 0o644;

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
        if !may(dir, Access::WRITE_OK) && !may(&dest, Access::WRITE_OK) {
            return expected(format!("permission to write in {}", dir.display()));
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
        fs::metadata(&self.dest).ok().as_ref().map(Stamp::of)
    }

    /// Stages the bytes, or does nothing where the file has them already.
    ///
    /// # Errors
    /// The operating system's.
    pub fn stage(&self, bytes: &[u8]) -> Result<Option<Staged>, InstallError> {
        let dest = self.resolved()?;
        let found = fs::metadata(&dest).ok();
        if found.as_ref().is_some_and(|found| found.len() == bytes.len() as u64)
            && self.installed()?.as_deref() == Some(bytes)
        {
            return Ok(None);
        }
        let prefix = staged_prefix(&dest);
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix);
        let (mut file, mut in_place) = match builder.tempfile_in(folder(&dest)).map_err(plain) {
            Ok(file) => (file, false),
            // The folder is closed to us but the file is open: it can still be rewritten in place.
            Err(error) if found.is_some() && is_closed(&error) => {
                let elsewhere = std::env::temp_dir();
                let file = builder.tempfile_in(&elsewhere).map_err(plain);
                (file.map_err(failed("cannot stage in", &elsewhere))?, true)
            }
            Err(error) => return Err(failed("cannot stage beside", &dest)(error)),
        };
        let unwritten = failed("cannot write", file.path());
        in_place |= !self.dress(file.as_file(), &dest, found.as_ref())?;
        file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(unwritten)?;
        Ok(Some(Staged { path: NamedTempFile::into_temp_path(file), dest, in_place }))
    }

    /// Gives the staged file its mode and owner. Tells whether it could: where the owner of the file that
    /// it replaces can only be kept by leaving that file in place, it could not.
    fn dress(&self, staged: &File, dest: &Path, found: Option<&Metadata>) -> Result<bool, InstallError> {
        let own = staged.metadata().map_err(failed("cannot look at what was staged for", dest))?;
        let wanted = self.owner.unwrap_or(Owner { user: None, group: None });
        let user = wanted.user.or(found.map(MetadataExt::uid)).filter(|user| *user != own.uid());
        let group = wanted.group.or(found.map(MetadataExt::gid)).filter(|group| *group != own.gid());
        if user.is_some() || group.is_some() {
            match fchown(staged, user, group) {
                Ok(()) => {}
                Err(error) if self.owner.is_some() => {
                    return Err(failed("cannot set the owner of", dest)(error));
                }
                Err(_) if rustix::fs::access(dest, Access::WRITE_OK).is_ok() => return Ok(false),
                Err(error) => return Err(failed("cannot keep the owner, and none is set, of", dest)(error)),
            }
        }
        let mode = self.mode.map(|Mode(mode)| mode).or(found.map(|found| found.mode() & 0o7777));
        let mode = Permissions::from_mode(mode.unwrap_or(MODE));
        staged.set_permissions(mode).map_err(failed("cannot set the mode of", dest))?;
        Ok(true)
    }

    /// Puts a staged file in place, after keeping the one that it replaces. Gives a handle of that
    /// one: the file system frees it when the last goes, which takes ten times as long as the rename and
    /// need not be waited for.
    ///
    /// # Errors
    /// The operating system's; the old file is still there then, unless it had to be rewritten in place.
    pub fn install(&self, staged: Staged) -> Result<Option<OwnedFd>, InstallError> {
        let Staged { path, dest, in_place } = staged;
        if let Some(backups) = &self.backups {
            backups.keep(&dest)?;
        }
        if in_place {
            return rewrite(&path, &dest).map(|()| None);
        }
        let replaced =
            rustix::fs::open(&dest, OFlags::PATH | OFlags::CLOEXEC, rustix::fs::Mode::empty()).ok();
        match path.persist(&dest) {
            Ok(()) => Ok(replaced),
            Err(error) if is_mounted(&error.error) => rewrite(&error.path, &dest).map(|()| None),
            Err(error) => Err(failed("cannot replace", &dest)(error.error)),
        }
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

impl Backups {
    /// Copies the file into the folder, under its name and the time, and removes the oldest copies.
    fn keep(&self, dest: &Path) -> Result<(), InstallError> {
        if !dest.exists() {
            return Ok(());
        }
        fs::create_dir_all(&self.dir).map_err(failed("cannot make the folder", &self.dir))?;
        let mut prefix = dest.file_name().unwrap_or_default().to_owned();
        prefix.push(".");
        let mut name = prefix.clone();
        name.push(jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S.%6fZ").to_string());
        let copy = self.dir.join(name);
        fs::copy(dest, &copy).map_err(failed("cannot keep a backup as", &copy))?;
        let entries = fs::read_dir(&self.dir).map_err(failed("cannot list", &self.dir))?;
        let mut copies: Vec<OsString> = entries
            .flatten()
            .map(|entry| entry.file_name())
            .filter(|name| is_backup(name.as_encoded_bytes(), prefix.as_encoded_bytes()))
            .collect();
        copies.sort();
        for old in &copies[..copies.len().saturating_sub(self.keep)] {
            let old = self.dir.join(old);
            fs::remove_file(&old).map_err(failed("cannot remove the old backup", &old))?;
        }
        Ok(())
    }
}

/// Whether a file's name is the prefix and a time as [`Backups::keep`] writes it.
fn is_backup(name: &[u8], prefix: &[u8]) -> bool {
    const TIME: &[u8] = b"dddddddd.dddddd.ddddddZ";
    name.strip_prefix(prefix).is_some_and(|time| {
        time.len() == TIME.len()
            && time.iter().zip(TIME).all(|(byte, shape)| match shape {
                b'd' => byte.is_ascii_digit(),
                b'Z' => *byte == b'Z',
                _ => matches!(byte, b'T' | b'.'),
            })
    })
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
    prefix.push(".rollcall-");
    prefix
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

/// Writes the staged bytes over the file itself, in one write, and cuts off what is left of the old ones.
fn rewrite(staged: &Path, dest: &Path) -> Result<(), InstallError> {
    let bytes = fs::read(staged).map_err(failed("cannot read", staged))?;
    let write = || {
        let mut file = OpenOptions::new().write(true).open(dest)?;
        file.write_all(&bytes)?;
        file.set_len(bytes.len() as u64)?;
        file.sync_all()
    };
    write().map_err(failed("cannot rewrite in place", dest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installer(dir: &Path) -> Installer {
        Installer { dest: dir.join("list"), mode: None, owner: None, backups: None }
    }

    fn put(installer: &Installer, bytes: &[u8]) -> bool {
        match installer.stage(bytes).expect("it can be staged") {
            Some(staged) => {
                installer.install(staged).expect("it can be installed");
                true
            }
            None => false,
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("a file").mode() & 0o7777
    }

    fn names(dir: &Path) -> Vec<OsString> {
        let mut names: Vec<_> =
            fs::read_dir(dir).expect("a folder").flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_file_that_was_replaced_is_given_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let installer = installer(dir.path());
        let install = |bytes: &[u8]| {
            let staged = installer.stage(bytes).expect("it can be staged").expect("it is new");
            installer.install(staged).expect("it can be installed")
        };
        assert!(install(b"one").is_none());
        let one = fs::metadata(&installer.dest).expect("a file").ino();
        let replaced = install(b"two").expect("a handle");
        assert_eq!(rustix::fs::fstat(replaced).expect("a file").st_ino, one);
    }

    #[test]
    fn the_same_bytes_are_not_written_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let installer = installer(dir.path());
        assert!(put(&installer, b"one"));
        let inode = fs::metadata(&installer.dest).expect("a file").ino();
        assert!(!put(&installer, b"one"));
        assert_eq!(fs::metadata(&installer.dest).expect("a file").ino(), inode);
        assert!(put(&installer, b"two"));
        assert_eq!(names(dir.path()), ["list"]);
    }

    #[test]
    fn a_new_file_is_readable_and_an_old_one_keeps_its_mode_unless_one_is_set() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut installer = installer(dir.path());
        put(&installer, b"one");
        assert_eq!(mode(&installer.dest), 0o644);
        fs::set_permissions(&installer.dest, Permissions::from_mode(0o600)).expect("it is ours");
        put(&installer, b"two");
        assert_eq!(mode(&installer.dest), 0o600);
        installer.mode = Some(Mode(0o640));
        put(&installer, b"three");
        assert_eq!(mode(&installer.dest), 0o640);
    }

    #[test]
    fn what_is_staged_and_not_installed_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let installer = installer(dir.path());
        let staged = installer.stage(b"one").expect("it can be staged").expect("it is new");
        assert!(staged.path().file_name().expect("a name").to_string_lossy().starts_with(".list.rollcall-"));
        drop(staged);
        assert_eq!(names(dir.path()), [""; 0]);
        for name in [".list.rollcall-abc", ".other.rollcall-abc"] {
            fs::write(dir.path().join(name), "").expect("a file");
        }
        installer.clear_leftovers();
        assert_eq!(names(dir.path()), [".other.rollcall-abc"]);
    }

    #[test]
    fn so_many_backups_are_kept_and_no_other_file_is_touched() {
        let dir = tempfile::tempdir().expect("a folder");
        let kept = dir.path().join("kept");
        let backups = Some(Backups { dir: kept.clone(), keep: 2 });
        let installer = Installer { backups, ..installer(dir.path()) };
        put(&installer, b"0");
        fs::write(kept.join("list.mine"), "").expect_err("there is nothing to keep yet");
        for bytes in [b"1", b"2", b"3", b"4"] {
            put(&installer, bytes);
            fs::write(kept.join("list.mine"), "").expect("a file");
        }
        let kept: Vec<_> =
            names(&kept).iter().map(|name| fs::read(kept.join(name)).expect("a file")).collect();
        assert_eq!(kept, [&b"2"[..], b"3", b""]);
    }

    #[test]
    fn what_is_rewritten_in_place_stays_the_same_file_and_is_cut_to_its_length() {
        let dir = tempfile::tempdir().expect("a folder");
        let installer = installer(dir.path());
        put(&installer, b"a longer one");
        let inode = fs::metadata(&installer.dest).expect("a file").ino();
        let staged = installer.stage(b"short").expect("it can be staged").expect("it is new");
        installer.install(Staged { in_place: true, ..staged }).expect("it can be rewritten");
        assert_eq!(fs::read(&installer.dest).expect("a file"), b"short");
        assert_eq!(fs::metadata(&installer.dest).expect("a file").ino(), inode);
        assert_eq!(names(dir.path()), ["list"]);
    }
}
