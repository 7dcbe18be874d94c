//! From what should be registered and what is, to the next writes, and when. Pure.

use std::{collections::BTreeSet, sync::Arc};

use itertools::{
    EitherOrBoth::{Both, Left, Right},
    Itertools,
};
use rollcall_shared::{
    reflector::Held,
    session::{Due, Refusals},
    store::{LeaseId, Op},
};
use tokio::time::Instant;

use super::{
    desired::{Desired, Values},
    observed::{Kind, Observed},
};
use crate::layout;

/// What is to be registered of signals and checks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SignalReports {
    /// The receivers and checkers.
    pub receivers: Values,
    /// The acks.
    pub acks: Values,
    /// The verdicts of checks.
    pub verdicts: Values,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Write these.
    Write(Vec<Op>),
    /// There is something to write, but not before then: it failed when it was tried last.
    WaitUntil(Instant),
    /// The store is as it should be, as far as is known.
    Idle,
}

/// Plans the writes of a node.
#[derive(Debug)]
pub struct Planner {
    /// What should be registered of the containers.
    pub desired: Desired,
    /// What should be registered of signals; `None` until it is known, and then what is there stays as it is.
    pub reports: Option<Arc<SignalReports>>,
    /// What is registered.
    pub observed: Observed,
    /// When a write that failed may be tried again.
    pub retry_at: Option<Instant>,
    /// The writes that the store refuses.
    pub refusals: Refusals,
    /// What is registered in the layouts.
    pub layouts: Layouts,
}

/// What is known of the keys in the layouts.
#[derive(Debug, Default)]
pub struct Layouts {
    /// The leases that this node has had, as far as it is known: what is attached to one of them is ours.
    leases: BTreeSet<LeaseId>,
    /// The keys that are wanted and someone else's.
    pub conflicts: BTreeSet<String>,
}

impl Planner {
    /// Whether what should be registered of the containers and what is registered are known. Before that, keys that a
    /// predecessor left would be written again, or deleted.
    pub fn is_ready(&self) -> bool {
        self.desired.values().is_some() && self.observed.is_listed()
    }

    /// What to do next, under this lease.
    pub fn next(&mut self, lease: LeaseId, now: Instant) -> Next {
        if !self.is_ready() {
            return Next::Idle;
        }
        let kinds = Kind::OWN.into_iter().filter(|kind| self.observed.has(*kind));
        let kinds = kinds.filter_map(|kind| Some((self.wanted(kind)?, kind)));
        let (wanted, kinds): (Vec<&Values>, Vec<Kind>) = kinds.unzip();
        let observed = kinds.iter().flat_map(|kind| self.observed.held(*kind));
        let mut ops = plan(wanted.into_iter().flatten(), observed, lease);
        ops.append(&mut self.lay_out(lease));
        match (self.refusals.choose(ops, now), self.retry_at) {
            (Due::Nothing, _) => {
                self.retry_at = None;
                Next::Idle
            }
            (Due::At(at), _) => Next::WaitUntil(at),
            (Due::Now(_), Some(at)) if now < at => Next::WaitUntil(at),
            (Due::Now(ops), _) => Next::Write(ops),
        }
    }

    /// Has whatever failed tried again now: it may have failed because of what has changed.
    pub fn hasten(&mut self) {
        self.retry_at = None;
        self.refusals.hasten(Instant::now());
    }

    /// The writes in the layouts.
    fn lay_out(&mut self, lease: LeaseId) -> Vec<Op> {
        // A predecessor's lease is known by what is under our name, before that is put under ours.
        let leases = self.observed.held(Kind::Instances).filter_map(|(_, held)| held.lease);
        self.layouts.leases.extend(leases.chain([lease]));
        let found = self.observed.layouts();
        let wanted = self.desired.layouts().entries();
        let plan = layout::plan::plan(&wanted, &found, &self.layouts.leases, lease);
        self.layouts.conflicts = plan.conflicts;
        plan.ops
    }

    fn wanted(&self, kind: Kind) -> Option<&Values> {
        match kind {
            Kind::Layout(_) => None,
            Kind::Acks => self.reports.as_ref().map(|reports| &reports.acks),
            Kind::Instances => self.desired.values(),
            Kind::Receivers => self.reports.as_ref().map(|reports| &reports.receivers),
            Kind::Verdicts => self.reports.as_ref().map(|reports| &reports.verdicts),
        }
    }
}

/// The writes that make what is observed be all that is desired, under the lease. Both are in the order of their keys.
/// New and changed keys come before those that go, so that a service that moves is never without an instance.
fn plan<'a>(
    desired: impl Iterator<Item = (&'a String, &'a Vec<u8>)>,
    observed: impl Iterator<Item = (&'a String, &'a Held<Vec<u8>>)>,
    lease: LeaseId,
) -> Vec<Op> {
    let is_right = |value: &Vec<u8>, held: &Held<Vec<u8>>| *held.value == *value && held.lease == Some(lease);
    let (mut puts, mut deletes) = (Vec::new(), Vec::new());
    for pair in desired.merge_join_by(observed, |(a, _), (b, _)| a.cmp(b)) {
        match pair {
            Both((_, value), (_, held)) if is_right(value, held) => {}
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
    use std::{collections::BTreeMap, time::Duration};

    use proptest::prelude::*;
    use rollcall_shared::{keys::Keys, reflector::Cause, store::Revision};

    use super::*;
    use crate::{
        inventory::RunningContainers,
        registration::{
            description::tests::{policy, web},
            observed::tests::{KEY, listing, observed},
        },
    };

    const LEASE: LeaseId = LeaseId(7);
    const FORMER_LEASE: LeaseId = LeaseId(3);

    fn held(value: &[u8], lease: LeaseId) -> Held<Vec<u8>> {
        Held { value: Arc::new(value.to_vec()), revision: Revision(1), lease: Some(lease) }
    }

    fn apply(observed: &mut BTreeMap<String, Held<Vec<u8>>>, ops: Vec<Op>) {
        for op in ops {
            match op {
                Op::Put { key, value } => drop(observed.insert(key, held(&value, LEASE))),
                Op::Delete { key } => drop(observed.remove(&key)),
            }
        }
    }

    fn values() -> impl Strategy<Value = Values> {
        proptest::collection::btree_map("/k/[a-f]", proptest::collection::vec(0u8..3, 0..2), 0..6)
    }

    proptest! {
        #[test]
        fn the_plan_leads_from_what_is_to_what_should_be_and_then_to_nothing(
            desired in values(), before in values(), is_former in any::<bool>(),
        ) {
            let lease = if is_former { FORMER_LEASE } else { LEASE };
            let mut observed: BTreeMap<String, Held<Vec<u8>>> =
                before.iter().map(|(key, value)| (key.clone(), held(value, lease))).collect();
            let ops = plan(desired.iter(), observed.iter(), LEASE);
            apply(&mut observed, ops);
            let reached: Values =
                observed.iter().map(|(key, held)| (key.clone(), held.value.to_vec())).collect();
            prop_assert_eq!(&reached, &desired);
            prop_assert_eq!(plan(desired.iter(), observed.iter(), LEASE), []);
        }
    }

    fn planner() -> Planner {
        let keys: Keys = "/rollcall".parse().expect("a prefix");
        let desired = Desired::new(policy(), keys);
        Planner {
            desired,
            reports: None,
            observed: observed(),
            retry_at: None,
            refusals: Refusals::default(),
            layouts: Layouts::default(),
        }
    }

    fn list_nothing(planner: &mut Planner) {
        Kind::OWN.iter().for_each(|kind| planner.observed.apply(*kind, listing(&[], 1, Cause::First)));
    }

    fn running() -> Arc<RunningContainers> {
        Arc::new(BTreeMap::from([(web().container.id.clone(), web())]))
    }

    /// A planner that knows of one container, and that nothing is registered.
    fn ready() -> Planner {
        let mut planner = planner();
        list_nothing(&mut planner);
        planner.desired.update(running());
        planner
    }

    fn writes(planner: &mut Planner) -> Vec<Op> {
        match planner.next(LEASE, Instant::now()) {
            Next::Write(ops) => ops,
            Next::WaitUntil(_) | Next::Idle => Vec::new(),
        }
    }

    #[test]
    fn nothing_is_written_before_both_sides_are_known() {
        let mut planner = planner();
        planner.desired.update(running());
        assert_eq!(planner.next(LEASE, Instant::now()), Next::Idle, "nothing was listed");
        let mut planner = self::planner();
        list_nothing(&mut planner);
        let stale = listing(&[(KEY, b"stale", LEASE)], 2, Cause::Compacted);
        planner.observed.apply(Kind::Instances, stale);
        assert_eq!(planner.next(LEASE, Instant::now()), Next::Idle, "it is not known what runs");
        planner.desired.update(running());
        assert_eq!(writes(&mut planner).len(), 2);
    }

    #[test]
    fn a_key_under_another_lease_is_put_again_and_one_under_ours_is_left_alone() {
        let mut planner = ready();
        let [Op::Put { key, value }] = &writes(&mut planner)[..] else { panic!("one instance is put") };
        for (lease, expected) in [(FORMER_LEASE, 1), (LEASE, 0)] {
            let listed = listing(&[(key, value, lease)], 2, Cause::Compacted);
            planner.observed.apply(Kind::Instances, listed);
            assert_eq!(writes(&mut planner).len(), expected);
        }
    }

    #[test]
    fn what_is_there_of_signals_stays_until_it_is_known_what_should_be() {
        let mut planner = ready();
        let (acks, receivers) = ("/rollcall/acks/h1/c/t", "/rollcall/receivers/h1/c/t");
        planner.observed.apply(Kind::Acks, listing(&[(acks, b"1", LEASE)], 2, Cause::Compacted));
        planner.observed.apply(Kind::Receivers, listing(&[(receivers, b"1", LEASE)], 2, Cause::Compacted));
        assert_eq!(writes(&mut planner).len(), 1, "the instance");
        let reports = Values::from([(acks.to_owned(), b"1".to_vec())]);
        planner.reports = Some(Arc::new(SignalReports { acks: reports, ..SignalReports::default() }));
        let ops = writes(&mut planner);
        assert!(matches!(&ops[..], [Op::Put { .. }, Op::Delete { key }] if key == receivers), "{ops:?}");
    }

    #[test]
    fn a_write_that_failed_waits_and_is_forgotten_where_nothing_is_left_to_write() {
        let mut planner = ready();
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        planner.retry_at = Some(later);
        assert_eq!(planner.next(LEASE, now), Next::WaitUntil(later));
        assert!(matches!(planner.next(LEASE, later), Next::Write(_)));
        planner.desired.update(Arc::default());
        assert_eq!((planner.next(LEASE, now), planner.retry_at), (Next::Idle, None));
    }
}
