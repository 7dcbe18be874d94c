//! A reflector keeps up with a range of the store: it lists, then watches from there.
//!
//! # Guarantees
//! - The reader gets a whole snapshot first, and after it every change once and in order.
//! - While the store is away the reader gets nothing new and keeps what it has.
//!
//! # Recovery
//! - After a break the store is first asked whether it still has the last change that was delivered. Then the watch is
//!   resumed after it; where nothing was delivered since the last listing, that is shorter, and is made again.
//! - A compacted history and a store that went back are listed anew, as a new snapshot that says why.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::{sync::mpsc, task::JoinHandle};

use crate::{
    process::{backoff::Backoff, error::one_line, readiness::Part},
    store::{
        Batch, Change, Entry, KeyRange, LastChange, LeaseId, Mark, Position, Revision, Store, StoreError,
        Watch,
    },
};

/// How the keys and values of a range are read.
pub trait Decode: Send + Sync + 'static {
    /// What a key is read as.
    type Key: Send + fmt::Debug + 'static;
    /// What a value is read as.
    type Value: Send + Sync + fmt::Debug + 'static;

    /// Reads a key.
    ///
    /// # Errors
    /// Why it is no such key, on one line.
    fn key(&self, key: &str) -> Result<Self::Key, String>;

    /// Reads a value.
    ///
    /// # Errors
    /// Why it is no such value, on one line.
    fn value(&self, key: &Self::Key, value: Vec<u8>) -> Result<Self::Value, String>;
}

/// A value of the store.
#[derive(Debug, PartialEq, Eq)]
pub struct Held<V> {
    /// The value.
    pub value: Arc<V>,
    /// When it was last put.
    pub revision: Revision,
    /// The lease that it is attached to.
    pub lease: Option<LeaseId>,
}

/// What was read of one key.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<K, V> {
    /// It has this value.
    Put(K, Held<V>),
    /// It was deleted, at this revision.
    Delete(K, Revision),
    /// It has a value that cannot be read, or is no key of ours.
    Unreadable {
        /// The key, where that can be read.
        key: Option<K>,
        /// The key as it is.
        raw: String,
        /// Why.
        reason: String,
        /// When it was put.
        revision: Revision,
    },
}

/// Why everything was listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Nothing was known yet.
    First,
    /// The history that was missing is compacted, or was not worth asking for.
    Compacted,
    /// The store went back: it was restored from a backup, wiped, or replaced.
    WentBack,
}

/// What a reflector tells its reader.
#[derive(Debug, PartialEq, Eq)]
pub enum Update<K, V> {
    /// The range as a whole: what is not in it is gone.
    Snapshot {
        /// The items, in the order of the store's keys.
        items: Vec<Item<K, V>>,
        /// Of when it is.
        position: Position,
        /// Why it was listed.
        cause: Cause,
    },
    /// Changes since the last update.
    Changes {
        /// The changes, oldest first. Those of one revision are never split.
        items: Vec<Item<K, V>>,
        /// When the last one happened.
        revision: Revision,
    },
}

/// Where a reader receives what a reflector with this decoder finds.
pub type Updates<D> = mpsc::Receiver<Update<<D as Decode>::Key, <D as Decode>::Value>>;

/// What a reflector is about to do.
enum State {
    /// List everything, after what was read up to there.
    Listing(Cause, Option<Position>),
    /// Watch from there; everything up to the mark was delivered.
    Resuming(Delivered),
    /// Follow the watch; everything up to the mark was delivered.
    Watching(Watch, Delivered),
    /// Ask whether the store still has what was delivered: the watch has broken.
    Confirming(Delivered),
}

/// What the reader has.
#[derive(Debug, Clone)]
struct Delivered {
    mark: Mark,
    /// Whether nothing came since the last listing.
    is_listing: bool,
}

impl Delivered {
    fn listing(entries: Option<LastChange>, position: Position) -> Self {
        Self { mark: Mark { position, last: entries }, is_listing: true }
    }

    fn changes(before: Self, batch: &Batch) -> Self {
        let last = batch.changes.last().map(|change| LastChange {
            key: change.key().to_owned(),
            revision: change.revision(),
            is_put: matches!(change, Change::Put(_)),
        });
        let position = Position { revision: batch.revision, ..before.mark.position };
        Self { mark: Mark { position, last: last.or(before.mark.last) }, is_listing: false }
    }
}

impl State {
    /// Whether the range is followed.
    fn is_up(&self) -> bool {
        matches!(self, State::Watching(..))
    }
}

enum Step {
    Went(State),
    Failed(StoreError, State),
    ReaderGone,
}

/// Follows a range and sends what happens there, until the reader has gone.
pub struct Reflector<D: Decode> {
    store: Arc<dyn Store>,
    range: KeyRange,
    decode: Arc<D>,
    part: Part,
    updates: mpsc::Sender<Update<D::Key, D::Value>>,
}

/// Enough for a reader that is busy for a moment; past that the watch waits in the store.
const MAX_PENDING_UPDATES: usize = 64;

/// Fewer entries are read sooner than a thread starts.
const MIN_ENTRIES_FOR_THREAD: usize = 500;

/// Describes the reflectors' and caches' metrics.
pub fn describe_metrics() {
    metrics::describe_counter!(
        "rollcall_relists_total",
        "Listings after a compaction or after the store went back, by cause"
    );
    metrics::describe_counter!(
        "rollcall_bad_values_total",
        "Values of the store that could not be read, by kind"
    );
}

impl<D: Decode> Reflector<D> {
    /// A reflector of a range, which reports its condition as `part`, and the receiver of what it finds.
    pub fn new(store: Arc<dyn Store>, range: KeyRange, decode: D, part: Part) -> (Self, Updates<D>) {
        let (updates, receiver) = mpsc::channel(MAX_PENDING_UPDATES);
        (Self { store, range, decode: Arc::new(decode), part, updates }, receiver)
    }

    /// Runs until the receiver is dropped.
    pub async fn run(self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut recoveries = self.store.recoveries();
        let mut state = State::Listing(Cause::First, None);
        loop {
            state = match self.step(state).await {
                Step::Went(state) => {
                    if state.is_up() {
                        backoff.reset();
                        self.part.ready();
                    }
                    state
                }
                Step::Failed(error, state) => {
                    self.part.failed(one_line(&error));
                    tokio::select! {
                        // No branch has taken anything when it is dropped.
                        () = tokio::time::sleep(backoff.next_delay()) => {}
                        () = recoveries.next() => {}
                        () = self.updates.closed() => return,
                    }
                    state
                }
                Step::ReaderGone => return,
            };
        }
    }

    async fn step(&self, state: State) -> Step {
        match state {
            State::Listing(cause, read) => match self.list().await {
                Ok((items, last, position)) => {
                    let cause = if is_older(position, read) { Cause::WentBack } else { cause };
                    let delivered = Delivered::listing(last, position);
                    let update = Update::Snapshot { items, position, cause };
                    self.deliver(update, State::Resuming(delivered)).await
                }
                Err(StoreError::Compacted) => Step::Went(State::Listing(cause, read)),
                Err(error) => Step::Failed(error, State::Listing(cause, read)),
            },
            State::Resuming(delivered) => {
                match self.store.watch(&self.range, delivered.mark.position).await {
                    Ok(watch) => Step::Went(State::Watching(watch, delivered)),
                    Err(error) => self.recover(error, delivered),
                }
            }
            State::Confirming(delivered) => match self.store.confirm(&delivered.mark).await {
                Ok(()) if delivered.is_listing => {
                    Step::Went(State::Listing(Cause::Compacted, Some(delivered.mark.position)))
                }
                Ok(()) => Step::Went(State::Resuming(delivered)),
                Err(error) => self.recover(error, delivered),
            },
            State::Watching(mut watch, delivered) => {
                let next = tokio::select! {
                    // Neither branch has taken anything when it is dropped.
                    next = watch.next() => next,
                    () = self.updates.closed() => return Step::ReaderGone,
                };
                match next {
                    Some(Ok(batch)) => {
                        let delivered = Delivered::changes(delivered, &batch);
                        let Batch { changes, revision } = batch;
                        let items =
                            changes.into_iter().map(|change| read_change(&*self.decode, change)).collect();
                        let watching = State::Watching(watch, delivered);
                        self.deliver(Update::Changes { items, revision }, watching).await
                    }
                    Some(Err(error)) => self.recover(error, delivered),
                    None => Step::Went(State::Confirming(delivered)),
                }
            }
        }
    }

    /// Reads every entry of the range: the long pages on other threads, while the store prepares the next.
    /// Gives the last change that they show, too.
    async fn list(&self) -> Result<Listed<D>, StoreError> {
        let mut pages = self.store.pages(&self.range);
        let mut position = Position::default();
        let mut last = None;
        let mut reading = Vec::new();
        while let Some(page) = pages.next().await.transpose()? {
            position = page.position;
            last = newest(last, &page.entries);
            reading.push(Page::read(page.entries, &self.decode));
        }
        let mut items = Vec::new();
        for page in reading {
            items.append(&mut page.finish().await);
        }
        Ok((items, last, position))
    }

    /// What an error leads to that came after something was delivered.
    fn recover(&self, error: StoreError, delivered: Delivered) -> Step {
        let (cause, label) = match error {
            StoreError::Compacted => (Cause::Compacted, "compacted"),
            StoreError::WentBack { .. } => (Cause::WentBack, "went back"),
            error => return Step::Failed(error, State::Confirming(delivered)),
        };
        tracing::info!(range = %self.range, reason = %error, "listing anew");
        metrics::counter!("rollcall_relists_total", "cause" => label).increment(1);
        Step::Went(State::Listing(cause, Some(delivered.mark.position)))
    }

    async fn deliver(&self, update: Update<D::Key, D::Value>, state: State) -> Step {
        match self.updates.send(update).await {
            Ok(()) => Step::Went(state),
            Err(_) => Step::ReaderGone,
        }
    }
}

/// What a listing found: the items, the last change that they show, and of when it is.
type Listed<D> = (Vec<Item<<D as Decode>::Key, <D as Decode>::Value>>, Option<LastChange>, Position);

/// Whether a listing is of before what was read, or of another store.
fn is_older(listed: Position, read: Option<Position>) -> bool {
    read.is_some_and(|read| listed.store != read.store || listed.revision < read.revision)
}

/// The later one of a change and the changes that these entries show.
fn newest(last: Option<LastChange>, entries: &[Entry]) -> Option<LastChange> {
    let newest = entries.iter().max_by_key(|entry| entry.revision);
    let newest = newest.filter(|entry| last.as_ref().is_none_or(|last| last.revision < entry.revision));
    let change =
        |entry: &Entry| LastChange { key: entry.key.clone(), revision: entry.revision, is_put: true };
    newest.map(change).or(last)
}

fn read_change<D: Decode>(decode: &D, change: Change) -> Item<D::Key, D::Value> {
    match change {
        Change::Put(entry) => read_entry(decode, entry),
        Change::Delete { key, revision } => match decode.key(&key) {
            Ok(key) => Item::Delete(key, revision),
            Err(reason) => Item::Unreadable { key: None, raw: key, reason, revision },
        },
    }
}

fn read_entry<D: Decode>(
    decode: &D,
    Entry { key: raw, value, revision, lease }: Entry,
) -> Item<D::Key, D::Value> {
    let key = match decode.key(&raw) {
        Ok(key) => key,
        Err(reason) => return Item::Unreadable { key: None, raw, reason, revision },
    };
    match decode.value(&key, value) {
        Ok(value) => Item::Put(key, Held { value: Arc::new(value), revision, lease }),
        Err(reason) => Item::Unreadable { key: Some(key), raw, reason, revision },
    }
}

/// A page of a listing that was read, or is being read.
enum Page<K, V> {
    Read(Vec<Item<K, V>>),
    Reading(JoinHandle<Vec<Item<K, V>>>),
}

impl<K: Send + 'static, V: Send + Sync + 'static> Page<K, V> {
    fn read<D: Decode<Key = K, Value = V>>(entries: Vec<Entry>, decode: &Arc<D>) -> Self {
        let decode = decode.clone();
        let read = move |entries: Vec<Entry>| {
            entries.into_iter().map(|entry| read_entry(&*decode, entry)).collect::<Vec<_>>()
        };
        if entries.len() < MIN_ENTRIES_FOR_THREAD {
            return Self::Read(read(entries));
        }
        Self::Reading(tokio::task::spawn_blocking(move || read(entries)))
    }

    async fn finish(self) -> Vec<Item<K, V>> {
        match self {
            Self::Read(items) => items,
            Self::Reading(reading) => reading.await.expect("reading does not panic and is not aborted"),
        }
    }
}

// Derived, it would want the value to be `Clone` as well.
impl<V> Clone for Held<V> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), revision: self.revision, lease: self.lease }
    }
}

impl<D: Decode> fmt::Debug for Reflector<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reflector").field("range", &self.range).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        process::readiness::Readiness,
        store::{Op, memory::MemoryStore},
    };

    /// Keys as they are, without their values.
    struct Plain;

    impl Decode for Plain {
        type Key = String;
        type Value = ();

        fn key(&self, key: &str) -> Result<String, String> {
            Ok(key.to_owned())
        }

        fn value(&self, _: &String, _: Vec<u8>) -> Result<(), String> {
            Ok(())
        }
    }

    fn reflector(store: &MemoryStore) -> (Reflector<Plain>, mpsc::Receiver<Update<String, ()>>) {
        let part = Readiness::default().part("range");
        Reflector::new(Arc::new(store.clone()), KeyRange::folder("/a/".to_owned()), Plain, part)
    }

    fn put(key: &str) -> [Op; 1] {
        [Op::Put { key: key.to_owned(), value: vec![] }]
    }

    async fn commit(store: &MemoryStore, ops: &[Op]) -> Revision {
        store.commit(ops, None, None).await.expect("a commit")[0]
    }

    fn at(revision: Revision) -> Delivered {
        let position = Position { revision, ..Position::default() };
        Delivered { mark: Mark { position, last: None }, is_listing: false }
    }

    fn keys(update: Update<String, ()>) -> Vec<String> {
        let (Update::Snapshot { items, .. } | Update::Changes { items, .. }) = update;
        let key = |item| match item {
            Item::Put(key, _) | Item::Delete(key, _) => key,
            Item::Unreadable { raw, .. } => raw,
        };
        items.into_iter().map(key).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_gets_a_snapshot_and_then_the_changes() {
        let store = MemoryStore::new();
        commit(&store, &put("/a/1")).await;
        let (reflector, mut updates) = reflector(&store);
        let task = tokio::spawn(reflector.run());
        assert_eq!(keys(updates.recv().await.expect("a snapshot")), ["/a/1"]);
        commit(&store, &put("/a/2")).await;
        assert_eq!(keys(updates.recv().await.expect("a change")), ["/a/2"]);
        drop(updates);
        task.await.expect("it ends with its reader");
    }

    #[tokio::test]
    async fn many_entries_are_read_in_their_order() {
        let store = MemoryStore::new();
        let puts: Vec<Op> =
            (0..2 * MIN_ENTRIES_FOR_THREAD).flat_map(|n| put(&format!("/a/{n:04}"))).collect();
        commit(&store, &puts).await;
        let (reflector, mut updates) = reflector(&store);
        let step = reflector.step(State::Listing(Cause::First, None)).await;
        assert!(matches!(step, Step::Went(State::Resuming(_))));
        let keys = keys(updates.recv().await.expect("a snapshot"));
        assert!(keys.iter().map(String::as_str).eq(puts.iter().map(Op::key)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_compacted_history_is_answered_with_a_new_snapshot() {
        let store = MemoryStore::new();
        let (reflector, mut updates) = reflector(&store);
        let old = commit(&store, &put("/a/1")).await;
        let new = commit(&store, &put("/a/2")).await;
        store.compact(new);
        let Step::Went(state @ State::Listing(Cause::Compacted, _)) =
            reflector.step(State::Resuming(at(old))).await
        else {
            panic!("a compacted history leads to a listing");
        };
        assert!(matches!(reflector.step(state).await, Step::Went(State::Resuming(_))));
        assert_eq!(keys(updates.recv().await.expect("a snapshot")), ["/a/1", "/a/2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_is_told_that_the_store_went_back_and_a_break_alone_is_no_news() {
        let store = MemoryStore::new();
        let backup = store.backup();
        let (reflector, mut updates) = reflector(&store);
        tokio::spawn(reflector.run());
        updates.recv().await.expect("a snapshot");
        commit(&store, &put("/a/1")).await;
        updates.recv().await.expect("a change");
        store.set_down(true);
        tokio::time::sleep(Duration::from_secs(3)).await;
        store.set_down(false);
        commit(&store, &put("/a/2")).await;
        assert_eq!(keys(updates.recv().await.expect("the next change")), ["/a/2"]);
        store.restore(backup);
        let update = updates.recv().await.expect("a snapshot");
        assert!(matches!(update, Update::Snapshot { cause: Cause::WentBack, .. }), "{update:?}");
    }
}
