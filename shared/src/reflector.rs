//! A reflector keeps up with a prefix of the store: it lists, then watches from there.
//!
//! # Guarantees
//! - The reader gets a whole snapshot first, and after it every change once and in order.
//! - While the store is away the reader hears nothing new and keeps what it has.
//!
//! # Recovery
//! - A broken watch is resumed after the last revision that was delivered.
//! - A compacted history and a store that went back are listed anew, as a new snapshot.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::sync::mpsc;

use crate::{
    health::Health,
    retry::Retry,
    store::{Batch, Listing, Revision, Store, StoreError, Watch},
};

/// What a reflector tells its reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// The prefix as a whole: what is not in it is gone.
    Snapshot(Listing),
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

/// Follows a prefix and sends what happens there, until the reader has gone.
#[derive(Debug)]
pub struct Reflector {
    store: Arc<dyn Store>,
    prefix: String,
    health: Health,
    /// The name under which it reports its health.
    part: String,
    updates: mpsc::Sender<Update>,
}

/// Enough for a reader that is busy for a moment; past that the watch waits in the store.
const BACKLOG: usize = 64;

impl Reflector {
    /// A reflector of all keys of `prefix`, and the receiver of what it finds. It reports
    /// its health as `part`.
    pub fn new(
        store: Arc<dyn Store>,
        prefix: String,
        health: Health,
        part: &str,
    ) -> (Self, mpsc::Receiver<Update>) {
        let (updates, receiver) = mpsc::channel(BACKLOG);
        health.ill(part, "not read yet");
        (Self { store, prefix, health, part: part.to_owned(), updates }, receiver)
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
            State::Listing => match self.store.list(&self.prefix).await {
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

    async fn deliver(&self, update: Update, state: State) -> Step {
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
