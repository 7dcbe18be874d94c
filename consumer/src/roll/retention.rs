//! After the store was restored or wiped: which instances stay although it does not say so any more.
//!
//! Such an instance is unconfirmed: it stays until it is put again, until its node has registered again and had the
//! time to put it, or until the node's TTL has passed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rollcall_shared::{
    model::{
        instance::{Instance, InstanceId},
        name::NodeName,
    },
    store::Revision,
};
use tokio::time::Instant;

/// How long a node that has registered again may take to put its instances.
const REGISTRATION_GRACE: Duration = Duration::from_secs(2);
/// The longest TTL that a node's record is believed.
const MAX_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// The unconfirmed instances.
#[derive(Debug, Default)]
pub struct Retention {
    /// The revision that the store went back to.
    went_back_to: Revision,
    nodes: BTreeMap<NodeName, Unconfirmed>,
    count: usize,
}

/// The unconfirmed instances of a node.
#[derive(Debug)]
struct Unconfirmed {
    instances: BTreeMap<Arc<InstanceId>, Arc<Instance>>,
    ttl: Duration,
    deadline: Instant,
    has_registered: bool,
}

impl Retention {
    /// The store went back, to this revision: what is unconfirmed already waits anew.
    pub fn went_back(&mut self, revision: Revision, now: Instant) {
        self.went_back_to = revision;
        for node in self.nodes.values_mut() {
            node.deadline = now + node.ttl;
            node.has_registered = false;
        }
    }

    /// Keeps an instance of a node with this TTL.
    pub fn keep(&mut self, id: Arc<InstanceId>, instance: Arc<Instance>, ttl: Duration, now: Instant) {
        let ttl = ttl.clamp(REGISTRATION_GRACE, MAX_TTL);
        let node = self.nodes.entry(id.node.clone()).or_insert_with(|| Unconfirmed {
            instances: BTreeMap::new(),
            ttl,
            deadline: now + ttl,
            has_registered: false,
        });
        self.count += usize::from(node.instances.insert(id, instance).is_none());
    }

    /// Gives an instance back that is unconfirmed no more, if it was.
    pub fn confirm(&mut self, id: &InstanceId) -> Option<Arc<Instance>> {
        let node = self.nodes.get_mut(&id.node)?;
        let instance = node.instances.remove(id)?;
        self.count -= 1;
        if node.instances.is_empty() {
            self.nodes.remove(&id.node);
        }
        Some(instance)
    }

    /// Notes which nodes have registered since the store went back; `put_at` tells when a node's record was put.
    pub fn note_registered(&mut self, put_at: impl Fn(&NodeName) -> Option<Revision>, now: Instant) {
        for (name, node) in self.nodes.iter_mut().filter(|(_, node)| !node.has_registered) {
            if put_at(name).is_some_and(|revision| revision > self.went_back_to) {
                node.has_registered = true;
                node.deadline = node.deadline.min(now + REGISTRATION_GRACE);
            }
        }
    }

    /// When the next instance goes unless it is confirmed before.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.nodes.values().map(|node| node.deadline).min()
    }

    /// Takes out the instances whose time is over.
    pub fn expire(&mut self, now: Instant) -> Vec<(Arc<InstanceId>, Arc<Instance>)> {
        let due: Vec<_> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.deadline <= now)
            .map(|(name, _)| name.clone())
            .collect();
        let expired: Vec<_> =
            due.iter().filter_map(|name| self.nodes.remove(name)).flat_map(|node| node.instances).collect();
        self.count -= expired.len();
        expired
    }

    /// The instances.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<InstanceId>, &Arc<Instance>)> {
        self.nodes.values().flat_map(|node| &node.instances)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    const TTL: Duration = Duration::from_secs(60);

    fn retention(now: Instant) -> Retention {
        let mut retention = Retention::default();
        retention.went_back(Revision(7), now);
        for (node, number) in [("h1", 1), ("h1", 2), ("h2", 3)] {
            retention.keep(
                Arc::new(testing::id_on(node, number)),
                Arc::new(testing::instance(number, "web")),
                TTL,
                now,
            );
        }
        retention
    }

    fn registered(revision: i64) -> impl Fn(&NodeName) -> Option<Revision> {
        move |node| (node.as_str() == "h1").then_some(Revision(revision))
    }

    #[test]
    fn what_is_put_again_is_confirmed_and_the_rest_goes_after_the_ttl() {
        let now = Instant::now();
        let mut retention = retention(now);
        assert!(retention.confirm(&testing::id_on("h1", 1)).is_some());
        assert!(retention.confirm(&testing::id_on("h1", 1)).is_none());
        assert_eq!(retention.next_deadline(), Some(now + TTL));
        assert!(retention.expire(now + TTL - Duration::from_millis(1)).is_empty());
        assert_eq!(retention.expire(now + TTL).len(), 2);
        assert!(retention.is_empty() && retention.next_deadline().is_none());
    }

    #[test]
    fn a_node_that_registers_again_has_a_moment_to_put_its_instances() {
        let now = Instant::now();
        let mut retention = retention(now);
        retention.note_registered(registered(7), now);
        assert_eq!(retention.next_deadline(), Some(now + TTL), "its record is from before");
        retention.note_registered(registered(8), now);
        retention.note_registered(registered(9), now + REGISTRATION_GRACE / 2);
        assert_eq!(retention.next_deadline(), Some(now + REGISTRATION_GRACE), "counted from the first time");
        assert_eq!(retention.expire(now + REGISTRATION_GRACE).len(), 2);
        assert_eq!(retention.len(), 1, "the other node's instance stays");
    }

    #[test]
    fn a_store_that_goes_back_again_is_waited_for_anew() {
        let now = Instant::now();
        let mut retention = retention(now);
        retention.note_registered(registered(8), now);
        retention.went_back(Revision(8), now + TTL / 2);
        retention.note_registered(registered(8), now + TTL / 2);
        assert_eq!(retention.next_deadline(), Some(now + TTL / 2 + TTL));
        retention.note_registered(registered(9), now + TTL);
        assert_eq!(retention.next_deadline(), Some(now + TTL + REGISTRATION_GRACE));
    }

    #[test]
    fn a_ttl_out_of_range_is_not_believed() {
        let now = Instant::now();
        for (ttl, expected) in [(Duration::MAX, MAX_TTL), (Duration::ZERO, REGISTRATION_GRACE)] {
            let mut retention = Retention::default();
            retention.keep(Arc::new(testing::id(1)), Arc::new(testing::instance(1, "web")), ttl, now);
            assert_eq!(retention.next_deadline(), Some(now + expected));
        }
    }
}
