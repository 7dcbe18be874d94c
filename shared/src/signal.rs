//! Signal requests and their acks: how a consumer has a container signalled on another host.
//!
//! A request stands in the store until it is superseded. The agent of every host that runs a
//! matching container delivers each generation once and says so in an ack.

use std::{collections::BTreeMap, fmt, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    name::{ContainerId, ContainerName},
    wire::{self, V1, WireError},
};

/// A POSIX signal, by its number on Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Signal(i32);

impl Signal {
    /// SIGHUP, by which most servers read their configuration again.
    pub const HUP: Signal = Signal(signal_hook::consts::SIGHUP);
    /// SIGTERM, Docker's stop signal unless an image or container names another.
    pub const TERM: Signal = Signal(signal_hook::consts::SIGTERM);

    /// Whether it is SIGKILL, which no process outlives.
    pub fn is_kill(self) -> bool {
        self.0 == signal_hook::consts::SIGKILL
    }

    /// The number, from 1 to 31.
    pub fn number(self) -> i32 {
        self.0
    }

    fn name(number: i32) -> Option<&'static str> {
        signal_hook::low_level::signal_name(number)?.strip_prefix("SIG")
    }
}

/// A text that names no signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a signal: expected a name such as HUP or SIGHUP, or a number from 1 to 31")]
pub struct SignalError(String);

impl FromStr for Signal {
    type Err = SignalError;
    fn from_str(text: &str) -> Result<Self, SignalError> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        (1..32)
            .find(|number| name == number.to_string() || Self::name(*number) == Some(name))
            .map(Signal)
            .ok_or_else(|| SignalError(text.chars().take(40).collect()))
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::name(self.0) {
            Some(name) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

impl From<Signal> for String {
    fn from(signal: Signal) -> String {
        signal.to_string()
    }
}

impl TryFrom<String> for Signal {
    type Error = SignalError;
    fn try_from(text: String) -> Result<Self, SignalError> {
        text.parse()
    }
}

/// Which containers a request means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Selector {
    /// The container of this name, or whose ID starts with it.
    Container(ContainerName),
    /// Every container with this label; as `name=value` only where it has that value.
    Label(String),
}

impl Selector {
    /// Whether a container is meant.
    pub fn matches(&self, id: &str, name: &ContainerName, labels: &BTreeMap<String, String>) -> bool {
        /// Shorter texts are names, never the start of an ID: as short as Docker prints IDs.
        const SHORTEST_ID: usize = 12;
        match self {
            Selector::Container(wanted) => {
                let wanted = wanted.as_str();
                wanted == name.as_str() || (wanted.len() >= SHORTEST_ID && id.starts_with(wanted))
            }
            Selector::Label(wanted) => match wanted.split_once('=') {
                Some((label, value)) => labels.get(label).is_some_and(|found| found == value),
                None => labels.contains_key(wanted),
            },
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Container(name) => write!(f, "container {name}"),
            Selector::Label(label) => write!(f, "label {label}"),
        }
    }
}

/// A consumer's wish to have its target signalled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalRequest {
    /// The format's version.
    pub v: V1,
    /// Which installation this is about: each is delivered once. Compared for equality only.
    pub generation: u64,
    /// Counts the tries of one generation: an agent that failed tries again when it grows.
    pub attempt: u32,
    /// The signal to send.
    pub signal: Signal,
    /// To which containers.
    pub to: Selector,
    /// When it was first asked for, by the consumer's clock.
    pub asked_at: Timestamp,
}

/// What became of a request on one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Every matching container of the host has the signal.
    Delivered,
    /// The container's operator does not allow this signal.
    Refused,
    /// It was tried and did not work; it may, when tried again.
    Failed,
}

/// A node's answer to a signal request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalAck {
    /// The format's version.
    pub v: V1,
    /// The generation that is answered.
    pub generation: u64,
    /// The attempt that is answered.
    pub attempt: u32,
    /// What became of it.
    pub outcome: Outcome,
    /// The containers it was about.
    pub containers: Vec<ContainerId>,
    /// Why, where the outcome is not `delivered`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// When, by the node's clock.
    pub at: Timestamp,
}

impl SignalRequest {
    /// Reads a request from the store's value.
    ///
    /// # Errors
    /// Any value that is not such a record.
    pub fn decode(value: &[u8]) -> Result<Self, WireError> {
        wire::decode("signal request", value)
    }
}

impl SignalAck {
    /// Reads an ack from the store's value.
    ///
    /// # Errors
    /// Any value that is not such a record.
    pub fn decode(value: &[u8]) -> Result<Self, WireError> {
        wire::decode("signal ack", value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_by_name_and_number() {
        for text in ["HUP", "SIGHUP", "sighup", "1"] {
            assert_eq!(text.parse(), Ok(Signal::HUP), "{text}");
        }
        for text in ["", "SIG", "HUPP", "0", "32", "-1", "01"] {
            assert!(text.parse::<Signal>().is_err(), "{text:?} was taken");
        }
        assert_eq!("USR1".parse::<Signal>().expect("a signal").to_string(), "USR1");
    }

    #[test]
    fn a_selector_means_a_name_an_id_or_a_label() {
        let id = "0123456789abcdef".repeat(4);
        let name: ContainerName = "citus_master".parse().expect("a name");
        let labels = BTreeMap::from([("role".to_owned(), "proxy".to_owned())]);
        let container = |text: &str| Selector::Container(text.parse().expect("a name"));
        let label = |text: &str| Selector::Label(text.to_owned());
        for (selector, expected) in [
            (container("citus_master"), true),
            (container("citus"), false),
            (container("0123456789ab"), true),
            (container("0123"), false),
            (label("role"), true),
            (label("role=proxy"), true),
            (label("role=other"), false),
            (label("rol"), false),
        ] {
            assert_eq!(selector.matches(&id, &name, &labels), expected, "{selector}");
        }
    }
}
