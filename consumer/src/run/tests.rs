//! The whole consumer but for etcd, Docker and the process: on the memory store, with a double of an agent.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::PathBuf,
};

use clap::Parser;
use jiff::Timestamp;
use rollcall_shared::{
    codec,
    keys::Key,
    model::{
        instance::{Address, Instance, Status},
        name::{NodeName, TargetId},
        node::NodeRecord,
        signal::{Ack, Acks, Incarnation, Receiver, Receivers, RequestedReceiver, SignalRequest},
    },
    store::{LeaseId, Op},
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{config::Cli, testing};

mod reloading;

const LEASE: LeaseSettings = LeaseSettings { ttl: Duration::from_secs(60), refresh: Duration::from_secs(30) };
const SIGNAL: &str = "[target.notify]\ncontainer = \"proxy\"\n";
const WAIT: Duration = Duration::from_secs(10);

/// A store and a folder, which outlive the consumers that work on them.
struct Scene {
    store: MemoryStore,
    dir: TempDir,
}

/// A consumer at work. Dropping it is a crash.
struct Running {
    consumer: Consumer,
    reloader: Reloader,
}

impl Scene {
    fn new() -> Self {
        Self { store: MemoryStore::new(), dir: tempfile::tempdir().expect("a folder") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self) -> String {
        fs::read_to_string(self.path("file")).unwrap_or_default()
    }

    fn plan(&self, rest: &str) -> Plan {
        let (config, dest) = (self.path("config.toml"), self.path("file"));
        let target = format!("name = \"web\"\ndest = \"{}\"", dest.display());
        fs::write(&config, format!("[[target]]\n{target}\n{rest}")).expect("a file");
        Plan {
            consumer: "c1".parse().expect("a name"),
            targets: self.configs(),
            embedded: false,
            citus: false,
        }
    }

    /// The targets of the configuration that is there.
    fn configs(&self) -> Vec<TargetConfig> {
        crate::config::toml::read(&self.path("config.toml")).expect("targets")
    }

    fn consumer(&self) -> Consumer {
        Consumer {
            supervisor: Supervisor::new(CancellationToken::new()),
            readiness: Readiness::default(),
            store: Arc::new(self.store.clone()),
            keys: testing::keys(),
            lease: LEASE,
            wait: WAIT,
        }
    }

    async fn open(&self, plan: &Plan, consumer: &Consumer) -> Result<Opened, Failure> {
        Opened::open(plan, self.path("state"), &consumer.readiness).await
    }

    /// A consumer and its targets, which have their first rows.
    async fn ready(&self, rest: &str) -> (Consumer, Vec<Target>) {
        let (consumer, targets, _) = self.reloadable(rest).await;
        (consumer, targets)
    }

    async fn reloadable(&self, rest: &str) -> (Consumer, Vec<Target>, Reloader) {
        let (plan, mut consumer) = (self.plan(rest), self.consumer());
        // A consumer that crashed leaves its lock as soon as its tasks are dropped.
        let opened = until(async || self.open(&plan, &consumer).await.ok()).await;
        let remembered = Some(opened.state.clone());
        let followed = consumer.follow(&plan.targets, remembered).await.expect("a store");
        let (selections, follower) = followed.expect("rows");
        let Opened { state, sinks } = opened;
        let (targets, at_hand) = consumer.targets(&plan, selections, sinks, &state);
        let reloader = Reloader::new(self.settings(), plan, state, follower, targets);
        (consumer, at_hand, reloader)
    }

    /// The settings that read the scene's configuration anew.
    fn settings(&self) -> Settings {
        let config = format!("--config={}", self.path("config.toml").display());
        let args = ["rollcall-consumer", "--etcd=h:1", "--name=c1", &config];
        Cli::try_parse_from(args).expect("good flags").settings
    }

    async fn start(&self, rest: &str) -> Running {
        let (mut consumer, targets, reloader) = self.reloadable(rest).await;
        for target in targets {
            reloader.targets.start(&mut consumer.supervisor, target);
        }
        Running { consumer, reloader }
    }

    async fn commit(&self, ops: &[Op]) {
        self.store.commit(ops, None, None).await.expect("the memory store takes it");
    }

    async fn put(&self, number: usize) {
        self.commit(&[testing::put(number, "web")]).await;
    }

    async fn delete(&self, number: usize) {
        self.commit(&[Op::Delete { key: testing::key(number) }]).await;
    }

    async fn write(&self, key: Key, value: Vec<u8>) {
        self.commit(&[Op::Put { key: testing::keys().format(&key), value }]).await;
    }

    /// Registers a node and an instance of it under one lease, as an agent does.
    async fn node(&self, name: &str, number: usize) -> LeaseId {
        let lease = self.store.grant(LEASE.ttl).await.expect("a lease");
        let (node, id) = (name.parse::<NodeName>().expect("a name"), testing::id(number));
        let id = rollcall_shared::model::instance::InstanceId { node: node.clone(), ..id };
        let put = |key: Key, value| Op::Put { key: testing::keys().format(&key), value };
        let record: NodeRecord = testing::node_record(60);
        let instance = testing::instance(number, "web");
        let ops =
            [put(Key::Node(node), codec::encode(&record)), put(Key::Instance(id), codec::encode(&instance))];
        self.store.commit(&ops, Some(lease), None).await.expect("the memory store takes it");
        lease
    }

    /// Says as the agent of a node that these containers are receivers; one with a reason refuses.
    async fn receivers(&self, node: &str, receivers: &[(u8, Option<&str>)]) {
        let receiver = |(number, refused): &(u8, Option<&str>)| Receiver {
            incarnation: incarnation(*number),
            name: "proxy".parse().expect("a name"),
            refused: refused.map(str::to_owned),
        };
        let receivers = Receivers { v: V1, receivers: receivers.iter().map(receiver).collect() };
        self.write(Key::Receivers(name(node), target_id()), codec::encode(&receivers)).await;
    }

    async fn request(&self, node: &str) -> Option<SignalRequest> {
        let key = testing::keys().format(&Key::Signal(name(node), target_id()));
        let entry = self.store.get(&key).await.expect("the memory store answers")?;
        Some(codec::decode(&entry.value).expect("a request"))
    }

    /// The request to a node that replaces the one of `last`.
    async fn request_after(&self, node: &str, last: Option<&SignalRequest>) -> SignalRequest {
        until(async || self.request(node).await.filter(|request| Some(request) != last)).await
    }

    async fn no_request(&self, node: &str) {
        until(async || self.request(node).await.is_none().then_some(())).await;
    }

    /// Answers as the agent of a node, for all that is requested.
    async fn ack(&self, node: &str, request: &SignalRequest, failure: Option<&str>) {
        let ack = |RequestedReceiver { incarnation, attempt }: &RequestedReceiver| Ack {
            incarnation: *incarnation,
            generation: request.generation,
            attempt: *attempt,
            failure: failure.map(str::to_owned),
            at: Timestamp::UNIX_EPOCH,
        };
        let acks = Acks { v: V1, acks: request.receivers.iter().map(ack).collect() };
        self.write(Key::Acks(name(node), target_id()), codec::encode(&acks)).await;
    }

    async fn file_has(&self, text: &str) {
        until(async || self.file().contains(text).then_some(())).await;
    }
}

impl Running {
    async fn end(self) {
        let Self { consumer, reloader } = self;
        drop(reloader);
        consumer.supervisor.end().await;
    }

    /// Reads the settings anew, as after SIGHUP.
    async fn reload(&mut self) -> Result<(), String> {
        self.reloader.reload(&mut self.consumer.supervisor).await
    }

    fn reason(&self, part: &str) -> Option<String> {
        self.consumer.readiness.conditions().reason(part).map(str::to_owned)
    }

    fn condition(&self, part: &str) -> String {
        self.consumer.readiness.conditions().get(part).map(ToString::to_string).unwrap_or_default()
    }

    async fn is_ready(&self) {
        until(async || self.consumer.readiness.conditions().is_ready().then_some(())).await;
    }

    async fn is_not_ready(&self, part: &str, reason: &str) {
        let found = async || self.reason(part).filter(|found| found.contains(reason));
        until(found).await;
    }
}

fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}

fn target_id() -> TargetId {
    TargetId { consumer: "c1".parse().expect("a name"), target: "web".parse().expect("a name") }
}

fn incarnation(number: u8) -> Incarnation {
    let container = format!("{number:012x}").parse().expect("an ID");
    Incarnation { container, started_at: Timestamp::UNIX_EPOCH }
}

/// Asks until it is there.
async fn until<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..100_000 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it never came");
}

/// Lets everything happen that is due soon.
async fn pass() {
    tokio::time::sleep(Duration::from_secs(7)).await;
}

fn with_signal() -> String {
    format!("format = \"citus-workers\"\n{SIGNAL}")
}

#[tokio::test(start_paused = true)]
async fn a_change_is_installed_and_signalled_until_it_is_acked() {
    let scene = Scene::new();
    scene.put(1).await;
    let running = scene.start(&with_signal()).await;
    scene.file_has("10.0.0.1 8001\n").await;
    running.is_not_ready("notify web", "waiting for a container to signal: container proxy").await;
    scene.receivers("h1", &[(1, None)]).await;
    let first = scene.request_after("h1", None).await;
    assert_eq!(first.receivers, [RequestedReceiver { incarnation: incarnation(1), attempt: 1 }]);
    scene.ack("h1", &first, None).await;
    running.is_ready().await;
    scene.no_request("h1").await;
    scene.put(2).await;
    scene.file_has("10.0.0.1 8001\n10.0.0.2 8002\n").await;
    let second = scene.request_after("h1", Some(&first)).await;
    assert!(second.generation > first.generation);
    assert_eq!(second.receivers[0].attempt, 1);
}

#[tokio::test(start_paused = true)]
async fn every_node_with_a_receiver_is_asked_and_one_that_fails_holds_nobody_up() {
    let scene = Scene::new();
    scene.receivers("h1", &[(1, None)]).await;
    scene.receivers("h2", &[(2, None)]).await;
    let running = scene.start(&with_signal()).await;
    let (one, two) = (scene.request_after("h1", None).await, scene.request_after("h2", None).await);
    scene.ack("h1", &one, None).await;
    scene.ack("h2", &two, Some("because")).await;
    scene.no_request("h1").await;
    let reason = "HUP to container proxy: node h2 could not signal container proxy: because";
    running.is_not_ready("notify web", reason).await;
    let again = until(async || {
        let request = scene.request("h2").await?;
        (request.receivers[0].attempt == 2).then_some(request)
    });
    let again = again.await;
    assert_eq!(again.generation, two.generation);
    assert_eq!(scene.request("h1").await, None, "it has taken the change");
    scene.ack("h2", &again, None).await;
    running.is_ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_refuses_is_named_and_signalled_as_soon_as_it_is_allowed() {
    let scene = Scene::new();
    scene.receivers("h1", &[(1, Some("container proxy allows no HUP"))]).await;
    let running = scene.start(&with_signal()).await;
    running.is_not_ready("notify web", "node h1 refuses: container proxy allows no HUP").await;
    assert_eq!(scene.request("h1").await, None);
    pass().await;
    scene.receivers("h1", &[(1, None)]).await;
    let mended = tokio::time::Instant::now();
    let request = scene.request_after("h1", None).await;
    assert!(mended.elapsed() < Duration::from_millis(100), "{:?}", mended.elapsed());
    scene.ack("h1", &request, None).await;
    running.is_ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_appears_later_is_signalled_alone() {
    let scene = Scene::new();
    scene.receivers("h1", &[(1, None)]).await;
    let running = scene.start(&with_signal()).await;
    let first = scene.request_after("h1", None).await;
    scene.ack("h1", &first, None).await;
    running.is_ready().await;
    scene.receivers("h1", &[(1, None), (2, None)]).await;
    let second = scene.request_after("h1", Some(&first)).await;
    assert_eq!(second.generation, first.generation);
    assert_eq!(second.receivers, [RequestedReceiver { incarnation: incarnation(2), attempt: 1 }]);
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_install_and_ack_is_notified_after_the_restart() {
    let scene = Scene::new();
    scene.put(1).await;
    scene.receivers("h1", &[(1, None)]).await;
    let crashed = scene.start(&with_signal()).await;
    let first = scene.request_after("h1", None).await;
    drop(crashed);
    let running = scene.start(&with_signal()).await;
    let second = scene.request_after("h1", Some(&first)).await;
    assert_ne!(second.generation, first.generation, "the file is as it was, and still it is notified");
    scene.ack("h1", &second, None).await;
    running.is_ready().await;
    pass().await;
    drop(running);
    let running = scene.start(&with_signal()).await;
    running.is_ready().await;
    pass().await;
    assert_eq!(scene.request("h1").await, None, "what was acked is not requested again");
    scene.receivers("h1", &[(2, None)]).await;
    let third = scene.request_after("h1", None).await;
    assert_eq!(third.generation, second.generation, "a new receiver takes the change that there is");
}

#[tokio::test(start_paused = true)]
async fn a_restart_goes_on_with_the_change_that_it_finds() {
    let scene = Scene::new();
    scene.receivers("h1", &[(1, None)]).await;
    let running = scene.start(&with_signal()).await;
    let first = scene.request_after("h1", None).await;
    // Remembered, though nobody has acked it.
    pass().await;
    running.end().await;
    let _running = scene.start(&with_signal()).await;
    let second = scene.request_after("h1", None).await;
    assert_eq!(second, first, "an agent that has delivered it will not do so again");
}

#[tokio::test(start_paused = true)]
async fn going_back_to_the_acked_file_is_notified_also_after_a_crash() {
    let scene = Scene::new();
    scene.put(1).await;
    scene.receivers("h1", &[(1, None)]).await;
    let crashed = scene.start(&with_signal()).await;
    let first = scene.request_after("h1", None).await;
    scene.ack("h1", &first, None).await;
    until(async || scene.path("state/web.state.json").exists().then_some(())).await;
    crashed.is_ready().await;
    scene.put(2).await;
    let second = scene.request_after("h1", Some(&first)).await;
    scene.delete(2).await;
    let third = scene.request_after("h1", Some(&second)).await;
    assert_eq!(scene.file(), "10.0.0.1 8001\n", "as it was acked, but the target may run with the second");
    drop(crashed);
    let _running = scene.start(&with_signal()).await;
    let fourth = scene.request_after("h1", Some(&third)).await;
    assert_ne!(fourth.generation, first.generation);
}

#[tokio::test(start_paused = true)]
async fn an_ack_of_an_earlier_change_counts_for_nothing() {
    let scene = Scene::new();
    scene.receivers("h1", &[(1, None)]).await;
    let running = scene.start(&with_signal()).await;
    let first = scene.request_after("h1", None).await;
    scene.put(1).await;
    let second = scene.request_after("h1", Some(&first)).await;
    scene.ack("h1", &first, None).await;
    running.is_not_ready("notify web", "waiting for an agent to signal container proxy").await;
    assert_eq!(scene.request("h1").await.as_ref(), Some(&second));
    scene.ack("h1", &second, None).await;
    running.is_ready().await;
}

#[tokio::test(start_paused = true)]
async fn what_does_not_change_the_file_is_neither_written_nor_signalled() {
    let scene = Scene::new();
    scene.put(1).await;
    scene.receivers("h1", &[(1, None)]).await;
    let running = scene.start(&with_signal()).await;
    let first = scene.request_after("h1", None).await;
    scene.ack("h1", &first, None).await;
    running.is_ready().await;
    let inode = fs::metadata(scene.path("file")).expect("a file").ino();
    let tagged = Instance { tags: vec!["blue".to_owned()], ..testing::instance(1, "web") };
    let failing = Instance { status: Status::Failing, ..testing::instance(2, "web") };
    for (number, instance) in [(1, tagged), (2, failing)] {
        scene.commit(&[Op::Put { key: testing::key(number), value: codec::encode(&instance) }]).await;
        pass().await;
    }
    assert_eq!(fs::metadata(scene.path("file")).expect("a file").ino(), inode);
    assert_eq!(scene.request("h1").await, None);
}

#[tokio::test(start_paused = true)]
async fn under_a_new_session_what_is_still_due_is_requested_again() {
    let scene = Scene::new();
    scene.receivers("h1", &[(1, None)]).await;
    let running = scene.start(&with_signal()).await;
    let request = scene.request_after("h1", None).await;
    let key = testing::keys().format(&Key::Signal(name("h1"), target_id()));
    let lease =
        scene.store.get(&key).await.expect("an answer").and_then(|entry| entry.lease).expect("a lease");
    scene.store.revoke(lease).await.expect("it lives");
    assert_eq!(scene.request("h1").await, None);
    assert_eq!(scene.request_after("h1", None).await, request);
    scene.ack("h1", &request, None).await;
    running.is_ready().await;
    running.end().await;
    let left = scene.store.list(&testing::keys().consumers()).await.expect("a listing").entries;
    assert_eq!(left, [], "at the end the session goes, and its keys with it");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_makes_each_part_that_needs_it_unready_until_it_is_back() {
    let scene = Scene::new();
    scene.put(1).await;
    scene.receivers("h1", &[(1, None)]).await;
    let running = scene.start(&with_signal()).await;
    let request = scene.request_after("h1", None).await;
    scene.ack("h1", &request, None).await;
    running.is_ready().await;
    scene.no_request("h1").await;
    scene.store.set_down(true);
    for part in ["roll", "claim", "watch of the claim", "receivers", "acks of h1"] {
        running.is_not_ready(part, "").await;
    }
    assert_eq!(scene.file(), "10.0.0.1 8001\n");
    scene.store.set_down(false);
    running.is_ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_goes_or_a_node_that_refuses_another_target_leaves_nobody_unready() {
    let scene = Scene::new();
    scene.receivers("h1", &[(1, None)]).await;
    let running = scene.start(&with_signal()).await;
    let request = scene.request_after("h1", None).await;
    scene.ack("h1", &request, None).await;
    running.is_ready().await;
    // Another consumer's target, on a host whose labels are nothing of ours.
    let other = TargetId { consumer: "c2".parse().expect("a name"), ..target_id() };
    let refused = Receiver {
        incarnation: incarnation(9),
        name: "theirs".parse().expect("a name"),
        refused: Some("container theirs allows no HUP".to_owned()),
    };
    let receivers = Receivers { v: V1, receivers: vec![refused] };
    scene.write(Key::Receivers(name("h2"), other), codec::encode(&receivers)).await;
    pass().await;
    running.is_ready().await;
    assert!(running.reason("notify web").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_signals_nobody_goes_on() {
    let scene = Scene::new();
    let mut running = scene.start("format = \"citus-workers\"").await;
    running.is_ready().await;
    let ended = tokio::time::timeout(LEASE.ttl * 2, running.consumer.supervisor.watch()).await;
    assert!(ended.is_err(), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_another_consumer_holds_stops_no_file() {
    let scene = Scene::new();
    let key = testing::keys().format(&Key::Consumer("c1".parse().expect("a name")));
    let mut claim = Claim::new("another state folder".to_owned(), 60);
    claim.host = "elsewhere".to_owned();
    let record = ConsumerRecord { v: V1, claim, targets: BTreeMap::new() };
    let lease = scene.store.grant(LEASE.ttl).await.expect("a lease");
    let put = [Op::Put { key, value: codec::encode(&record) }];
    scene.store.commit(&put, Some(lease), None).await.expect("a claim");
    scene.put(1).await;
    scene.receivers("h1", &[(1, None)]).await;
    let running = scene.start(&with_signal()).await;
    scene.file_has("10.0.0.1 8001").await;
    running.is_not_ready("claim", "held by another state folder on elsewhere").await;
    assert_eq!(scene.request("h1").await, None);
    let request = scene.request_after("h1", None).await;
    scene.ack("h1", &request, None).await;
    running.is_ready().await;
}

#[tokio::test(start_paused = true)]
async fn after_the_store_went_back_a_file_stays_until_the_nodes_have_registered_again() {
    let scene = Scene::new();
    let empty = scene.store.backup();
    scene.node("h1", 1).await;
    scene.node("h2", 2).await;
    let running = scene.start("format = \"citus-workers\"").await;
    scene.file_has("10.0.0.1 8001\n10.0.0.2 8002\n").await;
    scene.store.restore(empty);
    running.is_not_ready("retention", "the store went back: 2 instances are kept").await;
    pass().await;
    assert_eq!(scene.file().lines().count(), 2);
    // One node registers again, with another instance than before; the other one never does.
    scene.node("h1", 3).await;
    scene.file_has("10.0.0.3 8003").await;
    until(async || (!scene.file().contains("10.0.0.1 ")).then_some(())).await;
    assert!(scene.file().contains("10.0.0.2 "));
    until(async || (scene.file() == "10.0.0.3 8003\n").then_some(())).await;
    running.is_ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_after_the_store_was_wiped_empties_no_file() {
    let scene = Scene::new();
    let empty = scene.store.backup();
    scene.node("h1", 1).await;
    let running = scene.start("format = \"citus-workers\"").await;
    scene.file_has("10.0.0.1 8001").await;
    pass().await;
    running.end().await;
    scene.store.restore(empty);
    let running = scene.start("format = \"citus-workers\"").await;
    running.is_not_ready("retention", "the store went back: 1 instances are kept").await;
    assert_eq!(scene.file(), "10.0.0.1 8001\n");
    until(async || scene.file().is_empty().then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn the_last_instance_that_goes_while_it_is_watched_empties_the_file_at_once() {
    let scene = Scene::new();
    scene.put(1).await;
    let _running = scene.start("format = \"citus-workers\"").await;
    scene.file_has("10.0.0.1 8001").await;
    scene.delete(1).await;
    until(async || scene.file().is_empty().then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn hosts_that_are_lost_at_once_are_held_for_the_guards_time_and_a_withdrawal_is_not() {
    let scene = Scene::new();
    let mut leases = Vec::new();
    for number in 1..=4 {
        leases.push(scene.node(&format!("h{number}"), number).await);
    }
    let guard = "format = \"citus-workers\"\nguard = { max_loss = \"50%\", hold = \"60s\" }";
    let running = scene.start(guard).await;
    scene.file_has("10.0.0.4").await;
    for lease in &leases[1..] {
        scene.store.revoke(*lease).await.expect("it lives");
    }
    running.is_not_ready("target web", "max_loss").await;
    let held_since = tokio::time::Instant::now();
    assert!(scene.file().lines().count() >= 3, "{}", scene.file());
    until(async || (scene.file().lines().count() == 1).then_some(())).await;
    assert!(held_since.elapsed() >= Duration::from_secs(50));
    running.is_ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_template_that_fails_keeps_the_last_file_and_is_tried_again() {
    let scene = Scene::new();
    scene.put(1).await;
    let template = scene.path("list.j2");
    fs::write(&template, "{{ instances[0].endpoint }}\n").expect("a file");
    let running = scene.start(&format!("template = \"{}\"", template.display())).await;
    scene.file_has("10.0.0.1:8001").await;
    scene.delete(1).await;
    running.is_not_ready("target web", "line 1: `instances[0]` is undefined").await;
    assert_eq!(scene.file(), "10.0.0.1:8001\n");
    fs::write(&template, "none\n").expect("a file");
    scene.file_has("none").await;
    running.is_ready().await;
}

#[tokio::test]
async fn a_file_that_its_check_refuses_is_not_installed() {
    let scene = Scene::new();
    scene.put(1).await;
    let check = "format = \"citus-workers\"\ncheck = \"sh -c 'grep -q 10.0.0.1 {file} || (echo no one >&2; exit 1)'\"";
    let running = scene.start(check).await;
    scene.file_has("10.0.0.1 8001").await;
    running.is_ready().await;
    scene.delete(1).await;
    let reason = "the check refuses the new file: sh ended with exit code 1: no one";
    running.is_not_ready("target web", reason).await;
    assert_eq!(scene.file(), "10.0.0.1 8001\n");
    let left = fs::read_dir(scene.dir.path()).expect("a folder").flatten();
    assert!(left.map(|entry| entry.file_name()).all(|name| !name.to_string_lossy().contains(".rollcall-")));
    scene.put(1).await;
    running.is_ready().await;
}

#[tokio::test]
async fn a_command_that_fails_is_run_until_it_works() {
    let scene = Scene::new();
    let (runs, works) = (scene.path("runs"), scene.path("works"));
    let command = format!("sh -c 'echo {{file}} >> {}; test -e {}'", runs.display(), works.display());
    let target = format!("format = \"json\"\nnotify = {{ command = {command:?} }}");
    let running = scene.start(&target).await;
    running.is_not_ready("notify web", "notify: sh ended with exit code 1").await;
    fs::write(&works, "").expect("a file");
    running.is_ready().await;
    let ran = fs::read_to_string(&runs).expect("a file");
    assert!(ran.lines().count() >= 2);
    assert!(ran.lines().all(|line| line.ends_with("/file")), "{ran}");
    running.end().await;
    scene.start(&target).await.is_ready().await;
    assert_eq!(fs::read_to_string(&runs).expect("a file"), ran, "there was nothing left to notify");
}

#[tokio::test(start_paused = true)]
async fn once_is_done_with_the_ack_and_fails_without() {
    let scene = Scene::new();
    scene.put(1).await;
    let (mut consumer, targets) = scene.ready(&with_signal()).await;
    let failed = consumer.once(&scene.configs(), targets).await.expect_err("nobody acks").to_string();
    assert_eq!(
        failed,
        "target web: its notification was not acked within --wait (10s): waiting for a container to signal: \
         container proxy"
    );
    consumer.supervisor.end().await;
    scene.receivers("h1", &[(1, None)]).await;
    let (mut consumer, targets) = scene.ready(&with_signal()).await;
    let agent = async {
        let request = scene.request_after("h1", None).await;
        scene.ack("h1", &request, None).await;
    };
    let configs = scene.configs();
    let (done, ()) = tokio::join!(consumer.once(&configs, targets), agent);
    done.expect("it was acked");
    consumer.supervisor.end().await;
    let (mut consumer, targets) = scene.ready(&with_signal()).await;
    consumer.once(&scene.configs(), targets).await.expect("there is nothing left to do");
}

#[tokio::test]
async fn once_waits_for_a_command_as_long_as_that_may_take() {
    let scene = Scene::new();
    let notify = "format = \"json\"\nnotify = { command = \"sleep 0.3\", timeout = \"30s\" }";
    let (mut consumer, targets) = scene.ready(notify).await;
    consumer.wait = Duration::from_millis(50);
    consumer.once(&scene.configs(), targets).await.expect("the command ends within its own time");
}

#[tokio::test(start_paused = true)]
async fn once_tells_of_every_target_that_failed_and_of_a_name_that_is_held() {
    let scene = Scene::new();
    scene.put(1).await;
    let key = testing::keys().format(&Key::Consumer("c1".parse().expect("a name")));
    let claim = Claim::new("another state folder".to_owned(), 60);
    let record = ConsumerRecord { v: V1, claim, targets: BTreeMap::new() };
    let lease = scene.store.grant(LEASE.ttl * 10).await.expect("a lease");
    let put = [Op::Put { key, value: codec::encode(&record) }];
    scene.store.commit(&put, Some(lease), None).await.expect("a claim");
    let template = scene.path("list.j2");
    fs::write(&template, "{{ nobody.there }}").expect("a file");
    let more = format!("[[target]]\nname = \"b\"\ndest = \"{}\"\n", scene.path("b").display());
    let more = format!("{}{more}template = \"{}\"\n", with_signal(), template.display());
    let (mut consumer, targets) = scene.ready(&more).await;
    let failed = consumer.once(&scene.configs(), targets).await.expect_err("both fail").to_string();
    let (first, second) = failed.split_once("; target b: ").unwrap_or_else(|| panic!("{failed}"));
    assert!(first.contains("not acked within") && first.contains("held by another state folder"), "{first}");
    assert!(second.contains("line 1"), "{second}");
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_at_the_start_is_said_before_anything_is_touched() {
    let scene = Scene::new();
    let dest = scene.path("file");
    for (rest, is_folder, expected) in [
        ("format = \"json\"", true, format!("dest is {}: expected a file", dest.display())),
        ("template = \"/no/such.j2\"", false, "template is /no/such.j2: ".to_owned()),
    ] {
        if is_folder {
            fs::create_dir(&dest).expect("a folder");
        }
        let opened = scene.open(&scene.plan(rest), &scene.consumer()).await;
        let error = opened.map(drop).expect_err(rest);
        assert!(matches!(error, Failure::Usage(_)), "{error}");
        let error = error.to_string();
        assert!(error.starts_with("target web: ") && error.contains(&expected), "{error}");
        if is_folder {
            fs::remove_dir(&dest).expect("a folder");
        }
    }
    fs::write(scene.path("state"), "").expect("a file");
    let opened = scene.open(&scene.plan(&with_signal()), &scene.consumer()).await;
    let error = opened.map(drop).expect_err("a file is no folder");
    assert!(
        matches!(error, Failure::Usage(_)) && error.to_string().starts_with("--state-dir is "),
        "{error}"
    );
    assert!(!dest.exists());
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_the_format_cannot_express_is_noted_and_the_target_is_ready() {
    let scene = Scene::new();
    let nowhere = Address::Ip([0, 0, 0, 0].into());
    let instance = Instance { address: nowhere, ..testing::instance(1, "web") };
    scene.commit(&[Op::Put { key: testing::key(1), value: codec::encode(&instance) }]).await;
    scene.put(2).await;
    let running = scene.start("format = \"citus-workers\"").await;
    scene.file_has("10.0.0.2 8002").await;
    running.is_ready().await;
    let note = "ok; leaves out what the format cannot express: web-1 of h1 at 0.0.0.0:8001";
    assert_eq!(running.condition("target web"), note);
}

#[tokio::test]
async fn a_file_that_its_check_refuses_is_not_ready_until_it_is_mended() {
    let scene = Scene::new();
    let allowed = scene.path("allowed");
    let check =
        format!("format = \"citus-workers\"\ncheck = \"sh -c 'test -e {} # {{file}}'\"", allowed.display());
    scene.put(1).await;
    let running = scene.start(&check).await;
    running.is_not_ready("target web", "the check refuses the new file").await;
    fs::write(&allowed, "").expect("a file");
    running.is_ready().await;
    scene.file_has("10.0.0.1 8001").await;
}

#[tokio::test(start_paused = true)]
async fn a_file_that_someone_else_changes_or_removes_is_put_back_and_notified_within_the_interval() {
    let scene = Scene::new();
    scene.put(1).await;
    scene.receivers("h1", &[(1, None)]).await;
    let running = scene.start(&format!("reconcile = \"10s\"\n{}", with_signal())).await;
    let first = scene.request_after("h1", None).await;
    scene.ack("h1", &first, None).await;
    running.is_ready().await;
    let mut last = first;
    let edit: [&dyn Fn(); 2] =
        [&|| fs::write(scene.path("file"), "10.0.0.9 8001\n").expect("a file"), &|| {
            fs::remove_file(scene.path("file")).expect("a file")
        }];
    for edit in edit {
        edit();
        let since = tokio::time::Instant::now();
        let request = scene.request_after("h1", None).await;
        assert!(since.elapsed() <= Duration::from_secs(11), "{:?}", since.elapsed());
        assert!(request.generation > last.generation, "it is a change as any other");
        assert_eq!(scene.file(), "10.0.0.1 8001\n");
        scene.ack("h1", &request, None).await;
        running.is_ready().await;
        scene.no_request("h1").await;
        last = request;
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_at_a_file_that_nobody_changed_reads_and_writes_nothing() {
    let scene = Scene::new();
    scene.put(1).await;
    let template = scene.path("list.j2");
    fs::write(&template, "{{ instances[0].endpoint }}\n").expect("a file");
    let running = scene.start(&format!("template = \"{}\"", template.display())).await;
    scene.file_has("10.0.0.1:8001").await;
    running.is_ready().await;
    let left = fs::metadata(scene.path("file")).expect("a file").ctime_nsec();
    // Whoever rendered again would fail.
    fs::remove_file(&template).expect("a file");
    tokio::time::sleep(Duration::from_secs(100)).await;
    running.is_ready().await;
    assert_eq!(fs::metadata(scene.path("file")).expect("a file").ctime_nsec(), left);
}

#[tokio::test(start_paused = true)]
async fn a_look_at_the_file_leaves_a_change_that_waits_for_its_pace_alone() {
    let scene = Scene::new();
    scene.put(1).await;
    let running = scene.start("format = \"citus-workers\"\nreconcile = \"2s\"\nheartbeat = \"60s\"").await;
    scene.file_has("10.0.0.1 8001").await;
    running.is_ready().await;
    let since = tokio::time::Instant::now();
    scene.put(2).await;
    scene.file_has("10.0.0.2 8002").await;
    assert!(since.elapsed() > Duration::from_secs(50), "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_dry_run_shows_what_would_change_checks_it_elsewhere_and_touches_nothing() {
    let scene = Scene::new();
    scene.put(1).await;
    let seen = scene.path("seen");
    let check = format!(
        "sh -c 'cp {{file}} {}; echo {{dest}}; test ! -e {}'",
        seen.display(),
        scene.path("bad").display()
    );
    let plan = scene.plan(&format!("format = \"citus-workers\"\ncheck = {check:?}"));
    let mut consumer = scene.consumer();
    let (selections, _follower) = consumer.follow(&plan.targets, None).await.expect("a store").expect("rows");
    let preview = async || dry_run::preview(&plan.targets[0], &selections[0]).await;
    let Preview { text, outcome } = preview().await;
    assert_eq!(outcome.expect("it is checked"), Outcome::Changed);
    assert!(text.starts_with("--- /dev/null\n+++ ") && text.ends_with("\n+10.0.0.1 8001\n"), "{text}");
    assert_eq!(fs::read_to_string(&seen).expect("it was checked"), "10.0.0.1 8001\n");
    assert!(!scene.path("file").exists());
    fs::write(scene.path("bad"), "").expect("a file");
    let Preview { text, outcome } = preview().await;
    let refused = dry_run::failure(&plan.targets[0], &outcome.expect_err("it is refused"));
    assert!(refused.starts_with("target web: the check refuses the new file: sh ended with exit code 1: "));
    assert!(refused.ends_with("/file") && text.contains("+10.0.0.1 8001"), "{refused}\n{text}");
    fs::write(scene.path("file"), "10.0.0.1 8001\n").expect("a file");
    assert_eq!(preview().await.outcome.expect("nobody checks it"), Outcome::Same);
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_counts_the_loss_guard_in() {
    let scene = Scene::new();
    let plan = scene.plan("format = \"citus-workers\"\nguard = { min_instances = 1, hold = \"forever\" }");
    scene.put(1).await;
    let mut consumer = scene.consumer();
    let (selections, _follower) = consumer.follow(&plan.targets, None).await.expect("a store").expect("rows");
    scene.delete(1).await;
    until(async || selections[0].borrow().is_empty().then_some(())).await;
    fs::write(scene.path("file"), "10.0.0.1 8001\n").expect("a file");
    let Preview { text, outcome } = dry_run::preview(&plan.targets[0], &selections[0]).await;
    assert_eq!(outcome.expect("it is held"), Outcome::Same);
    assert!(text.starts_with("target web: ") && text.contains(" stays as it is: "), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_backup_that_cannot_be_kept_is_noted_and_the_file_is_installed() {
    let scene = Scene::new();
    scene.put(1).await;
    let blocked = scene.path("blocked");
    fs::write(&blocked, "a file is no folder").expect("a file");
    let running =
        scene.start(&format!("format = \"citus-workers\"\nbackups = {{ dir = {blocked:?} }}")).await;
    scene.file_has("10.0.0.1 8001").await;
    scene.put(2).await;
    scene.file_has("10.0.0.2 8002").await;
    let noted =
        async || running.condition("target web").contains("cannot make the backup folder").then_some(());
    until(noted).await;
    running.is_ready().await;
}

#[tokio::test]
async fn a_command_that_is_under_way_at_the_stop_is_waited_for() {
    let scene = Scene::new();
    let (begun, done) = (scene.path("begun"), scene.path("done"));
    let command = format!("sh -c 'touch {}; sleep 0.5; touch {}'", begun.display(), done.display());
    let running = scene.start(&format!("format = \"json\"\nnotify = {{ command = {command:?} }}")).await;
    until(async || begun.exists().then_some(())).await;
    running.consumer.supervisor.end().await;
    assert!(done.exists(), "it was broken off");
}

#[tokio::test(start_paused = true)]
async fn a_linked_destination_is_written_through_its_link() {
    let scene = Scene::new();
    scene.put(1).await;
    fs::create_dir(scene.path("real")).expect("a folder");
    symlink("real/workers", scene.path("file")).expect("a link");
    let _running = scene.start("format = \"citus-workers\"").await;
    scene.file_has("10.0.0.1 8001").await;
    assert!(fs::symlink_metadata(scene.path("file")).expect("a link").is_symlink());
    assert!(scene.path("real/workers").is_file());
}

#[tokio::test(start_paused = true)]
async fn a_second_consumer_in_the_same_state_folder_is_refused_and_that_is_no_matter_of_settings() {
    let scene = Scene::new();
    let _running = scene.start(&with_signal()).await;
    let opened = scene.open(&scene.plan(&with_signal()), &scene.consumer()).await;
    let error = opened.map(drop).expect_err("the folder is in use");
    assert!(matches!(error, Failure::Failed(_)), "{error}");
    assert!(error.to_string().contains("another consumer that runs uses it"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_state_folder_that_cannot_be_written_stops_no_file_and_nobody_is_signalled_twice() {
    let scene = Scene::new();
    scene.put(1).await;
    scene.receivers("h1", &[(1, None)]).await;
    let running = scene.start(&with_signal()).await;
    let first = scene.request_after("h1", None).await;
    scene.ack("h1", &first, None).await;
    running.is_ready().await;
    // A file in its place: nothing can be written, and it cannot be made again.
    fs::remove_dir_all(scene.path("state")).expect("a folder");
    fs::write(scene.path("state"), "").expect("a file");
    scene.put(2).await;
    scene.file_has("10.0.0.2 8002").await;
    let second = scene.request_after("h1", Some(&first)).await;
    scene.ack("h1", &second, None).await;
    running.is_not_ready("state", "cannot write --state-dir").await;
    scene.no_request("h1").await;
    for _ in 0..10 {
        pass().await;
        assert_eq!(scene.request("h1").await, None, "it was acked");
    }
    // Going back to what may be remembered as acked is no reason not to install either.
    scene.delete(2).await;
    let third = scene.request_after("h1", None).await;
    assert_eq!(scene.file(), "10.0.0.1 8001\n");
    scene.ack("h1", &third, None).await;
    fs::remove_file(scene.path("state")).expect("a file");
    running.is_ready().await;
    for file in ["state/id", "state/web.state.json", "state/roll.json"] {
        until(async || scene.path(file).exists().then_some(())).await;
    }
}
