//! Which files there are beside the containers: certificates, passwords and what is included by host.

use std::{collections::BTreeSet, fs, io, path::Path};

use super::{
    super::RenderError,
    settings::{Folder, NginxProxy},
};

/// The names of the files that are there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in super::super) struct Folders {
    pub(super) certs: BTreeSet<String>,
    pub(super) vhosts: BTreeSet<String>,
    pub(super) htpasswd: BTreeSet<String>,
    pub(super) conf: BTreeSet<String>,
}

impl Folders {
    /// Looks at the folders. One that is not there has no files.
    ///
    /// # Errors
    /// One that cannot be read: hosts would lose their certificates and passwords by it.
    pub fn look(settings: &NginxProxy) -> Result<Self, RenderError> {
        let names = |Folder { dir, .. }: &Folder| {
            names(dir).map_err(|source| RenderError::Folder { path: dir.clone(), source })
        };
        Ok(Self {
            certs: names(&settings.certs)?,
            vhosts: names(&settings.vhosts)?,
            htpasswd: names(&settings.htpasswd)?,
            conf: names(&settings.conf)?,
        })
    }
}

fn names(dir: &Path) -> io::Result<BTreeSet<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error),
    };
    // A file whose name is no text is no host's.
    entries.filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_has_no_files_and_one_that_cannot_be_read_is_an_error() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("a.crt"), "").expect("a file");
        let folder = |dir: &Path| Folder { dir: dir.to_owned(), path: "/x".to_owned() };
        let absent = folder(&dir.path().join("absent"));
        let settings = NginxProxy {
            certs: folder(dir.path()),
            vhosts: absent.clone(),
            htpasswd: absent.clone(),
            conf: absent,
            ..NginxProxy::default()
        };
        let folders = Folders::look(&settings).expect("they can be read");
        assert_eq!(folders, Folders { certs: ["a.crt".to_owned()].into(), ..Folders::default() });
        let file = folder(&dir.path().join("a.crt"));
        let error = Folders::look(&NginxProxy { vhosts: file, ..settings }).expect_err("it is a file");
        assert!(error.to_string().starts_with("cannot read the folder "), "{error}");
    }
}
