//! Files are checked in the containers that are meant, once, by what they allow.

use std::collections::BTreeMap;

use rollcall_shared::model::{
    check::{CheckOutcome, CheckRequest, CheckRule, Verdict, Verdicts},
    consumer::{ConsumerRecord, TargetRecord},
    name::NodeName,
    selector::Selector,
    signal::Receiver,
};

use super::*;
use crate::exec::policy::EXEC_LABEL;

const FILE: &str = "/c/.a.conf.rollcall-x";
const WORDS: &str = "nginx -t -c /c/.a.conf.rollcall-x";

fn proxy(label: &str) -> Container {
    let mut proxy = container("proxy");
    proxy.labels.insert(EXEC_LABEL.to_owned(), label.to_owned());
    proxy
}

fn target() -> TargetId {
    TargetId { consumer: "c1".parse().expect("a name"), target: "web".parse().expect("a name") }
}

fn key(of: impl Fn(NodeName, TargetId) -> Key) -> String {
    keys().format(&of("h1".parse().expect("a name"), target()))
}

fn command() -> Vec<String> {
    ["nginx", "-t", "-c", "{file}"].map(str::to_owned).to_vec()
}

async fn put(store: &MemoryStore, key: String, value: Vec<u8>) {
    store.commit(&[Op::Put { key, value }], None, None).await.expect("the store is up");
    pass(AT_ONCE).await;
}

/// A consumer that has its files checked in the container.
async fn put_consumer(store: &MemoryStore) {
    let check = CheckRule { to: Selector::container("proxy".parse().expect("a name")), command: command() };
    let targets = BTreeMap::from([(target().target, TargetRecord { delivery: None, check: Some(check) })]);
    let record = ConsumerRecord { v: V1, claim: Claim::new("c1".to_owned(), 60), container: None, targets };
    put(store, keys().format(&Key::Consumer(target().consumer)), codec::encode(&record)).await;
}

fn requested(id: u64, command: Vec<String>, checker: &Container) -> CheckRequest {
    CheckRequest {
        v: V1,
        id,
        command,
        file: FILE.to_owned(),
        dest: "/c/a.conf".to_owned(),
        timeout_ms: 10_000,
        checkers: vec![checker.incarnation()],
    }
}

async fn request(store: &MemoryStore, id: u64, command: Vec<String>, checker: &Container) {
    let request = requested(id, command, checker);
    put(store, key(Key::Check), codec::encode(&request)).await;
}

async fn verdict(store: &MemoryStore) -> Option<Verdict> {
    let entry = store.get(&key(Key::Verdicts)).await.expect("the store is up")?;
    codec::decode::<Verdicts>(&entry.value).expect("verdicts").verdicts.pop()
}

async fn outcome(store: &MemoryStore, id: u64) -> CheckOutcome {
    let verdict = verdict(store).await.expect("a verdict");
    assert_eq!(verdict.id, id);
    verdict.outcome
}

async fn start(proxy: &Container) -> (MemoryStore, ScriptedEngine, Running) {
    let (store, engine) = (MemoryStore::new(), engine());
    engine.put(proxy);
    let agent = Running::start(store.clone(), &engine);
    put_consumer(&store).await;
    (store, engine, agent)
}

fn ended(exit_code: i64, said: &str) -> CheckOutcome {
    CheckOutcome::Ended { exit_code, said: said.to_owned() }
}

#[tokio::test(start_paused = true)]
async fn a_file_is_checked_once_in_the_container_and_what_the_program_says_is_told() {
    let proxy = proxy("nginx -t -c");
    let (store, engine, agent) = start(&proxy).await;
    let entry = store.get(&key(Key::Receivers)).await.expect("the store is up").expect("checkers");
    let checkers: Vec<Receiver> = codec::decode::<Receivers>(&entry.value).expect("receivers").checkers;
    assert_eq!((checkers.len(), &checkers[0].refused), (1, &None));
    engine.set_end(WORDS, 1, "emerg: \"x\" is unknown\n");
    request(&store, 1, command(), &proxy).await;
    assert_eq!(outcome(&store, 1).await, ended(1, "emerg: \"x\" is unknown"));
    engine.set_end(WORDS, 0, "");
    pass(LEASE.refresh * 3).await;
    assert_eq!(engine.execs().len(), 1, "once");
    drop(agent);
    let _second = Running::start(store.clone(), &engine);
    pass(Duration::from_secs(5)).await;
    assert_eq!(engine.execs().len(), 1, "nor by another agent");
    request(&store, 2, command(), &proxy).await;
    assert_eq!(outcome(&store, 2).await, ended(0, ""));
    let words: Vec<String> = WORDS.split(' ').map(str::to_owned).collect();
    assert_eq!(engine.execs(), [("proxy".to_owned(), words.clone()), ("proxy".to_owned(), words)]);
}

#[tokio::test(start_paused = true)]
async fn whoever_writes_to_the_store_runs_nothing_that_was_not_allowed() {
    let proxy = proxy("nginx -t -c");
    let (store, engine, _agent) = start(&proxy).await;
    for (id, words) in [
        (1, vec!["sh", "-c", "rm -rf /", "{file}"]),
        (2, vec!["nginx", "-t", "-c", "/etc/shadow", "{file}"]),
        (3, vec!["nginx", "-s", "stop", "{file}"]),
        (4, vec!["nginx", "-t", "-c"]),
        (5, vec![]),
    ] {
        request(&store, id, words.into_iter().map(str::to_owned).collect(), &proxy).await;
        let CheckOutcome::NotRun(reason) = outcome(&store, id).await else { panic!("{id} was run") };
        assert!(reason.contains("expected"), "{reason}");
    }
    assert_eq!(engine.execs(), []);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_not_seen_a_command_that_hangs_and_a_container_that_dies_are_not_the_files_fault() {
    let proxy = proxy("nginx -t -c");
    let (store, engine, _agent) = start(&proxy).await;
    engine.hang(Call::Exec(proxy.id.clone()));
    request(&store, 1, command(), &proxy).await;
    assert_eq!(verdict(&store).await, None);
    pass(Duration::from_secs(11)).await;
    let CheckOutcome::NotRun(late) = outcome(&store, 1).await else { panic!("it hangs") };
    assert!(late.starts_with("it took more than 10s"), "{late}");
    request(&store, 2, command(), &proxy).await;
    engine.set_end(WORDS, 137, "");
    engine.remove(&proxy);
    engine.release(&Call::Exec(proxy.id.clone()));
    pass(AT_ONCE).await;
    assert_eq!(
        outcome(&store, 2).await,
        CheckOutcome::NotRun("the container has ended meanwhile".to_owned())
    );
    engine.put(&proxy);
    engine.hide(FILE);
    request(&store, 3, command(), &proxy).await;
    assert_eq!(outcome(&store, 3).await, CheckOutcome::Unseen);
}

#[tokio::test(start_paused = true)]
async fn a_container_in_which_commands_hang_holds_up_no_other() {
    let (proxy, other) =
        (proxy("nginx -t -c"), Container { labels: proxy("nginx -t -c").labels, ..container("other") });
    let (store, engine, _agent) = start(&proxy).await;
    engine.put(&other);
    engine.hang(Call::Exec(proxy.id.clone()));
    pass(LEASE.refresh).await;
    let ask = async |name: &str, checker: &Container| {
        let target = TargetId { target: name.parse().expect("a name"), ..target() };
        let request = CheckRequest { timeout_ms: 300_000, ..requested(1, command(), checker) };
        put(
            &store,
            keys().format(&Key::Check("h1".parse().expect("a name"), target)),
            codec::encode(&request),
        )
        .await;
    };
    for number in 0..20 {
        ask(&format!("hangs-{number}"), &proxy).await;
    }
    ask("works", &other).await;
    let of = |name: &str| engine.execs().iter().filter(|(container, _)| container == name).count();
    assert_eq!((of("proxy"), of("other")), (4, 1));
}
