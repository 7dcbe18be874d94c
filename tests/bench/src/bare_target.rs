//! What Rollcall does to a target, by hand: a file and a signal, and nothing else.

use std::fs::{self, File};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rollcall_tests::until;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;

use crate::clock::now;
use crate::container::BenchContainer;

/// How long to wait until the process has a signal.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(10);

/// A file, and a process that writes down when it receives a signal, as the bench's target does.
pub struct BareTarget {
    pid: Pid,
    dir: TempDir,
    /// The file that was replaced last. Freeing it takes longer than the rename.
    replaced: Mutex<Option<File>>,
    /// How many signals were sent.
    sent: AtomicUsize,
    _container: BenchContainer,
}

impl BareTarget {
    /// Starts the process and waits until it takes signals.
    pub fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let binds = [format!("{}:/out", dir.path().display())];
        let container =
            BenchContainer::with("bench-floor-target", &["HUP_LOG=/out/hups"], &json!({}), &binds)?;
        container.start()?;
        let pid = container.inspect()?["State"]["Pid"].as_i64().context("the target has no PID")?;
        let pid = Pid::from_raw(i32::try_from(pid)?).context("the target has no PID")?;
        let log = dir.path().join("hups");
        until("the target takes signals", SIGNAL_TIMEOUT, || Ok(log.exists()))?;
        let (replaced, sent) = (Mutex::default(), AtomicUsize::new(0));
        Ok(Self { pid, dir, replaced, sent, _container: container })
    }

    /// Puts a file in place and returns when it was there.
    pub fn write(&self) -> Result<Duration> {
        let (staged, dest) = (self.dir.path().join("staged"), self.dir.path().join("dest"));
        let mut file = File::create(&staged)?;
        file.write_all(&[b'x'; 2048])?;
        file.sync_all()?;
        let replaced = File::open(&dest).ok();
        fs::rename(&staged, &dest)?;
        let at = now();
        *self.replaced.lock().unwrap_or_else(PoisonError::into_inner) = replaced;
        Ok(at)
    }

    /// Frees the file that was replaced last. To be called when no time is being taken.
    pub fn free_replaced(&self) {
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Sends the signal.
    pub fn signal(&self) -> Result<()> {
        kill_process(self.pid, Signal::HUP)?;
        self.sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Waits until the process has the signal that was sent last, and returns when it received that.
    pub fn received_at(&self) -> Result<Duration> {
        let last = self.sent.load(Ordering::Relaxed) - 1;
        let line = until("the target has the signal", SIGNAL_TIMEOUT, || {
            let text = fs::read_to_string(self.dir.path().join("hups"))?;
            Ok(text.lines().nth(last).map(str::to_owned))
        })?;
        Ok(Duration::from_nanos(line.parse()?))
    }
}
