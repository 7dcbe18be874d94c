//! The store in memory: the embedded mode, and the tests' double for etcd.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use tokio::{sync::watch, time::Instant};

use super::{
    Batch, Change, Entry, Guard, LeaseId, Listing, Op, Pages, Revision, Store, StoreError, Watch, is_folder,
};

/// How many revisions of history a watcher may lag behind before it is told `Compacted`.
const HISTORY: usize = 4096;

/// A store in this process's memory. Clones share it.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    /// Tells watchers the newest revision.
    newest: watch::Sender<Revision>,
    /// Tells the reaper that a lease may end sooner than it thought.
    leases: Arc<tokio::sync::Notify>,
}

#[derive(Debug, Default)]
struct State {
    revision: Revision,
    entries: BTreeMap<String, Entry>,
    leases: BTreeMap<LeaseId, Lease>,
    last_lease: i64,
    /// The batches of the latest revisions, oldest first, without a gap.
    history: VecDeque<Batch>,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    ends: Instant,
}

impl MemoryStore {
    /// An empty store. Needs a Tokio runtime: a task of it ends leases.
    pub fn new() -> Self {
        let store =
            Self { state: Arc::default(), newest: watch::Sender::new(Revision(0)), leases: Arc::default() };
        tokio::spawn(store.clone().reap());
        store
    }

    /// Ends leases when their time is over, for as long as the runtime lives.
    async fn reap(self) {
        loop {
            let next = self.lock().leases.values().map(|lease| lease.ends).min();
            let sleep = async {
                match next {
                    Some(ends) => tokio::time::sleep_until(ends).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Both branches hold nothing: cancelling either loses nothing.
                () = sleep => {}
                () = self.leases.notified() => {}
            }
            let now = Instant::now();
            let mut state = self.lock();
            let ended: Vec<LeaseId> =
                state.leases.iter().filter(|(_, lease)| lease.ends <= now).map(|(id, _)| *id).collect();
            for lease in ended {
                state.end(lease);
            }
            self.publish(&state);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics half way through a change of the state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, state: &State) {
        self.newest.send_if_modified(|newest| std::mem::replace(newest, state.revision) != state.revision);
    }

    /// Forgets the history up to and including `revision`, as etcd's compaction does.
    pub fn compact(&self, revision: Revision) {
        self.lock().history.retain(|batch| batch.revision > revision);
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    fn end(&mut self, lease: LeaseId) {
        self.leases.remove(&lease);
        let attached = |entry: &&Entry| entry.lease == Some(lease);
        let keys: Vec<String> =
            self.entries.values().filter(attached).map(|entry| entry.key.clone()).collect();
        self.apply(keys.into_iter().map(|key| Op::Delete { key }), None);
    }

    /// Applies writes as one revision, if they change anything.
    fn apply(&mut self, ops: impl IntoIterator<Item = Op>, lease: Option<LeaseId>) {
        let revision = Revision(self.revision.0 + 1);
        let mut changes = Vec::new();
        for op in ops {
            match op {
                Op::Put { key, value } => {
                    let entry = Entry { key: key.clone(), value, revision, lease };
                    self.entries.insert(key, entry.clone());
                    changes.push(Change::Put(entry));
                }
                Op::Delete { key } => {
                    if self.entries.remove(&key).is_some() {
                        changes.push(Change::Delete { key, revision });
                    }
                }
            }
        }
        if !changes.is_empty() {
            self.revision = revision;
            self.history.push_back(Batch { changes, revision });
            if self.history.len() > HISTORY {
                self.history.pop_front();
            }
        }
    }

    /// What a watcher that has seen `after` must be told next.
    fn next(&self, prefix: &str, after: Revision) -> Result<Option<Batch>, StoreError> {
        if after > self.revision {
            return Err(StoreError::RolledBack { read: after, now: self.revision });
        }
        let first = self.history.front().map_or(Revision(self.revision.0 + 1), |batch| batch.revision);
        if after.0 + 1 < first.0 {
            return Err(StoreError::Compacted { first });
        }
        // The history has no gap, so that it need not be searched.
        let seen = usize::try_from(after.0 + 1 - first.0).unwrap_or(usize::MAX).min(self.history.len());
        let changes = self.history.range(seen..).flat_map(|batch| &batch.changes);
        let changes: Vec<Change> = changes.filter(|change| covers(prefix, change.key())).cloned().collect();
        Ok(changes.last().map(Change::revision).map(|revision| Batch { changes, revision }))
    }
}

fn covers(prefix: &str, key: &str) -> bool {
    if is_folder(prefix) { key.starts_with(prefix) } else { key == prefix }
}

#[async_trait]
impl Store for MemoryStore {
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let mut state = self.lock();
        state.last_lease += 1;
        let lease = LeaseId(state.last_lease);
        state.leases.insert(lease, Lease { ttl, ends: Instant::now() + ttl });
        self.leases.notify_one();
        Ok(lease)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let mut state = self.lock();
        let lease = state.leases.get_mut(&lease).ok_or(StoreError::LeaseNotFound)?;
        lease.ends = Instant::now() + lease.ttl;
        Ok(())
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let mut state = self.lock();
        if !state.leases.contains_key(&lease) {
            return Err(StoreError::LeaseNotFound);
        }
        state.end(lease);
        self.publish(&state);
        Ok(())
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.lock().entries.get(key).cloned())
    }

    async fn commit(
        &self,
        ops: &[Op],
        lease: Option<LeaseId>,
        guard: Option<&Guard>,
    ) -> Result<Revision, StoreError> {
        let mut state = self.lock();
        if let Some(Guard { key, revision }) = guard
            && state.entries.get(key).map(|entry| entry.revision) != *revision
        {
            return Err(StoreError::GuardFailed { key: key.clone() });
        }
        if let Some(lease) = lease
            && !state.leases.contains_key(&lease)
        {
            return Err(StoreError::LeaseNotFound);
        }
        state.apply(ops.iter().cloned(), lease);
        self.publish(&state);
        Ok(state.revision)
    }

    fn pages<'a>(&'a self, prefix: &'a str) -> Pages<'a> {
        let state = self.lock();
        let from_prefix = state.entries.range(prefix.to_owned()..);
        let entries = from_prefix.take_while(|(key, _)| covers(prefix, key));
        let entries = entries.map(|(_, entry)| entry.clone()).collect();
        stream::iter([Ok(Listing { entries, revision: state.revision })]).boxed()
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let first = self.lock().next(prefix, after)?;
        let after = first.as_ref().map_or(after, |batch| batch.revision);
        let newest = self.newest.subscribe();
        let follow =
            stream::unfold(Some((self.clone(), newest, prefix.to_owned(), after)), |position| async move {
                let (store, mut newest, prefix, mut after) = position?;
                loop {
                    let seen = *newest.borrow_and_update();
                    let next = store.lock().next(&prefix, after);
                    match next {
                        Ok(Some(batch)) => {
                            let after = batch.revision;
                            return Some((Ok(batch), Some((store, newest, prefix, after))));
                        }
                        Ok(None) => {
                            // Nothing up to here is the watcher's, however long ago its last change was.
                            after = after.max(seen);
                            newest.wait_for(|revision| *revision != seen).await.ok().map(drop)?;
                        }
                        Err(error) => return Some((Err(error), None)),
                    }
                }
            });
        Ok(stream::iter(first.map(Ok)).chain(follow).boxed())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::store::conformance;

    #[tokio::test(start_paused = true)]
    async fn the_memory_store_keeps_the_contract() {
        conformance::run(&MemoryStore::new()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_of_a_quiet_prefix_goes_on_past_the_history_of_others() {
        let store = MemoryStore::new();
        let put = |key: &str| [Op::Put { key: key.to_owned(), value: vec![] }];
        let mut quiet = store.watch("/quiet/", Revision(0)).await.expect("a watch");
        for _ in 0..3 {
            for _ in 0..HISTORY - 1 {
                store.commit(&put("/busy/1"), None, None).await.expect("a commit");
            }
            assert!(quiet.next().now_or_never().is_none(), "nothing is there for it");
        }
        store.commit(&put("/quiet/1"), None, None).await.expect("a commit");
        let batch = quiet.next().await.expect("it goes on").expect("a change");
        assert_eq!(batch.changes.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_from_before_the_compaction_says_so() {
        let store = MemoryStore::new();
        let put = |key: &str| [Op::Put { key: key.to_owned(), value: vec![] }];
        let first = store.commit(&put("/a/1"), None, None).await.expect("a commit");
        let second = store.commit(&put("/a/2"), None, None).await.expect("a commit");
        store.compact(second);
        assert!(matches!(store.watch("/a/", first).await, Err(StoreError::Compacted { .. })));
        assert!(store.watch("/a/", second).await.is_ok());
    }
}
