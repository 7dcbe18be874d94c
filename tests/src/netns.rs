//! Running a command in the network namespace of a host.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::tool;

/// The command wrapped by nsenter into a network namespace.
pub(crate) fn nsenter(netns: &Path, command: &Command) -> Result<Command> {
    let mut wrapped = tool::command("nsenter")?;
    wrapped
        .arg(format!("--net={}", netns.display()))
        .arg("--")
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        wrapped.current_dir(folder);
    }
    Ok(wrapped)
}
