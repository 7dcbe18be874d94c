//! What every store must do: one suite over the trait, which panics where a store breaks the contract.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use futures_util::StreamExt;

use super::{
    Batch, Change, Guard, KeyRange, LeaseId, Op, Position, Revision, Store, StoreError, StoreId, Watch,
};

/// How long a change may take to reach a watcher, or a lease to end after its time.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The shortest time to live that etcd grants with its default election time-out.
const SHORT_TTL: Duration = Duration::from_secs(2);
const LONG_TTL: Duration = Duration::from_secs(60);

/// Runs the whole suite. The store may hold other keys; each case works under a prefix of its own.
pub async fn run(store: &dyn Store) {
    a_put_is_read_back_and_a_delete_removes_it(store).await;
    a_commit_keeps_the_order_of_its_writes(store).await;
    a_large_commit_is_written_and_listed_whole(store).await;
    a_guard_that_fails_writes_nothing(store).await;
    an_absence_guard_lets_only_the_first_in(store).await;
    a_revoked_lease_takes_its_keys_in_one_step(store).await;
    a_lease_that_is_not_kept_alive_ends(store).await;
    a_lost_lease_is_said_to_be_lost_every_time(store).await;
    a_watch_misses_nothing_and_repeats_nothing(store).await;
    a_watch_sees_only_its_range(store).await;
    a_range_may_be_one_key_or_several_folders(store).await;
    a_watch_from_the_future_or_of_another_store_says_that_it_went_back(store).await;
    a_commit_under_a_lost_lease_is_refused(store).await;
}

/// A prefix that no other case, run or process uses.
fn fresh() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("/conformance/{}-{count}-{:x}/", std::process::id(), fastrand::u64(..))
}

fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.to_owned(), value: value.as_bytes().to_vec() }
}

fn delete(key: &str) -> Op {
    Op::Delete { key: key.to_owned() }
}

/// Commits, and gives the revision of the last write.
async fn commit(store: &dyn Store, ops: &[Op], lease: Option<LeaseId>) -> Revision {
    let revisions = store.commit(ops, lease, None).await.expect("the commit is taken");
    assert_eq!(revisions.len(), ops.len(), "a revision for each write");
    assert!(revisions.is_sorted());
    *revisions.last().expect("there are writes")
}

fn folder(prefix: &str) -> KeyRange {
    KeyRange::folder(prefix.to_owned())
}

async fn watch(store: &dyn Store, range: &KeyRange, after: Revision) -> Watch {
    let position = Position { revision: after, ..position(store).await };
    store.watch(range, position).await.expect("a watch")
}

/// Where the store is now.
async fn position(store: &dyn Store) -> Position {
    store.list(&folder("/conformance/none/")).await.expect("a listing").position
}

async fn pairs(store: &dyn Store, range: &KeyRange) -> Vec<(String, String)> {
    let listing = store.list(range).await.expect("the range is listed");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the suite writes text");
    listing.entries.into_iter().map(|entry| (entry.key, text(entry.value))).collect()
}

async fn next(watch: &mut Watch) -> Batch {
    let batch = tokio::time::timeout(TIMEOUT, watch.next()).await.expect("a change arrives in time");
    batch.expect("the watch goes on").expect("the watch has no error")
}

/// The next `count` changes as `+key=value` and `-key`.
async fn changes(watch: &mut Watch, count: usize) -> Vec<String> {
    let mut shown = Vec::new();
    while shown.len() < count {
        shown.extend(next(watch).await.changes.into_iter().map(|change| match change {
            Change::Put(entry) => format!("+{}={}", entry.key, String::from_utf8_lossy(&entry.value)),
            Change::Delete { key, .. } => format!("-{key}"),
        }));
    }
    shown
}

async fn a_put_is_read_back_and_a_delete_removes_it(store: &dyn Store) {
    let prefix = fresh();
    let key = format!("{prefix}a");
    let written = commit(store, &[put(&key, "1")], None).await;
    let entry = store.get(&key).await.expect("a read").expect("the key is there");
    assert_eq!((entry.value.as_slice(), entry.revision, entry.lease), (b"1".as_slice(), written, None));
    let listing = store.list(&folder(&prefix)).await.expect("a listing");
    assert_eq!(listing.entries, [entry]);
    assert!(listing.position.revision >= written);
    let gone = commit(store, &[delete(&key), delete(&format!("{prefix}never"))], None).await;
    assert!(gone > written);
    assert_eq!(store.get(&key).await.expect("a read"), None);
    assert_eq!(store.commit(&[], None, None).await.expect("nothing to write"), []);
}

async fn a_commit_keeps_the_order_of_its_writes(store: &dyn Store) {
    let prefix = fresh();
    let (a, b) = (format!("{prefix}a"), format!("{prefix}b"));
    commit(store, &[put(&a, "1"), put(&b, "1"), delete(&a), put(&b, "2"), put(&a, "2"), delete(&b)], None)
        .await;
    assert_eq!(pairs(store, &folder(&prefix)).await, [(a, "2".to_owned())]);
}

async fn a_large_commit_is_written_and_listed_whole(store: &dyn Store) {
    let prefix = fresh();
    // More than one transaction may hold, and more than one page.
    let keys: Vec<String> = (0..5000).map(|number| format!("{prefix}{number:05}")).collect();
    let ops: Vec<Op> = keys.iter().map(|key| put(key, "x")).collect();
    let start = position(store).await.revision;
    let written = commit(store, &ops, None).await;
    let transactions = written.0 - start.0;
    assert!(transactions <= 5000 / 128 + 1, "{transactions} transactions for 5000 writes");
    let listing = store.list(&folder(&prefix)).await.expect("a listing");
    assert_eq!(listing.entries.iter().map(|entry| entry.key.clone()).collect::<Vec<_>>(), keys);
    let ops: Vec<Op> = keys.iter().map(|key| delete(key)).collect();
    commit(store, &ops, None).await;
    assert_eq!(pairs(store, &folder(&prefix)).await, []);
}

async fn a_guard_that_fails_writes_nothing(store: &dyn Store) {
    let prefix = fresh();
    let (claim, a) = (format!("{prefix}claim"), format!("{prefix}a"));
    let held = commit(store, &[put(&claim, "me")], None).await;
    let guard = Guard { key: claim.clone(), revision: Some(held) };
    store.commit(&[put(&a, "1")], None, Some(&guard)).await.expect("the claim is held");
    commit(store, &[put(&claim, "you")], None).await;
    let refused = store.commit(&[put(&a, "2")], None, Some(&guard)).await;
    assert!(matches!(refused, Err(StoreError::GuardFailed { key }) if key == claim));
    let value = store.get(&a).await.expect("a read").expect("the key is there").value;
    assert_eq!(value, b"1");
}

async fn an_absence_guard_lets_only_the_first_in(store: &dyn Store) {
    let claim = format!("{}claim", fresh());
    let guard = Guard { key: claim.clone(), revision: None };
    store.commit(&[put(&claim, "first")], None, Some(&guard)).await.expect("nobody was there");
    let second = store.commit(&[put(&claim, "second")], None, Some(&guard)).await;
    assert!(matches!(second, Err(StoreError::GuardFailed { .. })));
    let value = store.get(&claim).await.expect("a read").expect("the key is there").value;
    assert_eq!(value, b"first");
}

async fn a_revoked_lease_takes_its_keys_in_one_step(store: &dyn Store) {
    let prefix = fresh();
    let lease = store.grant(LONG_TTL).await.expect("a lease");
    let keys: Vec<String> = (0..3).map(|number| format!("{prefix}{number}")).collect();
    let ops: Vec<Op> = keys.iter().map(|key| put(key, "x")).collect();
    let written = commit(store, &ops, Some(lease)).await;
    let kept = format!("{prefix}kept");
    let written = written.max(commit(store, &[put(&kept, "y")], None).await);
    let attached = store.get(&keys[0]).await.expect("a read").expect("the key is there").lease;
    assert_eq!(attached, Some(lease));
    let mut changed = watch(store, &folder(&prefix), written).await;
    store.revoke(lease).await.expect("the lease is there");
    let batch = next(&mut changed).await;
    assert_eq!(batch.changes.len(), keys.len(), "the keys went in one step: {batch:?}");
    assert_eq!(pairs(store, &folder(&prefix)).await, [(kept, "y".to_owned())]);
    assert!(matches!(store.revoke(lease).await, Err(StoreError::LeaseNotFound)));
}

async fn a_lease_that_is_not_kept_alive_ends(store: &dyn Store) {
    let prefix = fresh();
    let lease = store.grant(SHORT_TTL).await.expect("a lease");
    let (leased, free) = (format!("{prefix}leased"), format!("{prefix}free"));
    commit(store, &[put(&leased, "x")], Some(lease)).await;
    let written = commit(store, &[put(&free, "y")], None).await;
    let mut changed = watch(store, &folder(&prefix), written).await;
    // Kept alive for more than its time to live, it is still there ...
    for _ in 0..3 {
        tokio::time::sleep(SHORT_TTL / 2).await;
        store.keep_alive(lease).await.expect("the lease lives");
    }
    assert_eq!(pairs(store, &folder(&prefix)).await.len(), 2);
    // ... and left alone, it goes.
    assert_eq!(changes(&mut changed, 1).await, [format!("-{leased}")]);
    assert_eq!(pairs(store, &folder(&prefix)).await, [(free, "y".to_owned())]);
}

async fn a_lost_lease_is_said_to_be_lost_every_time(store: &dyn Store) {
    let lease = store.grant(LONG_TTL).await.expect("a lease");
    store.keep_alive(lease).await.expect("the lease lives");
    store.revoke(lease).await.expect("the lease is there");
    for _ in 0..3 {
        assert!(matches!(store.keep_alive(lease).await, Err(StoreError::LeaseNotFound)));
    }
}

async fn a_watch_misses_nothing_and_repeats_nothing(store: &dyn Store) {
    let prefix = fresh();
    let key = |number: usize| format!("{prefix}{number:03}");
    let before = commit(store, &[put(&key(0), "before")], None).await;
    let mut expected = Vec::new();
    let first = commit(store, &[put(&key(1), "1")], None).await;
    expected.push(format!("+{}=1", key(1)));
    // Opened late: what it asks for has partly happened.
    let mut changed = watch(store, &folder(&prefix), before).await;
    for number in 2..50 {
        commit(store, &[put(&key(number), "x"), delete(&key(number - 1))], None).await;
        expected.extend([format!("+{}=x", key(number)), format!("-{}", key(number - 1))]);
    }
    assert_eq!(changes(&mut changed, expected.len()).await, expected);
    // Resumed after any revision, it goes on right there.
    let mut resumed = watch(store, &folder(&prefix), first).await;
    assert_eq!(changes(&mut resumed, expected.len() - 1).await, expected[1..]);
}

async fn a_watch_sees_only_its_range(store: &dyn Store) {
    let prefix = fresh();
    let start = commit(store, &[put(&format!("{prefix}a/0"), "")], None).await;
    let mut changed = watch(store, &folder(&format!("{prefix}b/")), start).await;
    let ops = [
        put(&format!("{prefix}a/1"), "1"),
        put(&format!("{prefix}b/1"), "2"),
        put(&format!("{prefix}b"), "3"),
    ];
    commit(store, &ops, None).await;
    commit(store, &[put(&format!("{prefix}b/2"), "4")], None).await;
    assert_eq!(changes(&mut changed, 2).await, [format!("+{prefix}b/1=2"), format!("+{prefix}b/2=4")]);
}

async fn a_range_may_be_one_key_or_several_folders(store: &dyn Store) {
    let prefix = fresh();
    let (key, longer) = (format!("{prefix}a"), format!("{prefix}ab"));
    let start = commit(store, &[put(&longer, "1"), put(&key, "2")], None).await;
    let one = KeyRange::key(key.clone());
    assert_eq!(pairs(store, &one).await, [(key.clone(), "2".to_owned())]);
    let mut changed = watch(store, &one, start).await;
    commit(store, &[put(&longer, "3")], None).await;
    commit(store, &[put(&key, "4")], None).await;
    assert_eq!(changes(&mut changed, 1).await, [format!("+{key}=4")]);
    let several = KeyRange::folders(format!("{prefix}b/"), format!("{prefix}d/"));
    let mut changed = watch(store, &several, start).await;
    let (b, d, e) = (format!("{prefix}b/1"), format!("{prefix}d/1"), format!("{prefix}e/1"));
    commit(store, &[put(&e, "5"), put(&d, "6"), put(&b, "7")], None).await;
    assert_eq!(changes(&mut changed, 2).await, [format!("+{d}=6"), format!("+{b}=7")]);
    assert_eq!(pairs(store, &several).await, [(b, "7".to_owned()), (d, "6".to_owned())]);
}

async fn a_watch_from_the_future_or_of_another_store_says_that_it_went_back(store: &dyn Store) {
    let prefix = fresh();
    commit(store, &[put(&format!("{prefix}a"), "")], None).await;
    let now = position(store).await;
    let future = Position { revision: Revision(now.revision.0 + 1_000_000), ..now };
    let other = Position { store: StoreId(now.store.0 + 1), ..now };
    for position in [future, other] {
        let refused = store.watch(&folder(&prefix), position).await;
        assert!(matches!(refused.map(drop), Err(StoreError::WentBack { .. })));
    }
}

async fn a_commit_under_a_lost_lease_is_refused(store: &dyn Store) {
    let prefix = fresh();
    let lease = store.grant(LONG_TTL).await.expect("a lease");
    store.revoke(lease).await.expect("the lease is there");
    let refused = store.commit(&[put(&format!("{prefix}a"), "1")], Some(lease), None).await;
    assert!(matches!(refused, Err(StoreError::LeaseNotFound)), "{refused:?}");
    assert_eq!(pairs(store, &folder(&prefix)).await, []);
}
