//! The claim protocol on the memory store, with a paused clock.

use std::collections::BTreeMap;

use tokio::task::JoinHandle;

use super::*;
use crate::{
    codec::V1,
    model::{
        consumer::{ConsumerRecord, TargetRecord},
        node::NodeRecord,
    },
    process::readiness::Readiness,
    store::{Entry, memory::MemoryStore},
};

const KEY: &str = "/rollcall/nodes/h1";
const OTHER_KEY: &str = "/rollcall/instances/h1/x";
const LEASE: LeaseSettings = LeaseSettings { ttl: Duration::from_secs(60), refresh: Duration::from_secs(30) };

/// A keeper that runs. Dropping it is a crash.
struct Running {
    handle: SessionHandle,
    stop: CancellationToken,
    task: JoinHandle<Result<(), KeeperError>>,
    readiness: Readiness,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    fn start(store: &MemoryStore, owner: &str) -> Self {
        Self::start_with(store, owner, LEASE, OnExit::Revoke)
    }

    fn start_with(store: &MemoryStore, owner: &str, lease: LeaseSettings, on_exit: OnExit) -> Self {
        let claim = Claim::new(owner.to_owned(), lease.ttl.as_secs());
        let record = NodeRecord { v: V1, claim };
        let readiness = Readiness::default();
        let name = ("h1".to_owned(), KEY.to_owned());
        let (keeper, handle) = Keeper::new(Arc::new(store.clone()), name, record, lease, on_exit, &readiness);
        let stop = CancellationToken::new();
        Self { handle, task: tokio::spawn(keeper.run(stop.clone())), stop, readiness }
    }

    /// The next session.
    async fn session(&mut self) -> Session {
        loop {
            if let Some(session) = self.handle.session() {
                return session;
            }
            self.handle.changed().await;
        }
    }

    async fn end(&mut self) -> Result<(), KeeperError> {
        (&mut self.task).await.expect("it does not panic")
    }

    async fn stop(mut self) {
        self.stop.cancel();
        self.end().await.expect("it ends in order");
    }
}

fn put(key: &str) -> [Op; 1] {
    [Op::Put { key: key.to_owned(), value: vec![] }]
}

async fn entry(store: &MemoryStore, key: &str) -> Option<Entry> {
    store.get(key).await.expect("the store is up")
}

async fn claim(store: &MemoryStore) -> Option<Claim> {
    let entry = entry(store, KEY).await?;
    Some(codec::decode::<NodeRecord>(&entry.value).expect("a record").claim)
}

/// Lets everything happen that is due within this time.
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_kept_alive_and_revoked_at_the_end() {
    let store = MemoryStore::new();
    let mut keeper = Running::start(&store, "engine");
    let session = keeper.session().await;
    session.commit(&store, &put(OTHER_KEY)).await.expect("it is ours");
    pass(LEASE.ttl * 5).await;
    assert!(entry(&store, OTHER_KEY).await.is_some());
    assert!(keeper.readiness.conditions().is_ready());
    keeper.stop().await;
    assert_eq!((entry(&store, KEY).await, entry(&store, OTHER_KEY).await), (None, None));
}

#[tokio::test(start_paused = true)]
async fn the_successor_of_a_dead_process_adopts_its_lease_once_that_has_not_answered() {
    let store = MemoryStore::new();
    let mut first = Running::start(&store, "engine");
    let session = first.session().await;
    session.commit(&store, &put(OTHER_KEY)).await.expect("it is ours");
    drop(first);
    let begun = Instant::now();
    let mut second = Running::start(&store, "engine");
    let adopted = second.session().await;
    assert_eq!(adopted.lease(), session.lease());
    assert!(begun.elapsed() >= CHALLENGE_TIMEOUT && begun.elapsed() < CHALLENGE_TIMEOUT * 2);
    let late = session.commit(&store, &put(OTHER_KEY)).await;
    assert!(matches!(late, Err(StoreError::GuardFailed { .. })), "the predecessor writes no more");
    adopted.commit(&store, &put(OTHER_KEY)).await.expect("the successor writes");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_left_its_keys_is_succeeded_at_once() {
    let store = MemoryStore::new();
    let mut first = Running::start_with(&store, "engine", LEASE, OnExit::Keep);
    let session = first.session().await;
    session.commit(&store, &put(OTHER_KEY)).await.expect("it is ours");
    first.stop().await;
    let kept = entry(&store, OTHER_KEY).await;
    assert!(kept.is_some());
    let begun = Instant::now();
    let mut second = Running::start(&store, "engine");
    assert_eq!(second.session().await.lease(), session.lease());
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(entry(&store, OTHER_KEY).await, kept, "it was not touched");
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_could_not_answer_as_the_store_was_away_gets_its_time_again() {
    let store = MemoryStore::new();
    let mut first = Running::start(&store, "engine");
    first.session().await;
    drop(first);
    let mut second = Running::start(&store, "engine");
    pass(CHALLENGE_TIMEOUT / 10).await;
    store.set_down(true);
    pass(CHALLENGE_TIMEOUT).await;
    store.set_down(false);
    let back = Instant::now();
    second.session().await;
    assert!(back.elapsed() > CHALLENGE_TIMEOUT / 2, "{:?}", back.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_living_twin_is_refused_by_name_and_the_first_goes_on() {
    let store = MemoryStore::new();
    let mut first = Running::start(&store, "engine");
    first.session().await;
    let mut second = Running::start(&store, "engine");
    let refused = second.end().await.expect_err("the first lives");
    assert!(matches!(refused, KeeperError::Twin { .. }), "{refused}");
    assert!(refused.to_string().contains("another process of engine that runs on "), "{refused}");
    let session = first.session().await;
    session.commit(&store, &put(OTHER_KEY)).await.expect("the first still writes");
    assert_eq!(claim(&store).await.expect("a claim").challenger, None);
}

#[tokio::test(start_paused = true)]
async fn another_owner_is_refused_until_the_lease_has_ended() {
    let store = MemoryStore::new();
    let mut first = Running::start(&store, "engine");
    first.session().await;
    let mut other = Running::start(&store, "other");
    let refused = other.end().await.expect_err("the name is held").to_string();
    assert!(refused.contains("held by engine on ") && refused.contains("and this is other"), "{refused}");
    drop(first);
    pass(LEASE.ttl * 2).await;
    Running::start(&store, "other").session().await;
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_taken_over_stops_and_revokes_nothing() {
    let store = MemoryStore::new();
    let mut first = Running::start(&store, "engine");
    let session = first.session().await;
    session.commit(&store, &put(OTHER_KEY)).await.expect("it is ours");
    let mut record =
        codec::decode::<NodeRecord>(&entry(&store, KEY).await.expect("a claim").value).expect("a record");
    record.claim.holder = "successor".to_owned();
    let taken = [Op::Put { key: KEY.to_owned(), value: codec::encode(&record) }];
    store.commit(&taken, Some(session.lease()), None).await.expect("a commit");
    let error = first.end().await.expect_err("it was taken over");
    assert!(matches!(error, KeeperError::TakenOver { .. }), "{error}");
    assert!(entry(&store, OTHER_KEY).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn on_the_way_out_the_keys_of_a_successor_are_left_alone() {
    let store = MemoryStore::new();
    let mut first = Running::start(&store, "engine");
    let session = first.session().await;
    session.commit(&store, &put(OTHER_KEY)).await.expect("it is ours");
    // Both in one moment: it is asked to stop before it can notice.
    first.stop.cancel();
    let mut record =
        codec::decode::<NodeRecord>(&entry(&store, KEY).await.expect("a claim").value).expect("a record");
    record.claim.holder = "successor".to_owned();
    let taken = [Op::Put { key: KEY.to_owned(), value: codec::encode(&record) }];
    store.commit(&taken, Some(session.lease()), None).await.expect("a commit");
    first.end().await.expect("it ends in order");
    assert!(entry(&store, OTHER_KEY).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_is_granted_anew() {
    let store = MemoryStore::new();
    let mut keeper = Running::start(&store, "engine");
    let session = keeper.session().await;
    store.revoke(session.lease()).await.expect("it lives");
    pass(Duration::from_secs(2)).await;
    let next = keeper.session().await;
    assert_ne!(next.lease(), session.lease());
    next.commit(&store, &put(OTHER_KEY)).await.expect("it is ours");
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_someone_deletes_is_put_back_under_the_same_lease() {
    let store = MemoryStore::new();
    let mut keeper = Running::start(&store, "engine");
    let session = keeper.session().await;
    session.commit(&store, &put(OTHER_KEY)).await.expect("it is ours");
    store.commit(&[Op::Delete { key: KEY.to_owned() }], None, None).await.expect("a commit");
    pass(Duration::from_secs(2)).await;
    let next = keeper.session().await;
    assert_eq!(next.lease(), session.lease());
    next.commit(&store, &put(OTHER_KEY)).await.expect("it is ours");
}

#[tokio::test(start_paused = true)]
async fn a_doubted_session_is_looked_at_without_waiting_for_the_refresh() {
    let store = MemoryStore::new();
    let mut keeper = Running::start(&store, "engine");
    let session = keeper.session().await;
    keeper.handle.doubt(session.clone());
    pass(Duration::from_millis(1)).await;
    assert_eq!(keeper.session().await, session, "a doubt without a reason changes nothing");
    store.set_down(true);
    pass(LEASE.ttl * 2).await;
    store.set_down(false);
    keeper.handle.doubt(session.clone());
    pass(Duration::from_secs(10)).await;
    assert_ne!(keeper.session().await.lease(), session.lease());
}

#[tokio::test(start_paused = true)]
async fn after_the_store_went_back_the_name_is_claimed_there() {
    let store = MemoryStore::new();
    let empty = store.backup();
    let mut predecessor = Running::start(&store, "engine");
    predecessor.session().await;
    let with_predecessor = store.backup();
    predecessor.stop().await;
    let mut keeper = Running::start(&store, "engine");
    for backup in [empty, with_predecessor] {
        keeper.session().await;
        store.restore(backup);
        pass(Duration::from_secs(5)).await;
        let session = keeper.session().await;
        session.commit(&store, &put(OTHER_KEY)).await.expect("it is ours again");
    }
}

#[tokio::test(start_paused = true)]
async fn another_time_to_live_gets_a_lease_of_its_own() {
    let store = MemoryStore::new();
    let mut first = Running::start_with(&store, "engine", LEASE, OnExit::Keep);
    let session = first.session().await;
    first.stop().await;
    let shorter = LeaseSettings { ttl: Duration::from_secs(10), refresh: Duration::from_secs(5) };
    let mut second = Running::start_with(&store, "engine", shorter, OnExit::Revoke);
    assert_ne!(second.session().await.lease(), session.lease());
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_it_in_bounded_time_whatever_it_waits_for() {
    let store = MemoryStore::new();
    store.set_down(true);
    let claiming = Running::start(&store, "engine");
    pass(Duration::from_secs(1)).await;
    assert!(!claiming.readiness.conditions().is_ready());
    claiming.stop().await;
    store.set_down(false);
    let mut held = Running::start(&store, "engine");
    held.session().await;
    let challenging = Running::start(&store, "engine");
    challenging.stop().await;
    pass(Duration::from_secs(3)).await;
    held.session().await;
    store.set_down(true);
    let begun = Instant::now();
    held.stop().await;
    assert!(begun.elapsed() <= SHUTDOWN_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn after_a_restore_a_predecessors_old_record_is_replaced_without_asking() {
    let store = MemoryStore::new();
    let mut predecessor = Running::start(&store, "engine");
    predecessor.session().await;
    let backup = store.backup();
    predecessor.stop().await;
    let mut keeper = Running::start(&store, "engine");
    let before = keeper.session().await;
    store.restore(backup);
    pass(CHALLENGE_TIMEOUT / 2).await;
    let after = keeper.session().await;
    assert_ne!(after, before);
    after.commit(&store, &put(OTHER_KEY)).await.expect("it is ours again");
}

#[tokio::test(start_paused = true)]
async fn after_a_restore_another_owners_old_record_is_waited_for() {
    let store = MemoryStore::new();
    let mut former = Running::start(&store, "former engine");
    former.session().await;
    let backup = store.backup();
    former.stop().await;
    let mut keeper = Running::start(&store, "engine");
    keeper.session().await;
    store.restore(backup);
    pass(LEASE.ttl / 2).await;
    let conditions = keeper.readiness.conditions();
    let reason = conditions.reason("claim").expect("it waits");
    assert!(reason.contains("waiting for its lease to end"), "{reason}");
    pass(LEASE.ttl).await;
    assert!(keeper.readiness.conditions().is_ready());
    keeper.session().await.commit(&store, &put(OTHER_KEY)).await.expect("it is ours again");
}

#[tokio::test(start_paused = true)]
async fn a_record_that_changes_is_put_under_the_same_lease_and_claim() {
    let store = MemoryStore::new();
    let claim = Claim::new("engine".to_owned(), LEASE.ttl.as_secs());
    let record = ConsumerRecord { v: V1, claim, container: None, targets: BTreeMap::new() };
    let (name, readiness) = (("c1".to_owned(), KEY.to_owned()), Readiness::default());
    let (keeper, mut handle) =
        Keeper::new(Arc::new(store.clone()), name, record.clone(), LEASE, OnExit::Revoke, &readiness);
    let records = keeper.records();
    let task = tokio::spawn(keeper.run(CancellationToken::new()));
    handle.changed().await;
    let before = handle.session().expect("a session");
    before.commit(&store, &put(OTHER_KEY)).await.expect("it is ours");
    let targets = BTreeMap::from([("web".parse().expect("a name"), TargetRecord::default())]);
    records.send_replace(ConsumerRecord { targets: targets.clone(), ..record.clone() });
    pass(Duration::from_millis(1)).await;
    let after = handle.session().expect("a session");
    assert_eq!(after.lease(), before.lease());
    let stored = entry(&store, KEY).await.expect("a claim");
    let stored = codec::decode::<ConsumerRecord>(&stored.value).expect("a record");
    assert_eq!((&stored.targets, &stored.claim), (&targets, &record.claim));
    after.commit(&store, &put(OTHER_KEY)).await.expect("it is still ours");
    task.abort();
}
