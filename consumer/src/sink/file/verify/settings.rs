//! How a file is verified: as it is written, and as it is used.

use std::{fmt, path::PathBuf, time::Duration};

use rollcall_shared::process::setting::SettingError;
use serde::Deserialize;

use super::http::Url;
use crate::{
    config::toml::{self, parsed},
    sink::file::{command::CommandLine, nginx::Master},
};

/// How a file is verified once its reader has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verify {
    /// What is tried.
    pub probe: Probe,
    /// How long the reader has before the first attempt: a signal that was sent is no reload that is done.
    pub delay: Duration,
    /// How long it may take after that until it succeeds: it is tried again and again.
    pub timeout: Duration,
}

/// What is tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A command, which succeeds with exit code 0.
    Command(CommandLine),
    /// A request.
    Http {
        /// Of what.
        url: Url,
        /// The status of an answer that counts.
        status: u16,
    },
    /// nginx's master has workers that it started after the file was installed.
    Nginx(Master),
}

/// How long a file has to prove itself unless it is said.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long its reader has before that unless it is said.
const DELAY: Duration = Duration::from_secs(1);
/// The status that an answer must have unless it is said.
const STATUS: u16 = 200;

/// How a file is verified, as it is written: a command, or a table.
#[derive(Debug, Clone)]
pub enum RawVerify {
    /// `verify = "command"`.
    Command(CommandLine),
    /// `verify = { http = "http://127.0.0.1/health", status = 200, timeout = "5s" }`.
    Table(Box<RawProbe>),
}

/// A probe, as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawProbe {
    #[serde(default, deserialize_with = "toml::command")]
    command: Option<CommandLine>,
    #[serde(default, deserialize_with = "parsed")]
    http: Option<Url>,
    status: Option<u16>,
    nginx_pid_file: Option<PathBuf>,
    #[serde(default, deserialize_with = "toml::time")]
    timeout: Option<Duration>,
    #[serde(default, deserialize_with = "toml::time")]
    delay: Option<Duration>,
}

impl toml::CommandOrTable for RawVerify {
    type Table = RawProbe;

    fn of_command(command: CommandLine) -> Self {
        Self::Command(command)
    }

    fn of_table(table: RawProbe) -> Self {
        Self::Table(Box::new(table))
    }
}

impl RawVerify {
    /// What it means.
    ///
    /// # Errors
    /// None of command, request and pid file, or several, or settings that do not go together.
    pub fn parse(self) -> Result<Verify, SettingError> {
        let raw = match self {
            RawVerify::Command(command) => RawProbe { command: Some(command), ..RawProbe::default() },
            RawVerify::Table(raw) => *raw,
        };
        let RawProbe { command, http, status, nginx_pid_file, timeout, delay } = raw;
        if let (Some(pid_file), true) = (&nginx_pid_file, command.is_some() || http.is_some()) {
            let expected = "it or verify.command or verify.http, not both";
            return Err(SettingError::new("verify.nginx_pid_file", pid_file.display(), expected));
        }
        if let (Some(_), Some(status)) = (&nginx_pid_file, status) {
            return Err(SettingError::new("verify.status", status, "verify.http beside it"));
        }
        let nginx = nginx_pid_file.map(|pid_file| Probe::Nginx(Master { pid_file }));
        let probe = match (command, http, status) {
            _ if nginx.is_some() => nginx.expect("it was looked at"),
            (Some(command), None, None) => Probe::Command(command),
            (None, Some(url), status) => Probe::Http { url, status: status.unwrap_or(STATUS) },
            (None, None, _) => {
                return Err(SettingError::missing("verify", "command, http or nginx_pid_file in it"));
            }
            (Some(_), Some(url), _) => {
                return Err(SettingError::new("verify.http", url, "it or verify.command, not both"));
            }
            (Some(_), None, Some(status)) => {
                return Err(SettingError::new("verify.status", status, "verify.http beside it"));
            }
        };
        if let Probe::Http { status, .. } = probe
            && !(100..1000).contains(&status)
        {
            return Err(SettingError::new("verify.status", status, "100 to 999"));
        }
        let timeout = timeout.unwrap_or(VERIFY_TIMEOUT);
        if timeout.is_zero() {
            return Err(SettingError::new("verify.timeout", "0s", "more than 0s"));
        }
        Ok(Verify { probe, delay: delay.unwrap_or(DELAY), timeout })
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Probe::Command(command) => write!(f, "command {command}"),
            Probe::Http { url, status } => write!(f, "{url}, status {status}"),
            Probe::Nginx(Master { pid_file }) => write!(f, "nginx by {}", pid_file.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Table {
        #[serde(deserialize_with = "toml::command_or_table")]
        verify: Option<RawVerify>,
    }

    fn verify(text: &str) -> Result<String, String> {
        let table: Table = ::toml::from_str(text).map_err(|error| error.message().to_owned())?;
        let verify = table.verify.expect("it is given").parse().map_err(|error| error.to_string())?;
        Ok(format!("{} within {:?}", verify.probe, verify.timeout))
    }

    #[test]
    fn a_command_or_a_request_verifies_and_nothing_else_does() {
        for (text, expected) in [
            ("verify = \"a b\"", Ok("command a b within 10s")),
            ("verify = { command = [\"a\"], timeout = \"3s\" }", Ok("command a within 3s")),
            ("verify = { http = \"http://h:81/x?y\" }", Ok("http://h:81/x?y, status 200 within 10s")),
            ("verify = { http = \"http://h/\", status = 204 }", Ok("http://h/, status 204 within 10s")),
            ("verify = {}", Err("verify is not given: expected command, http or nginx_pid_file in it")),
            (
                "verify = { command = \"a\", http = \"http://h/\" }",
                Err("verify.http is http://h/: expected it or verify.command, not both"),
            ),
            (
                "verify = { command = \"a\", status = 200 }",
                Err("verify.status is 200: expected verify.http beside it"),
            ),
            (
                "verify = { http = \"http://h/\", status = 20 }",
                Err("verify.status is 20: expected 100 to 999"),
            ),
            ("verify = { nginx_pid_file = \"/run/nginx.pid\" }", Ok("nginx by /run/nginx.pid within 10s")),
            (
                "verify = { nginx_pid_file = \"/n\", command = \"a\" }",
                Err("verify.nginx_pid_file is /n: expected it or verify.command or verify.http, not both"),
            ),
            (
                "verify = { nginx_pid_file = \"/n\", status = 200 }",
                Err("verify.status is 200: expected verify.http beside it"),
            ),
            (
                "verify = { command = \"a\", timeout = \"0s\" }",
                Err("verify.timeout is 0s: expected more than 0s"),
            ),
            (
                "verify = { http = \"h\" }",
                Err("\"h\" is not an address of HTTP: expected http://HOST[:PORT]/PATH"),
            ),
            (
                "verify = { http = \"https://h/\" }",
                Err("\"https://h/\" is not an address of HTTP: expected http://HOST[:PORT]/PATH"),
            ),
        ] {
            assert_eq!(verify(text), expected.map(str::to_owned).map_err(str::to_owned), "{text}");
        }
    }
}
