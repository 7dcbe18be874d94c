//! The files of a target: one, or one for each service. Those of services that have gone are removed, if they are ours.
//!
//! What is to be installed together is staged together: a file that is refused keeps all the others from being installed.
//! Which files are ours is remembered in the state folder; no other one is replaced or removed, as whoever starts a
//! container names its service, and so the file. All of this blocks.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rollcall_shared::{
    codec::V1,
    model::name::{ServiceName, TargetName},
    process::setting::SettingError,
};
use serde::{Deserialize, Serialize};

use super::{InstallError, Installed, Installer, Staged, Stamp, installer::failed};
use crate::state_dir::StateDir;

/// Stands for the service in the name of a file.
pub const SERVICE: &str = "{service}";

/// What a target's files are to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// The one file.
    One(Vec<u8>),
    /// Each service's own.
    Each(BTreeMap<ServiceName, Vec<u8>>),
}

/// The files of a target.
#[derive(Debug)]
pub struct Files {
    /// Installs the one file; of many, its `dest` is their pattern.
    installer: Installer,
    /// Which of many are ours.
    manifest: Option<Manifest>,
    /// The names of files that are ours, whoever wrote them.
    named: BTreeSet<String>,
}

/// What is to be done about a target's files, together.
#[derive(Debug, Default)]
pub struct Batch {
    /// What is to be installed.
    pub staged: Vec<Staged>,
    /// What is to be removed.
    stale: Vec<PathBuf>,
    /// The names that are ours afterwards.
    names: BTreeSet<String>,
    /// What is left as it is, on one line each.
    pub left: Vec<String>,
}

impl Batch {
    /// Whether there is nothing to do but to remember what is ours.
    pub fn is_done(&self) -> bool {
        self.staged.is_empty() && self.stale.is_empty()
    }
}

/// What was done.
#[derive(Debug, Default)]
pub struct Done {
    /// The files that were replaced, as [`Installed`] has them.
    pub replaced: Vec<OwnedFd>,
    /// Why a file that was replaced is not kept, if it was to be.
    pub not_kept: Option<InstallError>,
}

/// Whether a path stands for the files of each service.
pub fn is_pattern(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().contains(SERVICE))
}

/// Reads what stands in a target's files while another thread may be installing them.
#[derive(Debug, Clone)]
pub struct Reader {
    dest: PathBuf,
    /// The names of those that are ours, where each service has its own.
    names: Option<Names>,
}

/// The names of files, as they are now.
type Names = Arc<Mutex<BTreeSet<String>>>;

impl Reader {
    /// The bytes of all of them, one after another. A file that somebody else put beside them is none of ours.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn read_all(&self) -> io::Result<Vec<u8>> {
        let Some(names) = &self.names else { return fs::read(&self.dest) };
        let names = names.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let read = |name: &String| match fs::read(self.dest.with_file_name(name)) {
            // It is about to be installed, or somebody removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![]),
            read => read,
        };
        let all = names.iter().map(read);
        Ok(all.collect::<io::Result<Vec<_>>>()?.concat())
    }
}

/// Whether a file may be one of a pattern's.
pub fn matches(pattern: &Path, path: &Path) -> bool {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let (Some(pattern_name), Some(name)) = (name(pattern), name(path)) else { return false };
    let Some((before, after)) = pattern_name.split_once(SERVICE) else { return false };
    let rest = name.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
    pattern.parent() == path.parent() && rest.is_some_and(|service| !service.is_empty())
}

impl Files {
    /// The files of a target; without a state folder, nothing is known to be ours.
    pub fn open(installer: Installer, state_dir: Option<Arc<StateDir>>) -> Self {
        let manifest = is_pattern(&installer.dest).then(|| Manifest::open(state_dir, &installer));
        Self { installer, manifest, named: BTreeSet::new() }
    }

    /// Takes the files of these services for ours, whoever wrote them: the operator has named both.
    #[must_use]
    pub fn owning(mut self, named: Vec<ServiceName>) -> Self {
        self.named = named.iter().map(|service| name_of(&self.of(service).dest)).collect();
        self
    }

    /// Checks, without touching anything, that they can be written.
    ///
    /// # Errors
    /// A destination that cannot be written.
    pub fn check(&self) -> Result<(), SettingError> {
        self.installer.check()
    }

    /// Removes what a run that crashed left staged.
    pub fn clear_leftovers(&self) {
        self.ours().for_each(|installer| installer.clear_leftovers());
    }

    /// What tells at a glance whether they are still as they were left.
    pub fn stamps(&self) -> BTreeMap<PathBuf, Option<Stamp>> {
        self.ours().map(|installer| (installer.dest.clone(), installer.stamp())).collect()
    }

    /// The bytes that are installed, if any are; of many, one after another.
    ///
    /// # Errors
    /// A file that is there and cannot be read.
    pub fn installed(&self) -> Result<Option<Vec<u8>>, InstallError> {
        let mut all: Option<Vec<u8>> = None;
        for installer in self.ours() {
            if let Some(bytes) = installer.installed()? {
                all.get_or_insert_default().extend(bytes);
            }
        }
        Ok(all)
    }

    /// What reads them again.
    pub fn reader(&self) -> Reader {
        let names = self.manifest.as_ref().map(|manifest| manifest.shared.clone());
        Reader { dest: self.installer.dest.clone(), names }
    }

    /// The services that have files of their own, by the names of these: whatever is in them now.
    pub fn services(&self) -> BTreeSet<ServiceName> {
        let pattern = name_of(&self.installer.dest);
        let Some((before, after)) = pattern.split_once(SERVICE) else { return BTreeSet::new() };
        let service = |name: &String| name.strip_prefix(before)?.strip_suffix(after)?.parse().ok();
        self.manifest.iter().flat_map(|manifest| &manifest.names).filter_map(service).collect()
    }

    /// What installs each of the contents.
    pub fn each<'c>(&self, contents: &'c Contents) -> Vec<(Installer, &'c [u8])> {
        match contents {
            Contents::One(bytes) => vec![(self.installer.clone(), bytes)],
            Contents::Each(all) => {
                let of = |(service, bytes): (&ServiceName, &'c Vec<u8>)| (self.of(service), bytes.as_slice());
                all.iter().map(of).collect()
            }
        }
    }

    /// Stages what differs, and says what is to be removed.
    ///
    /// # Errors
    /// The operating system's; nothing is left staged then.
    pub fn stage(&self, contents: &Contents) -> Result<Batch, InstallError> {
        let mut batch = Batch::default();
        for (installer, bytes) in self.each(contents) {
            let name = name_of(&installer.dest);
            if self.are_many() && !installer.fits() {
                let start: String = name.chars().take(40).collect();
                batch.left.push(format!("leaves out the file {start}..., whose name is too long"));
                continue;
            }
            let is_ours = |manifest: &Manifest| manifest.names.contains(&name) || self.named.contains(&name);
            let is_others = self.manifest.as_ref().is_some_and(|manifest| !is_ours(manifest))
                && installer.installed()?.is_some_and(|found| found != bytes);
            if is_others {
                let file = installer.dest.display();
                batch.left.push(format!("leaves {file} as it is: somebody else wrote it"));
                continue;
            }
            batch.staged.extend(installer.stage(bytes)?);
            batch.names.insert(name);
        }
        let ours = self.manifest.iter().flat_map(|manifest| &manifest.names);
        let gone = ours.filter(|name| !batch.names.contains(*name));
        batch.stale = gone.map(|name| self.installer.dest.with_file_name(name)).collect();
        Ok(batch)
    }

    /// Whether something would be lost that is there: the one file's content, or that of one of many that are ours.
    ///
    /// # Errors
    /// A file that is there and cannot be read.
    pub fn loses_content(&self, contents: &Contents) -> Result<bool, InstallError> {
        match contents {
            Contents::One(bytes) => self.installer.loses_content(bytes),
            Contents::Each(_) => {
                let each = self.each(contents).into_iter();
                let each: BTreeMap<PathBuf, &[u8]> =
                    each.map(|(installer, bytes)| (installer.dest, bytes)).collect();
                for installer in self.ours() {
                    let bytes = each.get(&installer.dest).copied().unwrap_or_default();
                    if installer.loses_content(bytes)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    /// Whether each service has its own.
    pub fn are_many(&self) -> bool {
        self.manifest.is_some()
    }

    /// Where they are: the one file, or the pattern of many.
    pub fn dest(&self) -> &Path {
        &self.installer.dest
    }

    /// Installs what was staged and removes what is stale.
    ///
    /// # Errors
    /// The operating system's; some of it may be done then, and the rest is when it is tried again.
    pub fn install(&mut self, Batch { staged, stale, names, left: _ }: Batch) -> Result<Done, InstallError> {
        let mut done = Done::default();
        // First, so that what a crash leaves is known to be ours.
        self.remember(|known| known.union(&names).cloned().collect())?;
        for staged in staged {
            let Installed { replaced, not_kept } = self.installer.install(staged)?;
            done.replaced.extend(replaced);
            done.not_kept = done.not_kept.or(not_kept);
        }
        for path in stale {
            done.not_kept = done.not_kept.or(self.installer.keep(&path));
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("cannot remove the file of a service that has gone,", &path)(error));
                }
                _ => {}
            }
        }
        self.remember(|_| names)?;
        Ok(done)
    }

    /// Remembers what is ours where there was nothing to install.
    ///
    /// # Errors
    /// The state folder cannot be written.
    pub fn adopt(&mut self, batch: &Batch) -> Result<(), InstallError> {
        self.remember(|_| batch.names.clone())
    }

    fn remember(
        &mut self,
        names: impl FnOnce(&BTreeSet<String>) -> BTreeSet<String>,
    ) -> Result<(), InstallError> {
        match &mut self.manifest {
            Some(manifest) => {
                let names = names(&manifest.names);
                let dest = self.installer.dest.clone();
                manifest
                    .set(names)
                    .map_err(failed("cannot remember in --state-dir which files are ours of", &dest))
            }
            None => Ok(()),
        }
    }

    /// The installers of the files that are ours.
    fn ours(&self) -> impl Iterator<Item = Installer> {
        let one = self.manifest.is_none().then(|| self.installer.clone());
        let names = self.manifest.iter().flat_map(|manifest| &manifest.names);
        let of = |name: &String| Installer {
            dest: self.installer.dest.with_file_name(name),
            ..self.installer.clone()
        };
        one.into_iter().chain(names.map(of))
    }

    fn of(&self, service: &ServiceName) -> Installer {
        let name = name_of(&self.installer.dest).replace(SERVICE, service.as_str());
        Installer { dest: self.installer.dest.with_file_name(name), ..self.installer.clone() }
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().map(OsString::from).unwrap_or_default().to_string_lossy().into_owned()
}

/// The names of the files that are ours.
#[derive(Debug)]
struct Manifest {
    state_dir: Option<Arc<StateDir>>,
    file: String,
    pattern: PathBuf,
    names: BTreeSet<String>,
    /// The same, for those who read the files.
    shared: Names,
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    v: V1,
    pattern: PathBuf,
    names: BTreeSet<String>,
}

impl Manifest {
    /// What is remembered; what cannot be read or understood, or is of another pattern, counts as nothing.
    fn open(state_dir: Option<Arc<StateDir>>, Installer { dest, target, .. }: &Installer) -> Self {
        let file = file_of(target);
        let read = state_dir.as_ref().and_then(|dir| dir.read(&file).ok().flatten());
        let remembered = read.and_then(|bytes| serde_json::from_slice::<Remembered>(&bytes).ok());
        let remembered = remembered.filter(|remembered| remembered.pattern == *dest);
        let is_name = |name: &String| matches(dest, &dest.with_file_name(name)) && !name.contains('/');
        let names = remembered.map(|remembered| remembered.names).unwrap_or_default();
        let names: BTreeSet<String> = names.into_iter().filter(is_name).collect();
        let shared = Arc::new(Mutex::new(names.clone()));
        Self { state_dir, file, pattern: dest.clone(), names, shared }
    }

    fn set(&mut self, names: BTreeSet<String>) -> io::Result<()> {
        if self.names == names {
            return Ok(());
        }
        let remembered = Remembered { v: V1, pattern: self.pattern.clone(), names: names.clone() };
        if let Some(dir) = &self.state_dir {
            dir.write(&self.file, |to| Ok(serde_json::to_writer(to, &remembered)?))?;
        }
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&names);
        self.names = names;
        Ok(())
    }
}

impl Drop for Manifest {
    fn drop(&mut self) {
        if let Some(dir) = &self.state_dir {
            dir.release(&self.file);
        }
    }
}

fn file_of(target: &TargetName) -> String {
    format!("{target}.files.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        sink::file::install::{Attributes, installer::testing::names},
        testing,
    };

    fn open(dir: &Path, state: &Arc<StateDir>) -> Files {
        let (dest, target) = (dir.join("s-{service}.conf"), "web".parse().expect("a name"));
        let installer = Installer { dest, target, attributes: Attributes::default(), backups: None };
        Files::open(installer, Some(state.clone()))
    }

    fn contents(all: &[(&str, &str)]) -> Contents {
        let content =
            |(service, text): &(&str, &str)| (service.parse().expect("a name"), text.as_bytes().to_vec());
        Contents::Each(all.iter().map(content).collect())
    }

    /// Stages and installs; gives what is left as it is.
    fn put(files: &mut Files, all: &[(&str, &str)]) -> Vec<String> {
        let batch = files.stage(&contents(all)).expect("it can be staged");
        let left = batch.left.clone();
        files.install(batch).expect("it can be installed");
        left
    }

    #[test]
    fn each_service_has_its_file_and_that_of_one_that_has_gone_is_removed() {
        let (dir, state) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let state_dir = testing::state_dir(state.path());
        fs::write(dir.path().join("s-mine.conf"), "mine").expect("a file");
        let mut files = open(dir.path(), &state_dir);
        put(&mut files, &[("a", "1"), ("b", "2")]);
        assert_eq!(names(dir.path()), ["s-a.conf", "s-b.conf", "s-mine.conf"]);
        // Over a restart as well.
        let mut files = open(dir.path(), &state_dir);
        assert!(files.stage(&contents(&[("a", "1"), ("b", "2")])).expect("it can be staged").is_done());
        put(&mut files, &[("b", "3"), ("c", "4")]);
        assert_eq!(names(dir.path()), ["s-b.conf", "s-c.conf", "s-mine.conf"]);
        assert_eq!(fs::read_to_string(dir.path().join("s-b.conf")).expect("a file"), "3");
    }

    #[test]
    fn a_file_that_somebody_else_wrote_is_neither_replaced_nor_removed() {
        let (dir, state) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let state_dir = testing::state_dir(state.path());
        let mine = dir.path().join("s-default.conf");
        fs::write(&mine, "mine").expect("a file");
        let mut files = open(dir.path(), &state_dir);
        let left = put(&mut files, &[("default", "theirs"), ("web", "1")]);
        assert_eq!(left, [format!("leaves {} as it is: somebody else wrote it", mine.display())]);
        put(&mut files, &[("web", "1")]);
        assert_eq!(fs::read_to_string(&mine).expect("a file"), "mine");
        // What is as it would be written is taken for ours, also where the state folder was lost.
        let lost = tempfile::tempdir().expect("a folder");
        let mut files = open(dir.path(), &testing::state_dir(lost.path()));
        assert_eq!(put(&mut files, &[("web", "1")]), [""; 0]);
        put(&mut files, &[]);
        assert_eq!(names(dir.path()), ["s-default.conf"]);
    }

    #[test]
    fn what_is_read_again_is_ours_and_services_are_known_by_the_names_of_their_files() {
        let (dir, state) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let state = testing::state_dir(state.path());
        let mut files = open(dir.path(), &state);
        let reader = files.reader();
        put(&mut files, &[("b", "b\n"), ("web", "1\n")]);
        fs::write(dir.path().join("s-c.conf"), "theirs").expect("a file");
        assert_eq!(reader.read_all().expect("they are there"), b"b\n1\n");
        fs::remove_file(dir.path().join("s-b.conf")).expect("it is there");
        assert_eq!(reader.read_all().expect("one is there"), b"1\n");
        let services = open(dir.path(), &state).services();
        assert_eq!(services.iter().map(ServiceName::as_str).collect::<Vec<_>>(), ["b", "web"]);
    }

    #[test]
    fn a_service_whose_files_name_would_be_too_long_is_left_out_alone() {
        let (dir, state) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let mut files = open(dir.path(), &testing::state_dir(state.path()));
        for length in [220, 250] {
            let long = "x".repeat(length);
            let left = put(&mut files, &[("a", "1"), (&long, "2")]);
            let is_there = dir.path().join(format!("s-{long}.conf")).exists();
            assert_eq!(left.len(), usize::from(!is_there), "{left:?}");
            assert_eq!(is_there, length == 220);
        }
        assert_eq!(names(dir.path()), ["s-a.conf"]);
    }

    #[test]
    fn a_pattern_has_the_service_in_its_files_name() {
        let pattern = Path::new("/c/s-{service}.conf");
        assert!(is_pattern(pattern) && !is_pattern(Path::new("/{service}/a")));
        for (path, expected) in
            [("/c/s-a.conf", true), ("/c/s-.conf", false), ("/c/a.conf", false), ("/d/s-a.conf", false)]
        {
            assert_eq!(matches(pattern, Path::new(path)), expected, "{path}");
        }
    }
}
