//! How our binaries begin and end: arguments in; out with 0, with 1 where something failed, or with 2 where
//! the usage is wrong, and then one line that says why.

use std::process::ExitCode;

use clap::Parser;
use regex::Regex;

/// Why a binary ends with another exit code than 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A setting cannot work, and nothing was touched: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// Something that is needed is not there, or went away for good: exit code 1.
    #[error("{0}")]
    Failed(String),
}

/// Parses the arguments. Help and version are printed as they are; what cannot be parsed ends the process
/// with one line and exit code 2.
pub fn parse<C: Parser>() -> C {
    match C::try_parse() {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => {
            eprintln!("{}: error: {}", C::command().get_name(), usage(&error));
            std::process::exit(2);
        }
    }
}

/// Says why it failed, if it did, and gives the exit code.
pub fn end(program: &str, result: Result<(), Failure>) -> ExitCode {
    let Err(failure) = result else { return ExitCode::SUCCESS };
    eprintln!("{program}: error: {}", one_line(&failure.to_string()));
    match failure {
        Failure::Usage(_) => ExitCode::from(2),
        Failure::Failed(_) => ExitCode::FAILURE,
    }
}

/// What is wrong with the arguments, on one line.
pub fn usage(error: &clap::Error) -> String {
    one_line(&error.render().to_string())
}

/// clap's message without its usage and pointer to the help, on one line.
fn one_line(message: &str) -> String {
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
        assert_eq!(one_line(message), "invalid value 'x' for '--a': bad");
    }

    #[test]
    fn a_bad_regular_expression_says_why() {
        let error = regex("(a").expect_err("a group is open");
        assert_eq!(error, "\"(a\" is not a regular expression: unclosed group");
    }
}
