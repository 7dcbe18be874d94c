//! The store in memory: the embedded mode, and the tests' double for etcd, which can also fail as etcd does.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use tokio::{sync::watch, time::Instant};

use super::{
    Batch, Change, Entry, Guard, KeyRange, LeaseId, Listing, Mark, Op, Pages, Position, Recoveries, Revision,
    Store, StoreError, StoreId, Watch,
};

/// How many transactions of history a watcher may lag behind before it is told `Compacted`.
const MAX_HISTORY: usize = 4096;

/// A store in this process's memory. Clones share it.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    /// Wakes watchers.
    changed: watch::Sender<u64>,
    /// Counts how often it came back.
    recoveries: watch::Sender<u64>,
    /// Tells the reaper that a lease may end sooner than it thought.
    leases: Arc<tokio::sync::Notify>,
}

#[derive(Debug, Clone, Default)]
struct State {
    id: StoreId,
    revision: Revision,
    entries: BTreeMap<String, Entry>,
    leases: BTreeMap<LeaseId, Lease>,
    last_lease: i64,
    /// The batches of the latest revisions, oldest first, without a gap.
    history: VecDeque<Batch>,
    is_down: bool,
}

#[derive(Debug, Clone)]
struct Lease {
    ttl: Duration,
    ends: Instant,
}

/// A copy of a store, as a backup has it.
#[derive(Debug, Clone)]
pub struct Backup(State);

impl MemoryStore {
    /// An empty store. Needs a Tokio runtime: a task of it ends leases.
    pub fn new() -> Self {
        let store = Self {
            state: Arc::default(),
            changed: watch::Sender::new(0),
            recoveries: watch::Sender::new(0),
            leases: Arc::default(),
        };
        tokio::spawn(store.clone().reap());
        store
    }

    /// Ends leases when their time is over, for as long as the runtime lives.
    async fn reap(self) {
        loop {
            let next = self.lock().leases.values().map(|lease| lease.ends).min();
            tokio::select! {
                // Neither branch has taken anything when it is dropped.
                () = crate::process::time::sleep_until(next) => {}
                () = self.leases.notified() => {}
            }
            let now = Instant::now();
            let mut state = self.lock();
            let ended: Vec<LeaseId> =
                state.leases.iter().filter(|(_, lease)| lease.ends <= now).map(|(id, _)| *id).collect();
            for lease in ended {
                state.end(lease);
            }
            self.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics half way through a change of the state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn up(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let state = self.lock();
        if state.is_down { Err(down()) } else { Ok(state) }
    }

    fn wake(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Forgets the history up to and including `revision`, as etcd's compaction does.
    pub fn compact(&self, revision: Revision) {
        self.lock().history.retain(|batch| batch.revision > revision);
    }

    /// Makes every call fail with `Unavailable` and breaks every watch, until it is up again. Leases go on to end.
    pub fn set_down(&self, is_down: bool) {
        let was_down = std::mem::replace(&mut self.lock().is_down, is_down);
        if was_down && !is_down {
            self.recoveries.send_modify(|count| *count += 1);
        }
        self.wake();
    }

    /// A copy of what it holds now.
    pub fn backup(&self) -> Backup {
        Backup(self.lock().clone())
    }

    /// Puts a copy in the place of what it holds: it goes back, as another store.
    pub fn restore(&self, Backup(backup): Backup) {
        let mut state = self.lock();
        let id = StoreId(state.id.0 + 1);
        *state = State { id, history: VecDeque::new(), ..backup };
        self.leases.notify_one();
        self.wake();
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

fn down() -> StoreError {
    StoreError::Unavailable { place: "the memory store".to_owned(), source: "it is down".into() }
}

impl State {
    fn position(&self) -> Position {
        Position { store: self.id, revision: self.revision }
    }

    fn end(&mut self, lease: LeaseId) {
        self.leases.remove(&lease);
        let attached = |entry: &&Entry| entry.lease == Some(lease);
        let keys: Vec<String> =
            self.entries.values().filter(attached).map(|entry| entry.key.clone()).collect();
        self.apply(keys.into_iter().map(|key| Op::Delete { key }), None);
    }

    /// Applies writes as one transaction; gives its revision, a new one if they change anything.
    fn apply(&mut self, ops: impl IntoIterator<Item = Op>, lease: Option<LeaseId>) -> Revision {
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
            if self.history.len() > MAX_HISTORY {
                self.history.pop_front();
            }
        }
        self.revision
    }

    /// What a watcher that knows everything up to `after` must be told next.
    fn next(&self, range: &KeyRange, after: Position) -> Result<Option<Batch>, StoreError> {
        if after.store != self.id || after.revision > self.revision {
            return Err(StoreError::WentBack { read: after, now: self.position() });
        }
        let first = self.history.front().map_or(Revision(self.revision.0 + 1), |batch| batch.revision);
        if after.revision.0 + 1 < first.0 {
            return Err(StoreError::Compacted);
        }
        // The history has no gap, so that it need not be searched.
        let known =
            usize::try_from(after.revision.0 + 1 - first.0).unwrap_or(usize::MAX).min(self.history.len());
        let changes = self.history.range(known..).flat_map(|batch| &batch.changes);
        let changes: Vec<Change> = changes.filter(|change| range.contains(change.key())).cloned().collect();
        Ok(changes.last().map(Change::revision).map(|revision| Batch { changes, revision }))
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let mut state = self.up()?;
        state.last_lease += 1;
        let lease = LeaseId(state.last_lease);
        state.leases.insert(lease, Lease { ttl, ends: Instant::now() + ttl });
        self.leases.notify_one();
        Ok(lease)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let mut state = self.up()?;
        let lease = state.leases.get_mut(&lease).ok_or(StoreError::LeaseNotFound)?;
        lease.ends = Instant::now() + lease.ttl;
        Ok(())
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let mut state = self.up()?;
        if !state.leases.contains_key(&lease) {
            return Err(StoreError::LeaseNotFound);
        }
        state.end(lease);
        self.wake();
        Ok(())
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.up()?.entries.get(key).cloned())
    }

    async fn commit(
        &self,
        ops: &[Op],
        lease: Option<LeaseId>,
        guard: Option<&Guard>,
    ) -> Result<Vec<Revision>, StoreError> {
        let mut state = self.up()?;
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
        let revision = state.apply(ops.iter().cloned(), lease);
        self.wake();
        Ok(vec![revision; ops.len()])
    }

    fn pages<'a>(&'a self, range: &'a KeyRange) -> Pages<'a> {
        let listing = self.up().map(|state| {
            let (from, _) = range.bounds();
            let entries = state.entries.range(from.to_owned()..).take_while(|(key, _)| range.contains(key));
            let entries = entries.map(|(_, entry)| entry.clone()).collect();
            Listing { entries, position: state.position() }
        });
        stream::iter([listing]).boxed()
    }

    async fn watch(&self, range: &KeyRange, after: Position) -> Result<Watch, StoreError> {
        let first = self.up()?.next(range, after)?;
        let revision = first.as_ref().map_or(after.revision, |batch| batch.revision);
        let after = Position { revision, ..after };
        let changed = self.changed.subscribe();
        let follow =
            stream::unfold(Some((self.clone(), changed, range.clone(), after)), |position| async move {
                let (store, mut changed, range, mut after) = position?;
                loop {
                    changed.borrow_and_update();
                    let (next, revision) = match store.up() {
                        Ok(state) => (state.next(&range, after), state.revision),
                        Err(error) => (Err(error), after.revision),
                    };
                    match next {
                        Ok(Some(batch)) => {
                            after.revision = batch.revision;
                            return Some((Ok(batch), Some((store, changed, range, after))));
                        }
                        Ok(None) => {
                            // Nothing up to here is the watcher's, however long ago its last change was.
                            after.revision = revision;
                            changed.changed().await.ok()?;
                        }
                        Err(error) => return Some((Err(error), None)),
                    }
                }
            });
        Ok(stream::iter(first.map(Ok)).chain(follow).boxed())
    }

    async fn confirm(&self, mark: &Mark) -> Result<(), StoreError> {
        let now = self.up()?.position();
        let has_advanced = mark.position.store == now.store && mark.position.revision <= now.revision;
        if has_advanced { Ok(()) } else { Err(StoreError::WentBack { read: mark.position, now }) }
    }

    fn recoveries(&self) -> Recoveries {
        Recoveries::of(self.recoveries.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::store::conformance;

    fn put(key: &str) -> [Op; 1] {
        [Op::Put { key: key.to_owned(), value: vec![] }]
    }

    async fn commit(store: &MemoryStore, key: &str) -> Position {
        let revisions = store.commit(&put(key), None, None).await.expect("a commit");
        Position { store: store.lock().id, revision: revisions[0] }
    }

    fn folder(name: &str) -> KeyRange {
        KeyRange::folder(name.to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn the_memory_store_keeps_the_contract() {
        conformance::run(&MemoryStore::new()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_of_a_quiet_range_goes_on_past_the_history_of_others() {
        let store = MemoryStore::new();
        let mut quiet = store.watch(&folder("/quiet/"), Position::default()).await.expect("a watch");
        for _ in 0..3 {
            for _ in 0..MAX_HISTORY - 1 {
                commit(&store, "/busy/1").await;
            }
            assert!(quiet.next().now_or_never().is_none(), "nothing is there for it");
        }
        commit(&store, "/quiet/1").await;
        let batch = quiet.next().await.expect("it goes on").expect("a change");
        assert_eq!(batch.changes.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_from_before_the_compaction_says_so() {
        let store = MemoryStore::new();
        let first = commit(&store, "/a/1").await;
        let second = commit(&store, "/a/2").await;
        store.compact(second.revision);
        assert!(matches!(store.watch(&folder("/a/"), first).await, Err(StoreError::Compacted)));
        assert!(store.watch(&folder("/a/"), second).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_restored_store_tells_every_watcher_that_it_went_back_even_where_its_revision_has_not() {
        let store = MemoryStore::new();
        let first = commit(&store, "/a/1").await;
        let backup = store.backup();
        let mut watch = store.watch(&folder("/a/"), first).await.expect("a watch");
        store.restore(backup);
        commit(&store, "/a/2").await;
        let next = watch.next().await.expect("an answer");
        assert!(matches!(next, Err(StoreError::WentBack { .. })), "{next:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_down_fails_every_call_and_breaks_its_watches() {
        let store = MemoryStore::new();
        let mut watch = store.watch(&folder("/a/"), Position::default()).await.expect("a watch");
        store.set_down(true);
        assert!(matches!(watch.next().await, Some(Err(StoreError::Unavailable { .. }))));
        assert!(matches!(store.get("/a/1").await, Err(StoreError::Unavailable { .. })));
        store.set_down(false);
        assert!(store.get("/a/1").await.is_ok());
    }
}
