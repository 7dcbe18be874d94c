//! Notifies by a command of the user's, such as `systemctl reload haproxy`; [`super::notifier`] tries again.

use std::{path::PathBuf, time::Duration};

use super::Told;
use crate::sink::file::command::{CommandError, CommandLine};

/// Runs a command.
#[derive(Debug)]
pub struct CommandNotifier {
    /// The command; `{file}` in it stands for the file.
    pub command: CommandLine,
    /// The file.
    pub dest: PathBuf,
    /// How long it may take.
    pub timeout: Duration,
}

/// The command was not a success.
#[derive(Debug, thiserror::Error)]
#[error("notify")]
pub struct NotifyError(#[from] CommandError);

impl CommandNotifier {
    /// Runs it to its end.
    pub(super) async fn attempt(&self) -> Result<(), NotifyError> {
        Ok(self.command.run(&self.dest, &self.dest, self.timeout).await?)
    }

    /// The same, and tells it which endpoints came and went since it succeeded last.
    pub(super) async fn attempt_told(&self, told: &Told) -> Result<(), NotifyError> {
        let difference = told.difference();
        let Self { command, dest, timeout } = self;
        command.run_with(dest, dest, *timeout, difference.variables()).await?;
        told.on_acked(difference);
        Ok(())
    }
}
