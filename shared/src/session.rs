//! A session: one lease and, under it, the claim on a name.
//!
//! Whoever writes under a node's or a consumer's name first claims the record's key. A process that
//! died is succeeded by the next one of the same owner, which adopts the lease that is still alive and
//! so keeps every key in place; any other owner is refused while that lease lives.
//!
//! ```text
//! key absent ------------------------> grant a lease, put the record if still absent
//! ours, its lease alive, same TTL ---> adopt the lease, put the record over the one read
//! ours, otherwise -------------------> grant a lease, put the record over the one read
//! another owner's -------------------> refused
//! another process took it from us ---> taken over
//! ```

use std::time::Duration;

use crate::{
    record::Claim,
    store::{Entry, Guard, LeaseId, Op, Revision, Store, StoreError},
    wire,
};

/// Why there is no session.
///
/// Only [`SessionError::Store`] may be worth a retry, as its own documentation says.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The name is claimed by someone else whose lease lives.
    #[error("the {what} name of {key} is held by {holder}, and this is {me}: expected a name of its own")]
    Refused {
        /// What kind of name.
        what: &'static str,
        /// The claim's key.
        key: String,
        /// The owner who holds it.
        holder: String,
        /// The owner who asked.
        me: String,
    },
    /// Another process of the same owner has taken the claim over.
    #[error("another process has taken {key} over")]
    TakenOver {
        /// The claim's key.
        key: String,
    },
}

/// A claim that is held, and its lease.
#[derive(Debug, Clone)]
pub struct Session {
    lease: LeaseId,
    guard: Guard,
    /// Whether the lease was taken over from a process that died, with the keys attached to it.
    pub adopted: bool,
}

/// What to do about the record that stands in the way.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Create,
    Adopt(LeaseId),
    Replace,
    Refuse(String),
    GiveUp,
}

/// Decides from the record that is there. `held` tells whether this process has held the claim before.
fn step<C: Claim>(found: Option<(&C, Option<LeaseId>)>, mine: &C, held: bool) -> Step {
    match found {
        None => Step::Create,
        Some((record, _)) if record.owner() != mine.owner() => Step::Refuse(record.owner().to_owned()),
        Some((record, _)) if held && record.holder() != mine.holder() => Step::GiveUp,
        Some((record, Some(lease))) if record.ttl_seconds() == mine.ttl_seconds() => Step::Adopt(lease),
        Some(_) => Step::Replace,
    }
}

impl Session {
    /// Claims `key` for `record`. `held` tells whether this process has held the claim before: then a
    /// record of another process of the same owner means that it was taken over.
    ///
    /// # Errors
    /// The store's, and a claim that another owner holds or another process has taken over.
    pub async fn open<C: Claim>(
        store: &dyn Store,
        key: &str,
        record: &C,
        held: bool,
    ) -> Result<Self, SessionError> {
        let ttl = Duration::from_secs(record.ttl_seconds());
        loop {
            let found = store.get(key).await?;
            let revision = found.as_ref().map(|entry| entry.revision);
            let (lease, adopted) = match decide(found.as_ref(), record, held) {
                Step::Create | Step::Replace => (store.grant(ttl).await?, false),
                Step::Adopt(lease) => match store.keep_alive(lease).await {
                    Ok(()) => (lease, true),
                    // It ended just now, and the key with it.
                    Err(StoreError::LeaseNotFound) => continue,
                    Err(error) => return Err(error.into()),
                },
                Step::Refuse(holder) => {
                    let (what, key, me) = (C::WHAT, key.to_owned(), record.owner().to_owned());
                    return Err(SessionError::Refused { what, key, holder, me });
                }
                Step::GiveUp => return Err(SessionError::TakenOver { key: key.to_owned() }),
            };
            let put = Op::Put { key: key.to_owned(), value: wire::encode(record) };
            let over = Guard { key: key.to_owned(), revision };
            match store.commit(&[put], Some(lease), Some(&over)).await {
                Ok(revision) => {
                    let guard = Guard { key: key.to_owned(), revision: Some(revision) };
                    return Ok(Self { lease, guard, adopted });
                }
                // Someone else was faster: look again.
                Err(StoreError::GuardFailed { .. } | StoreError::LeaseNotFound) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The lease that everything of this session is attached to.
    pub fn lease(&self) -> LeaseId {
        self.lease
    }

    /// Whether a change of the claim's key is another's: later than our own put.
    pub fn is_foreign(&self, revision: Revision) -> bool {
        self.guard.revision.is_some_and(|ours| revision > ours)
    }

    /// Whether a snapshot is older than the session, and so says nothing of its claim.
    pub fn is_after(&self, snapshot: Revision) -> bool {
        self.guard.revision.is_some_and(|ours| snapshot < ours)
    }

    /// Gives the lease its full time to live again.
    ///
    /// # Errors
    /// The store's; `LeaseNotFound` means that the session is over.
    pub async fn keep_alive(&self, store: &dyn Store) -> Result<(), StoreError> {
        store.keep_alive(self.lease).await
    }

    /// Writes under the lease, as long as the claim is held.
    ///
    /// # Errors
    /// The store's; `GuardFailed` and `LeaseNotFound` mean that the session is over.
    pub async fn commit(&self, store: &dyn Store, ops: &[Op]) -> Result<Revision, StoreError> {
        store.commit(ops, Some(self.lease), Some(&self.guard)).await
    }

    /// Ends the lease: every key of the session goes in one step.
    ///
    /// # Errors
    /// The store's, except that a lease already gone is no error.
    pub async fn revoke(&self, store: &dyn Store) -> Result<(), StoreError> {
        match store.revoke(self.lease).await {
            Err(StoreError::LeaseNotFound) => Ok(()),
            ended => ended,
        }
    }
}

fn decide<C: Claim>(found: Option<&Entry>, mine: &C, held: bool) -> Step {
    let Some(entry) = found else { return Step::Create };
    match wire::decode::<C>(C::WHAT, &entry.value) {
        Ok(record) => step(Some((&record, entry.lease)), mine, held),
        Err(error) => Step::Refuse(format!("a record that cannot be read ({error})")),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::{record::NodeRecord, store::memory::MemoryStore, wire::V1};

    const KEY: &str = "/rollcall/nodes/h1";

    fn record(engine: &str, holder: &str) -> NodeRecord {
        NodeRecord {
            v: V1,
            engine: engine.to_owned(),
            holder: holder.to_owned(),
            advertise: None,
            version: "0".to_owned(),
            started_at: Timestamp::UNIX_EPOCH,
            ttl_seconds: 60,
        }
    }

    async fn open(store: &MemoryStore, engine: &str, holder: &str) -> Result<Session, SessionError> {
        Session::open(store, KEY, &record(engine, holder), false).await
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_engine_adopts_the_lease_of_its_dead_predecessor() {
        let store = MemoryStore::new();
        let first = open(&store, "engine", "run 1").await.expect("the name is free");
        let second = open(&store, "engine", "run 2").await.expect("the engine is the same");
        assert!(second.adopted);
        assert_eq!(second.lease(), first.lease());
        let put = [Op::Put { key: "/rollcall/instances/h1/x".to_owned(), value: vec![] }];
        let late = first.commit(&store, &put).await;
        assert!(matches!(late, Err(StoreError::GuardFailed { .. })), "the predecessor writes no more");
        second.commit(&store, &put).await.expect("the successor writes");
    }

    #[tokio::test(start_paused = true)]
    async fn another_engine_is_refused_until_the_lease_has_ended() {
        let store = MemoryStore::new();
        open(&store, "engine", "run 1").await.expect("the name is free");
        let refused = open(&store, "other", "run 2").await.expect_err("the name is held").to_string();
        assert!(refused.contains("held by engine, and this is other"), "{refused}");
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert!(!open(&store, "other", "run 2").await.expect("the name is free again").adopted);
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_whose_claim_was_taken_over_does_not_take_it_back() {
        let store = MemoryStore::new();
        open(&store, "engine", "run 1").await.expect("the name is free");
        open(&store, "engine", "run 2").await.expect("the engine is the same");
        let again = Session::open(&store, KEY, &record("engine", "run 1"), true).await;
        assert!(matches!(again, Err(SessionError::TakenOver { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn another_time_to_live_gets_a_lease_of_its_own() {
        let store = MemoryStore::new();
        let first = open(&store, "engine", "run 1").await.expect("the name is free");
        let changed = NodeRecord { ttl_seconds: 10, ..record("engine", "run 2") };
        let second = Session::open(&store, KEY, &changed, false).await.expect("the engine is the same");
        assert!(!second.adopted);
        assert_ne!(second.lease(), first.lease());
    }
}
