//! Signals: how a consumer has containers signalled on any node.
//!
//! A consumer says in its record which containers its targets signal. Each agent answers with the receivers: those of
//! its own containers that are meant. The consumer then writes a request to a receiver's node, and the agent there
//! delivers the signal and acks it, container by container.

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    name::{ContainerId, ContainerName},
    selector::Selector,
};
use crate::codec::{V1, Value};

/// A POSIX signal, by its number on Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Signal(i32);

impl Signal {
    /// SIGHUP, by which most servers read their configuration again.
    pub const HUP: Signal = Signal(signal_hook::consts::SIGHUP);
    /// SIGTERM, Docker's stop signal unless an image or container names another.
    pub const TERM: Signal = Signal(signal_hook::consts::SIGTERM);

    /// SIGINT, which asks a process to end as TERM does.
    pub const INT: Signal = Signal(signal_hook::consts::SIGINT);

    /// The number, from 1 to 64.
    pub fn number(self) -> i32 {
        self.0
    }

    fn name(number: i32) -> Option<&'static str> {
        signal_hook::low_level::signal_name(number)?.strip_prefix("SIG")
    }
}

/// The first real-time signal, as Docker and the C library count them.
const RTMIN: i32 = 34;
/// The last one.
const RTMAX: i32 = 64;

/// A real-time signal by its name, such as RTMIN+3, by which systemd's images are stopped.
fn real_time(name: &str) -> Option<i32> {
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => RTMIN,
        (_, Some("")) => RTMAX,
        (Some(rest), _) => RTMIN + rest.strip_prefix('+')?.parse::<u8>().ok().map(i32::from)?,
        (_, Some(rest)) => RTMAX - rest.strip_prefix('-')?.parse::<u8>().ok().map(i32::from)?,
        (None, None) => return None,
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

/// A text that names no signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a signal: expected a name such as HUP or SIGHUP, or its number")]
pub struct SignalError(String);

impl FromStr for Signal {
    type Err = SignalError;
    fn from_str(text: &str) -> Result<Self, SignalError> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        // Linux's own signals, and the real-time ones that the C library leaves free.
        (1..32)
            .chain(RTMIN..=RTMAX)
            .find(|number| name == number.to_string() || Self::name(*number) == Some(name))
            .or_else(|| real_time(name))
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

/// A signal, and which containers it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// The signal.
    pub signal: Signal,
    /// The containers.
    pub to: Selector,
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.signal, self.to)
    }
}

/// One run of a container: a container that is restarted is another one, which has read its files anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation {
    /// The container.
    pub container: ContainerId,
    /// When it started, by its host's clock. Compared for equality only.
    pub started_at: Timestamp,
}

/// The containers of a node that a target signals, and those in which its files are checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receivers {
    /// The format's version.
    pub v: V1,
    /// The receivers, in the order of their incarnations.
    pub receivers: Vec<Receiver>,
    /// The checkers, in the order of their incarnations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checkers: Vec<Receiver>,
}

/// A container that a target signals, or in which its files are checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receiver {
    /// Which container, and which run of it.
    #[serde(flatten)]
    pub incarnation: Incarnation,
    /// The container's name.
    pub name: ContainerName,
    /// Why the signal or the command is not allowed, and what would allow it; absent where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// A consumer's request to have some of its receivers on a node signalled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalRequest {
    /// The format's version.
    pub v: V1,
    /// Which change of the target this is about: each is delivered once. Compared for equality only.
    pub generation: u64,
    /// The signal.
    pub signal: Signal,
    /// The receivers that have not taken this generation yet.
    pub receivers: Vec<RequestedReceiver>,
}

/// A receiver that is to be signalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestedReceiver {
    /// Which container, and which run of it.
    #[serde(flatten)]
    pub incarnation: Incarnation,
    /// Counts the tries of one generation, from 1: an agent that failed tries again when it grows.
    pub attempt: u32,
}

/// A node's answers to the requests for a target, the latest of each receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acks {
    /// The format's version.
    pub v: V1,
    /// The answers, in the order of their incarnations.
    pub acks: Vec<Ack>,
}

/// What became of a request at one receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Which container, and which run of it.
    #[serde(flatten)]
    pub incarnation: Incarnation,
    /// The generation that is answered.
    pub generation: u64,
    /// The attempt that is answered.
    pub attempt: u32,
    /// Why it was not delivered; absent where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// When, by the node's clock.
    pub at: Timestamp,
}

impl Value for Receivers {
    const WHAT: &'static str = "list of receivers";
}

impl Value for SignalRequest {
    const WHAT: &'static str = "signal request";
}

impl Value for Acks {
    const WHAT: &'static str = "list of acks";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_by_name_and_number() {
        for text in ["HUP", "SIGHUP", "sighup", "1"] {
            assert_eq!(text.parse(), Ok(Signal::HUP), "{text}");
        }
        for (text, number) in [("SIGRTMIN+3", 37), ("37", 37), ("RTMIN", 34), ("RTMAX-1", 63), ("rtmax", 64)]
        {
            assert_eq!(text.parse::<Signal>().expect("a signal").number(), number, "{text}");
        }
        for text in ["", "SIG", "HUPP", "0", "32", "65", "-1", "01", "RTMIN-1", "RTMIN+31", "RTMAX+1"] {
            assert!(text.parse::<Signal>().is_err(), "{text:?} was taken");
        }
        assert_eq!("USR1".parse::<Signal>().expect("a signal").to_string(), "USR1");
    }
}
