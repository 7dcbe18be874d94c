//! What a file has beside its bytes: its owner, its mode, and its extended attributes, among which are ACLs and SELinux's
//! labels.

use std::{
    fs::{File, Metadata, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt, fchown},
    path::Path,
};

use rustix::fs::Access;
use xattr::FileExt as _;

use super::{InstallError, Mode, Owner, installer::failed};

/// A new file's permission bits.
const MODE: u32 = 0o644;

/// What settings want of a file; what they leave open stays as the file that is replaced has it.
#[derive(Debug, Clone, Default)]
pub struct Attributes {
    /// Its permission bits [default: as it has them, else 0644].
    pub mode: Option<Mode>,
    /// Its owner [default: as it has one].
    pub owner: Option<Owner>,
}

impl Attributes {
    /// Whether a file is as the settings want it.
    pub fn are_met(&self, found: &Metadata) -> bool {
        let Owner { user, group } = self.wanted_owner();
        self.mode.is_none_or(|Mode(mode)| mode == found.mode() & 0o7777)
            && user.is_none_or(|user| user == found.uid())
            && group.is_none_or(|group| group == found.gid())
    }

    /// Gives a staged file what the file that it replaces has, and what the settings want. Tells whether it could: where
    /// the owner can only be kept by leaving that file in place, it could not.
    ///
    /// # Errors
    /// The operating system's.
    pub fn dress(&self, staged: &File, dest: &Path, found: Option<&Metadata>) -> Result<bool, InstallError> {
        let own = staged.metadata().map_err(failed("cannot look at what was staged for", dest))?;
        let wanted = self.wanted_owner();
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
        if found.is_some() {
            keep_extended(staged, dest);
        }
        // After the ACLs, whose mask it is.
        let mode = self.mode.map(|Mode(mode)| mode).or(found.map(|found| found.mode() & 0o7777));
        let mode = Permissions::from_mode(mode.unwrap_or(MODE));
        staged.set_permissions(mode).map_err(failed("cannot set the mode of", dest))?;
        Ok(true)
    }

    /// Gives a file that is rewritten in place what the settings want of it.
    ///
    /// # Errors
    /// The operating system's.
    pub fn set(&self, file: &File) -> io::Result<()> {
        if self.are_met(&file.metadata()?) {
            return Ok(());
        }
        let Owner { user, group } = self.wanted_owner();
        if user.is_some() || group.is_some() {
            fchown(file, user, group)?;
        }
        match self.mode {
            Some(Mode(mode)) => file.set_permissions(Permissions::from_mode(mode)),
            None => Ok(()),
        }
    }

    fn wanted_owner(&self) -> Owner {
        self.owner.unwrap_or(Owner { user: None, group: None })
    }
}

/// Copies the extended attributes of a file as far as that is permitted: a file system may have none, and some are root's
/// to set.
fn keep_extended(staged: &File, dest: &Path) {
    for name in xattr::list(dest).into_iter().flatten() {
        let Ok(Some(value)) = xattr::get(dest, &name) else { continue };
        if let Err(error) = staged.set_xattr(&name, &value) {
            tracing::debug!(?name, %error, file = %dest.display(), "cannot keep an extended attribute");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::sink::file::install::{Installer, installer::testing::*};

    fn installer(dir: &Path) -> Installer {
        let installer = installer_in(dir);
        put(&installer, b"one");
        installer
    }

    fn mode(installer: &Installer) -> u32 {
        fs::metadata(&installer.dest).expect("a file").mode() & 0o7777
    }

    #[test]
    fn a_new_file_is_readable_and_an_old_one_keeps_its_mode_unless_one_is_set() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut installer = installer(dir.path());
        assert_eq!(mode(&installer), 0o644);
        fs::set_permissions(&installer.dest, Permissions::from_mode(0o600)).expect("it is ours");
        put(&installer, b"two");
        assert_eq!(mode(&installer), 0o600);
        installer.attributes.mode = Some(Mode(0o640));
        put(&installer, b"three");
        assert_eq!(mode(&installer), 0o640);
    }

    #[test]
    fn the_mode_and_owner_are_set_also_where_the_bytes_are_the_same() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut installer = installer(dir.path());
        installer.attributes.mode = Some(Mode(0o600));
        assert!(put(&installer, b"one"));
        assert_eq!(mode(&installer), 0o600);
        assert!(!put(&installer, b"one"), "it is as it should be");
        let found = fs::metadata(&installer.dest).expect("a file");
        let owner = Owner { user: Some(found.uid()), group: Some(found.gid()) };
        installer.attributes.owner = Some(owner);
        assert!(installer.attributes.are_met(&found));
        let another = Owner { group: Some(found.gid() + 1), ..owner };
        assert!(!Attributes { owner: Some(another), ..Attributes::default() }.are_met(&found));
    }

    #[test]
    fn what_is_rewritten_in_place_gets_its_mode_too() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut installer = installer(dir.path());
        installer.attributes.mode = Some(Mode(0o600));
        rewrite_in_place(&installer, b"two");
        assert_eq!(mode(&installer), 0o600);
    }

    #[test]
    fn extended_attributes_and_acls_of_the_replaced_file_are_kept() {
        let dir = tempfile::tempdir().expect("a folder");
        let installer = installer(dir.path());
        // Version 2; the owner reads and writes, user 1234 reads, the group and others nothing, the mask is to read.
        let entry = |tag: u16, may: u16, id: u32| {
            [&tag.to_le_bytes()[..], &may.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        let nobody = u32::MAX;
        let entries = [(1, 6, nobody), (2, 4, 1234), (4, 0, nobody), (16, 4, nobody), (32, 0, nobody)];
        let entries = entries.map(|(tag, may, id)| entry(tag, may, id)).concat();
        let acl = [&2u32.to_le_bytes()[..], &entries].concat();
        let names = [("user.note", b"kept".to_vec()), ("system.posix_acl_access", acl)];
        for (name, value) in &names {
            xattr::set(&installer.dest, name, value).expect("a file system with extended attributes");
        }
        put(&installer, b"two");
        for (name, value) in names {
            assert_eq!(xattr::get(&installer.dest, name).expect("a file"), Some(value), "{name}");
        }
    }
}
