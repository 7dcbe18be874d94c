//! A file that is watched: every version it had, and when it was there.

use std::fs::File;
use std::io::{self, Seek};
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::inotify;

use crate::engine::now;

/// A version of the file.
#[derive(Debug)]
pub struct Version {
    /// When it was in place, since 1970.
    pub at: Duration,
    file: File,
}

impl Version {
    /// What it holds. It is read when it is asked for, not while what is measured goes on.
    pub fn text(&self) -> Result<String> {
        let mut file = &self.file;
        file.rewind()?;
        Ok(io::read_to_string(file)?)
    }
}

/// Watches a file that is renamed into place or written there.
pub fn watch(file: &Path) -> Result<Receiver<Version>> {
    let dir = file.parent().context("a folder")?;
    let inotify = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    let flags = inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::CLOSE_WRITE;
    inotify::add_watch(&inotify, dir, flags)?;
    let (sender, receiver) = mpsc::channel();
    let file = file.to_owned();
    thread::spawn(move || {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&inotify, &mut buffer);
        while let Ok(event) = reader.next() {
            let at = now();
            let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
            if name.as_deref() != file.file_name().and_then(|name| name.to_str()) {
                continue;
            }
            let Ok(file) = File::open(&file) else { continue };
            if sender.send(Version { at, file }).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Awaits the first version that is as wanted.
pub fn await_version(versions: &Receiver<Version>, wanted: impl Fn(&str) -> bool) -> Result<Version> {
    loop {
        let version =
            versions.recv_timeout(Duration::from_secs(20)).context("the file is never as wanted")?;
        if wanted(&version.text()?) {
            return Ok(version);
        }
    }
}
