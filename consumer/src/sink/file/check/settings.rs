//! What a staged file must pass: as it is written, and as it is used.

use std::{path::PathBuf, time::Duration};

use rollcall_shared::{
    model::{
        check::{CheckRule, FILE},
        label::LabelSelector,
        name::ContainerName,
        selector::Selector,
    },
    process::{setting::SettingError, time},
};
use serde::Deserialize;

use crate::{
    config::toml::{self, one_or_many},
    sink::file::command::CommandLine,
};

/// What a staged file must pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The command, which names the staged file.
    pub command: CommandLine,
    /// How long it may take.
    pub timeout: Duration,
    /// Where it runs.
    pub place: Place,
    /// Whether instances are left out for which it refuses the file.
    pub isolates: bool,
}

/// Where a command runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Beside this process.
    Here,
    /// In the containers that will read the file, by their agents.
    Containers {
        /// The containers.
        to: Selector,
        /// The folder of the file as the containers see it, where that is another path.
        dir: Option<PathBuf>,
    },
}

/// How long a check may take unless it is said.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a check in a container may take at most: no agent waits longer.
const MAX_CONTAINER_TIMEOUT: Duration = Duration::from_secs(300);

impl Check {
    /// The rule by which agents find the containers, where they are to check.
    pub fn rule(&self) -> Option<CheckRule> {
        match &self.place {
            Place::Here => None,
            Place::Containers { to, dir: _ } => {
                Some(CheckRule { to: to.clone(), command: self.command.to_words() })
            }
        }
    }
}

/// What a staged file must pass, as it is written: a command, or a table.
#[derive(Debug, Clone)]
pub enum RawCheck {
    /// A command that runs beside this process.
    Command(CommandLine),
    /// `check = { container = "proxy", command = "nginx -t -c {file}" }`.
    Table(Box<RawContainerCheck>),
}

/// A check in containers, as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawContainerCheck {
    /// The command; it runs beside this process where no container is given.
    #[serde(default, deserialize_with = "toml::command")]
    command: Option<CommandLine>,
    /// The container of this name.
    container: Option<ContainerName>,
    /// Those of this Compose or Swarm service.
    service: Option<String>,
    /// Those of this Compose project or Swarm stack.
    stack: Option<String>,
    /// Those with these labels.
    #[serde(default, alias = "label", deserialize_with = "one_or_many")]
    labels: Vec<LabelSelector>,
    /// The folder of the file as the containers see it.
    dir: Option<PathBuf>,
    /// How long the command may take.
    #[serde(default, deserialize_with = "toml::time")]
    timeout: Option<Duration>,
}

impl toml::CommandOrTable for RawCheck {
    type Table = RawContainerCheck;

    fn of_command(command: CommandLine) -> Self {
        Self::Command(command)
    }

    fn of_table(table: RawContainerCheck) -> Self {
        Self::Table(Box::new(table))
    }
}

impl RawCheck {
    /// What it means; `check_timeout` is the setting of that name beside it.
    ///
    /// # Errors
    /// A command that does not name the file, or settings that do not go together.
    pub fn parse(self, check_timeout: Option<Duration>) -> Result<Check, SettingError> {
        let table = match self {
            RawCheck::Command(command) => RawContainerCheck { command: Some(command), ..Default::default() },
            RawCheck::Table(table) => *table,
        };
        let RawContainerCheck { command, container, service, stack, labels, dir, timeout } = table;
        let command = command.ok_or_else(|| SettingError::missing("check.command", "the command to run"))?;
        if let (Some(timeout), Some(_)) = (timeout, check_timeout) {
            let expected = "it or check_timeout, not both";
            return Err(SettingError::new("check.timeout", time::show(timeout), expected));
        }
        let timeout = timeout.or(check_timeout).unwrap_or(CHECK_TIMEOUT);
        let to = Selector { container, service, stack, labels };
        if to == Selector::default() {
            if let Some(dir) = dir {
                return Err(SettingError::new("check.dir", dir.display(), "check.container beside it"));
            }
            names_file(&command, command.names_file(), format!("{FILE} in it"))?;
            return Ok(Check { command, timeout, place: Place::Here, isolates: false });
        }
        let is_word = command.to_words().iter().any(|word| word == FILE);
        names_file(&command, is_word, format!("{FILE} as a word of its own"))?;
        if let Some(dir) = dir.as_ref().filter(|dir| !dir.is_absolute()) {
            return Err(SettingError::new("check.dir", dir.display(), "a path that begins with /"));
        }
        if timeout > MAX_CONTAINER_TIMEOUT {
            let expected = format!("{} at most", time::show(MAX_CONTAINER_TIMEOUT));
            return Err(SettingError::new("check.timeout", time::show(timeout), expected));
        }
        Ok(Check { command, timeout, place: Place::Containers { to, dir }, isolates: false })
    }
}

fn names_file(command: &CommandLine, does: bool, expected: String) -> Result<(), SettingError> {
    let error = || SettingError::new("check", format!("{:?}", command.to_string()), expected);
    if does { Ok(()) } else { Err(error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Table {
        #[serde(deserialize_with = "toml::command_or_table")]
        check: Option<RawCheck>,
    }

    fn check(text: &str) -> Result<Check, String> {
        let table: Table = ::toml::from_str(text).map_err(|error| error.message().to_owned())?;
        table.check.expect("it is given").parse(None).map_err(|error| error.to_string())
    }

    #[test]
    fn a_command_runs_here_and_a_table_says_in_which_containers() {
        for text in ["check = \"nginx -t -c {file}\"", "check = [\"nginx\", \"-t\", \"-c\", \"{file}\"]"] {
            let check = check(text).expect("a check");
            assert_eq!((check.place.clone(), check.rule()), (Place::Here, None), "{text}");
            assert_eq!(check.command.to_string(), "nginx -t -c {file}");
        }
        let check = check(
            "check = { service = \"proxy\", label = [\"a\", \"b=c\"], command = \"nginx -t -c {file}\", dir = \"/c\" }",
        );
        let check = check.expect("a check");
        let rule = check.rule().expect("containers");
        assert_eq!(rule.to.to_string(), "service proxy, label a, label b=c");
        assert_eq!(rule.command, ["nginx", "-t", "-c", "{file}"]);
    }

    #[test]
    fn a_check_that_cannot_work_is_refused() {
        for (text, expected) in [
            ("check = { container = \"p\" }", "check.command is not given"),
            ("check = \"true\"", "check is \"true\": expected {file} in it"),
            (
                "check = { container = \"p\", command = \"x --f={file}\" }",
                "check is \"x --f={file}\": expected {file} as a word of its own",
            ),
            (
                "check = { command = \"x {file}\", dir = \"/c\" }",
                "check.dir is /c: expected check.container beside it",
            ),
            (
                "check = { container = \"p\", command = \"x {file}\", dir = \"c\" }",
                "check.dir is c: expected a path that begins with /",
            ),
            (
                "check = { container = \"p\", command = \"x {file}\", timeout = \"301s\" }",
                "check.timeout is 5m 1s: expected 5m at most",
            ),
            ("check = { containr = \"p\" }", "unknown field `containr`"),
        ] {
            let error = check(text).expect_err(text);
            assert!(error.starts_with(expected), "{error}\n{expected}");
        }
    }
}
