//! A watched file: every version it had, and when that was in place.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Seek};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fd::OwnedFd;
use rustix::fs::inotify;

use crate::clock::now;

/// How long to wait for a version.
const FILE_TIMEOUT: Duration = Duration::from_secs(20);

/// A version of the file.
#[derive(Debug)]
pub struct Version {
    /// When it was in place, since 1970.
    pub at: Duration,
    file: File,
}

impl Version {
    /// What it contains. It is read on demand, so that reading disturbs no measurement.
    pub fn text(&self) -> Result<String> {
        let mut file = &self.file;
        file.rewind()?;
        Ok(io::read_to_string(file)?)
    }

    /// The ports of its servers.
    pub fn ports(&self) -> Result<BTreeSet<u16>> {
        Ok(self.servers()?.into_keys().collect())
    }

    /// Its servers by their ports: what each is called in the file.
    pub fn servers(&self) -> Result<BTreeMap<u16, String>> {
        Ok(servers(&self.text()?))
    }
}

/// A running watch; it ends after the value was dropped.
pub struct FileWatch(Receiver<Version>);

impl FileWatch {
    /// Watches a file that is renamed into place or written in place.
    pub fn start(file: &Path) -> Result<Self> {
        let dir = file.parent().context("the file is in no folder")?;
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        let flags = inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::CLOSE_WRITE;
        inotify::add_watch(&inotify, dir, flags)?;
        let (sender, receiver) = mpsc::channel();
        let file = file.to_owned();
        thread::spawn(move || follow(&inotify, &file, &sender));
        Ok(Self(receiver))
    }

    /// Waits for the first version that is as wanted.
    pub fn wait(&self, wanted: impl Fn(&Version) -> Result<bool>) -> Result<Version> {
        loop {
            let version = self.0.recv_timeout(FILE_TIMEOUT).context("the file did not become as wanted")?;
            if wanted(&version)? {
                return Ok(version);
            }
        }
    }

    /// The next version, if there is one within this time.
    pub fn within(&self, time: Duration) -> Option<Version> {
        self.0.recv_timeout(time).ok()
    }

    /// The versions since the last call.
    pub fn take(&self) -> Vec<Version> {
        self.0.try_iter().collect()
    }
}

fn follow(inotify: &OwnedFd, file: &Path, versions: &Sender<Version>) {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(inotify, &mut buffer);
    while let Ok(event) = reader.next() {
        let at = now();
        let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
        if name.as_deref() != file.file_name().and_then(|name| name.to_str()) {
            continue;
        }
        let Ok(file) = File::open(file) else { continue };
        if versions.send(Version { at, file }).is_err() {
            return;
        }
    }
}

/// The servers in a file of the formats nginx-upstream or haproxy-backend, without the placeholder of an upstream that has
/// none. nginx's have no names but their addresses.
fn servers(text: &str) -> BTreeMap<u16, String> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("server "));
    let serving = lines.map(|line| line.trim_end_matches(';')).filter(|line| !line.ends_with(" down"));
    let server = |line: &str| {
        let address = line.split(' ').find_map(|word| word.parse::<SocketAddr>().ok())?;
        Some((address.port(), line.split(' ').next()?.to_owned()))
    };
    serving.filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_known_by_their_ports_and_the_placeholder_is_none() {
        let text = "upstream a {\n    server 127.0.0.1:9 down;\n}\n\
                    upstream b {\n    server 127.0.0.1:2001 weight=3;\n    server [::1]:2002;\n}\n";
        let expected = [(2001, "127.0.0.1:2001"), (2002, "[::1]:2002")];
        assert_eq!(servers(text), expected.map(|(port, name)| (port, name.to_owned())).into());
        let text = "backend web\n    server h1:web:80:0123456789ab 127.0.0.1:2003 weight 1 check\n";
        assert_eq!(servers(text), [(2003, "h1:web:80:0123456789ab".to_owned())].into());
    }
}
