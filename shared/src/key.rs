//! The keys of the store, version 1: what is written where.
//!
//! The writer's name comes right after the kind, so that an etcd role can confine each agent to its
//! own node and each consumer to its own name.
//!
//! ```text
//! <prefix>/nodes/<node>
//! <prefix>/instances/<node>/<container>/<port>-<tcp|udp>
//! <prefix>/acks/<node>/<consumer>/<target>
//! <prefix>/signals/<consumer>/<target>
//! <prefix>/consumers/<consumer>
//! ```

use std::{fmt, str::FromStr};

use crate::{
    instance::InstanceId,
    name::{ConsumerName, NodeName, TargetName},
};

/// A key, without the prefix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A node's claim and description.
    Node(NodeName),
    /// An instance.
    Instance(InstanceId),
    /// A node's answer to a signal request.
    Ack(NodeName, ConsumerName, TargetName),
    /// A consumer's wish to have its target signalled.
    Signal(ConsumerName, TargetName),
    /// A consumer's claim and description.
    Consumer(ConsumerName),
}

/// A text that is not a key of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a Rollcall key")]
pub struct KeyError(String);

/// Formats and parses keys under one prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

/// A text that cannot be the prefix of keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a key prefix: expected '/' and one or more names between slashes, such as /rollcall")]
pub struct PrefixError(String);

impl FromStr for Keys {
    type Err = PrefixError;

    /// Takes a prefix such as `/rollcall`; a slash at its end is dropped.
    fn from_str(prefix: &str) -> Result<Self, PrefixError> {
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let plain = |part: &str| part.parse::<NodeName>().is_ok();
        match prefix.strip_prefix('/') {
            Some(parts) if parts.split('/').all(plain) => Ok(Self { prefix: prefix.to_owned() }),
            _ => Err(PrefixError(prefix.to_owned())),
        }
    }
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.prefix)
    }
}

impl Keys {
    /// The key as the store knows it.
    pub fn format(&self, key: &Key) -> String {
        let prefix = &self.prefix;
        match key {
            Key::Node(node) => format!("{prefix}/nodes/{node}"),
            Key::Instance(InstanceId { node, container, port, protocol }) => {
                format!("{prefix}/instances/{node}/{container}/{port}-{protocol}")
            }
            Key::Ack(node, consumer, target) => format!("{prefix}/acks/{node}/{consumer}/{target}"),
            Key::Signal(consumer, target) => format!("{prefix}/signals/{consumer}/{target}"),
            Key::Consumer(consumer) => format!("{prefix}/consumers/{consumer}"),
        }
    }

    /// Reads a key of the store.
    ///
    /// # Errors
    /// Any text that [`Keys::format`] does not produce.
    pub fn parse(&self, text: &str) -> Result<Key, KeyError> {
        self.parts(text).filter(|key| self.format(key) == text).ok_or_else(|| KeyError(text.to_owned()))
    }

    fn parts(&self, text: &str) -> Option<Key> {
        let rest = text.strip_prefix(&self.prefix)?.strip_prefix('/')?;
        let parts: Vec<&str> = rest.split('/').collect();
        Some(match parts.as_slice() {
            ["nodes", node] => Key::Node(node.parse().ok()?),
            ["instances", node, container, port] => {
                let (port, protocol) = port.split_once('-')?;
                let port = port.parse().ok().filter(|port| *port != 0)?;
                let (node, container) = (node.parse().ok()?, container.parse().ok()?);
                Key::Instance(InstanceId { node, container, port, protocol: protocol.parse().ok()? })
            }
            ["acks", node, consumer, target] => {
                Key::Ack(node.parse().ok()?, consumer.parse().ok()?, target.parse().ok()?)
            }
            ["signals", consumer, target] => Key::Signal(consumer.parse().ok()?, target.parse().ok()?),
            ["consumers", consumer] => Key::Consumer(consumer.parse().ok()?),
            _ => return None,
        })
    }

    /// The prefix of every instance.
    pub fn instances(&self) -> String {
        format!("{}/instances/", self.prefix)
    }

    /// The prefix of a node's instances.
    pub fn instances_of(&self, node: &NodeName) -> String {
        format!("{}/instances/{node}/", self.prefix)
    }

    /// The prefix of every signal request.
    pub fn signals(&self) -> String {
        format!("{}/signals/", self.prefix)
    }

    /// The prefix of every node's acks.
    pub fn acks(&self) -> String {
        format!("{}/acks/", self.prefix)
    }

    /// The prefix of a node's acks.
    pub fn acks_of(&self, node: &NodeName) -> String {
        format!("{}/acks/{node}/", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{instance::Protocol, name::ContainerId};

    fn name<T>() -> impl Strategy<Value = T>
    where
        T: FromStr<Err: fmt::Debug> + fmt::Debug,
    {
        "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,40}".prop_map(|text| text.parse().expect("a name"))
    }

    fn key() -> impl Strategy<Value = Key> {
        let container = "[0-9a-f]{12}".prop_map(|text| text.parse::<ContainerId>().expect("an ID"));
        let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
        prop_oneof![
            name().prop_map(Key::Node),
            (name(), container, 1u16.., protocol).prop_map(|(node, container, port, protocol)| {
                Key::Instance(InstanceId { node, container, port, protocol })
            }),
            (name(), name(), name()).prop_map(|(node, consumer, target)| Key::Ack(node, consumer, target)),
            (name(), name()).prop_map(|(consumer, target)| Key::Signal(consumer, target)),
            name().prop_map(Key::Consumer),
        ]
    }

    proptest! {
        #[test]
        fn every_key_is_read_back_as_it_was(key in key()) {
            let keys: Keys = "/rollcall".parse().expect("a prefix");
            prop_assert_eq!(keys.parse(&keys.format(&key)), Ok(key));
        }

        #[test]
        fn whatever_parses_is_written_back_to_the_letter(text in "(/rollcall)?(/[a-z0-9.-]{0,12}){0,5}") {
            let keys: Keys = "/rollcall".parse().expect("a prefix");
            if let Ok(key) = keys.parse(&text) {
                prop_assert_eq!(keys.format(&key), text);
            }
        }
    }

    #[test]
    fn near_misses_are_not_keys() {
        let keys: Keys = "/rollcall/".parse().expect("a prefix");
        for text in [
            "/rollcall/nodes/",
            "/rollcall/nodes/a/b",
            "/rollcallnodes/a",
            "/other/nodes/a",
            "/rollcall/instances/h1/0123456789ab/0-tcp",
            "/rollcall/instances/h1/0123456789ab/080-tcp",
            "/rollcall/instances/h1/0123456789ab/80-sctp",
            "/rollcall/instances/h1/0123456789abcdef/80-tcp",
        ] {
            assert!(keys.parse(text).is_err(), "{text} was taken");
        }
    }

    #[test]
    fn a_prefix_is_a_path_of_names() {
        for bad in ["", "/", "rollcall", "//", "/a//b", "/a b", "/a/../b"] {
            assert!(bad.parse::<Keys>().is_err(), "{bad:?} was taken");
        }
        assert_eq!("/team/rollcall/".parse::<Keys>().expect("a prefix").to_string(), "/team/rollcall");
    }
}
