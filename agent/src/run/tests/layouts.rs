//! What is written beside Rollcall's own keys, and what becomes of the keys of others there.

use std::collections::BTreeMap;

use rollcall_shared::model::name::ContainerName;

use super::*;
use crate::layout::{self, Layout};

fn start(store: &MemoryStore, engine: &ScriptedEngine, node: &str) -> Running {
    let layouts = layout::testing::settings(&["--layout", "containers,registrator,skydns"]);
    let mut agent = Agent { layouts, ..Running::agent(store.clone(), OnExit::Revoke) };
    agent.settings.node.node = Some(node.parse().expect("a name"));
    let (policy, finder) = agent.policy().expect("it can work");
    Running::spawn(agent, engine, policy, finder)
}

/// The keys and values in all layouts.
async fn laid_out(store: &MemoryStore) -> BTreeMap<String, String> {
    let settings = LayoutSettings::default();
    let mut found = BTreeMap::new();
    for layout in [Layout::Containers, Layout::Registrator, Layout::Skydns] {
        let entries = entries(store, &settings.range(layout)).await;
        let text = |value: Vec<u8>| String::from_utf8(value).expect("text");
        found.extend(entries.into_iter().map(|entry| (entry.key, text(entry.value))));
    }
    found
}

async fn of(store: &MemoryStore, key: &str) -> Option<(String, Option<LeaseId>)> {
    let entry = store.get(key).await.expect("the store is up")?;
    Some((String::from_utf8(entry.value).expect("text"), entry.lease))
}

async fn put(store: &MemoryStore, key: &str, value: &str, lease: Option<LeaseId>) {
    let put = Op::Put { key: key.to_owned(), value: value.as_bytes().to_vec() };
    store.commit(&[put], lease, None).await.expect("a commit");
}

async fn delete(store: &MemoryStore, key: &str) {
    store.commit(&[Op::Delete { key: key.to_owned() }], None, None).await.expect("a commit");
}

const HOST: &str = "/containers/web/80/host";
const PORT: &str = "/containers/web/80/port";

#[tokio::test(start_paused = true)]
async fn the_layouts_keys_come_and_go_with_the_instance_in_its_commits_and_under_its_lease() {
    let (store, engine) = (MemoryStore::new(), engine());
    let agent = start(&store, &engine, "h1");
    pass(AT_ONCE).await;
    let web = web("web");
    engine.start(&web);
    pass(AT_ONCE).await;
    let record = format!("/skydns/local/rollcall/app/{}-80-tcp", web.short_id);
    let keys = [HOST, PORT, "/services/app/h1:web:80", &record];
    assert_eq!(Vec::from_iter(laid_out(&store).await.keys()), keys);
    let instance = entries(&store, &instances()).await.remove(0);
    for key in keys {
        let entry = store.get(key).await.expect("the store is up").expect("it is there");
        assert_eq!((entry.lease, entry.revision), (instance.lease, instance.revision), "{key}");
    }
    engine.tell(&web.id, Action::Kill(web.stop_signal));
    pass(AT_ONCE).await;
    assert_eq!(laid_out(&store).await, BTreeMap::new(), "their readers see no status");
    engine.die(&web);
    engine.start(&web);
    pass(AT_ONCE).await;
    assert_eq!(laid_out(&store).await.len(), 4);
    engine.die(&web);
    pass(AT_ONCE).await;
    assert_eq!(laid_out(&store).await, BTreeMap::new(), "it was killed");
    engine.start(&web);
    pass(AT_ONCE).await;
    assert_eq!(laid_out(&store).await.len(), 4);
    agent.stop().await;
    assert_eq!(laid_out(&store).await, BTreeMap::new());
}

#[tokio::test(start_paused = true)]
async fn in_a_quiet_hour_nothing_is_written_and_after_the_store_was_wiped_everything_is_put_back() {
    let (store, engine) = (MemoryStore::new(), engine());
    let wiped = store.backup();
    let _agent = start(&store, &engine, "h1");
    engine.start(&web("web"));
    pass(AT_ONCE).await;
    let before = laid_out(&store).await;
    let mut watched = watch(&store, &KeyRange::folders("/a/".to_owned(), "/z/".to_owned())).await;
    pass(Duration::from_secs(3600)).await;
    assert!(is_quiet(&mut watched).await);
    store.restore(wiped);
    pass(Duration::from_secs(2)).await;
    assert_eq!(laid_out(&store).await, before);
    delete(&store, PORT).await;
    pass(AT_ONCE).await;
    assert_eq!(laid_out(&store).await, before);
}

#[tokio::test(start_paused = true)]
async fn the_keys_of_others_are_neither_overwritten_nor_deleted_and_what_wants_them_is_named_and_set_aside() {
    let (store, engine) = (MemoryStore::new(), engine());
    put(&store, HOST, "192.0.2.9", None).await;
    put(&store, "/containers/other/80/host", "192.0.2.9", None).await;
    let agent = start(&store, &engine, "h1");
    engine.start(&web("web"));
    pass(AT_ONCE).await;
    assert_eq!(of(&store, HOST).await, Some(("192.0.2.9".to_owned(), None)));
    assert_eq!(of(&store, PORT).await, None, "nobody reads a host of theirs with a port of ours");
    assert_eq!(registered(&store).await, ["web"]);
    let named = format!("{HOST} is someone else's: set aside in the layout until it goes");
    assert_eq!(agent.condition(registration::PART), Condition::Noted(named));
    delete(&store, HOST).await;
    pass(AT_ONCE).await;
    assert!(of(&store, HOST).await.is_some() && of(&store, PORT).await.is_some());
    assert_eq!(agent.condition(registration::PART), Condition::Ready);
    put(&store, HOST, "192.0.2.10", None).await;
    pass(AT_ONCE).await;
    assert_eq!(of(&store, PORT).await, None, "someone takes it from us");
    agent.stop().await;
    assert_eq!(Vec::from_iter(laid_out(&store).await.keys()), ["/containers/other/80/host", HOST]);
}

#[tokio::test(start_paused = true)]
async fn of_two_nodes_with_a_container_of_one_name_the_first_has_the_key_and_the_second_takes_over() {
    let (store, first_engine, second_engine) =
        (MemoryStore::new(), engine(), ScriptedEngine::new("ANOTHER:ENGINE"));
    let moved = |port: u16| {
        let mut web = web("web");
        web.bindings[0].port = port;
        web
    };
    first_engine.put(&moved(8001));
    second_engine.put(&moved(8002));
    let first = start(&store, &first_engine, "h1");
    pass(AT_ONCE).await;
    let _second = start(&store, &second_engine, "h2");
    pass(AT_ONCE).await;
    let mut watched = watch(&store, &KeyRange::folder("/containers/".to_owned())).await;
    pass(Duration::from_secs(600)).await;
    assert!(is_quiet(&mut watched).await, "they do not fight");
    assert_eq!(of(&store, PORT).await.map(|(port, _)| port).as_deref(), Some("8001"));
    first.stop().await;
    pass(AT_ONCE).await;
    assert_eq!(of(&store, PORT).await.map(|(port, _)| port).as_deref(), Some("8002"));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_crashed_and_comes_back_under_another_lease_has_its_keys_at_once() {
    let (store, engine) = (MemoryStore::new(), engine());
    let web = web("web");
    engine.start(&web);
    let agent = start(&store, &engine, "h1");
    pass(AT_ONCE).await;
    let (_, former) = of(&store, PORT).await.expect("it is there");
    drop(agent);
    engine.die(&web);
    let mut again = web.clone();
    again.bindings[0].port = 9090;
    engine.put(&again);
    let layouts = layout::testing::settings(&["--layout", "containers"]);
    let lease = LeaseSettings { ttl: LEASE.ttl * 2, ..LEASE };
    let agent = Agent { layouts, lease, ..Running::agent(store.clone(), OnExit::Revoke) };
    let (policy, finder) = agent.policy().expect("it can work");
    let _successor = Running::spawn(agent, &engine, policy, finder);
    pass(Duration::from_secs(2)).await;
    let (port, lease) = of(&store, PORT).await.expect("it is there");
    assert_eq!(port, "9090");
    assert_ne!(lease, former, "its time to live is another one");
}

#[tokio::test(start_paused = true)]
async fn an_agent_of_some_containers_signals_no_other() {
    let (store, engine) = (MemoryStore::new(), engine());
    let name = |name: &str| -> ContainerName { name.parse().expect("a name") };
    let mut agent = Running::agent(store.clone(), OnExit::Revoke);
    agent.is_confined = true;
    agent.settings.filter.containers = vec![name("web")];
    agent.settings.signals.allow = vec!["HUP".parse().expect("a rule")];
    let (policy, finder) = agent.policy().expect("it can work");
    engine.put(&web("web"));
    engine.put(&container("proxy"));
    let _agent = Running::spawn(agent, &engine, policy, finder);
    for consumer in ["web", "proxy"] {
        let record = format!(
            r#"{{"v":1,"owner":"o","holder":"h","host":"x","version":"0","started_at":"2026-01-01T00:00:00Z",
            "ttl_seconds":60,"targets":{{"t":{{"delivery":{{"signal":"HUP","to":{{"container":"{consumer}"}}}}}}}}}}"#
        );
        put(&store, &format!("/rollcall/consumers/{consumer}"), &record, None).await;
    }
    pass(Duration::from_secs(2)).await;
    let receivers = entries(&store, &keys().receivers()).await;
    let receivers: Vec<&str> = receivers.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(receivers, ["/rollcall/receivers/h1/web/t"]);
}
