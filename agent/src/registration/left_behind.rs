//! What a predecessor of this agent has left in the store: which runs of its containers were told to stop. Docker says so
//! once, when it happens.

use std::collections::BTreeSet;

use rollcall_shared::{
    codec,
    model::{
        instance::{Instance, Status},
        signal::Incarnation,
    },
    store::Entry,
};

/// The runs that were told to stop, among this node's own instances.
pub fn draining(instances: &[Entry]) -> BTreeSet<Incarnation> {
    let instances = instances.iter().filter_map(|entry| codec::decode::<Instance>(&entry.value).ok());
    let draining = instances.filter(|instance| instance.status == Status::Draining);
    draining.map(|Instance { id, started_at, .. }| Incarnation { container: id, started_at }).collect()
}
