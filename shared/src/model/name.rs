//! Names that may become part of a key. They are parsed at the edge, so that no slash, control
//! character or empty part ever reaches one.

use std::{borrow::Borrow, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The longest name, in bytes: as long as a host name may be.
const MAX_NAME_BYTES: usize = 253;

/// A text that is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}: expected {expected}")]
pub struct NameError {
    what: &'static str,
    text: String,
    expected: &'static str,
}

impl NameError {
    /// What was expected. It leaves the text out, which may be a secret.
    pub fn expected(&self) -> &'static str {
        self.expected
    }
}

fn check(what: &'static str, text: &str) -> Result<(), NameError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let fits = !text.is_empty() && text.len() <= MAX_NAME_BYTES && text.chars().all(plain);
    if fits && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
        return Ok(());
    }
    Err(NameError {
        what,
        text: text.chars().take(80).collect(),
        expected: "1 to 253 letters, digits, '.', '_' or '-', the first a letter, digit or '_'",
    })
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                check($what, &text).map(|()| Self(text))
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                text.to_owned().try_into()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A Docker host with an agent.
    NodeName,
    "node name"
);
name!(
    /// A consumer, unique among all that share a store.
    ConsumerName,
    "consumer name"
);
name!(
    /// A target of a consumer: one rendered file and what follows from it.
    TargetName,
    "target name"
);
name!(
    /// The name that instances share.
    ServiceName,
    "service name"
);
name!(
    /// A container's name, as Docker restricts it.
    ContainerName,
    "container name"
);

/// Which target: a target's name is its own only among its consumer's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId {
    /// The consumer.
    pub consumer: ConsumerName,
    /// The target.
    pub target: TargetName,
}

impl fmt::Display for TargetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.consumer, self.target)
    }
}

/// The first twelve hexadecimal digits of a container's ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ContainerId([u8; ContainerId::LENGTH]);

impl ContainerId {
    const LENGTH: usize = 12;

    /// The ID as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("only hexadecimal digits are let in")
    }
}

impl FromStr for ContainerId {
    type Err = NameError;

    /// Takes a full ID or at least its first twelve digits.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let hex = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        match text.as_bytes().first_chunk::<{ ContainerId::LENGTH }>() {
            Some(first) if text.bytes().all(|b| hex(&b)) => Ok(Self(*first)),
            _ => Err(NameError {
                what: "container ID",
                text: text.chars().take(80).collect(),
                expected: "at least twelve lower-case hexadecimal digits",
            }),
        }
    }
}

impl TryFrom<String> for ContainerId {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> String {
        id.as_str().to_owned()
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_break_a_key_is_no_name() {
        for bad in ["", "a/b", "..", ".hidden", "-flag", "a b", "a\nb", "ä", &"x".repeat(254)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?} was taken");
        }
        for good in ["h1", "web-1.example.org", "_x", &"x".repeat(253)] {
            assert!(good.parse::<NodeName>().is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn a_container_id_is_cut_to_twelve_digits() {
        let full = "0123456789abcdef".repeat(4);
        assert_eq!(full.parse::<ContainerId>().expect("a full ID").as_str(), "0123456789ab");
        assert!("0123456789a".parse::<ContainerId>().is_err());
        assert!("0123456789AB".parse::<ContainerId>().is_err());
    }
}
