//! The keys of the store, version 1: what is written where.
//!
//! The writer's own name, or the node that a request is addressed to, comes right after the kind. So an etcd role can
//! confine each agent to its own node, and each consumer to its own record and to the nodes that it may signal.
//!
//! ```text
//! <prefix>/nodes/<node>                            NodeRecord      agent
//! <prefix>/instances/<node>/<container>/<port>-<tcp|udp>  Instance agent
//! <prefix>/receivers/<node>/<consumer>             ConsumerHome    agent
//! <prefix>/receivers/<node>/<consumer>/<target>    Receivers       agent
//! <prefix>/acks/<node>/<consumer>/<target>         Acks            agent
//! <prefix>/verdicts/<node>/<consumer>/<target>     Verdicts        agent
//! <prefix>/consumers/<consumer>                    ConsumerRecord  consumer
//! <prefix>/signals/<node>/<consumer>/<target>      SignalRequest   consumer
//! <prefix>/checks/<node>/<consumer>/<target>       CheckRequest    consumer
//! ```

use std::{fmt, str::FromStr};

use crate::{
    model::{
        instance::InstanceId,
        name::{ConsumerName, NodeName, TargetId},
    },
    store::KeyRange,
};

/// A key, without the prefix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A node's claim and description.
    Node(NodeName),
    /// An instance.
    Instance(InstanceId),
    /// What a node says of the container that a consumer runs in.
    Home(NodeName, ConsumerName),
    /// The containers of a node that a target signals.
    Receivers(NodeName, TargetId),
    /// A node's answers to a target's requests.
    Acks(NodeName, TargetId),
    /// A consumer's claim and description.
    Consumer(ConsumerName),
    /// A target's request to a node.
    Signal(NodeName, TargetId),
    /// A target's request to a node to have a file checked.
    Check(NodeName, TargetId),
    /// A node's verdicts on a target's files.
    Verdicts(NodeName, TargetId),
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
    /// The key as the store has it.
    pub fn format(&self, key: &Key) -> String {
        let prefix = &self.prefix;
        match key {
            Key::Node(node) => format!("{prefix}/nodes/{node}"),
            Key::Instance(InstanceId { node, container, port, protocol }) => {
                format!("{prefix}/instances/{node}/{container}/{port}-{protocol}")
            }
            Key::Home(node, consumer) => format!("{prefix}/receivers/{node}/{consumer}"),
            Key::Receivers(node, target) => format!("{prefix}/receivers/{node}/{target}"),
            Key::Acks(node, target) => format!("{prefix}/acks/{node}/{target}"),
            Key::Consumer(consumer) => format!("{prefix}/consumers/{consumer}"),
            Key::Signal(node, target) => format!("{prefix}/signals/{node}/{target}"),
            Key::Check(node, target) => format!("{prefix}/checks/{node}/{target}"),
            Key::Verdicts(node, target) => format!("{prefix}/verdicts/{node}/{target}"),
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
        let target_id = |consumer: &str, target: &str| {
            Some(TargetId { consumer: consumer.parse().ok()?, target: target.parse().ok()? })
        };
        Some(match parts.as_slice() {
            ["nodes", node] => Key::Node(node.parse().ok()?),
            ["instances", node, container, port] => {
                let (port, protocol) = port.split_once('-')?;
                let port = port.parse().ok().filter(|port| *port != 0)?;
                let (node, container) = (node.parse().ok()?, container.parse().ok()?);
                Key::Instance(InstanceId { node, container, port, protocol: protocol.parse().ok()? })
            }
            ["receivers", node, consumer] => Key::Home(node.parse().ok()?, consumer.parse().ok()?),
            ["receivers", node, consumer, target] => {
                Key::Receivers(node.parse().ok()?, target_id(consumer, target)?)
            }
            ["acks", node, consumer, target] => Key::Acks(node.parse().ok()?, target_id(consumer, target)?),
            ["consumers", consumer] => Key::Consumer(consumer.parse().ok()?),
            ["signals", node, consumer, target] => {
                Key::Signal(node.parse().ok()?, target_id(consumer, target)?)
            }
            ["checks", node, consumer, target] => {
                Key::Check(node.parse().ok()?, target_id(consumer, target)?)
            }
            ["verdicts", node, consumer, target] => {
                Key::Verdicts(node.parse().ok()?, target_id(consumer, target)?)
            }
            _ => return None,
        })
    }

    /// The roll: every instance and every node, in one range, so that one watch shows both in their order. No other
    /// kind of key sorts between `instances/` and `nodes/`.
    pub fn roll(&self) -> KeyRange {
        KeyRange::folders(format!("{}/instances/", self.prefix), format!("{}/nodes/", self.prefix))
    }

    /// A node's own instances.
    pub fn instances_of(&self, node: &NodeName) -> KeyRange {
        self.folder(&format!("instances/{node}"))
    }

    /// What a node says of its receivers, and of the consumers that run on it.
    pub fn receivers_of(&self, node: &NodeName) -> KeyRange {
        self.folder(&format!("receivers/{node}"))
    }

    /// The receivers on all nodes, and where consumers run.
    pub fn receivers(&self) -> KeyRange {
        self.folder("receivers")
    }

    /// A node's acks.
    pub fn acks_of(&self, node: &NodeName) -> KeyRange {
        self.folder(&format!("acks/{node}"))
    }

    /// A node's acks to one consumer.
    pub fn acks_to(&self, node: &NodeName, consumer: &ConsumerName) -> KeyRange {
        self.folder(&format!("acks/{node}/{consumer}"))
    }

    /// Every consumer's record.
    pub fn consumers(&self) -> KeyRange {
        self.folder("consumers")
    }

    /// The requests that are addressed to a node.
    pub fn signals_to(&self, node: &NodeName) -> KeyRange {
        self.folder(&format!("signals/{node}"))
    }

    /// The checks that a node is asked for.
    pub fn checks_of(&self, node: &NodeName) -> KeyRange {
        self.folder(&format!("checks/{node}"))
    }

    /// A node's verdicts.
    pub fn verdicts_of(&self, node: &NodeName) -> KeyRange {
        self.folder(&format!("verdicts/{node}"))
    }

    /// A node's verdicts for one consumer.
    pub fn verdicts_to(&self, node: &NodeName, consumer: &ConsumerName) -> KeyRange {
        self.folder(&format!("verdicts/{node}/{consumer}"))
    }

    fn folder(&self, path: &str) -> KeyRange {
        KeyRange::folder(format!("{}/{path}/", self.prefix))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{instance::Protocol, name::ContainerId};

    fn name<T>() -> impl Strategy<Value = T>
    where
        T: FromStr<Err: fmt::Debug> + fmt::Debug,
    {
        "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,40}".prop_map(|text| text.parse().expect("a name"))
    }

    fn target_id() -> impl Strategy<Value = TargetId> {
        (name(), name()).prop_map(|(consumer, target)| TargetId { consumer, target })
    }

    fn key() -> impl Strategy<Value = Key> {
        let container = "[0-9a-f]{12}".prop_map(|text| text.parse::<ContainerId>().expect("an ID"));
        let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
        prop_oneof![
            name().prop_map(Key::Node),
            (name(), container, 1u16.., protocol).prop_map(|(node, container, port, protocol)| {
                Key::Instance(InstanceId { node, container, port, protocol })
            }),
            (name(), name()).prop_map(|(node, consumer)| Key::Home(node, consumer)),
            (name(), target_id()).prop_map(|(node, target)| Key::Receivers(node, target)),
            (name(), target_id()).prop_map(|(node, target)| Key::Acks(node, target)),
            name().prop_map(Key::Consumer),
            (name(), target_id()).prop_map(|(node, target)| Key::Signal(node, target)),
            (name(), target_id()).prop_map(|(node, target)| Key::Check(node, target)),
            (name(), target_id()).prop_map(|(node, target)| Key::Verdicts(node, target)),
        ]
    }

    proptest! {
        #[test]
        fn every_key_is_read_back_as_it_was(key in key()) {
            let keys: Keys = "/rollcall".parse().expect("a prefix");
            prop_assert_eq!(keys.parse(&keys.format(&key)), Ok(key));
        }

        #[test]
        fn the_roll_has_instances_and_nodes_and_nothing_else(key in key()) {
            let keys: Keys = "/rollcall".parse().expect("a prefix");
            let is_of_the_roll = matches!(key, Key::Instance(_) | Key::Node(_));
            prop_assert_eq!(keys.roll().contains(&keys.format(&key)), is_of_the_roll);
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
