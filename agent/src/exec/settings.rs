//! Which commands may be run in containers.

use std::{fmt, str::FromStr};

use rollcall_shared::model::{check::CheckRule, selector::Selector};

use super::policy::{self, Words};
use crate::signals::settings::{containers, show_containers};

/// Which commands may be run in containers.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Checks in containers")]
pub struct ExecSettings {
    /// Commands by which consumers may have staged files checked: in any container ("nginx -t -c"), in a container or the
    /// containers of a service by name ("nginx -t -c:proxy"), or in those with a label ("nginx -t -c:role=proxy"). The
    /// paths of the file follow these words. A container's own label rollcall.exec="nginx -t -c" allows one too
    #[arg(
        long = "allow-exec",
        env = "ROLLCALL_ALLOW_EXEC",
        value_name = "COMMAND[:NAME|:LABEL=VALUE];...",
        global = true
    )]
    #[arg(value_delimiter = ';')]
    pub commands: Vec<AllowedCommand>,
}

/// A command that may be run, and in which containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedCommand {
    /// The words that a command begins with.
    pub words: Words,
    /// The containers that it may be run in: those that one of these means; any, where there is none.
    pub to: Vec<Selector>,
}

impl From<CheckRule> for AllowedCommand {
    fn from(CheckRule { to, command }: CheckRule) -> Self {
        Self { words: policy::fixed_words(&command).to_vec(), to: vec![to] }
    }
}

impl FromStr for AllowedCommand {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (command, to) = match text.rsplit_once(':') {
            Some((command, to)) => (command, containers(to.trim())?),
            None => (text, vec![]),
        };
        let words = policy::split(command);
        let words = words
            .ok_or_else(|| format!("{command:?} is not a command: expected words such as nginx -t -c"))?;
        Ok(Self { words, to })
    }
}

impl fmt::Display for AllowedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show_containers(f, &self.words.join(" "), "in", &self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_allowed_everywhere_or_where_it_says() {
        let read = |text: &str| text.parse::<AllowedCommand>().map(|rule| rule.to_string());
        for (text, expected) in [
            ("nginx -t -c", "nginx -t -c"),
            ("nginx -t -c:proxy", "nginx -t -c in container proxy or service proxy"),
            ("'/a b/check':role=proxy", "/a b/check in label role=proxy"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(expected));
        }
        for text in ["", ":proxy", "nginx -t:", "nginx 'x", "curl http://x"] {
            assert!(read(text).is_err(), "{text:?} was taken");
        }
    }
}
