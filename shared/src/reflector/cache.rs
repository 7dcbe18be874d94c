//! A typed copy of a range of the store. It takes a reflector's updates and gives what was added, changed and removed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use itertools::{
    EitherOrBoth::{Both, Left, Right},
    Itertools,
};

use super::reflector::{Cause, Held, Item, Update};
use crate::store::{LeaseId, Position, Revision};

/// The values of a range by key, at one revision.
///
/// A value that cannot be read counts as absent. It is logged when it turns up, counted each time, and never stops the
/// rest.
#[derive(Debug)]
pub struct Cache<K, V> {
    /// What the values are, for the log.
    what: &'static str,
    held: BTreeMap<K, Held<V>>,
    /// The keys whose values cannot be read, so that each is logged once.
    unreadable: BTreeSet<String>,
    position: Option<Position>,
}

/// What an update did to a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta<K, V> {
    /// Why everything was listed; `None` where changes were followed.
    pub listed: Option<Cause>,
    /// The values that changed: by key after a listing, else in the order in which they changed.
    pub changes: Vec<Changed<K, V>>,
}

/// What happened to one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed<K, V> {
    /// Its key.
    pub key: K,
    /// What it was; `None` where it was added.
    pub before: Option<Arc<V>>,
    /// What it is; `None` where it was removed.
    pub after: Option<Arc<V>>,
}

impl<K: Ord + Clone, V: PartialEq> Cache<K, V> {
    /// An empty cache of what the log is to call `what`.
    pub fn new(what: &'static str) -> Self {
        Self { what, held: BTreeMap::new(), unreadable: BTreeSet::new(), position: None }
    }

    /// The values by key.
    pub fn held(&self) -> &BTreeMap<K, Held<V>> {
        &self.held
    }

    /// A value.
    pub fn get(&self, key: &K) -> Option<&Arc<V>> {
        self.held.get(key).map(|held| &held.value)
    }

    /// The keys and values, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Arc<V>)> {
        self.held.iter().map(|(key, held)| (key, &held.value))
    }

    /// Up to when everything is known; `None` before the first listing.
    pub fn position(&self) -> Option<Position> {
        self.position
    }

    /// Takes an update. What is not newer than what is known, such as the echo of our own write, changes nothing.
    pub fn apply(&mut self, update: Update<K, V>) -> Delta<K, V> {
        match update {
            Update::Snapshot { items, position, cause } => {
                self.position = Some(position);
                Delta { listed: Some(cause), changes: self.replace(items, position.revision, cause) }
            }
            Update::Changes { items, revision } => {
                if let Some(position) = &mut self.position {
                    position.revision = revision;
                }
                Delta {
                    listed: None,
                    changes: items.into_iter().filter_map(|item| self.take(item)).collect(),
                }
            }
        }
    }

    /// Takes what we have written ourselves.
    pub fn put(&mut self, key: K, value: V, revision: Revision, lease: Option<LeaseId>) {
        self.held.insert(key, Held { value: Arc::new(value), revision, lease });
    }

    /// Takes what we have deleted ourselves.
    pub fn delete(&mut self, key: &K) {
        self.held.remove(key);
    }

    fn replace(&mut self, items: Vec<Item<K, V>>, revision: Revision, cause: Cause) -> Vec<Changed<K, V>> {
        let old = std::mem::take(&mut self.held);
        let known = std::mem::take(&mut self.unreadable);
        let mut new = Vec::with_capacity(items.len());
        for item in items {
            match item {
                Item::Put(key, held) => new.push((key, held)),
                Item::Delete(..) => {}
                Item::Unreadable { key: _, raw, reason, revision: _ } => self.refuse(raw, &reason, &known),
            }
        }
        let mut new: BTreeMap<K, Held<V>> = new.into_iter().collect();
        if cause != Cause::WentBack {
            // What we have written since is not in the listing.
            let ours = old.iter().filter(|(_, held)| held.revision > revision);
            new.extend(ours.map(|(key, held)| (key.clone(), held.clone())));
        }
        let mut changes = Vec::new();
        for pair in old.iter().merge_join_by(&mut new, |(a, _), (b, _)| (*a).cmp(*b)) {
            match pair {
                Left((key, before)) => {
                    changes.push(Changed {
                        key: key.clone(),
                        before: Some(before.value.clone()),
                        after: None,
                    });
                }
                Right((key, after)) => {
                    changes.push(Changed {
                        key: key.clone(),
                        before: None,
                        after: Some(after.value.clone()),
                    });
                }
                Both((key, before), (_, after)) if before.value != after.value => changes.push(Changed {
                    key: key.clone(),
                    before: Some(before.value.clone()),
                    after: Some(after.value.clone()),
                }),
                // One copy of equal values is enough.
                Both((_, before), (_, after)) => after.value = before.value.clone(),
            }
        }
        self.held = new;
        changes
    }

    fn take(&mut self, item: Item<K, V>) -> Option<Changed<K, V>> {
        let (Item::Put(key, Held { revision, .. })
        | Item::Delete(key, revision)
        | Item::Unreadable { key: Some(key), revision, .. }) = &item
        else {
            if let Item::Unreadable { raw, reason, .. } = item {
                self.refuse(raw, &reason, &BTreeSet::new());
            }
            return None;
        };
        if self.held.get(key).is_some_and(|held| held.revision >= *revision) {
            return None;
        }
        let (key, before, after) = match item {
            Item::Put(key, held) => {
                let after = held.value.clone();
                (key.clone(), self.held.insert(key, held), Some(after))
            }
            Item::Delete(key, _) => {
                let before = self.held.remove(&key);
                (key, before, None)
            }
            Item::Unreadable { key, raw, reason, .. } => {
                self.refuse(raw, &reason, &BTreeSet::new());
                let key = key?;
                let before = self.held.remove(&key);
                (key, before, None)
            }
        };
        let before = before.map(|held| held.value);
        (before != after).then_some(Changed { key, before, after })
    }

    /// Leaves a value out: counted each time, logged unless it was known before.
    fn refuse(&mut self, key: String, reason: &str, known: &BTreeSet<String>) {
        metrics::counter!("rollcall_bad_values_total", "what" => self.what).increment(1);
        if !known.contains(&key) && !self.unreadable.contains(&key) {
            tracing::warn!(key, reason, "left out a value that cannot be read: {}", self.what);
        }
        self.unreadable.insert(key);
    }
}

impl<K, V> Cache<K, V> {
    /// How many values there are.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreId;

    type Strings = Cache<&'static str, &'static str>;

    fn put(key: &'static str, value: &'static str, revision: i64) -> Item<&'static str, &'static str> {
        Item::Put(key, Held { value: Arc::new(value), revision: Revision(revision), lease: None })
    }

    fn delete(key: &'static str, revision: i64) -> Item<&'static str, &'static str> {
        Item::Delete(key, Revision(revision))
    }

    fn unreadable(key: &'static str, revision: i64) -> Item<&'static str, &'static str> {
        let (raw, reason) = (key.to_owned(), "not JSON".to_owned());
        Item::Unreadable { key: Some(key), raw, reason, revision: Revision(revision) }
    }

    fn listed(
        cache: &mut Strings,
        items: Vec<Item<&'static str, &'static str>>,
        revision: i64,
        cause: Cause,
    ) -> Vec<String> {
        let position = Position { store: StoreId(1), revision: Revision(revision) };
        shown(cache.apply(Update::Snapshot { items, position, cause }))
    }

    fn followed(cache: &mut Strings, item: Item<&'static str, &'static str>) -> Vec<String> {
        shown(cache.apply(Update::Changes { items: vec![item], revision: Revision(99) }))
    }

    fn shown(delta: Delta<&'static str, &'static str>) -> Vec<String> {
        let show = |value: Option<Arc<&str>>| value.map_or("-", |value| *value).to_owned();
        let change = |Changed { key, before, after }| format!("{key} {}>{}", show(before), show(after));
        delta.changes.into_iter().map(change).collect()
    }

    #[test]
    fn a_listing_gives_what_was_added_changed_and_removed() {
        let mut cache = Cache::new("text");
        assert_eq!(
            listed(&mut cache, vec![put("a", "1", 1), put("b", "1", 1)], 1, Cause::First),
            ["a ->1", "b ->1"]
        );
        let again = vec![put("b", "2", 2), put("c", "1", 2)];
        assert_eq!(listed(&mut cache, again, 2, Cause::Compacted), ["a 1>-", "b 1>2", "c ->1"]);
        assert_eq!(followed(&mut cache, delete("c", 3)), ["c 1>-"]);
        assert_eq!(followed(&mut cache, put("b", "3", 4)), ["b 2>3"]);
        assert_eq!(followed(&mut cache, put("b", "3", 5)), [""; 0], "the same value again");
    }

    #[test]
    fn what_is_not_newer_than_our_own_write_changes_nothing() {
        let mut cache = Strings::new("text");
        cache.put("a", "ours", Revision(5), None);
        assert_eq!(followed(&mut cache, put("a", "theirs", 4)), [""; 0]);
        assert_eq!(followed(&mut cache, put("a", "ours", 5)), [""; 0], "the echo");
        assert_eq!(followed(&mut cache, delete("a", 4)), [""; 0]);
        assert_eq!(listed(&mut cache, vec![], 4, Cause::Compacted), [""; 0], "the listing is older");
        assert_eq!(followed(&mut cache, put("a", "theirs", 6)), ["a ours>theirs"]);
    }

    #[test]
    fn after_the_store_went_back_only_the_listing_counts() {
        let mut cache = Strings::new("text");
        cache.put("a", "ours", Revision(50), None);
        assert_eq!(listed(&mut cache, vec![put("b", "1", 2)], 3, Cause::WentBack), ["a ours>-", "b ->1"]);
    }

    #[test]
    fn a_value_that_cannot_be_read_is_absent_and_never_stops_the_rest() {
        let mut cache = Cache::new("text");
        let items = vec![put("a", "1", 1), unreadable("b", 1)];
        assert_eq!(listed(&mut cache, items, 1, Cause::First), ["a ->1"]);
        assert_eq!(followed(&mut cache, unreadable("a", 2)), ["a 1>-"]);
        assert_eq!(cache.unreadable.len(), 2);
        assert_eq!(followed(&mut cache, put("a", "2", 3)), ["a ->2"]);
        assert_eq!(listed(&mut cache, vec![put("a", "2", 3)], 4, Cause::Compacted), [""; 0]);
        assert!(cache.unreadable.is_empty(), "a key that is gone is forgotten");
    }
}
