//! Receivers are published, requests are delivered once, and every receiver is answered by itself.

use std::collections::BTreeMap;

use rollcall_shared::model::{
    consumer::{ConsumerHome, ConsumerRecord, TargetRecord},
    name::{ConsumerName, NodeName},
    selector::Selector,
    signal::{Ack, RequestedReceiver, Signal, SignalRequest},
};

use super::*;
use crate::signals::policy::SIGNAL_LABEL;

/// A container that allows HUP, and that the consumer's target means.
fn proxy(name: &str) -> Container {
    let mut proxy = container(name);
    proxy.labels.insert("role".to_owned(), "proxy".to_owned());
    proxy.labels.insert(SIGNAL_LABEL.to_owned(), "HUP".to_owned());
    proxy
}

fn target() -> TargetId {
    TargetId { consumer: "c1".parse().expect("a name"), target: "web".parse().expect("a name") }
}

fn key(of: impl Fn(NodeName, TargetId) -> Key) -> String {
    keys().format(&of("h1".parse().expect("a name"), target()))
}

async fn write(store: &MemoryStore, op: Op) {
    store.commit(&[op], None, None).await.expect("the store is up");
    pass(AT_ONCE).await;
}

/// The consumer says that its target signals the containers with the label.
async fn put_consumer(store: &MemoryStore) {
    let delivery =
        Delivery { signal: Signal::HUP, to: Selector::label("role=proxy".parse().expect("a label")) };
    let record = TargetRecord { delivery: Some(delivery), check: None };
    let targets = BTreeMap::from([(target().target, record)]);
    let claim = Claim::new("c1".to_owned(), 60);
    let record = ConsumerRecord { v: V1, claim, container: None, targets };
    let key = keys().format(&Key::Consumer(target().consumer));
    write(store, Op::Put { key, value: codec::encode(&record) }).await;
}

async fn delete_consumer(store: &MemoryStore) {
    write(store, Op::Delete { key: keys().format(&Key::Consumer(target().consumer)) }).await;
}

/// The consumer requests a generation of some containers, each with an attempt.
async fn request(store: &MemoryStore, generation: u64, receivers: &[(&Container, u32)]) {
    let requested = |(container, attempt): &(&Container, u32)| RequestedReceiver {
        incarnation: container.incarnation(),
        attempt: *attempt,
    };
    let receivers = receivers.iter().map(requested).collect();
    let request = SignalRequest { v: V1, generation, signal: Signal::HUP, receivers };
    write(store, Op::Put { key: key(Key::Signal), value: codec::encode(&request) }).await;
}

async fn receivers(store: &MemoryStore) -> Option<Receivers> {
    let entry = store.get(&key(Key::Receivers)).await.expect("the store is up")?;
    Some(codec::decode(&entry.value).expect("receivers"))
}

async fn acks(store: &MemoryStore) -> BTreeMap<Incarnation, Ack> {
    let entry = store.get(&key(Key::Acks)).await.expect("the store is up");
    let acks = entry.map_or(Vec::new(), |entry| codec::decode::<Acks>(&entry.value).expect("acks").acks);
    acks.into_iter().map(|ack| (ack.incarnation, ack)).collect()
}

async fn ack_of(store: &MemoryStore, container: &Container) -> Option<Ack> {
    acks(store).await.remove(&container.incarnation())
}

fn signalled(engine: &ScriptedEngine) -> Vec<String> {
    let mut names: Vec<String> = engine.kills().into_iter().map(|(name, _)| name).collect();
    names.sort();
    names
}

/// An agent beside these containers, and a consumer that signals them.
async fn start(containers: &[&Container]) -> (MemoryStore, ScriptedEngine, Running) {
    let (store, engine) = (MemoryStore::new(), engine());
    containers.iter().for_each(|container| engine.put(container));
    let agent = Running::start(store.clone(), &engine);
    put_consumer(&store).await;
    (store, engine, agent)
}

#[tokio::test(start_paused = true)]
async fn the_receivers_are_the_containers_that_are_meant_for_as_long_as_they_run() {
    let (a, mut b) = (proxy("a"), proxy("b"));
    b.labels.remove(SIGNAL_LABEL);
    let (store, engine, _agent) = start(&[&a, &container("other")]).await;
    engine.start(&b);
    pass(AT_ONCE).await;
    let found = receivers(&store).await.expect("two are meant").receivers;
    let refused = |wanted: &Container| {
        let receiver = found.iter().find(|receiver| receiver.incarnation == wanted.incarnation());
        receiver.expect("it is a receiver").refused.clone()
    };
    assert_eq!((found.len(), refused(&a)), (2, None));
    let reason = refused(&b).expect("it allows nothing");
    assert!(reason.contains("allows no HUP") && reason.contains("rollcall.signal=HUP"), "{reason}");
    engine.die(&a);
    pass(AT_ONCE).await;
    assert_eq!(receivers(&store).await.expect("one is meant").receivers.len(), 1);
    engine.die(&b);
    pass(AT_ONCE).await;
    assert_eq!(receivers(&store).await, None, "without a container there is no key");
}

#[tokio::test(start_paused = true)]
async fn a_request_is_delivered_once_and_acked_by_each_container() {
    let (a, b) = (proxy("a"), proxy("b"));
    let (store, engine, _agent) = start(&[&a, &b]).await;
    for (generation, expected) in [(5, vec!["a", "b"]), (6, vec!["a", "a", "b", "b"])] {
        request(&store, generation, &[(&a, 1), (&b, 1)]).await;
        assert_eq!(signalled(&engine), expected);
        for container in [&a, &b] {
            let ack = ack_of(&store, container).await.expect("it is answered");
            assert_eq!((ack.generation, ack.attempt, ack.failure), (generation, 1, None));
        }
        request(&store, generation, &[(&a, 1), (&b, 2)]).await;
        pass(LEASE.ttl * 3).await;
        assert_eq!(signalled(&engine), expected, "once is enough, whatever the attempt");
    }
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_fails_or_hangs_holds_nobody_else_up_and_is_tried_again_alone() {
    let (fails, hangs, works) = (proxy("fails"), proxy("hangs"), proxy("works"));
    let (store, engine, _agent) = start(&[&fails, &hangs, &works]).await;
    engine.refuse_kills(&fails, true);
    engine.hang(Call::Kill(hangs.id.clone()));
    request(&store, 5, &[(&fails, 1), (&hangs, 1), (&works, 1)]).await;
    assert_eq!(signalled(&engine), ["works"]);
    let failure = ack_of(&store, &fails).await.and_then(|ack| ack.failure).expect("it failed");
    assert!(failure.contains("it is told to refuse"), "{failure}");
    assert_eq!(ack_of(&store, &hangs).await, None);
    engine.release(&Call::Kill(hangs.id.clone()));
    pass(AT_ONCE).await;
    assert_eq!(signalled(&engine), ["hangs", "works"]);
    engine.refuse_kills(&fails, false);
    pass(LEASE.refresh * 3).await;
    assert_eq!(signalled(&engine), ["hangs", "works"], "only when it is asked for again");
    request(&store, 5, &[(&fails, 2), (&hangs, 2), (&works, 2)]).await;
    assert_eq!(signalled(&engine), ["fails", "hangs", "works"]);
    assert_eq!(ack_of(&store, &fails).await.map(|ack| (ack.attempt, ack.failure)), Some((2, None)));
}

#[tokio::test(start_paused = true)]
async fn a_signal_that_is_not_allowed_is_answered_and_not_sent() {
    let mut refusing = proxy("a");
    refusing.labels.remove(SIGNAL_LABEL);
    let (store, engine, _agent) = start(&[&refusing]).await;
    request(&store, 5, &[(&refusing, 1)]).await;
    let failure = ack_of(&store, &refusing).await.and_then(|ack| ack.failure);
    assert_eq!(failure, receivers(&store).await.expect("it is one").receivers[0].refused);
    assert!(failure.is_some() && signalled(&engine).is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_restarted_to_allow_a_signal_sends_it_without_being_asked_again() {
    let mut refusing = proxy("a");
    refusing.labels.remove(SIGNAL_LABEL);
    let (store, engine, first) = start(&[&refusing]).await;
    request(&store, 5, &[(&refusing, 1)]).await;
    assert!(ack_of(&store, &refusing).await.is_some_and(|ack| ack.failure.is_some()));
    drop(first);
    let mut agent = Running::agent(store.clone(), OnExit::Revoke);
    agent.settings.signals.allow.push("HUP".parse().expect("a rule"));
    let (policy, finder) = agent.policy().expect("it can work");
    let _second = Running::spawn(agent, &engine, policy, finder);
    pass(Duration::from_secs(1) + AT_ONCE).await;
    assert_eq!(signalled(&engine), ["a"], "once the predecessor's claim is adopted");
    assert_eq!(ack_of(&store, &refusing).await.map(|ack| (ack.attempt, ack.failure)), Some((1, None)));
    pass(LEASE.refresh).await;
    assert_eq!(signalled(&engine), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_has_just_started_is_signalled_later_and_alone() {
    let old = proxy("old");
    let young = Container { started_at: Timestamp::now(), ..proxy("young") };
    let ahead = Container { started_at: Timestamp::now() + SignedDuration::from_hours(1), ..proxy("ahead") };
    let (store, engine, _agent) = start(&[&old, &young, &ahead]).await;
    request(&store, 5, &[(&old, 1), (&young, 1), (&ahead, 1)]).await;
    assert_eq!(signalled(&engine), ["old"]);
    pass(Duration::from_millis(1100)).await;
    assert_eq!(signalled(&engine), ["ahead", "old", "young"]);
}

#[tokio::test(start_paused = true)]
async fn a_request_for_a_former_run_of_a_container_is_left_alone() {
    let former = proxy("a");
    let started_at = former.started_at + SignedDuration::from_secs(5);
    let (store, engine, _agent) = start(&[&Container { started_at, ..former.clone() }]).await;
    request(&store, 5, &[(&former, 1)]).await;
    pass(LEASE.refresh).await;
    assert!(signalled(&engine).is_empty() && acks(&store).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn acks_are_shown_while_the_consumer_is_there_and_remembered_while_the_container_runs() {
    let a = proxy("a");
    let (store, engine, _agent) = start(&[&a]).await;
    request(&store, 5, &[(&a, 1)]).await;
    delete_consumer(&store).await;
    assert!(receivers(&store).await.is_none() && acks(&store).await.is_empty());
    put_consumer(&store).await;
    assert!(receivers(&store).await.is_some() && acks(&store).await.len() == 1);
    assert_eq!(signalled(&engine), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_restart_an_upgrade_and_a_new_lease_signal_nobody_twice() {
    let a = proxy("a");
    let (store, engine, first) = start(&[&a]).await;
    request(&store, 5, &[(&a, 1)]).await;
    let acked = ack_of(&store, &a).await;
    drop(first);
    let second = Running::start_with(store.clone(), &engine, OnExit::Keep);
    pass(Duration::from_secs(5)).await;
    second.stop().await;
    let mut watched = watch(&store, &keys().acks_of(&"h1".parse().expect("a name"))).await;
    let mut watched_receivers = watch(&store, &keys().receivers()).await;
    let _third = Running::start(store.clone(), &engine);
    pass(Duration::from_secs(5)).await;
    assert!(is_quiet(&mut watched).await && is_quiet(&mut watched_receivers).await, "nothing has changed");
    let lease = store.get(&key(Key::Acks)).await.expect("it is up").and_then(|entry| entry.lease);
    store.revoke(lease.expect("it is leased")).await.expect("it lives");
    pass(Duration::from_secs(5)).await;
    assert_eq!(ack_of(&store, &a).await, acked);
    assert_eq!(signalled(&engine), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_signalled_twice_after_docker_was_away_or_the_store_was_restored() {
    let a = proxy("a");
    let (store, engine, _agent) = start(&[&a]).await;
    let backup = store.backup();
    request(&store, 5, &[(&a, 1)]).await;
    let acked = ack_of(&store, &a).await;
    engine.set_down(true);
    pass(Duration::from_secs(120)).await;
    assert_eq!(receivers(&store).await, None);
    engine.set_down(false);
    pass(Duration::from_secs(30)).await;
    assert_eq!(ack_of(&store, &a).await, acked);
    store.restore(backup);
    pass(Duration::from_secs(30)).await;
    assert_eq!(ack_of(&store, &a).await, acked, "the agent knows better than the backup");
    request(&store, 5, &[(&a, 1)]).await;
    assert_eq!(signalled(&engine), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_there_of_signals_stays_until_the_consumers_are_known_and_instances_do_not_wait_for_it() {
    let a = proxy("a");
    let (store, engine, first) = start(&[&a]).await;
    request(&store, 5, &[(&a, 1)]).await;
    let before = (receivers(&store).await, acks(&store).await);
    drop(first);
    let gated = GatedStore::new(&store);
    gated.set_consumers(Gate::Hangs);
    let _second = Running::start(gated.clone(), &engine);
    pass(Duration::from_secs(5)).await;
    engine.start(&web("web"));
    pass(AT_ONCE).await;
    assert_eq!(registered(&store).await, ["web"]);
    assert_eq!((receivers(&store).await, acks(&store).await), before);
    delete_consumer(&store).await;
    gated.set_consumers(Gate::Open);
    pass(AT_ONCE).await;
    assert_eq!((receivers(&store).await, acks(&store).await.len()), (None, 0));
}

#[tokio::test(start_paused = true)]
async fn nobody_is_signalled_before_the_node_is_claimed() {
    let (a, store, engine) = (proxy("a"), MemoryStore::new(), engine());
    engine.put(&a);
    request(&store, 5, &[(&a, 1)]).await;
    let gated = GatedStore::new(&store);
    gated.set_grant(Gate::Hangs);
    let _agent = Running::start(gated.clone(), &engine);
    pass(Duration::from_secs(5)).await;
    assert!(signalled(&engine).is_empty());
    gated.set_grant(Gate::Open);
    pass(AT_ONCE).await;
    assert_eq!(signalled(&engine), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_twin_is_refused_and_signals_nobody_and_the_first_goes_on() {
    let a = proxy("a");
    let (store, engine, _first) = start(&[&a, &web("web")]).await;
    // Open until the twin has seen it.
    engine.hang(Call::Kill(a.id.clone()));
    request(&store, 5, &[(&a, 1)]).await;
    let twins = self::engine();
    twins.put(&a);
    let mut watched = watch(&store, &instances()).await;
    let mut twin = Running::start(store.clone(), &twins);
    let refused = twin.end().await.expect_err("the first lives");
    assert!(matches!(refused, Error::Claim(KeeperError::Twin { .. })), "{refused}");
    assert!(is_quiet(&mut watched).await, "it has changed nothing");
    assert!(signalled(&twins).is_empty());
    engine.release(&Call::Kill(a.id.clone()));
    pass(AT_ONCE).await;
    assert_eq!(signalled(&engine), ["a"]);
    engine.start(&web("another"));
    pass(AT_ONCE).await;
    assert_eq!(registered(&store).await, ["another", "web"]);
}

#[tokio::test(start_paused = true)]
async fn while_a_signal_is_sent_an_agent_that_is_asked_to_stop_ends_at_once() {
    let a = proxy("a");
    let (store, engine, agent) = start(&[&a]).await;
    engine.hang(Call::Kill(a.id.clone()));
    request(&store, 5, &[(&a, 1)]).await;
    assert_eq!(engine.calls(&Call::Kill(a.id.clone())), 1);
    assert_eq!(agent.stop().await, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_names_its_container_is_told_the_stack_of_it_and_nothing_else() {
    let (mut own, mut forged) = (container("config"), container("forged"));
    own.labels.insert("com.docker.compose.project".to_owned(), "shop".to_owned());
    forged.labels.insert("com.docker.compose.project".to_owned(), "a\nb".to_owned());
    let (store, engine) = (MemoryStore::new(), engine());
    [&own, &forged].into_iter().for_each(|container| engine.put(container));
    let _agent = Running::start(store.clone(), &engine);
    let (keys, elsewhere) = (keys(), "ffffffffffff".parse().expect("an ID"));
    let home = async |name: &str, container| {
        let consumer: ConsumerName = name.parse().expect("a name");
        let claim = Claim::new(name.to_owned(), 60);
        let record = ConsumerRecord { v: V1, claim, container, targets: BTreeMap::new() };
        let key = keys.format(&Key::Consumer(consumer.clone()));
        let put = [Op::Put { key, value: codec::encode(&record) }];
        store.commit(&put, None, None).await.expect("the store is up");
        pass(AT_ONCE).await;
        let key = keys.format(&Key::Home("h1".parse().expect("a name"), consumer));
        let entry = store.get(&key).await.expect("the store is up")?;
        Some(codec::decode::<ConsumerHome>(&entry.value).expect("a home").stack)
    };
    assert_eq!(home("c2", Some(own.short_id)).await, Some(Some("shop".to_owned())));
    assert_eq!(home("c3", Some(forged.short_id)).await, Some(None), "its label stays in as well");
    assert_eq!(home("c4", Some(elsewhere)).await, None);
    assert_eq!(home("c5", None).await, None);
}
