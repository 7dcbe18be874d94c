//! The roll: every readable instance at one revision, and what shifted with the last update.
//!
//! It decodes what the store holds, each value once. A value that cannot be read is left out,
//! counted and logged once per key, and never stops the rest. It selects nothing and renders nothing.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use rollcall_shared::{
    instance::{Instance, InstanceId},
    key::{Key, Keys},
    reflector::Update,
    store::{Change, Entry},
};

/// What happened to one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shift {
    /// Which one.
    pub id: Arc<InstanceId>,
    /// What it was, if it was there.
    pub before: Option<Arc<Instance>>,
    /// What it is, if it is there.
    pub after: Option<Arc<Instance>>,
}

/// What an update did to the roll.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Shifts {
    /// The instances that changed, oldest change first.
    pub shifts: Vec<Shift>,
    /// Whether the roll was listed anew, instead of followed.
    pub relisted: bool,
    /// Whether the roll holds no instance at all.
    pub nothing_left: bool,
}

/// All instances at one revision.
#[derive(Debug)]
pub struct Roll {
    keys: Keys,
    instances: HashMap<Arc<InstanceId>, Arc<Instance>>,
    /// The keys whose values cannot be read, so that each is logged once.
    unreadable: HashSet<String>,
}

impl Roll {
    /// An empty roll.
    pub fn new(keys: Keys) -> Self {
        Self { keys, instances: HashMap::new(), unreadable: HashSet::new() }
    }

    /// Takes an update in and tells what shifted.
    pub fn apply(&mut self, update: Update<Read>) -> Shifts {
        let relisted = matches!(update, Update::Snapshot(_));
        let shifts = match update {
            Update::Snapshot(listing) => self.replace(listing.entries),
            Update::Changes(batch) => batch.changes.iter().filter_map(|change| self.follow(change)).collect(),
        };
        Shifts { shifts, relisted, nothing_left: self.instances.is_empty() }
    }

    fn replace(&mut self, entries: Vec<Read>) -> Vec<Shift> {
        let mut old = std::mem::take(&mut self.instances);
        let known = std::mem::take(&mut self.unreadable);
        self.instances.reserve(entries.len());
        let mut shifts = Vec::with_capacity(if old.is_empty() { entries.len() } else { 0 });
        for read in entries {
            let (id, instance) = match read {
                Ok(read) => read,
                Err(Unreadable { key, reason }) => {
                    self.refuse(&key, &reason, &known);
                    continue;
                }
            };
            let (id, before) = match old.remove_entry(&id) {
                Some((id, before)) => (id, Some(before)),
                None => (id, None),
            };
            let after = before.clone().filter(|before| *before == instance).unwrap_or(instance);
            self.instances.insert(id.clone(), after.clone());
            if before.as_ref() != Some(&after) {
                shifts.push(Shift { id, before, after: Some(after) });
            }
        }
        shifts.extend(old.into_iter().map(|(id, before)| Shift { id, before: Some(before), after: None }));
        shifts
    }

    fn follow(&mut self, change: &Change) -> Option<Shift> {
        let id = match id(&self.keys, change.key()) {
            Ok(id) => id,
            Err(reason) => {
                self.refuse(change.key(), &reason, &HashSet::new());
                return None;
            }
        };
        let after = match change {
            Change::Put(entry) => match Instance::decode(&entry.value) {
                Ok(instance) => Some(Arc::new(instance)),
                Err(error) => {
                    self.refuse(&entry.key, &error.to_string(), &HashSet::new());
                    None
                }
            },
            Change::Delete { .. } => None,
        };
        if after.is_some() || matches!(change, Change::Delete { .. }) {
            self.unreadable.remove(change.key());
        }
        let (id, before) = match self.instances.remove_entry(&id) {
            Some((id, before)) => (id, Some(before)),
            None => (Arc::new(id), None),
        };
        if let Some(instance) = &after {
            self.instances.insert(id.clone(), instance.clone());
        }
        (before != after).then_some(Shift { id, before, after })
    }

    /// Leaves a key out: counted every time, logged unless it was known before.
    fn refuse(&mut self, key: &str, reason: &str, known: &HashSet<String>) {
        metrics::counter!("rollcall_consumer_bad_values_total").increment(1);
        if self.unreadable.insert(key.to_owned()) && !known.contains(key) {
            tracing::warn!(key, reason, "left out what cannot be read");
        }
    }

    /// How many instances there are.
    pub fn len(&self) -> usize {
        self.instances.len()
    }

    /// Whether there is no instance.
    pub fn is_empty(&self) -> bool {
        self.instances.is_empty()
    }
}

/// An entry as it is read: an instance, or why it is left out.
pub type Read = Result<(Arc<InstanceId>, Arc<Instance>), Unreadable>;

/// A key that is left out, and why.
#[derive(Debug)]
pub struct Unreadable {
    key: String,
    reason: String,
}

fn id(keys: &Keys, key: &str) -> Result<InstanceId, String> {
    match keys.parse(key) {
        Ok(Key::Instance(id)) => Ok(id),
        Ok(_) => Err("it is another kind's key".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads an entry.
pub fn read(keys: &Keys, entry: Entry) -> Read {
    let decode = || Instance::decode(&entry.value).map_err(|error| error.to_string());
    match id(keys, &entry.key).and_then(|id| Ok((id, decode()?))) {
        Ok((id, instance)) => Ok((Arc::new(id), Arc::new(instance))),
        Err(reason) => Err(Unreadable { key: entry.key, reason }),
    }
}

#[cfg(test)]
mod tests {
    use rollcall_shared::store::{Batch, Listing, Revision};

    use super::*;
    use crate::maker;

    const BAD: &str = "/rollcall/instances/h1/0123456789ab/1-tcp";

    fn snapshot(entries: Vec<Entry>) -> Update<Read> {
        let entries = entries.into_iter().map(|entry| read(&maker::keys(), entry)).collect();
        Update::Snapshot(Listing { entries, revision: Revision(1) })
    }

    fn change(change: Change) -> Update<Read> {
        Update::Changes(Batch { changes: vec![change], revision: Revision(2) })
    }

    fn delete(entry: &Entry) -> Update<Read> {
        change(Change::Delete { key: entry.key.clone(), revision: Revision(2) })
    }

    fn bad() -> Entry {
        Entry { key: BAD.to_owned(), value: b"{\"v\":2}".to_vec(), revision: Revision(1), lease: None }
    }

    fn roll() -> Roll {
        Roll::new(maker::keys())
    }

    #[test]
    fn a_snapshot_shifts_what_differs_and_what_is_gone() {
        let (one, two, three) = (maker::entry(1, "web"), maker::entry(2, "web"), maker::entry(3, "web"));
        let mut roll = roll();
        assert_eq!(roll.apply(snapshot(vec![one.clone(), two.clone()])).shifts.len(), 2);
        let changed = Entry { value: maker::entry(2, "api").value, ..two };
        let shifts = roll.apply(snapshot(vec![changed, three]));
        assert!(shifts.relisted && !shifts.nothing_left);
        let kinds: Vec<_> =
            shifts.shifts.iter().map(|shift| (shift.before.is_some(), shift.after.is_some())).collect();
        assert_eq!(kinds, [(true, true), (false, true), (true, false)]);
        assert!(roll.apply(snapshot(vec![])).nothing_left);
    }

    #[test]
    fn what_cannot_be_read_is_left_out_and_never_stops_the_rest() {
        let mut roll = roll();
        let key = "/rollcall/instances/nonsense".to_owned();
        let entries = vec![bad(), Entry { key, ..maker::entry(1, "web") }, maker::entry(1, "web")];
        assert_eq!(roll.apply(snapshot(entries)).shifts.len(), 1);
        assert_eq!(roll.unreadable.len(), 2);
        assert_eq!(roll.apply(delete(&bad())).shifts, []);
        assert_eq!(roll.unreadable.len(), 1, "a key that is gone is forgotten");
    }

    #[test]
    fn a_good_value_that_turns_bad_is_gone_and_comes_back() {
        let mut roll = roll();
        let good = maker::entry(1, "web");
        roll.apply(snapshot(vec![good.clone()]));
        let turned = Entry { value: b"{".to_vec(), ..good.clone() };
        let gone = roll.apply(change(Change::Put(turned)));
        assert!(gone.nothing_left && !gone.relisted);
        assert_eq!(roll.apply(change(Change::Put(good))).shifts.len(), 1);
        assert!(roll.unreadable.is_empty());
    }
}
