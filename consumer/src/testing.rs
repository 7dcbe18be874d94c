//! Makes instances and nodes for tests.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use jiff::Timestamp;
use rollcall_shared::{
    codec::{self, V1},
    keys::{Key, Keys},
    model::{
        claim::Claim,
        instance::{Address, Instance, InstanceId, Protocol, Status},
        name::{NodeName, TargetName},
        node::NodeRecord,
    },
    process::readiness::Readiness,
    store::{Entry, Op, Revision},
};

use crate::{
    roll::{Shift, Shifts},
    state_dir::StateDir,
    target::{reporter::Reporter, status::Board},
};

/// The keys of every test.
pub fn keys() -> Keys {
    "/rollcall".parse().expect("a prefix")
}

/// The number's own ID: container port 80 of a container on node `h1`.
pub fn id(number: usize) -> InstanceId {
    id_on("h1", number)
}

/// The number's ID on another node.
pub fn id_on(name: &str, number: usize) -> InstanceId {
    let container = format!("{number:012x}").parse().expect("an ID");
    InstanceId { node: node(name), container, port: 80, protocol: Protocol::Tcp }
}

/// A node's name.
pub fn node(name: &str) -> NodeName {
    name.parse().expect("a name")
}

/// A node's record with this TTL.
pub fn node_record(ttl_seconds: u64) -> NodeRecord {
    let claim = Claim {
        holder: "a".to_owned(),
        host: "h".to_owned(),
        started_at: Timestamp::UNIX_EPOCH,
        ..Claim::new("engine".to_owned(), ttl_seconds)
    };
    NodeRecord { v: V1, claim }
}

/// A passing instance of a service, at an address and port of its number's own.
pub fn instance(number: usize, service: &str) -> Instance {
    let [.., high, low] = number.to_be_bytes();
    Instance {
        v: V1,
        service: service.parse().expect("a name"),
        container: format!("{service}-{number}").parse().expect("a name"),
        id: id(number).container,
        image: "app:1".to_owned(),
        address: Address::Ip([10, 0, high, low].into()),
        port: 8000 + u16::from(low),
        protocol: Protocol::Tcp,
        container_port: 80,
        network: None,
        status: Status::Passing,
        weight: 1,
        started_at: Timestamp::UNIX_EPOCH,
        tags: vec![],
        labels: BTreeMap::new(),
        environment: BTreeMap::new(),
        alternatives: vec![],
    }
}

/// The instance as the store has it.
pub fn entry(number: usize, service: &str) -> Entry {
    let value = codec::encode(&instance(number, service));
    Entry { key: key(number), value, revision: Revision(1), lease: None }
}

/// Where the store has it.
pub fn key(number: usize) -> String {
    keys().format(&Key::Instance(id(number)))
}

/// Writes the instance.
pub fn put(number: usize, service: &str) -> Op {
    Op::Put { key: key(number), value: codec::encode(&instance(number, service)) }
}

/// Instances that have come, by the first listing.
pub fn come(instances: impl IntoIterator<Item = (InstanceId, Instance)>) -> Shifts {
    let shift = |(id, instance)| Shift {
        id: Arc::new(id),
        before: None,
        after: Some(Arc::new(instance)),
        departure: None,
    };
    Shifts {
        shifts: instances.into_iter().map(shift).collect(),
        unconfirmed: 0,
        listed: true,
        revision: Revision(1),
    }
}

/// A target's name.
pub fn target_name(name: &str) -> TargetName {
    name.parse().expect("a name")
}

/// A reporter that nobody reads.
pub fn reporter(name: &str) -> Reporter {
    let part = Readiness::default().part(format!("target {name}"));
    Reporter::new(part, Board::default().entry(target_name(name)))
}

/// A state folder that reports to nobody.
pub fn state_dir(path: &Path) -> Arc<StateDir> {
    let part = Readiness::default().part("state");
    Arc::new(StateDir::open(path, &"c1".parse().expect("a name"), part).expect("a folder"))
}
