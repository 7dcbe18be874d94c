//! Notifies by a command of the user's, such as `systemctl reload haproxy`; [`super::notifier`] tries again.

use std::{path::PathBuf, time::Duration};

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
}
