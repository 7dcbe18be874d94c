//! The roll: every readable instance and node at one revision, and what shifted with the last update.
//!
//! It knows why an instance went, and keeps those that only a store that went back does not have. It selects nothing
//! and renders nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use rollcall_shared::{
    codec::V1,
    keys::{Key, Keys},
    model::{
        claim::Presence,
        instance::{Instance, InstanceId},
        name::NodeName,
        node::NodeRecord,
    },
    reflector::{Cache, Cause, Changed, Delta, Update},
    store::{Position, Revision},
};
use tokio::time::Instant;

use super::{
    decode::{RollKey, RollUpdate, RollValue},
    remembered::{Remembered, RememberedInstance},
    retention::Retention,
    shift::{Departure, Shift, Shifts},
};

/// All instances and nodes at one revision.
#[derive(Debug)]
pub struct Roll {
    keys: Keys,
    /// The TTL of nodes whose record is not known.
    ttl: Duration,
    cache: Cache<RollKey, RollValue>,
    retention: Retention,
    /// How many of the cache's values are instances.
    listed_instances: usize,
    /// What the first listing is compared with, where the roll began with what was remembered.
    resumed: Option<Resumed>,
}

/// Of when the roll is that was remembered, where that is known.
#[derive(Debug, Clone, Copy)]
struct Resumed(Option<Position>);

/// What happened to an instance in the store, on the whole.
struct Change {
    id: Arc<InstanceId>,
    before: Option<Arc<Instance>>,
    after: Option<Arc<Instance>>,
}

/// The nodes whose records went with an update, and what they said last of themselves.
type Gone = HashMap<NodeName, Presence>;

impl Roll {
    /// An empty roll. `ttl` is how long a node that has left no record is waited for, after the store went back.
    pub fn new(keys: Keys, ttl: Duration) -> Self {
        Self {
            keys,
            ttl,
            cache: Cache::new("roll"),
            retention: Retention::default(),
            listed_instances: 0,
            resumed: None,
        }
    }

    /// A roll that begins with what is remembered, and how that shifts the empty one. What was remembered under another
    /// prefix is dropped.
    ///
    /// Only for a store that outlives this process: a memory store would look as if it had gone back.
    pub fn resume(keys: Keys, ttl: Duration, remembered: Remembered) -> (Self, Shifts) {
        let mut roll = Self::new(keys, ttl);
        let Remembered { v: V1, position, nodes, instances } = remembered;
        roll.resumed = Some(Resumed(position));
        let mut shifts = Vec::with_capacity(instances.len());
        for RememberedInstance { key, instance } in instances {
            let Ok(Key::Instance(id)) = roll.keys.parse(&key) else { continue };
            let id = Arc::new(id);
            let key = RollKey::Instance(id.clone());
            if roll.cache.get(&key).is_some() {
                continue;
            }
            // Older than whatever a listing has.
            roll.cache.put(key, RollValue::Instance(instance.clone()), Revision::default(), None);
            shifts.push(Shift { id, before: None, after: Some(instance), departure: None });
        }
        for (name, record) in nodes {
            roll.cache.put(RollKey::Node(name), RollValue::Node(Box::new(record)), Revision::default(), None);
        }
        roll.listed_instances = shifts.len();
        let shifts = roll.shifts(shifts);
        (roll, shifts)
    }

    /// Takes an update in, and tells what shifted.
    pub fn apply(&mut self, update: RollUpdate, now: Instant) -> Shifts {
        let resumed = self.resumed.take_if(|_| matches!(update, Update::Snapshot { .. }));
        let update = compared(update, resumed);
        let is_back = matches!(update, Update::Snapshot { cause: Cause::WentBack, .. });
        let ttls = if is_back { self.ttls() } else { HashMap::new() };
        let delta = self.cache.apply(update);
        if is_back {
            self.retention.went_back(self.revision(), now);
        }
        let (changes, gone) = split(delta);
        let mut shifts = Vec::with_capacity(changes.len());
        for Change { id, before, after } in changes {
            self.listed_instances =
                self.listed_instances + usize::from(after.is_some()) - usize::from(before.is_some());
            let before = before.or_else(|| self.retention.confirm(&id));
            match (before, after) {
                (before, after) if before == after => {}
                (Some(before), None) if is_back => {
                    let ttl = ttls.get(&id.node).copied().unwrap_or(self.ttl);
                    self.retention.keep(id, before, ttl, now);
                }
                (before, after) => {
                    let departure = after.is_none().then(|| self.departure(&id, &gone, resumed.is_some()));
                    shifts.push(Shift { id, before, after, departure });
                }
            }
        }
        self.note_registered(now);
        if is_back && !self.retention.is_empty() {
            let instances = self.retention.len();
            tracing::warn!(
                instances,
                "the store went back: keeping what is missing until its nodes register again"
            );
        }
        self.shifts(shifts)
    }

    /// When [`Roll::expire`] has something to do next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.retention.next_deadline()
    }

    /// Lets go of the instances that were kept long enough since the store went back.
    pub fn expire(&mut self, now: Instant) -> Shifts {
        let expired = self.retention.expire(now);
        if !expired.is_empty() {
            tracing::warn!(
                instances = expired.len(),
                "left out what did not come back after the store went back"
            );
        }
        let lost =
            |(id, before)| Shift { id, before: Some(before), after: None, departure: Some(Departure::Lost) };
        let shifts = expired.into_iter().map(lost).collect();
        self.shifts(shifts)
    }

    /// What to remember over restarts: the instances that some target selects.
    pub fn remember(&self, is_selected: impl Fn(&InstanceId, &Instance) -> bool) -> Remembered {
        let selected = self.instances().filter(|(id, instance)| is_selected(id, instance));
        let instances: BTreeMap<_, _> = selected.collect();
        let nodes: BTreeSet<&NodeName> = instances.keys().map(|id| &id.node).collect();
        let nodes = self.nodes().filter(|(name, _)| nodes.contains(name));
        let listed = self.cache.position().filter(|_| self.retention.is_empty());
        Remembered {
            v: V1,
            position: self.resumed.map_or(listed, |Resumed(position)| position),
            nodes: nodes.map(|(name, record)| (name.clone(), record.clone())).collect(),
            instances: instances.into_iter().map(|(id, instance)| self.remembered(id, instance)).collect(),
        }
    }

    /// Remembers an instance too that is lost and that a target holds; twice is as good as once. After a restart it is
    /// lost again, unless it came back.
    pub fn remember_lost(&self, remembered: &mut Remembered, id: &InstanceId, instance: &Arc<Instance>) {
        remembered.instances.push(self.remembered(id, instance));
    }

    fn remembered(&self, id: &InstanceId, instance: &Arc<Instance>) -> RememberedInstance {
        let key = self.keys.format(&Key::Instance(id.clone()));
        RememberedInstance { key, instance: instance.clone() }
    }

    /// The instances, also the unconfirmed ones.
    pub fn instances(&self) -> impl Iterator<Item = (&Arc<InstanceId>, &Arc<Instance>)> {
        let listed = self.cache.iter().filter_map(|(key, value)| match key {
            RollKey::Instance(id) => Some((id, value.instance()?)),
            RollKey::Node(_) => None,
        });
        listed.chain(self.retention.iter())
    }

    /// How the roll as it is shifts an empty one: what a new selection begins with.
    pub fn all(&self) -> Shifts {
        let come = |(id, instance): (&Arc<InstanceId>, &Arc<Instance>)| Shift {
            id: id.clone(),
            before: None,
            after: Some(instance.clone()),
            departure: None,
        };
        self.shifts(self.instances().map(come).collect())
    }

    /// How many instances there are, also the unconfirmed ones.
    pub fn len(&self) -> usize {
        self.listed_instances + self.retention.len()
    }

    /// Whether there is no instance.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shifts(&self, shifts: Vec<Shift>) -> Shifts {
        Shifts {
            shifts,
            unconfirmed: self.retention.len(),
            listed: self.cache.position().is_some(),
            revision: self.revision(),
        }
    }

    /// Why an instance went that the store does not have any more.
    fn departure(&self, id: &InstanceId, gone: &Gone, was_away: bool) -> Departure {
        match gone.get(&id.node) {
            Some(Presence::Leaving) => Departure::Goodbye,
            Some(Presence::Present | Presence::Left) => Departure::Lost,
            // What was held when the process ended had no node any more.
            None if was_away && !self.has_node(&id.node) => Departure::Lost,
            None => Departure::Withdrawn,
        }
    }

    fn has_node(&self, name: &NodeName) -> bool {
        self.cache.get(&RollKey::Node(name.clone())).is_some()
    }

    fn note_registered(&mut self, now: Instant) {
        if self.retention.is_empty() {
            return;
        }
        let held = self.cache.held();
        self.retention.note_registered(
            |name| held.get(&RollKey::Node(name.clone())).map(|record| record.revision),
            now,
        );
    }

    fn revision(&self) -> Revision {
        self.cache.position().unwrap_or_default().revision
    }

    /// The nodes; they sort behind all instances.
    fn nodes(&self) -> impl Iterator<Item = (&NodeName, &NodeRecord)> {
        self.cache.held().iter().rev().map_while(|(key, held)| match key {
            RollKey::Node(name) => Some((name, held.value.node()?)),
            RollKey::Instance(_) => None,
        })
    }

    fn ttls(&self) -> HashMap<NodeName, Duration> {
        let ttl = |record: &NodeRecord| Duration::from_secs(record.claim.ttl_seconds);
        self.nodes().map(|(name, record)| (name.clone(), ttl(record))).collect()
    }
}

/// The update as it looks to a roll that began with what was remembered: the store may have gone back in between.
fn compared(update: RollUpdate, resumed: Option<Resumed>) -> RollUpdate {
    match (update, resumed) {
        (Update::Snapshot { items, position, cause: _ }, Some(Resumed(remembered))) => {
            let has_advanced = |remembered: Position| {
                position.store == remembered.store && position.revision >= remembered.revision
            };
            let cause = if remembered.is_some_and(has_advanced) { Cause::First } else { Cause::WentBack };
            Update::Snapshot { items, position, cause }
        }
        (update, _) => update,
    }
}

/// Sorts the changes: what happened to each instance on the whole, and which nodes went, if only for a moment.
fn split(Delta { listed, changes }: Delta<RollKey, RollValue>) -> (Vec<Change>, Gone) {
    let instance = |value: Option<Arc<RollValue>>| value.and_then(|value| value.instance().cloned());
    let mut instances = Vec::with_capacity(changes.len());
    let mut gone = Gone::new();
    for Changed { key, before, after } in changes {
        match key {
            RollKey::Instance(id) => {
                instances.push(Change { id, before: instance(before), after: instance(after) });
            }
            RollKey::Node(name) if after.is_none() => {
                let presence = before.and_then(|before| Some(before.node()?.claim.presence));
                gone.extend(presence.map(|presence| (name, presence)));
            }
            RollKey::Node(_) => {}
        }
    }
    let instances = if listed.is_some() || instances.len() < 2 { instances } else { merged(instances) };
    (instances, gone)
}

/// One change for each instance, from what it was first to what it is last.
fn merged(changes: Vec<Change>) -> Vec<Change> {
    let mut merged: Vec<Change> = Vec::with_capacity(changes.len());
    let mut index: HashMap<Arc<InstanceId>, usize> = HashMap::with_capacity(changes.len());
    for change in changes {
        match index.get(&change.id) {
            Some(known) => merged[*known].after = change.after,
            None => {
                index.insert(change.id.clone(), merged.len());
                merged.push(change);
            }
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use rollcall_shared::{
        reflector::{Held, Item},
        store::StoreId,
    };

    use super::*;
    use crate::testing;

    type RollItem = Item<RollKey, RollValue>;

    const TTL: Duration = Duration::from_secs(60);
    /// Of the nodes' records.
    const NODE_TTL: Duration = Duration::from_secs(20);

    fn put(node: &str, number: usize, service: &str, revision: i64) -> RollItem {
        let key = RollKey::Instance(Arc::new(testing::id_on(node, number)));
        let value = RollValue::Instance(Arc::new(testing::instance(number, service)));
        item(key, value, revision)
    }

    fn put_node(name: &str, presence: Presence, revision: i64) -> RollItem {
        let mut record = testing::node_record(NODE_TTL.as_secs());
        record.claim.presence = presence;
        item(RollKey::Node(testing::node(name)), RollValue::Node(Box::new(record)), revision)
    }

    fn item(key: RollKey, value: RollValue, revision: i64) -> RollItem {
        Item::Put(key, Held { value: Arc::new(value), revision: Revision(revision), lease: None })
    }

    fn delete(node: &str, number: usize, revision: i64) -> RollItem {
        Item::Delete(RollKey::Instance(Arc::new(testing::id_on(node, number))), Revision(revision))
    }

    fn delete_node(name: &str, revision: i64) -> RollItem {
        Item::Delete(RollKey::Node(testing::node(name)), Revision(revision))
    }

    fn position(store: u64, revision: i64) -> Position {
        Position { store: StoreId(store), revision: Revision(revision) }
    }

    fn listing(items: Vec<RollItem>, position: Position, cause: Cause) -> RollUpdate {
        Update::Snapshot { items, position, cause }
    }

    fn changes(items: Vec<RollItem>) -> RollUpdate {
        Update::Changes { items, revision: Revision(99) }
    }

    /// Two nodes, `h1` with the instances 1 and 2 and `h2` with 3.
    fn items() -> Vec<RollItem> {
        vec![
            put("h1", 1, "web", 5),
            put("h1", 2, "web", 5),
            put("h2", 3, "web", 5),
            put_node("h1", Presence::Present, 5),
            put_node("h2", Presence::Present, 5),
        ]
    }

    fn roll(now: Instant) -> Roll {
        let mut roll = Roll::new(testing::keys(), TTL);
        let shifts = roll.apply(listing(items(), position(1, 10), Cause::First), now);
        assert_eq!(shown(&shifts), ["1 web", "2 web", "3 web"]);
        roll
    }

    /// Each shift as the number of its instance with the service that it has, or why it went.
    fn shown(shifts: &Shifts) -> Vec<String> {
        let show = |shift: &Shift| {
            let number = shift.id.container.as_str().trim_start_matches('0');
            match (&shift.after, shift.departure) {
                (Some(instance), None) => format!("{number} {}", instance.service),
                (None, Some(departure)) => format!("{number} {departure:?}"),
                (after, departure) => panic!("{number} {after:?} {departure:?}"),
            }
        };
        shifts.shifts.iter().map(show).collect()
    }

    #[test]
    fn why_an_instance_went_is_judged_by_its_node() {
        for (batches, expected) in [
            (vec![vec![delete("h1", 1, 11)]], vec!["1 Withdrawn"]),
            (
                vec![vec![delete("h1", 1, 11), delete("h1", 2, 11), delete_node("h1", 11)]],
                vec!["1 Lost", "2 Lost"],
            ),
            (
                vec![
                    vec![put_node("h2", Presence::Leaving, 11)],
                    vec![delete("h2", 3, 12), delete_node("h2", 12)],
                ],
                vec!["3 Goodbye"],
            ),
            (
                vec![vec![put_node("h2", Presence::Leaving, 11), delete("h2", 3, 12), delete_node("h2", 12)]],
                vec!["3 Goodbye"],
            ),
            (
                vec![
                    vec![put_node("h2", Presence::Left, 11)],
                    vec![delete("h2", 3, 12), delete_node("h2", 12)],
                ],
                vec!["3 Lost"],
            ),
            (vec![vec![delete("h2", 3, 11)], vec![delete_node("h2", 12)]], vec!["3 Withdrawn"]),
            (
                vec![vec![delete("h2", 3, 11), delete_node("h2", 11), put_node("h2", Presence::Present, 12)]],
                vec!["3 Lost"],
            ),
            (vec![vec![put("h3", 4, "web", 11)], vec![delete("h3", 4, 12)]], vec!["4 web", "4 Withdrawn"]),
        ] {
            let now = Instant::now();
            let mut roll = roll(now);
            let name = format!("{batches:?}");
            let shifted: Vec<_> =
                batches.into_iter().flat_map(|items| shown(&roll.apply(changes(items), now))).collect();
            assert_eq!(shifted, expected, "{name}");
        }
    }

    #[test]
    fn a_listing_after_a_compaction_is_judged_by_the_nodes_in_it() {
        let now = Instant::now();
        let mut roll = roll(now);
        let items = vec![put("h1", 1, "api", 20), put_node("h1", Presence::Present, 5)];
        let shifts = roll.apply(listing(items, position(1, 30), Cause::Compacted), now);
        assert_eq!(shown(&shifts), ["1 api", "2 Withdrawn", "3 Lost"]);
        assert_eq!((roll.len(), shifts.unconfirmed), (1, 0));
    }

    #[test]
    fn an_instance_shifts_once_in_a_batch_and_not_where_it_is_as_it_was() {
        let now = Instant::now();
        let mut roll = roll(now);
        let bounced =
            vec![delete("h1", 1, 11), put("h1", 1, "web", 12), delete("h1", 2, 13), put("h1", 2, "api", 14)];
        assert_eq!(shown(&roll.apply(changes(bounced), now)), ["2 api"]);
        assert_eq!(roll.len(), 3);
    }

    #[test]
    fn what_a_store_that_went_back_does_not_have_stays_until_its_node_had_its_time() {
        let now = Instant::now();
        let mut roll = roll(now);
        let old = vec![put("h1", 1, "old", 2), put_node("h1", Presence::Present, 2)];
        let shifts = roll.apply(listing(old, position(2, 3), Cause::WentBack), now);
        assert_eq!(shown(&shifts), ["1 old"]);
        assert_eq!((roll.len(), shifts.unconfirmed), (3, 2));
        assert_eq!(roll.next_deadline(), Some(now + NODE_TTL), "as the nodes' records said");

        let later = now + NODE_TTL / 2;
        let shifts =
            roll.apply(changes(vec![put_node("h1", Presence::Present, 4), put("h1", 1, "web", 5)]), later);
        assert_eq!((shown(&shifts), shifts.unconfirmed), (vec!["1 web".to_owned()], 2));
        let grace = roll.next_deadline().expect("h1 has registered");
        assert!(grace < now + NODE_TTL);
        assert_eq!(shown(&roll.expire(grace)), ["2 Lost"]);

        let shifts = roll.expire(now + NODE_TTL);
        assert_eq!((shown(&shifts), shifts.unconfirmed), (vec!["3 Lost".to_owned()], 0));
        assert_eq!((roll.len(), roll.next_deadline()), (1, None));
    }

    #[test]
    fn an_unconfirmed_instance_that_is_put_again_is_confirmed_and_then_goes_as_any_other() {
        let now = Instant::now();
        let mut roll = roll(now);
        roll.apply(listing(vec![], position(2, 3), Cause::WentBack), now);
        let again =
            vec![put_node("h1", Presence::Present, 4), put("h1", 1, "web", 5), put("h1", 2, "api", 5)];
        let shifts = roll.apply(changes(again), now);
        assert_eq!((shown(&shifts), shifts.unconfirmed), (vec!["2 api".to_owned()], 1), "1 is as it was");
        assert_eq!(shown(&roll.apply(changes(vec![delete("h1", 1, 6)]), now)), ["1 Withdrawn"]);
        let came_and_went =
            vec![put_node("h2", Presence::Present, 7), put("h2", 3, "web", 7), delete("h2", 3, 8)];
        assert_eq!(shown(&roll.apply(changes(came_and_went), now)), ["3 Withdrawn"]);
        assert_eq!(roll.len(), 1);
    }

    #[test]
    fn what_is_unconfirmed_outlasts_a_listing_that_shows_whether_its_node_has_registered() {
        let now = Instant::now();
        let mut roll = roll(now);
        roll.apply(listing(vec![], position(2, 3), Cause::WentBack), now);
        let items = vec![put("h2", 3, "web", 5), put_node("h1", Presence::Present, 4)];
        let shifts = roll.apply(listing(items, position(2, 9), Cause::Compacted), now);
        assert_eq!((shown(&shifts), shifts.unconfirmed), (vec![], 2));
        assert!(roll.next_deadline().expect("h1 has registered") < now + NODE_TTL);
    }

    fn resumed(remembered: Remembered) -> Roll {
        let (roll, shifts) = Roll::resume(testing::keys(), TTL, remembered);
        assert_eq!(shown(&shifts), ["1 web", "2 web", "3 web"]);
        assert!(!shifts.listed);
        roll
    }

    fn remembered(roll: &Roll) -> Remembered {
        // As it comes back from the file.
        let json = serde_json::to_vec(&roll.remember(|_, _| true)).expect("JSON");
        serde_json::from_slice(&json).expect("JSON")
    }

    #[test]
    fn a_resumed_roll_is_what_was_remembered_until_it_is_listed() {
        let now = Instant::now();
        let first = roll(now);
        let mut second = resumed(remembered(&first));
        assert_eq!(remembered(&second), remembered(&first), "nothing was listed yet");
        let items =
            vec![put("h1", 1, "web", 5), put("h1", 4, "web", 15), put_node("h1", Presence::Present, 5)];
        let shifts = second.apply(listing(items, position(1, 20), Cause::First), now);
        assert_eq!(shown(&shifts), ["2 Withdrawn", "4 web", "3 Lost"]);
        assert!(shifts.listed && shifts.unconfirmed == 0);
    }

    #[test]
    fn a_store_that_went_back_during_a_restart_is_noticed() {
        let now = Instant::now();
        let first = roll(now);
        for (store, revision, unconfirmed) in [(1, 10, 0), (1, 9, 3), (2, 10, 3)] {
            let mut second = resumed(remembered(&first));
            let shifts = second.apply(listing(vec![], position(store, revision), Cause::First), now);
            assert_eq!(shifts.unconfirmed, unconfirmed, "{store} {revision}");
            assert_eq!(shifts.shifts.len(), 3 - unconfirmed);
            let deadline = (unconfirmed > 0).then(|| now + NODE_TTL);
            assert_eq!(second.next_deadline(), deadline);
        }
    }

    #[test]
    fn what_is_unconfirmed_stays_so_over_a_restart() {
        let now = Instant::now();
        let mut first = roll(now);
        first.apply(listing(vec![], position(2, 3), Cause::WentBack), now);
        let mut second = resumed(remembered(&first));
        let shifts = second.apply(listing(vec![], position(2, 4), Cause::First), now);
        assert_eq!((shown(&shifts), shifts.unconfirmed), (vec![], 3));
        assert_eq!(second.next_deadline(), Some(now + TTL), "their nodes' records are not known any more");
    }

    #[test]
    fn a_lost_instance_that_is_remembered_is_lost_again() {
        let now = Instant::now();
        let mut first = roll(now);
        let lost = first.apply(changes(vec![delete("h2", 3, 11), delete_node("h2", 11)]), now);
        let mut remembered = remembered(&first);
        let [Shift { id, before: Some(instance), .. }] = lost.shifts.as_slice() else {
            panic!("one is lost")
        };
        first.remember_lost(&mut remembered, id, instance);
        first.remember_lost(&mut remembered, id, instance);
        let mut second = resumed(remembered);
        let items = items().into_iter().filter(|item| !format!("{item:?}").contains("h2")).collect();
        let shifts = second.apply(listing(items, position(1, 100), Cause::First), now);
        assert_eq!(shown(&shifts), ["3 Lost"]);
    }

    #[test]
    fn only_what_a_target_selects_is_remembered_and_only_under_its_prefix() {
        let roll = roll(Instant::now());
        let remembered = roll.remember(|id, _| id.node.as_str() == "h2");
        assert_eq!((remembered.len(), remembered.nodes.len()), (1, 1));
        let other = "/other".parse().expect("a prefix");
        assert!(Roll::resume(other, TTL, remembered).0.is_empty());
    }

    #[test]
    fn a_value_that_turns_bad_is_withdrawn_and_a_bad_node_is_none() {
        let now = Instant::now();
        let mut roll = roll(now);
        let bad = |key| Item::Unreadable {
            key: Some(key),
            raw: "raw".to_owned(),
            reason: "not JSON".to_owned(),
            revision: Revision(11),
        };
        let id = Arc::new(testing::id_on("h1", 1));
        assert_eq!(shown(&roll.apply(changes(vec![bad(RollKey::Instance(id))]), now)), ["1 Withdrawn"]);
        assert_eq!(shown(&roll.apply(changes(vec![bad(RollKey::Node(testing::node("h2")))]), now)), [""; 0]);
        assert_eq!(shown(&roll.apply(changes(vec![delete("h2", 3, 12)]), now)), ["3 Withdrawn"]);
    }
}
