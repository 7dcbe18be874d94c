//! Verifies a file that its reader has: again and again, until it succeeds or its time is over.

use std::{path::Path, time::Duration};

use rollcall_shared::process::time;
use tokio::time::Instant;

use super::{
    http::{self, HttpError},
    settings::{Probe, Verify},
};
use crate::sink::file::command::CommandError;

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
    #[error("it takes too long")]
    Slow,
}

impl Verify {
    /// Verifies that the file at `dest` works.
    ///
    /// # Errors
    /// It did not within the time-out.
    pub async fn run(&self, dest: &Path) -> Result<(), Unverified> {
        tokio::time::sleep(self.delay).await;
        let deadline = Instant::now() + self.timeout;
        let mut last = AttemptError::Slow;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout_at(deadline, self.attempt(dest, left)).await {
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

    async fn attempt(&self, dest: &Path, timeout: Duration) -> Result<(), AttemptError> {
        match &self.probe {
            Probe::Command(command) => Ok(command.run(dest, dest, timeout).await?),
            Probe::Http { url, status } => match http::status(url).await? {
                found if found == *status => Ok(()),
                found => Err(AttemptError::Status(found)),
            },
        }
    }
}
