//! What this node wants in all layouts.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use jiff::Timestamp;

use super::Entries;
use crate::inventory::container::FullId;

/// The entries of all containers of this node.
#[derive(Debug, Default)]
pub struct Wanted(BTreeMap<FullId, OfContainer>);

#[derive(Debug)]
struct OfContainer {
    started_at: Timestamp,
    entries: Vec<Entries>,
}

impl Wanted {
    /// Takes what one container should have.
    pub fn set(&mut self, id: FullId, started_at: Timestamp, entries: Vec<Entries>) {
        if entries.is_empty() {
            self.0.remove(&id);
        } else {
            self.0.insert(id, OfContainer { started_at, entries });
        }
    }

    /// Forgets a container.
    pub fn remove(&mut self, id: &FullId) {
        self.0.remove(id);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The entries, each key once. While a container is replaced, two may bear its name for a moment: the one that
    /// started last has the keys.
    pub fn entries(&self) -> Vec<&Entries> {
        let mut containers: Vec<(&FullId, &OfContainer)> = self.0.iter().collect();
        containers.sort_by_key(|(id, of)| (Reverse(of.started_at), *id));
        let mut taken = BTreeSet::new();
        let mut is_free = |entries: &&Entries| {
            let is_free = !entries.keys().any(|key| taken.contains(key));
            if is_free {
                taken.extend(entries.keys().map(str::to_owned));
            }
            is_free
        };
        containers.iter().flat_map(|(_, of)| &of.entries).filter(|entries| is_free(entries)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;

    fn entries(key: &str, value: &str) -> Vec<Entries> {
        vec![Entries::new(Layout::Containers, [(key.to_owned(), value.to_owned())])]
    }

    #[test]
    fn of_two_containers_of_one_name_the_later_one_has_the_key_until_it_goes() {
        let mut wanted = Wanted::default();
        let started = |second: i64| Timestamp::from_second(second).expect("a time");
        let value = |wanted: &Wanted| -> Vec<String> {
            let pairs = wanted.entries().into_iter().flat_map(|entries| entries.pairs.clone());
            pairs.map(|(_, value)| String::from_utf8_lossy(&value).into_owned()).collect()
        };
        wanted.set("b".into(), started(2), entries("/k", "new"));
        wanted.set("a".into(), started(1), entries("/k", "old"));
        assert_eq!(value(&wanted), ["new"]);
        wanted.remove(&"b".into());
        assert_eq!(value(&wanted), ["old"]);
        wanted.set("a".into(), started(1), vec![]);
        assert_eq!(value(&wanted), [""; 0]);
    }
}
