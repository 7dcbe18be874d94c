//! Verifies a file that its reader has: again and again, until it succeeds or its time is over.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rollcall_shared::process::time;
use tokio::time::Instant;

use super::{
    http::{self, HttpError},
    settings::{Probe, Verify},
};
use crate::sink::file::{
    command::CommandError,
    nginx::{Master, MasterError, Workers},
    notify::pid_file,
};

/// How long after an attempt the next one begins.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Why a file did not prove itself.
#[derive(Debug, thiserror::Error)]
#[error("{probe} did not succeed within {}", time::show(*timeout))]
pub struct Unverified {
    probe: Probe,
    timeout: Duration,
    /// What became of the last attempt.
    source: AttemptError,
}

#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("the answer has status {0}")]
    Status(u16),
    #[error(transparent)]
    Nginx(#[from] MasterError),
    #[error("nginx has no new workers, so it did not take the file: its error log has why")]
    NoNewWorkers,
    #[error("it takes too long")]
    Slow,
}

impl Verify {
    /// Verifies that the file at `dest` works; `before` has nginx's workers as they were when it was installed, unless that
    /// was in an earlier run.
    ///
    /// # Errors
    /// It did not within the time-out.
    pub async fn run(&self, dest: &Path, before: Option<&Workers>) -> Result<(), Unverified> {
        tokio::time::sleep(self.delay).await;
        let deadline = Instant::now() + self.timeout;
        let mut last = AttemptError::Slow;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout_at(deadline, self.attempt(dest, before, left)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => last = error,
                Err(_) => {}
            }
            if Instant::now() + RETRY_DELAY >= deadline {
                return Err(Unverified { probe: self.probe.clone(), timeout: self.timeout, source: last });
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    async fn attempt(
        &self,
        dest: &Path,
        before: Option<&Workers>,
        timeout: Duration,
    ) -> Result<(), AttemptError> {
        match &self.probe {
            Probe::Command(command) => Ok(command.run(dest, dest, timeout).await?),
            Probe::Http { url, status } => match http::status(url).await? {
                found if found == *status => Ok(()),
                found => Err(AttemptError::Status(found)),
            },
            Probe::Nginx(master) => {
                let (master, dest, before) = (master.clone(), dest.to_owned(), before.cloned());
                let look = move || new_workers(&master, &dest, before.as_ref());
                tokio::task::spawn_blocking(look).await.expect("looking at processes does not panic")
            }
        }
    }
}

/// Whether nginx has workers that it started after the file was installed. Blocks.
fn new_workers(master: &Master, dest: &Path, before: Option<&Workers>) -> Result<(), AttemptError> {
    let workers = master.workers()?;
    let are_new = match before {
        Some(before) => workers.have_replaced(before),
        None => file_age(dest).is_some_and(|file| {
            // All of them: a worker that crashed was replaced as well.
            let ages = workers.serving.iter().filter_map(|worker| pid_file::process_age(worker.pid));
            ages.max().is_some_and(|age| age < file)
        }),
    };
    if are_new { Ok(()) } else { Err(AttemptError::NoNewWorkers) }
}

/// How long ago a file was moved into its place, which is what changed its inode last.
fn file_age(path: &Path) -> Option<Duration> {
    let found = fs::metadata(path).ok()?;
    let seconds = Duration::from_secs(found.ctime().try_into().ok()?);
    let moved = UNIX_EPOCH + seconds + Duration::from_nanos(found.ctime_nsec().try_into().ok()?);
    SystemTime::now().duration_since(moved).ok()
}
