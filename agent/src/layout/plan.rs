//! From what this node wants in the layouts and what is there, to the next writes. Pure.
//!
//! Below a layout's folder others write as well: other nodes, other tools, people. Whose a key is, its lease says. What
//! is not ours is never overwritten and never deleted; what wants such a key is set aside until it goes.

use std::collections::{BTreeMap, BTreeSet};

use rollcall_shared::{
    reflector::Held,
    store::{LeaseId, Op},
};

use super::{Entries, Layout};

/// What is there in a layout, by key.
pub type Found = BTreeMap<String, Held<Vec<u8>>>;

/// The writes that are called for, and what stands in the way of others.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The writes: puts first.
    pub ops: Vec<Op>,
    /// The keys that are wanted and someone else's, with another value.
    pub conflicts: BTreeSet<String>,
}

/// Plans the writes that make what is found be all that is wanted, under the lease. A layout in which it is not known
/// yet what is there is left alone. `own` are the leases of this node, former ones too.
pub fn plan(
    wanted: &[&Entries],
    found: &BTreeMap<Layout, &Found>,
    own: &BTreeSet<LeaseId>,
    lease: LeaseId,
) -> Plan {
    let mut plan = Plan::default();
    let mut kept = BTreeSet::new();
    let is_own = |held: &Held<Vec<u8>>| held.lease.is_some_and(|lease| own.contains(&lease));
    for entries in wanted {
        let Some(found) = found.get(&entries.layout) else { continue };
        let is_foreign = |key: &str| found.get(key).is_some_and(|held| !is_own(held));
        if let Some(key) = entries.keys().find(|key| is_foreign(key)) {
            // Someone else says the same: the readers have what they need.
            let is_said = entries
                .pairs
                .iter()
                .all(|(key, value)| found.get(key).is_some_and(|held| *held.value == *value));
            if !is_said {
                plan.conflicts.insert(key.to_owned());
            }
            continue;
        }
        kept.extend(entries.keys());
        let is_right = |(key, value): &(String, Vec<u8>)| {
            found.get(key).is_some_and(|held| *held.value == *value && held.lease == Some(lease))
        };
        // All of them together, so that no reader sees a new host with an old port.
        if !entries.pairs.iter().all(is_right) {
            let puts = entries.pairs.iter();
            plan.ops.extend(puts.map(|(key, value)| Op::Put { key: key.clone(), value: value.clone() }));
        }
    }
    let ours = found.values().flat_map(|found| found.iter()).filter(|(_, held)| is_own(held));
    let unwanted = ours.filter(|(key, _)| !kept.contains(key.as_str()));
    plan.ops.extend(unwanted.map(|(key, _)| Op::Delete { key: key.clone() }));
    plan
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rollcall_shared::store::Revision;

    use super::*;

    const LEASE: LeaseId = LeaseId(7);
    const FORMER: LeaseId = LeaseId(3);
    const FOREIGN: LeaseId = LeaseId(99);
    const HOST: &str = "/containers/web/80/host";
    const PORT: &str = "/containers/web/80/port";

    fn wanted(host: &str, port: &str) -> Entries {
        Entries::new(
            Layout::Containers,
            [(HOST.to_owned(), host.to_owned()), (PORT.to_owned(), port.to_owned())],
        )
    }

    fn held(value: &str, lease: Option<LeaseId>) -> Held<Vec<u8>> {
        Held { value: Arc::new(value.as_bytes().to_vec()), revision: Revision(1), lease }
    }

    fn found(entries: &[(&str, &str, Option<LeaseId>)]) -> Found {
        entries.iter().map(|(key, value, lease)| ((*key).to_owned(), held(value, *lease))).collect()
    }

    fn planned(wanted: &[&Entries], found: &Found) -> Plan {
        let own = BTreeSet::from([LEASE, FORMER]);
        plan(wanted, &BTreeMap::from([(Layout::Containers, found)]), &own, LEASE)
    }

    fn puts(plan: &Plan) -> usize {
        plan.ops.iter().filter(|op| matches!(op, Op::Put { .. })).count()
    }

    #[test]
    fn one_value_that_differs_or_a_former_lease_has_the_whole_pair_put() {
        let ours = wanted("10.0.0.5", "8080");
        for (host, port, lease, expected) in
            [("10.0.0.5", "8080", LEASE, 0), ("10.0.0.5", "9090", LEASE, 2), ("10.0.0.5", "8080", FORMER, 2)]
        {
            let plan = planned(&[&ours], &found(&[(HOST, host, Some(lease)), (PORT, port, Some(lease))]));
            assert_eq!((puts(&plan), plan.ops.len(), plan.conflicts.len()), (expected, expected, 0));
        }
        assert_eq!(puts(&planned(&[&ours], &Found::new())), 2);
        assert_eq!(puts(&planned(&[&ours], &found(&[(HOST, "10.0.0.5", Some(LEASE))]))), 2);
    }

    #[test]
    fn one_foreign_key_has_the_pair_set_aside_and_what_we_have_of_it_taken_back() {
        let ours = wanted("10.0.0.5", "8080");
        for lease in [None, Some(FOREIGN)] {
            let there = found(&[(HOST, "10.0.0.9", lease), (PORT, "8080", Some(LEASE))]);
            let plan = planned(&[&ours], &there);
            assert_eq!(plan.ops, [Op::Delete { key: PORT.to_owned() }]);
            assert_eq!(plan.conflicts, BTreeSet::from([HOST.to_owned()]));
        }
    }

    #[test]
    fn what_someone_else_says_with_our_words_is_no_conflict() {
        let there = found(&[(HOST, "10.0.0.5", Some(FOREIGN)), (PORT, "8080", Some(FOREIGN))]);
        assert_eq!(planned(&[&wanted("10.0.0.5", "8080")], &there), Plan::default());
    }

    #[test]
    fn what_is_ours_and_not_wanted_goes_and_what_is_not_ours_stays() {
        let there =
            found(&[("/containers/a/1/host", "x", Some(FORMER)), ("/containers/b/1/host", "x", None)]);
        let gone = Op::Delete { key: "/containers/a/1/host".to_owned() };
        assert_eq!(planned(&[], &there).ops, [gone]);
    }

    #[test]
    fn a_layout_that_was_not_listed_is_left_alone() {
        let own = BTreeSet::from([LEASE]);
        assert_eq!(plan(&[&wanted("a", "1")], &BTreeMap::new(), &own, LEASE), Plan::default());
    }

    fn there() -> impl Strategy<Value = Found> {
        let lease = prop_oneof![Just(None), Just(Some(LEASE)), Just(Some(FORMER)), Just(Some(FOREIGN))];
        let entry = ("[12]", lease).prop_map(|(value, lease)| held(&value, lease));
        let key = prop_oneof![Just(HOST), Just(PORT), Just("/containers/other/1/host")];
        proptest::collection::btree_map(key.prop_map(str::to_owned), entry, 0..3)
    }

    proptest! {
        #[test]
        fn whatever_is_there_nothing_foreign_is_touched_and_the_plan_settles(
            before in there(), host in "[12]", port in "[12]",
        ) {
            let ours = wanted(&host, &port);
            let plan = planned(&[&ours], &before);
            let mut after = before.clone();
            for op in &plan.ops {
                let was = before.get(op.key());
                prop_assert!(was.is_none_or(|held| [Some(LEASE), Some(FORMER)].contains(&held.lease)), "{op:?}");
                match op {
                    Op::Put { key, value } => {
                        let value = Arc::new(value.clone());
                        after.insert(key.clone(), Held { value, revision: Revision(2), lease: Some(LEASE) });
                    }
                    Op::Delete { key } => drop(after.remove(key)),
                }
            }
            prop_assert_eq!(planned(&[&ours], &after).ops, []);
        }
    }
}
