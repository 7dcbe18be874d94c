//! What stands in the store under this node's name, as far as this agent has written or seen it. Pure.

use std::collections::BTreeMap;

use rollcall_shared::{
    reflector::Update,
    store::{Change, Entry, LeaseId, Op, Revision},
};

/// The entries by key.
#[derive(Debug, Default)]
pub struct Registered {
    entries: BTreeMap<String, Entry>,
}

impl Registered {
    /// The entries by key.
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// Takes what was read of the store, where it is not older than what is known. Tells whether any of it
    /// was news.
    pub fn read(&mut self, entries: impl IntoIterator<Item = Entry>) -> bool {
        let mut is_news = false;
        for entry in entries {
            let known = self.entries.get(&entry.key).map(|known| known.revision);
            if known.is_none_or(|known| known < entry.revision) {
                self.entries.insert(entry.key.clone(), entry);
                is_news = true;
            }
        }
        is_news
    }

    /// Takes what a reflector of `prefix` has seen. Tells whether it was news: echoes of our own writes are
    /// none.
    pub fn on_update(&mut self, prefix: &str, update: Update) -> bool {
        match update {
            Update::Snapshot(listing) => {
                // What was written after the snapshot is not in it.
                self.entries
                    .retain(|key, entry| !key.starts_with(prefix) || entry.revision > listing.revision);
                self.read(listing.entries);
                true
            }
            Update::Changes(batch) => {
                let mut is_news = false;
                for change in batch.changes {
                    is_news |= match change {
                        Change::Put(entry) => self.read([entry]),
                        Change::Delete { key, revision } => {
                            let known = self.entries.get(&key).is_some_and(|known| known.revision < revision);
                            known && self.entries.remove(&key).is_some()
                        }
                    }
                }
                is_news
            }
        }
    }

    /// Takes what we have written, all in one transaction.
    pub fn on_written(&mut self, ops: &[Op], lease: LeaseId, revision: Revision) {
        for op in ops {
            match op {
                Op::Put { key, value } => {
                    let entry =
                        Entry { key: key.clone(), value: value.clone(), revision, lease: Some(lease) };
                    self.entries.insert(key.clone(), entry);
                }
                Op::Delete { key } => drop(self.entries.remove(key)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rollcall_shared::store::{Batch, Listing};

    use super::*;

    const OURS: LeaseId = LeaseId(1);

    fn written(revision: i64) -> Registered {
        let mut registered = Registered::default();
        let put = Op::Put { key: "/i/a".to_owned(), value: b"ours".to_vec() };
        registered.on_written(&[put], OURS, Revision(revision));
        registered
    }

    fn changes(change: Change) -> Update {
        let revision = change.revision();
        Update::Changes(Batch { changes: vec![change], revision })
    }

    fn foreign(revision: i64) -> Change {
        let (key, value) = ("/i/a".to_owned(), b"theirs".to_vec());
        Change::Put(Entry { key, value, revision: Revision(revision), lease: None })
    }

    fn value(registered: &Registered) -> Option<&[u8]> {
        registered.entries().get("/i/a").map(|entry| entry.value.as_slice())
    }

    #[test]
    fn a_foreign_change_and_deletion_are_noticed() {
        let mut registered = written(5);
        assert!(registered.on_update("/i/", changes(foreign(6))));
        assert_eq!(value(&registered), Some(b"theirs".as_slice()));
        let delete = changes(Change::Delete { key: "/i/a".to_owned(), revision: Revision(7) });
        assert!(registered.on_update("/i/", delete));
        assert_eq!(value(&registered), None);
    }

    #[test]
    fn what_is_older_than_our_own_write_is_not_taken() {
        let mut registered = written(5);
        assert!(!registered.on_update("/i/", changes(foreign(4))));
        assert!(!registered.on_update("/i/", changes(foreign(5))), "an echo of our own");
        let delete = changes(Change::Delete { key: "/i/a".to_owned(), revision: Revision(3) });
        assert!(!registered.on_update("/i/", delete));
        registered.on_update("/i/", Update::Snapshot(Listing { entries: vec![], revision: Revision(4) }));
        assert_eq!(value(&registered), Some(b"ours".as_slice()));
    }

    #[test]
    fn a_newer_snapshot_forgets_what_it_lacks_under_its_prefix() {
        let mut registered = written(5);
        registered.on_update("/other/", Update::Snapshot(Listing { entries: vec![], revision: Revision(9) }));
        assert!(value(&registered).is_some());
        registered.on_update("/i/", Update::Snapshot(Listing { entries: vec![], revision: Revision(9) }));
        assert_eq!(value(&registered), None);
    }
}
