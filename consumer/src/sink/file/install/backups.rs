//! Earlier files that are kept, by count. A backup never stands in the way of a new file.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    path::{Path, PathBuf},
};

use jiff::{Timestamp, civil::DateTime, tz::Offset};
use rollcall_shared::model::name::TargetName;

use super::{InstallError, installer::failed};

/// Earlier files that are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backups {
    /// The folder.
    pub dir: PathBuf,
    /// How many; 1 or more.
    pub keep: usize,
}

/// The time at which a file was replaced, as the names of backups end with it.
const TIME: &str = "%Y%m%dT%H%M%S.%6fZ";

impl Backups {
    /// Copies a target's file into the folder and removes the oldest of its copies. A copy's name has the target, which
    /// no other target shares, the file and the time.
    ///
    /// # Errors
    /// The operating system's.
    pub fn keep(&self, target: &TargetName, dest: &Path) -> Result<(), InstallError> {
        if !dest.exists() {
            return Ok(());
        }
        fs::create_dir_all(&self.dir).map_err(failed("cannot make the backup folder", &self.dir))?;
        // No target's name has an @.
        let mut prefix = OsString::from(format!("{target}@"));
        prefix.push(dest.file_name().unwrap_or_default());
        prefix.push(".");
        let mut times = self.times(&prefix).map_err(failed("cannot list the backup folder", &self.dir))?;
        let time = next_time(times.last().copied(), Timestamp::now());
        self.copy(dest, &self.path(&prefix, time))?;
        times.push(time);
        for old in &times[..times.len().saturating_sub(self.keep)] {
            let old = self.path(&prefix, *old);
            fs::remove_file(&old).map_err(failed("cannot remove the old backup", &old))?;
        }
        Ok(())
    }

    fn copy(&self, dest: &Path, copy: &Path) -> Result<(), InstallError> {
        fs::copy(dest, copy).map(drop).map_err(|error| {
            // Half a copy is none; it may not even be there.
            let _ = fs::remove_file(copy);
            failed("cannot keep the backup", copy)(error)
        })
    }

    /// The times of the copies, in their order.
    fn times(&self, prefix: &OsStr) -> io::Result<Vec<Timestamp>> {
        let names = fs::read_dir(&self.dir)?.flatten().map(|entry| entry.file_name());
        let mut times: Vec<_> = names.filter_map(|name| time_of(&name, prefix)).collect();
        times.sort();
        Ok(times)
    }

    fn path(&self, prefix: &OsStr, time: Timestamp) -> PathBuf {
        let mut name = prefix.to_owned();
        name.push(time.strftime(TIME).to_string());
        self.dir.join(name)
    }
}

/// Now, unless the clock was put back: the newest copy is always the last in order.
fn next_time(newest: Option<Timestamp>, now: Timestamp) -> Timestamp {
    let after = newest.and_then(|newest| newest.checked_add(jiff::SignedDuration::from_micros(1)).ok());
    after.map_or(now, |after| after.max(now))
}

/// The time in a copy's name, if the rest of the name is the prefix.
fn time_of(name: &OsStr, prefix: &OsStr) -> Option<Timestamp> {
    let time = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes())?;
    let time = DateTime::strptime("%Y%m%dT%H%M%S.%fZ", time).ok()?;
    Offset::UTC.to_timestamp(time).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::file::install::installer::testing::names;

    fn keep(backups: &Backups, target: &str, dest: &Path, text: &str) {
        fs::write(dest, text).expect("a file");
        backups.keep(&target.parse().expect("a name"), dest).expect("it is kept");
    }

    fn kept(dir: &Path) -> Vec<String> {
        names(dir).iter().map(|name| fs::read_to_string(dir.join(name)).expect("a file")).collect()
    }

    #[test]
    fn so_many_are_kept_and_no_other_file_is_touched() {
        let dir = tempfile::tempdir().expect("a folder");
        let backups = Backups { dir: dir.path().join("kept"), keep: 2 };
        let dest = dir.path().join("list");
        for text in ["1", "2", "3", "4"] {
            keep(&backups, "web", &dest, text);
            fs::write(backups.dir.join("web@list.mine"), "mine").expect("a file");
        }
        assert_eq!(kept(&backups.dir), ["3", "4", "mine"]);
    }

    #[test]
    fn targets_that_share_a_folder_and_a_file_name_leave_each_others_alone() {
        let dir = tempfile::tempdir().expect("a folder");
        let backups = Backups { dir: dir.path().join("kept"), keep: 1 };
        let (list, rest) = (dir.path().join("list"), dir.path().join("b.list"));
        keep(&backups, "a", &list, "1");
        keep(&backups, "b", &list, "2");
        keep(&backups, "a", &rest, "3");
        keep(&backups, "a.b", &list, "4");
        assert_eq!(kept(&backups.dir).len(), 4);
    }

    #[test]
    fn the_newest_stays_also_after_the_clock_was_put_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let backups = Backups { dir: dir.path().to_owned(), keep: 2 };
        let ahead = Timestamp::now() + jiff::SignedDuration::from_hours(1);
        for (number, text) in ["1", "2"].into_iter().enumerate() {
            let time = ahead + jiff::SignedDuration::from_secs(i64::try_from(number).expect("few"));
            fs::write(backups.path(OsStr::new("web@list."), time), text).expect("a file");
        }
        let dest = tempfile::tempdir().expect("a folder");
        keep(&backups, "web", &dest.path().join("list"), "3");
        assert_eq!(kept(dir.path()), ["2", "3"]);
        keep(&backups, "web", &dest.path().join("list"), "4");
        assert_eq!(kept(dir.path()), ["3", "4"]);
    }

    #[test]
    fn half_a_copy_is_not_left() {
        let dir = tempfile::tempdir().expect("a folder");
        let backups = Backups { dir: dir.path().join("kept"), keep: 2 };
        // Nothing is mapped at its beginning: the copy is there by then.
        let unreadable = Path::new("/proc/self/mem");
        let error = backups.keep(&"web".parse().expect("a name"), unreadable).expect_err("it is no file");
        assert!(error.to_string().starts_with("cannot keep the backup "), "{error}");
        assert_eq!(names(&backups.dir), [""; 0]);
    }
}
