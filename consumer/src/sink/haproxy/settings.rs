//! How HAProxy is told at run time: as it is written, `[target.runtime]`, and as it is used.

use std::{path::PathBuf, time::Duration};

use rollcall_shared::process::setting::SettingError;
use serde::Deserialize;

use super::backend::BackendPattern;
use crate::{config::toml, sink::file::FileConfig};

/// A HAProxy and its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaproxyConfig {
    /// The file that its next start reads.
    pub file: FileConfig,
    /// How it is told until then.
    pub runtime: RuntimeConfig,
}

/// How HAProxy is told at run time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// Its unix socket, of level admin.
    pub socket: PathBuf,
    /// The backend of each service.
    pub backend: BackendPattern,
    /// What every `server` line of the configuration has after its weight.
    pub server_options: ServerOptions,
    /// How long a server that leaves takes persistent clients and finishes what it has, until it takes nothing more.
    pub drain_timeout: Duration,
    /// How servers come and go.
    pub method: Method,
    /// How many slots a backend has, where they are used. It is doubled where more are needed.
    pub slots: usize,
}

/// How servers come and go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Added and deleted where HAProxy can, and in slots where it cannot and the configuration has some.
    #[default]
    Auto,
    /// Added and deleted: HAProxy 2.6 and later, with a dynamic balance algorithm.
    Dynamic,
    /// Put into servers that the configuration has for that.
    Slots,
}

/// The words that every server has after its weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerOptions(String);

impl Default for ServerOptions {
    /// What the format `haproxy` gives its servers by `default-server`, which does not apply to those that are added.
    fn default() -> Self {
        Self("check inter 2s fastinter 500ms fall 3 rise 2".to_owned())
    }
}

/// HAProxy takes 64 words in a command; the server, its address and its weight are some of them.
const MAX_WORDS: usize = 48;
/// What Rollcall says itself, what HAProxy refuses for servers that are added, and what it would have to undo.
const REFUSED: [&str; 7] = ["enabled", "disabled", "weight", "id", "agent-check", "init-addr", "track"];

impl ServerOptions {
    /// The words, with one space between them.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether servers are checked.
    pub fn checks(&self) -> bool {
        self.0.split(' ').any(|word| word == "check")
    }

    /// # Errors
    /// What could end the command or the line, or a word that Rollcall gives itself.
    fn parse(text: &str) -> Result<Self, SettingError> {
        let refused = |expected: String| SettingError::new("runtime.server_options", text, expected);
        let is_plain = |c: char| c.is_ascii_graphic() && !"\"'`\\;#<>$".contains(c);
        if !text.chars().all(|c| c == ' ' || is_plain(c)) {
            return Err(refused("words without quotes, line breaks and any of \\ ; # < > $".to_owned()));
        }
        let words: Vec<_> = text.split(' ').filter(|word| !word.is_empty()).collect();
        if words.len() > MAX_WORDS {
            return Err(refused(format!("{MAX_WORDS} words at most")));
        }
        if let Some(word) = words.iter().find(|word| REFUSED.contains(word)) {
            return Err(refused(format!("words of a server line without {word}")));
        }
        Ok(Self(words.join(" ")))
    }
}

/// The settings as they are written: `[target.runtime]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawRuntime {
    socket: Option<String>,
    backend: Option<String>,
    server_options: Option<String>,
    #[serde(default, deserialize_with = "toml::time")]
    drain_timeout: Option<Duration>,
    method: Option<Method>,
    slots: Option<usize>,
}

/// How long a server drains unless it is said.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How many slots a backend has unless it is said.
const SLOTS: usize = 10;
/// HAProxy has room for more, but a number that is mistyped should not take its memory.
const MAX_SLOTS: usize = 10_000;
/// Linux's limit of the path of a unix socket, in bytes.
const MAX_SOCKET_PATH: usize = 107;

impl RawRuntime {
    /// What it means.
    ///
    /// # Errors
    /// Settings that are missing, contradict each other or cannot work.
    pub fn parse(self) -> Result<RuntimeConfig, SettingError> {
        let Self { socket, backend, server_options, drain_timeout, method, slots } = self;
        let method = method.unwrap_or_default();
        match slots {
            Some(slots) if method != Method::Slots => {
                return Err(SettingError::new("runtime.slots", slots, "method = \"slots\" beside it"));
            }
            Some(slots) if !(1..=MAX_SLOTS).contains(&slots) => {
                return Err(SettingError::new("runtime.slots", slots, format!("1 to {MAX_SLOTS}")));
            }
            _ => {}
        }
        Ok(RuntimeConfig {
            socket: parse_socket(socket)?,
            backend: backend.as_deref().map(BackendPattern::parse).transpose()?.unwrap_or_default(),
            server_options: server_options
                .as_deref()
                .map(ServerOptions::parse)
                .transpose()?
                .unwrap_or_default(),
            drain_timeout: drain_timeout.unwrap_or(DRAIN_TIMEOUT),
            method,
            slots: slots.unwrap_or(SLOTS),
        })
    }
}

fn parse_socket(socket: Option<String>) -> Result<PathBuf, SettingError> {
    const SETTING: &str = "runtime.socket";
    let expected =
        "the path of a unix socket such as /run/haproxy/admin.sock (TCP sockets know no authentication)";
    let socket = socket.ok_or_else(|| SettingError::missing(SETTING, expected))?;
    // It stands in the configuration too.
    let is_plain = |c: char| c.is_ascii_graphic() && !"\"'\\#$".contains(c);
    if !socket.starts_with('/') || !socket.chars().all(is_plain) {
        return Err(SettingError::new(SETTING, socket, expected));
    }
    if socket.len() > MAX_SOCKET_PATH {
        return Err(SettingError::new(SETTING, socket, format!("{MAX_SOCKET_PATH} bytes at most")));
    }
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RuntimeConfig, String> {
        let raw: RawRuntime = ::toml::from_str(text).map_err(|error| error.message().to_owned())?;
        raw.parse().map_err(|error| error.to_string())
    }

    #[test]
    fn a_socket_alone_is_enough() {
        let config = parse("socket = \"/run/haproxy.sock\"").expect("it can work");
        assert_eq!(config.socket, PathBuf::from("/run/haproxy.sock"));
        assert_eq!(config.server_options.as_str(), "check inter 2s fastinter 500ms fall 3 rise 2");
        assert!(config.server_options.checks());
        assert_eq!((config.method, config.drain_timeout), (Method::Auto, Duration::from_secs(30)));
    }

    #[test]
    fn what_cannot_work_is_refused_with_what_was_expected() {
        let unix = "expected the path of a unix socket";
        for (text, expected) in [
            ("", format!("runtime.socket is not given: {unix}")),
            ("socket = \"tcp:1.2.3.4:9999\"", format!("runtime.socket is tcp:1.2.3.4:9999: {unix}")),
            ("socket = \"ipv4@127.0.0.1:9999\"", format!("runtime.socket is ipv4@127.0.0.1:9999: {unix}")),
            ("socket = \"127.0.0.1:9999\"", format!("runtime.socket is 127.0.0.1:9999: {unix}")),
            ("socket = \"/s\"\nslots = 4", "runtime.slots is 4: expected method = \"slots\"".to_owned()),
            (
                "socket = \"/s\"\nmethod = \"slots\"\nslots = 0",
                "runtime.slots is 0: expected 1 to".to_owned(),
            ),
            (
                "socket = \"/s\"\nbackend = \"web\"",
                "runtime.backend is web: expected {service} once".to_owned(),
            ),
            ("socket = \"/s\"\nport = 1", "unknown field `port`".to_owned()),
        ] {
            let error = parse(text).expect_err("it cannot work");
            assert!(error.starts_with(&expected), "{error}");
        }
    }

    #[test]
    fn options_cannot_end_the_command_or_say_what_rollcall_says() {
        for bad in
            ["check; quit", "check\nquit", "check \"a\"", "a <<", "check weight 3", "disabled", "agent-check"]
        {
            assert!(ServerOptions::parse(bad).is_err(), "{bad:?} was taken");
        }
        let options = ServerOptions::parse(" ssl  verify none maxconn 10 ").expect("they can be given");
        assert_eq!(options.as_str(), "ssl verify none maxconn 10");
        assert!(!options.checks());
    }
}
