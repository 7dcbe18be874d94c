//! However far it has come, an agent that is asked to stop ends, in bounded time.

use super::*;

/// How long ending a session may take.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// An agent that has registered a container.
async fn registering(store: &MemoryStore, engine: &ScriptedEngine) -> Running {
    engine.put(&web("web"));
    let agent = Running::start(store.clone(), engine);
    pass(AT_ONCE).await;
    assert_eq!(registered(store).await, ["web"]);
    agent
}

async fn all_keys(store: &MemoryStore) -> Vec<String> {
    let entries = entries(store, &KeyRange::folder("/rollcall/".to_owned())).await;
    entries.into_iter().map(|entry| entry.key).collect()
}

#[tokio::test(start_paused = true)]
async fn in_steady_state_it_ends_at_once_and_withdraws_everything() {
    let (store, engine) = (MemoryStore::new(), engine());
    let agent = registering(&store, &engine).await;
    assert_eq!(agent.stop().await, Duration::ZERO);
    assert_eq!(all_keys(&store).await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn while_dockers_id_is_asked_for_it_ends_at_once() {
    let (store, engine) = (MemoryStore::new(), engine());
    engine.hang(Call::Id);
    let agent = Running::start(store.clone(), &engine);
    pass(Duration::from_secs(1)).await;
    assert_eq!(engine.calls(&Call::Id), 1);
    assert_eq!(agent.stop().await, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_waited_for_at_the_start_it_ends_at_once() {
    let (store, engine) = (MemoryStore::new(), engine());
    store.set_down(true);
    let agent = Running::start(store.clone(), &engine);
    pass(Duration::from_secs(1)).await;
    assert_eq!(agent.stop().await, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn while_it_claims_the_node_it_ends_and_leaves_no_claim() {
    let (store, engine) = (MemoryStore::new(), engine());
    let gated = GatedStore::new(&store);
    gated.set_grant(Gate::Hangs);
    let agent = Running::start(gated, &engine);
    pass(Duration::from_secs(1)).await;
    assert_eq!(agent.stop().await, Duration::ZERO);
    assert_eq!(all_keys(&store).await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn while_it_asks_a_predecessor_whether_it_lives_it_ends_and_leaves_the_keys_alone() {
    let (store, engine) = (MemoryStore::new(), engine());
    drop(registering(&store, &engine).await);
    let successor = Running::start(store.clone(), &engine);
    pass(Duration::from_millis(500)).await;
    assert_eq!(successor.stop().await, Duration::ZERO);
    assert_eq!(registered(&store).await, ["web"]);
}

#[tokio::test(start_paused = true)]
async fn while_a_commit_hangs_it_ends_and_withdraws_everything() {
    let (store, engine) = (MemoryStore::new(), engine());
    let gated = GatedStore::new(&store);
    gated.set_commit(Gate::Hangs);
    engine.put(&web("web"));
    let agent = Running::start(gated.clone(), &engine);
    pass(Duration::from_secs(1)).await;
    assert_eq!(gated.commits.load(Ordering::Relaxed), 1);
    assert_eq!(agent.stop().await, Duration::ZERO);
    gated.set_commit(Gate::Open);
    pass(Duration::from_secs(1)).await;
    assert_eq!(all_keys(&store).await, [""; 0], "what was under way is not written later");
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_down_it_ends_in_time() {
    let (store, engine) = (MemoryStore::new(), engine());
    let agent = registering(&store, &engine).await;
    store.set_down(true);
    engine.start(&web("another"));
    pass(Duration::from_secs(10)).await;
    assert!(agent.stop().await <= SHUTDOWN_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn while_docker_is_listed_or_inspected_or_away_it_ends_at_once_and_withdraws_everything() {
    for call in [Call::List, Call::Inspect, Call::Agree] {
        let (store, engine) = (MemoryStore::new(), engine());
        let agent = registering(&store, &engine).await;
        engine.hang(call.clone());
        engine.start(&web("another"));
        engine.break_events();
        pass(LEASE.refresh).await;
        assert!(engine.calls(&call) > 0, "{call:?} is under way");
        assert_eq!(agent.stop().await, Duration::ZERO, "{call:?}");
        assert_eq!(all_keys(&store).await, [""; 0], "{call:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_or_a_store_that_is_away_for_longer_than_the_wait_is_named() {
    let (store, engine) = (MemoryStore::new(), engine());
    engine.set_down(true);
    let begun = Instant::now();
    let error = Running::start(store.clone(), &engine).end().await.expect_err("Docker is away");
    assert!(matches!(error, Error::Docker(_)), "{error}");
    assert_eq!(begun.elapsed(), Duration::from_secs(10));
    engine.set_down(false);
    store.set_down(true);
    let error = Running::start(store.clone(), &engine).end().await.expect_err("the store is away");
    assert!(matches!(error, Error::Store(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_engine_and_a_store_that_come_within_the_wait_are_waited_for() {
    let (store, engine) = (MemoryStore::new(), engine());
    engine.put(&web("web"));
    engine.set_down(true);
    store.set_down(true);
    let _agent = Running::start(store.clone(), &engine);
    pass(Duration::from_secs(3)).await;
    engine.set_down(false);
    pass(Duration::from_secs(3)).await;
    store.set_down(false);
    pass(Duration::from_secs(3)).await;
    assert_eq!(registered(&store).await, ["web"]);
}
