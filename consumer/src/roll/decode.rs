//! How the roll's keys and values are read: instances and nodes, in one range.

use std::sync::Arc;

use rollcall_shared::{
    codec,
    keys::{Key, Keys},
    model::{
        instance::{Instance, InstanceId},
        name::NodeName,
        node::NodeRecord,
    },
    process::error::one_line,
    reflector::{Decode, Update},
};

/// Reads instances and nodes; every other kind of key is unreadable.
#[derive(Debug, Clone)]
pub struct RollDecode(pub Keys);

/// A key of the roll.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RollKey {
    /// An instance's.
    Instance(Arc<InstanceId>),
    /// A node's.
    Node(NodeName),
}

/// A value of the roll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RollValue {
    /// An instance.
    Instance(Arc<Instance>),
    /// A node. Boxed, as there are many more instances than nodes.
    Node(Box<NodeRecord>),
}

/// What the reflector of the roll tells.
pub type RollUpdate = Update<RollKey, RollValue>;

impl RollValue {
    /// The instance, if it is one.
    pub fn instance(&self) -> Option<&Arc<Instance>> {
        match self {
            RollValue::Instance(instance) => Some(instance),
            RollValue::Node(_) => None,
        }
    }

    /// The node, if it is one.
    pub fn node(&self) -> Option<&NodeRecord> {
        match self {
            RollValue::Instance(_) => None,
            RollValue::Node(record) => Some(record),
        }
    }
}

impl Decode for RollDecode {
    type Key = RollKey;
    type Value = RollValue;

    fn key(&self, key: &str) -> Result<RollKey, String> {
        match self.0.parse(key) {
            Ok(Key::Instance(id)) => Ok(RollKey::Instance(Arc::new(id))),
            Ok(Key::Node(node)) => Ok(RollKey::Node(node)),
            Ok(_) => Err("neither an instance's key nor a node's".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn value(&self, key: &RollKey, value: Vec<u8>) -> Result<RollValue, String> {
        let read = match key {
            RollKey::Instance(_) => {
                codec::decode(&value).map(|instance| RollValue::Instance(Arc::new(instance)))
            }
            RollKey::Node(_) => codec::decode(&value).map(|record| RollValue::Node(Box::new(record))),
        };
        read.map_err(|error| one_line(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn instances_and_nodes_are_read_and_every_other_kind_is_refused() {
        let decode = RollDecode(testing::keys());
        let entry = testing::entry(1, "web");
        let key = decode.key(&entry.key).expect("an instance's key");
        let value = decode.value(&key, entry.value.clone()).expect("an instance");
        assert_eq!(value.instance(), Some(&Arc::new(testing::instance(1, "web"))));
        let node = decode.key("/rollcall/nodes/h1").expect("a node's key");
        assert!(decode.value(&node, codec::encode(&testing::node_record(60))).is_ok());
        assert!(decode.value(&node, entry.value).is_err(), "an instance is no node");
        for other in ["/rollcall/consumers/c1", "/rollcall/instances/nonsense", "/other/nodes/h1"] {
            assert!(decode.key(other).is_err(), "{other} was taken");
        }
    }
}
