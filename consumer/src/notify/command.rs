//! A command that makes a target take its file up.

use std::{path::PathBuf, time::Duration};

use crate::command::CommandLine;

/// Runs a command.
#[derive(Debug)]
pub struct CommandNotifier {
    /// The command; `{file}` in it stands for the target's file.
    pub command: CommandLine,
    /// The target's file.
    pub dest: PathBuf,
    /// How long it may take.
    pub timeout: Duration,
}

impl CommandNotifier {
    /// Runs it to its end.
    pub(super) async fn attempt(&self) -> Result<(), String> {
        self.command.run(&self.dest, self.timeout).await.map_err(|error| format!("notify: {error}"))
    }
}
