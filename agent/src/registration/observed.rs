//! What the store has under this node's name, as the store says.

use std::{collections::BTreeMap, future::poll_fn, sync::Arc, task::Poll};

use rollcall_shared::{
    keys::Keys,
    model::name::NodeName,
    process::readiness::Readiness,
    reflector::{Cache, Decode, Held, Reflector, Update, Updates},
    store::{KeyRange, LeaseId, Op, Revision, Store},
};

use crate::layout::{Layout, LayoutSettings};

/// A kind of key that a node writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Its acks.
    Acks,
    /// Its instances.
    Instances,
    /// Its receivers.
    Receivers,
    /// Its verdicts.
    Verdicts,
    /// What it writes in a layout, among the keys of others.
    Layout(Layout),
}

impl Kind {
    /// Every kind of Rollcall's own keys, in the order of the keys: below their folders nobody else writes.
    pub const OWN: [Kind; 4] = [Kind::Acks, Kind::Instances, Kind::Receivers, Kind::Verdicts];

    fn range(self, keys: &Keys, node: &NodeName, layouts: &LayoutSettings) -> KeyRange {
        match self {
            Kind::Layout(layout) => layouts.range(layout),
            Kind::Acks => keys.acks_of(node),
            Kind::Instances => keys.instances_of(node),
            Kind::Receivers => keys.receivers_of(node),
            Kind::Verdicts => keys.verdicts_of(node),
        }
    }

    fn part(self) -> &'static str {
        match self {
            Kind::Acks => "own acks",
            Kind::Instances => "own instances",
            Kind::Receivers => "own receivers",
            Kind::Layout(Layout::Containers) => "layout containers",
            Kind::Layout(Layout::Registrator) => "layout registrator",
            Kind::Layout(Layout::Skydns) => "layout skydns",
            Kind::Verdicts => "own verdicts",
        }
    }

    /// A reflector of what the store has of this kind.
    pub fn reflector(
        self,
        store: Arc<dyn Store>,
        keys: &Keys,
        node: &NodeName,
        layouts: &LayoutSettings,
        readiness: &Readiness,
    ) -> (Reflector<Raw>, Updates<Raw>) {
        Reflector::new(store, self.range(keys, node, layouts), Raw, readiness.part(self.part()))
    }
}

/// Keys and values as they are: whatever is there under our name is compared with ours, and nothing is unreadable.
#[derive(Debug)]
pub struct Raw;

impl Decode for Raw {
    type Key = String;
    type Value = Vec<u8>;

    fn key(&self, key: &str) -> Result<String, String> {
        Ok(key.to_owned())
    }

    fn value(&self, _: &String, value: Vec<u8>) -> Result<Vec<u8>, String> {
        Ok(value)
    }
}

/// What the reflectors of the layouts find.
#[derive(Debug)]
pub struct LayoutUpdates(pub Vec<(Kind, Updates<Raw>)>);

impl LayoutUpdates {
    /// The next update of any of them; none ever comes where there is no layout. Cancel safe.
    pub async fn next(&mut self) -> (Kind, Update<String, Vec<u8>>) {
        poll_fn(|context| {
            for (kind, updates) in &mut self.0 {
                if let Poll::Ready(Some(update)) = updates.poll_recv(context) {
                    return Poll::Ready((*kind, update));
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// What the store has under this node's name, and in the layouts that it writes.
#[derive(Debug)]
pub struct Observed(BTreeMap<Kind, Range>);

#[derive(Debug)]
struct Range {
    keys: KeyRange,
    cache: Cache<String, Vec<u8>>,
}

impl Observed {
    /// Nothing, as nothing was listed yet.
    pub fn new(keys: &Keys, node: &NodeName, layouts: &LayoutSettings) -> Self {
        let range = |kind: Kind| {
            (kind, Range { keys: kind.range(keys, node, layouts), cache: Cache::new(kind.part()) })
        };
        let kinds = Kind::OWN.into_iter().chain(layouts.layouts().into_iter().map(Kind::Layout));
        Self(kinds.map(range).collect())
    }

    /// Whether everything of Rollcall's own was listed once that registering needs. Verdicts may be kept from us by a role
    /// that was made before there were any; that stops nothing else.
    pub fn is_listed(&self) -> bool {
        Kind::OWN.iter().all(|kind| *kind == Kind::Verdicts || self.has(*kind))
    }

    /// Whether this kind was listed once.
    pub fn has(&self, kind: Kind) -> bool {
        self.range(kind).cache.position().is_some()
    }

    /// The values of a kind, in the order of the keys.
    pub fn held(&self, kind: Kind) -> impl Iterator<Item = (&String, &Held<Vec<u8>>)> {
        self.range(kind).cache.held().iter()
    }

    /// The value at a key.
    pub fn get(&self, kind: Kind, key: &str) -> Option<&[u8]> {
        self.range(kind).cache.held().get(key).map(|held| held.value.as_slice())
    }

    /// What is in each layout that was listed once.
    pub fn layouts(&self) -> BTreeMap<Layout, &BTreeMap<String, Held<Vec<u8>>>> {
        let listed = self.0.iter().filter(|(_, range)| range.cache.position().is_some());
        let layouts = listed.filter_map(|(kind, range)| match kind {
            Kind::Layout(layout) => Some((*layout, range.cache.held())),
            Kind::Acks | Kind::Instances | Kind::Receivers | Kind::Verdicts => None,
        });
        layouts.collect()
    }

    /// Takes what a reflector of this kind has found.
    pub fn apply(&mut self, kind: Kind, update: Update<String, Vec<u8>>) {
        self.range_mut(kind).cache.apply(update);
    }

    /// Takes a write of our own, at its revision.
    pub fn on_written(&mut self, op: Op, lease: LeaseId, revision: Revision) {
        let Some(range) = self.0.values_mut().find(|range| range.keys.contains(op.key())) else { return };
        match op {
            Op::Put { key, value } => range.cache.put(key, value, revision, Some(lease)),
            Op::Delete { key } => range.cache.delete(&key),
        }
    }

    fn range(&self, kind: Kind) -> &Range {
        self.0.get(&kind).expect("every kind that is asked for is observed")
    }

    fn range_mut(&mut self, kind: Kind) -> &mut Range {
        self.0.get_mut(&kind).expect("every kind that is asked for is observed")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use rollcall_shared::{
        reflector::{Cause, Item},
        store::{Position, StoreId},
    };

    use super::*;

    pub(in crate::registration) const KEY: &str = "/rollcall/instances/h1/a";
    const OURS: LeaseId = LeaseId(1);

    pub(in crate::registration) fn observed() -> Observed {
        let keys: Keys = "/rollcall".parse().expect("a prefix");
        Observed::new(&keys, &"h1".parse().expect("a name"), &LayoutSettings::default())
    }

    /// A listing of a kind's keys, values and leases.
    pub(in crate::registration) fn listing(
        entries: &[(&str, &[u8], LeaseId)],
        revision: i64,
        cause: Cause,
    ) -> Update<String, Vec<u8>> {
        let item = |(key, value, lease): &(&str, &[u8], LeaseId)| {
            let held =
                Held { value: Arc::new(value.to_vec()), revision: Revision(revision), lease: Some(*lease) };
            Item::Put((*key).to_owned(), held)
        };
        let position = Position { store: StoreId(1), revision: Revision(revision) };
        Update::Snapshot { items: entries.iter().map(item).collect(), position, cause }
    }

    fn written(revision: i64) -> Observed {
        let mut observed = observed();
        let put = Op::Put { key: KEY.to_owned(), value: b"ours".to_vec() };
        observed.on_written(put, OURS, Revision(revision));
        observed
    }

    fn changes(item: Item<String, Vec<u8>>, revision: i64) -> Update<String, Vec<u8>> {
        Update::Changes { items: vec![item], revision: Revision(revision) }
    }

    fn foreign(revision: i64) -> Update<String, Vec<u8>> {
        let held = Held { value: Arc::new(b"theirs".to_vec()), revision: Revision(revision), lease: None };
        changes(Item::Put(KEY.to_owned(), held), revision)
    }

    fn deletion(revision: i64) -> Update<String, Vec<u8>> {
        changes(Item::Delete(KEY.to_owned(), Revision(revision)), revision)
    }

    fn values(observed: &Observed) -> Vec<&[u8]> {
        observed.held(Kind::Instances).map(|(_, held)| held.value.as_slice()).collect()
    }

    #[test]
    fn a_foreign_change_and_deletion_are_noticed() {
        let mut observed = written(5);
        observed.apply(Kind::Instances, foreign(6));
        assert_eq!(values(&observed), [b"theirs"]);
        observed.apply(Kind::Instances, deletion(7));
        assert!(values(&observed).is_empty());
    }

    #[test]
    fn what_is_older_than_our_own_write_is_not_taken() {
        let mut observed = written(5);
        for update in [foreign(4), foreign(5), deletion(3), listing(&[], 4, Cause::Compacted)] {
            observed.apply(Kind::Instances, update);
            assert_eq!(values(&observed), [b"ours"]);
        }
    }

    #[test]
    fn after_the_store_went_back_only_what_it_lists_is_there() {
        let mut observed = written(5);
        observed.apply(Kind::Instances, listing(&[], 4, Cause::WentBack));
        assert!(values(&observed).is_empty());
    }

    #[test]
    fn a_listing_is_about_its_own_kind_and_all_but_that_of_verdicts_are_needed() {
        let mut observed = written(5);
        for kind in [Kind::Acks, Kind::Receivers] {
            observed.apply(kind, listing(&[], 9, Cause::First));
        }
        assert_eq!(values(&observed), [b"ours"]);
        assert!(!observed.is_listed());
        observed.apply(Kind::Instances, listing(&[], 9, Cause::First));
        assert!(values(&observed).is_empty() && observed.is_listed());
    }
}
