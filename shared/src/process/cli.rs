//! How our binaries begin and end: they parse their arguments, and exit with 0, with 1 where something failed, or with 2
//! where a setting cannot work; then with one line that says why.

use std::{
    error::Error,
    ffi::{OsStr, OsString},
    fmt,
    io::{self, Write},
    process::ExitCode,
};

use clap::{Command, Parser};
use regex::Regex;

use super::{error::OneLine, setting::SettingError};

/// Why a binary ends with another exit code than 0.
#[derive(Debug)]
pub enum Failure {
    /// A setting cannot work, and nothing was touched: exit code 2.
    Usage(Box<dyn Error + Send + Sync>),
    /// Something that is needed is not there, or went away for good: exit code 1.
    Failed(Box<dyn Error + Send + Sync>),
    /// What was asked for was shown, and something would change: exit code 2, without a word.
    Differs,
}

impl Failure {
    /// A setting cannot work.
    pub fn usage(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Failure::Usage(error.into())
    }

    /// Something else failed.
    pub fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Failure::Failed(error.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(error) | Failure::Failed(error) => OneLine(&**error).fmt(f),
            Failure::Differs => f.write_str("something would change"),
        }
    }
}

impl From<SettingError> for Failure {
    fn from(error: SettingError) -> Self {
        Failure::usage(error)
    }
}

/// Parses the arguments. Help and version are printed as they are; what cannot be parsed ends the process
/// with one line and exit code 2. An empty environment variable counts as none: Compose passes `${NAME}` on as one.
pub fn parse<C: Parser>() -> C {
    parse_from(std::env::args_os())
}

/// As [`parse`], of these arguments, the program's name first.
pub fn parse_from<C: Parser>(args: impl IntoIterator<Item = OsString>) -> C {
    let command = without_empty(C::command(), |name| std::env::var_os(name));
    let parsed =
        command.try_get_matches_from(args).and_then(|mut matches| C::from_arg_matches_mut(&mut matches));
    match parsed {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => {
            eprintln!("{}: error: {}", C::command().get_name(), usage(&error));
            std::process::exit(2);
        }
    }
}

/// The command without the environment variables that are empty.
fn without_empty(command: Command, variable: impl Fn(&OsStr) -> Option<OsString>) -> Command {
    command.mut_args(|arg| match arg.get_env().and_then(&variable) {
        Some(value) if value.is_empty() => arg.env(None::<&str>),
        _ => arg,
    })
}

/// Whether there is a flag among the arguments, other than these.
pub fn has_flags(args: impl IntoIterator<Item = OsString>, others: &[&str]) -> bool {
    let is_flag = |arg: &OsString| arg.to_str().is_some_and(|arg| arg.starts_with('-'));
    let name = |arg: &OsString| arg.to_str().and_then(|arg| arg.split('=').next()).map(str::to_owned);
    args.into_iter().filter(is_flag).any(|arg| name(&arg).is_some_and(|name| !others.contains(&&*name)))
}

/// Prints a text. A reader that has read enough is no failure.
///
/// # Errors
/// The operating system's.
pub fn print(text: &str) -> io::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Prints why it failed, if it did, and gives the exit code.
pub fn end(program: &str, result: Result<(), Failure>) -> ExitCode {
    let Err(failure) = result else { return ExitCode::SUCCESS };
    if !matches!(failure, Failure::Differs) {
        eprintln!("{program}: error: {failure}");
    }
    match failure {
        Failure::Usage(_) | Failure::Differs => ExitCode::from(2),
        Failure::Failed(_) => ExitCode::FAILURE,
    }
}

/// What is wrong with the arguments, on one line.
pub fn usage(error: &clap::Error) -> String {
    without_usage(&error.render().to_string())
}

/// clap's message without its usage and pointer to the help, on one line.
fn without_usage(message: &str) -> String {
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let ends = ["\n\nUsage:", "\n\nFor more information"];
    let end = ends.iter().filter_map(|end| message.find(end)).min().unwrap_or(message.len());
    message[..end].split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Parses a regular expression; the error is the reason alone, without the drawing of where.
///
/// # Errors
/// What is wrong with it, on one line.
pub fn regex(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| {
        let message = error.to_string();
        let reason = message.lines().rev().find_map(|line| line.strip_prefix("error: "));
        format!("{text:?} is not a regular expression: {}", reason.unwrap_or(&message))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_several_lines_becomes_one_without_the_usage() {
        let message = "error: invalid value 'x' for '--a':\n  bad\n\nUsage: a [OPTIONS]\n\nFor more information, try '--help'.\n";
        assert_eq!(without_usage(message), "invalid value 'x' for '--a': bad");
    }

    #[test]
    fn an_empty_environment_variable_counts_as_none_and_others_do_not() {
        let arg = |name: &'static str| clap::Arg::new(name).long(name).env(name);
        let command = Command::new("test").args([arg("EMPTY"), arg("FULL"), arg("ABSENT")]);
        let command = without_empty(command, |name| match name.to_str() {
            Some("EMPTY") => Some(OsString::new()),
            Some("FULL") => Some("value".into()),
            _ => None,
        });
        let left: Vec<_> = command.get_arguments().filter_map(|arg| arg.get_env()).collect();
        assert_eq!(left, ["FULL", "ABSENT"]);
    }

    #[test]
    fn flags_are_told_from_values_and_from_those_that_do_not_count() {
        let has = |line: &str| has_flags(line.split(' ').map(OsString::from), &["--listen"]);
        for (line, expected) in [
            ("explain web", false),
            ("explain web --listen 127.0.0.1:1", false),
            ("--listen=127.0.0.1:1 explain web", false),
            ("explain web --etcd=x", true),
            ("explain web --loopback", true),
        ] {
            assert_eq!(has(line), expected, "{line}");
        }
    }

    #[test]
    fn a_bad_regular_expression_says_why() {
        let error = regex("(a").expect_err("a group is open");
        assert_eq!(error, "\"(a\" is not a regular expression: unclosed group");
    }
}
