//! A reflector keeps up with a prefix of the store: it lists, then watches from there.
//!
//! # Guarantees
//! - The reader gets a whole snapshot first, and after it every change once and in order.
//! - While the store is away the reader hears nothing new and keeps what it has.
//!
//! # Recovery
//! - A broken watch is resumed after the last revision that was delivered.
//! - A compacted history and a store that went back are listed anew, as a new snapshot.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::{sync::mpsc, task::JoinHandle};

use crate::{
    health::Health,
    retry::Retry,
    store::{Batch, Entry, Listing, Revision, Store, StoreError, Watch},
};

/// What a reflector tells its reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update<T = Entry> {
    /// The prefix as a whole: what is not in it is gone.
    Snapshot(Listing<T>),
    /// Changes to the last snapshot.
    Changes(Batch),
}

/// Where a reflector stands.
enum State {
    /// It knows nothing: list everything.
    Listing,
    /// It has delivered everything up to the revision: watch from there.
    Resuming(Revision),
    /// It follows a watch and has delivered everything up to the revision.
    Watching(Watch, Revision),
}

/// Follows a prefix and sends what happens there, until the reader has gone. The entries of a snapshot are
/// sent as what is read from them.
pub struct Reflector<T = Entry> {
    store: Arc<dyn Store>,
    prefix: String,
    health: Health,
    /// The name under which it reports its health.
    part: String,
    updates: mpsc::Sender<Update<T>>,
    read: Read<T>,
}

type Read<T> = Arc<dyn Fn(Entry) -> T + Send + Sync>;

/// Enough for a reader that is busy for a moment; past that the watch waits in the store.
const BACKLOG: usize = 64;

/// Fewer entries are read sooner than a thread starts.
const WORTH_A_THREAD: usize = 500;

impl Reflector {
    /// A reflector of all keys of `prefix`, and the receiver of what it finds. It reports
    /// its health as `part`.
    pub fn new(
        store: Arc<dyn Store>,
        prefix: String,
        health: Health,
        part: &str,
    ) -> (Self, mpsc::Receiver<Update>) {
        Self::reading(store, prefix, health, part, |entry| entry)
    }
}

impl<T: Send + 'static> Reflector<T> {
    /// As [`Reflector::new`], with what `read` makes of each entry of a snapshot. Many entries are read on
    /// other threads, while the store prepares the next.
    pub fn reading(
        store: Arc<dyn Store>,
        prefix: String,
        health: Health,
        part: &str,
        read: impl Fn(Entry) -> T + Send + Sync + 'static,
    ) -> (Self, mpsc::Receiver<Update<T>>) {
        let (updates, receiver) = mpsc::channel(BACKLOG);
        health.ill(part, "not read yet");
        (Self { store, prefix, health, part: part.to_owned(), updates, read: Arc::new(read) }, receiver)
    }

    /// Runs until the receiver is dropped.
    pub async fn run(self) {
        let mut retry = Retry::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut state = State::Listing;
        loop {
            state = match self.step(state).await {
                Step::Went(state) => {
                    retry.reset();
                    self.health.well(&self.part);
                    state
                }
                Step::Failed(error, state) => {
                    self.health.ill(&self.part, error.to_string());
                    let delay = retry.next_delay();
                    tracing::warn!(prefix = self.prefix, %error, ?delay, "lost the store, will try again");
                    tokio::time::sleep(delay).await;
                    state
                }
                Step::ReaderGone => return,
            };
        }
    }

    async fn step(&self, state: State) -> Step {
        match state {
            State::Listing => match self.list().await {
                Ok(listing) => {
                    let revision = listing.revision;
                    self.deliver(Update::Snapshot(listing), State::Resuming(revision)).await
                }
                Err(StoreError::Compacted { .. }) => Step::Went(State::Listing),
                Err(error) => Step::Failed(error, State::Listing),
            },
            State::Resuming(revision) => match self.store.watch(&self.prefix, revision).await {
                Ok(watch) => Step::Went(State::Watching(watch, revision)),
                Err(error) => self.recover(error, revision),
            },
            State::Watching(mut watch, revision) => {
                let next = tokio::select! {
                    // Neither branch has taken anything when it is dropped.
                    next = watch.next() => next,
                    () = self.updates.closed() => return Step::ReaderGone,
                };
                match next {
                    Some(Ok(batch)) => {
                        let revision = batch.revision;
                        self.deliver(Update::Changes(batch), State::Watching(watch, revision)).await
                    }
                    Some(Err(error)) => self.recover(error, revision),
                    None => Step::Went(State::Resuming(revision)),
                }
            }
        }
    }

    /// Reads every entry of the prefix.
    async fn list(&self) -> Result<Listing<T>, StoreError> {
        let mut pages = self.store.pages(&self.prefix);
        let mut revision = Revision::default();
        let mut parts = Vec::new();
        while let Some(page) = pages.next().await.transpose()? {
            revision = page.revision;
            parts.push(Part::read(page.entries, &self.read));
        }
        let mut entries = Vec::new();
        for part in parts {
            entries.append(&mut part.finish().await);
        }
        Ok(Listing { entries, revision })
    }

    /// What an error of a watch after `revision` leads to.
    fn recover(&self, error: StoreError, revision: Revision) -> Step {
        match error {
            StoreError::Compacted { .. } | StoreError::RolledBack { .. } => {
                tracing::info!(prefix = self.prefix, reason = %error, "listing anew");
                metrics::counter!("rollcall_relists_total").increment(1);
                Step::Went(State::Listing)
            }
            error => Step::Failed(error, State::Resuming(revision)),
        }
    }

    async fn deliver(&self, update: Update<T>, state: State) -> Step {
        match self.updates.send(update).await {
            Ok(()) => Step::Went(state),
            Err(_) => Step::ReaderGone,
        }
    }
}

enum Step {
    Went(State),
    Failed(StoreError, State),
    ReaderGone,
}

/// A page that is read, or is being read.
enum Part<T> {
    Read(Vec<T>),
    Reading(JoinHandle<Vec<T>>),
}

impl<T: Send + 'static> Part<T> {
    fn read(entries: Vec<Entry>, read: &Read<T>) -> Self {
        if entries.len() < WORTH_A_THREAD {
            return Self::Read(entries.into_iter().map(&**read).collect());
        }
        let read = read.clone();
        Self::Reading(tokio::task::spawn_blocking(move || entries.into_iter().map(&*read).collect()))
    }

    async fn finish(self) -> Vec<T> {
        match self {
            Self::Read(read) => read,
            Self::Reading(reading) => reading.await.expect("reading does not panic and is not aborted"),
        }
    }
}

impl<T> fmt::Debug for Reflector<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reflector").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Change, Op, memory::MemoryStore};

    fn put(key: &str) -> [Op; 1] {
        [Op::Put { key: key.to_owned(), value: vec![] }]
    }

    fn keys(update: Update) -> Vec<String> {
        match update {
            Update::Snapshot(listing) => listing.entries.into_iter().map(|entry| entry.key).collect(),
            Update::Changes(batch) => {
                batch.changes.iter().map(|change: &Change| change.key().to_owned()).collect()
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_gets_a_snapshot_and_then_the_changes() {
        let store = MemoryStore::new();
        store.commit(&put("/a/1"), None, None).await.expect("a commit");
        let (reflector, mut updates) =
            Reflector::new(Arc::new(store.clone()), "/a/".to_owned(), Health::default(), "instances");
        let task = tokio::spawn(reflector.run());
        assert_eq!(keys(updates.recv().await.expect("a snapshot")), ["/a/1"]);
        store.commit(&put("/a/2"), None, None).await.expect("a commit");
        assert_eq!(keys(updates.recv().await.expect("a change")), ["/a/2"]);
        drop(updates);
        task.await.expect("it ends with its reader");
    }

    #[tokio::test]
    async fn many_entries_are_read_in_their_order() {
        let store = MemoryStore::new();
        let puts: Vec<Op> = (0..2 * WORTH_A_THREAD).flat_map(|n| put(&format!("/a/{n:04}"))).collect();
        store.commit(&puts, None, None).await.expect("a commit");
        let (reflector, mut updates) = Reflector::reading(
            Arc::new(store.clone()),
            "/a/".to_owned(),
            Health::default(),
            "instances",
            |entry| entry.key,
        );
        assert!(matches!(reflector.step(State::Listing).await, Step::Went(State::Resuming(_))));
        let Some(Update::Snapshot(listing)) = updates.recv().await else { panic!("a snapshot") };
        assert!(listing.entries.iter().map(String::as_str).eq(puts.iter().map(Op::key)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_compacted_history_is_answered_with_a_new_snapshot() {
        let store = MemoryStore::new();
        let (reflector, mut updates) =
            Reflector::new(Arc::new(store.clone()), "/a/".to_owned(), Health::default(), "instances");
        let old = store.commit(&put("/a/1"), None, None).await.expect("a commit");
        let new = store.commit(&put("/a/2"), None, None).await.expect("a commit");
        store.compact(new);
        let Step::Went(state @ State::Listing) = reflector.step(State::Resuming(old)).await else {
            panic!("a compacted history leads to a listing");
        };
        assert!(matches!(reflector.step(state).await, Step::Went(State::Resuming(_))));
        assert_eq!(keys(updates.recv().await.expect("a snapshot")), ["/a/1", "/a/2"]);
    }
}
