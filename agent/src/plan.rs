//! From what should be registered and what is, to the writes between them. Pure.

use std::collections::BTreeMap;

use itertools::{
    EitherOrBoth::{Both, Left, Right},
    Itertools,
};
use rollcall_shared::store::{Entry, LeaseId, Op};

/// Values by key.
pub type Values = BTreeMap<String, Vec<u8>>;

/// The writes that make `registered` be all that is `desired`, under `lease`. New and changed keys come
/// before those that go, so that a service that moves is never without an instance in between.
pub fn plan(desired: &[&Values], registered: &BTreeMap<String, Entry>, lease: LeaseId) -> Vec<Op> {
    let stands = |value: &Vec<u8>, entry: &Entry| entry.value == *value && entry.lease == Some(lease);
    let desired = desired.iter().map(|values| values.iter()).kmerge_by(|(a, _), (b, _)| a < b);
    let (mut puts, mut deletes) = (Vec::new(), Vec::new());
    for pair in desired.merge_join_by(registered, |(a, _), (b, _)| a.cmp(b)) {
        match pair {
            Both((_, value), (_, entry)) if stands(value, entry) => {}
            Left((key, value)) | Both((key, value), _) => {
                puts.push(Op::Put { key: key.clone(), value: value.clone() });
            }
            Right((key, _)) => deletes.push(Op::Delete { key: key.clone() }),
        }
    }
    puts.append(&mut deletes);
    puts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rollcall_shared::store::Revision;

    use super::*;

    const LEASE: LeaseId = LeaseId(7);

    fn entry(key: &str, value: &[u8], lease: LeaseId) -> Entry {
        Entry { key: key.to_owned(), value: value.to_vec(), revision: Revision(1), lease: Some(lease) }
    }

    fn apply(registered: &mut BTreeMap<String, Entry>, ops: Vec<Op>) {
        for op in ops {
            match op {
                Op::Put { key, value } => drop(registered.insert(key.clone(), entry(&key, &value, LEASE))),
                Op::Delete { key } => drop(registered.remove(&key)),
            }
        }
    }

    fn values() -> impl Strategy<Value = Values> {
        proptest::collection::btree_map("/k/[a-f]", proptest::collection::vec(0u8..3, 0..2), 0..6)
    }

    proptest! {
        #[test]
        fn the_plan_leads_from_what_is_to_what_should_be_and_then_to_nothing(desired in values(), before in values(), other in any::<bool>()) {
            let lease = if other { LeaseId(3) } else { LEASE };
            let mut registered: BTreeMap<String, Entry> =
                before.iter().map(|(key, value)| (key.clone(), entry(key, value, lease))).collect();
            let mut former = desired.clone();
            let latter = former.split_off("/k/d");
            let ops = plan(&[&latter, &former], &registered, LEASE);
            apply(&mut registered, ops);
            let reached: Values = registered.iter().map(|(key, entry)| (key.clone(), entry.value.clone())).collect();
            prop_assert_eq!(&reached, &desired);
            prop_assert_eq!(plan(&[&desired], &registered, LEASE), []);
        }
    }

    #[test]
    fn a_key_under_another_lease_is_put_again() {
        let registered = BTreeMap::from([("/k/a".to_owned(), entry("/k/a", b"1", LeaseId(3)))]);
        let desired = Values::from([("/k/a".to_owned(), b"1".to_vec())]);
        assert_eq!(plan(&[&desired], &registered, LEASE).len(), 1);
    }
}
