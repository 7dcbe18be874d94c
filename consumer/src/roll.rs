//! The roll: every readable instance at one revision, and what shifted with the last update.
//!
//! It decodes what the reflector delivers, each value once. A value that cannot be read is left out,
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
    pub id: InstanceId,
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
    instances: HashMap<InstanceId, Arc<Instance>>,
    /// The keys whose values cannot be read, so that each is logged once.
    unreadable: HashSet<String>,
}

impl Roll {
    /// An empty roll.
    pub fn new(keys: Keys) -> Self {
        Self { keys, instances: HashMap::new(), unreadable: HashSet::new() }
    }

    /// Takes an update in and tells what shifted.
    pub fn apply(&mut self, update: Update) -> Shifts {
        let relisted = matches!(update, Update::Snapshot(_));
        let shifts = match update {
            Update::Snapshot(listing) => self.replace(&listing.entries),
            Update::Changes(batch) => batch.changes.iter().filter_map(|change| self.follow(change)).collect(),
        };
        Shifts { shifts, relisted, nothing_left: self.instances.is_empty() }
    }

    fn replace(&mut self, entries: &[Entry]) -> Vec<Shift> {
        let mut old = std::mem::take(&mut self.instances);
        let unreadable = std::mem::take(&mut self.unreadable);
        self.instances.reserve(entries.len());
        let mut shifts = Vec::with_capacity(if old.is_empty() { entries.len() } else { 0 });
        for entry in entries {
            let Some(id) = self.id(&entry.key, &unreadable) else { continue };
            let Some(instance) = self.instance(entry, &unreadable) else { continue };
            let before = old.remove(&id);
            let after = match &before {
                Some(before) if **before == instance => before.clone(),
                _ => Arc::new(instance),
            };
            self.instances.insert(id.clone(), after.clone());
            if before.as_ref() != Some(&after) {
                shifts.push(Shift { id, before, after: Some(after) });
            }
        }
        shifts.extend(old.into_iter().map(|(id, before)| Shift { id, before: Some(before), after: None }));
        shifts
    }

    fn follow(&mut self, change: &Change) -> Option<Shift> {
        let none = HashSet::new();
        let id = self.id(change.key(), &none)?;
        let after = match change {
            Change::Put(entry) => self.instance(entry, &none).map(Arc::new),
            Change::Delete { key, .. } => {
                self.unreadable.remove(key);
                None
            }
        };
        let before = match &after {
            Some(instance) => self.instances.insert(id.clone(), instance.clone()),
            None => self.instances.remove(&id),
        };
        (before != after).then_some(Shift { id, before, after })
    }

    fn id(&mut self, key: &str, known: &HashSet<String>) -> Option<InstanceId> {
        match self.keys.parse(key) {
            Ok(Key::Instance(id)) => Some(id),
            Ok(_) => None,
            Err(error) => {
                self.refuse(key, &error.to_string(), known);
                None
            }
        }
    }

    fn instance(&mut self, entry: &Entry, known: &HashSet<String>) -> Option<Instance> {
        match Instance::decode(&entry.value) {
            Ok(instance) => {
                self.unreadable.remove(&entry.key);
                Some(instance)
            }
            Err(error) => {
                self.refuse(&entry.key, &error.to_string(), known);
                None
            }
        }
    }

    /// Leaves a key out: counted every time, logged only the first.
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
