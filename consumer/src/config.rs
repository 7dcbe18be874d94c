//! The targets, as a TOML file or a few flags name them, parsed into what the rest works with.
//!
//! Whatever is wrong is found here, before anything is touched: an error names the file, the line, the
//! value and what was expected.

use std::{
    collections::HashSet,
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rollcall_shared::{
    name::TargetName,
    signal::{Selector, Signal},
};

use crate::{
    command::{CommandLine, FILE},
    debounce::DebounceSettings,
    guard::GuardSettings,
    install::Backups,
    owner::{Mode, Owner},
    render::Content,
    select::Select,
};

mod raw;
mod value;

use raw::{File, RawTarget};

/// One rendered file and what follows from it.
#[derive(Debug, Clone)]
pub struct TargetSettings {
    /// Its name, unique among the consumer's targets.
    pub name: TargetName,
    /// The file.
    pub dest: PathBuf,
    /// What the file is made by.
    pub content: Content,
    /// Which instances it is made of.
    pub select: Select,
    /// The file's permission bits.
    pub mode: Option<Mode>,
    /// The file's owner.
    pub owner: Option<Owner>,
    /// What a staged file must pass.
    pub check: Option<Check>,
    /// What follows an installed file.
    pub notify: Option<Notify>,
    /// How changes are gathered.
    pub debounce: DebounceSettings,
    /// What is held back.
    pub guard: GuardSettings,
    /// Which earlier files are kept.
    pub backups: Option<Backups>,
}

/// A command that a staged file must pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The command, which names the staged file.
    pub command: CommandLine,
    /// How long it may take.
    pub timeout: Duration,
}

/// How a target learns of its new file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notify {
    /// A signal to containers, wherever they run, through the store.
    Signal {
        /// Which containers.
        to: Selector,
        /// The signal.
        signal: Signal,
    },
    /// A signal to a process of this host.
    Process {
        /// The file with its process ID.
        pid_file: PathBuf,
        /// The signal.
        signal: Signal,
    },
    /// A command.
    Command {
        /// The command.
        command: CommandLine,
        /// How long it may take.
        timeout: Duration,
    },
}

impl fmt::Display for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notify::Signal { to, signal } => write!(f, "{signal} to {to}"),
            Notify::Process { pid_file, signal } => write!(f, "{signal} to process {}", pid_file.display()),
            Notify::Command { command, .. } => write!(f, "command {command}"),
        }
    }
}

/// How long a check may take where nothing else is said.
pub const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a command that notifies may take where nothing else is said.
pub const NOTIFY_TIMEOUT: Duration = Duration::from_secs(30);

/// How many backups are kept where nothing else is said.
pub const BACKUPS: usize = 10;

/// Reads the targets of a TOML file.
///
/// # Errors
/// A sentence naming the file, the line, the value and what was expected.
pub fn read(path: &Path) -> Result<Vec<TargetSettings>, String> {
    let name = |why: String| format!("--config is {}: {why}", path.display());
    let text = fs::read_to_string(path).map_err(|error| name(error.to_string()))?;
    parse(&text).map_err(name)
}

fn parse(text: &str) -> Result<Vec<TargetSettings>, String> {
    let file: File = toml::from_str(text).map_err(|error| one_line(text, &error))?;
    if file.targets.is_empty() {
        return Err("it has no [[target]]: expected one or more".to_owned());
    }
    let targets = file.targets.into_iter().map(RawTarget::parse).collect::<Result<Vec<_>, _>>()?;
    check_distinct(&targets)?;
    Ok(targets)
}

/// Checks that no two targets have one name or one file.
fn check_distinct(targets: &[TargetSettings]) -> Result<(), String> {
    let (mut names, mut files) = (HashSet::new(), HashSet::new());
    for TargetSettings { name, dest, .. } in targets {
        if !names.insert(name) {
            return Err(format!("target {name} is there twice: expected names of their own"));
        }
        if !files.insert(dest) {
            return Err(format!("target {name}: dest is {}, which another target has", dest.display()));
        }
    }
    Ok(())
}

/// A TOML error on one line: which line it is, what stands there and what is wrong with it.
fn one_line(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let Some(span) = error.span() else { return message };
    let start = span.start.min(text.len());
    let number = text[..start].matches('\n').count() + 1;
    let line = text.lines().nth(number - 1).unwrap_or_default().trim();
    format!("line {number}, {line:?}: {message}")
}

impl TargetSettings {
    /// Checks that what was set fits together, and fills in what the format implies.
    ///
    /// # Errors
    /// A sentence naming the settings that contradict each other.
    pub fn settle(mut self) -> Result<Self, String> {
        if !self.dest.is_absolute() && self.dest.file_name().is_none() {
            return Err(format!("dest is {:?}: expected a file", self.dest));
        }
        if let Some(check) = self.check.as_ref().filter(|check| !check.command.names_file()) {
            return Err(format!("check is {:?}: expected {FILE} in it", check.command.to_string()));
        }
        if let Content::Format(format) = self.content {
            match self.select.protocol {
                Some(protocol) if !format.speaks(protocol) => {
                    return Err(format!("protocol is {protocol}, which the format cannot express"));
                }
                Some(_) => {}
                None => self.select.protocol = format.protocol(),
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests;
