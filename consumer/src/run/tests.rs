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
use crate::{config::Cli, supervisor::SHUTDOWN_TIMEOUT, testing};

mod checking;
mod guarding;
mod installing;
mod isolating;
mod many_files;
mod notifying;
mod once;
mod reloading;
mod serving;
mod sharing;
mod verifying;

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
            published: Published::default(),
            supervisor: Supervisor::new(CancellationToken::new()),
            readiness: Readiness::default(),
            store: Arc::new(self.store.clone()),
            keys: testing::keys(),
            lease: LEASE,
            wait: WAIT,
        }
    }

    async fn open(&self, plan: &Plan, consumer: &Consumer) -> Result<Arc<StateDir>, Failure> {
        open_state(plan, self.path("state"), &consumer.readiness).await
    }

    /// A consumer and its targets, which have their first rows.
    async fn ready(&self, rest: &str) -> (Consumer, Vec<Target>) {
        let (consumer, targets, _) = self.reloadable(rest).await;
        (consumer, targets)
    }

    async fn reloadable(&self, rest: &str) -> (Consumer, Vec<Target>, Reloader) {
        self.open_plan(self.plan(rest)).await
    }

    async fn open_plan(&self, plan: Plan) -> (Consumer, Vec<Target>, Reloader) {
        let mut consumer = self.consumer();
        // A consumer that crashed leaves its lock as soon as its tasks are dropped.
        let state = until(async || self.open(&plan, &consumer).await.ok()).await;
        let remembered = Some(state.clone());
        let followed = consumer.follow(&plan.targets, remembered).await.expect("a store");
        let (selections, follower) = followed.expect("rows");
        let mut targets = consumer.targets(&plan, &state);
        let at_hand = consumer.open(&plan, &mut targets, selections, &state).await;
        consumer.claim(plan.consumer.clone(), &targets, state.clone());
        let reloader = Reloader::new(self.settings(), plan, OwnStack::NotAsked, state, follower, targets);
        (consumer, at_hand, reloader)
    }

    /// The settings that read the scene's configuration anew.
    fn settings(&self) -> Settings {
        let config = format!("--config={}", self.path("config.toml").display());
        let args = ["rollcall-consumer", "--etcd=h:1", "--name=c1", &config];
        Cli::try_parse_from(args).expect("good flags").settings
    }

    async fn start(&self, rest: &str) -> Running {
        self.start_plan(self.plan(rest)).await
    }

    async fn start_plan(&self, plan: Plan) -> Running {
        let (mut consumer, targets, reloader) = self.open_plan(plan).await;
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
    async fn receivers(&self, node: &str, all: &[(u8, Option<&str>)]) {
        let receivers = Receivers { v: V1, receivers: receivers(all), checkers: vec![] };
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

    /// Reads the settings anew, as after SIGHUP, and sets to work what comes at once.
    async fn reload(&mut self) -> Result<(), String> {
        self.reloader.reload().await?;
        self.begin().await;
        Ok(())
    }

    /// Sets to work what comes soon.
    async fn begin(&mut self) {
        let targets = &mut self.reloader.targets;
        while let Ok(arrived) = tokio::time::timeout(Duration::from_secs(1), targets.next()).await {
            targets.begin(&mut self.consumer.supervisor, arrived);
        }
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

/// Why a file of targets is refused.
fn refusal(text: &str) -> String {
    let dir = tempfile::tempdir().expect("a folder");
    let config = dir.path().join("config.toml");
    fs::write(&config, text).expect("a file");
    rollcall_shared::process::error::one_line(&crate::config::toml::read(&config).map(drop).expect_err(text))
}

fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}

fn target_id() -> TargetId {
    TargetId { consumer: "c1".parse().expect("a name"), target: "web".parse().expect("a name") }
}

/// Containers by their numbers; one with a reason refuses.
fn receivers(all: &[(u8, Option<&str>)]) -> Vec<Receiver> {
    let receiver = |(number, refused): &(u8, Option<&str>)| Receiver {
        incarnation: incarnation(*number),
        name: "proxy".parse().expect("a name"),
        refused: refused.map(str::to_owned),
    };
    all.iter().map(receiver).collect()
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
