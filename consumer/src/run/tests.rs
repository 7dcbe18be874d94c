//! The whole consumer but for etcd, Docker and the process: on the memory store, with an agent's double.

use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::PathBuf,
};

use rollcall_shared::{
    instance::{Instance, Status},
    key::Key,
    signal::{Outcome, SignalAck, SignalRequest},
    store::{Entry, Op},
    wire,
};
use tempfile::TempDir;

use super::*;
use crate::maker;

const LEASE: LeaseSettings = LeaseSettings { ttl: Duration::from_secs(60), refresh: Duration::from_secs(30) };
const SIGNAL: &str = "[target.notify]\ncontainer = \"proxy\"\n";
const SOON: Duration = Duration::from_secs(10);

/// A store and a folder, which outlive the consumers that work on them.
struct Scene {
    store: MemoryStore,
    dir: TempDir,
}

/// A consumer at work. Dropping it is a crash.
struct Consumer {
    crew: Crew,
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
        let targets = crate::config::read(&config).expect("targets");
        Plan { consumer: "c1".parse().expect("a name"), targets, embedded: false, citus: false }
    }

    fn crew(&self) -> Crew {
        Crew {
            ending: JoinSet::new(),
            attending: JoinSet::new(),
            agent: JoinSet::new(),
            health: Health::default(),
            stop: CancellationToken::new(),
            agent_stop: CancellationToken::new(),
            store: Arc::new(self.store.clone()),
            keys: maker::keys(),
        }
    }

    /// The crew and its targets, which have their first rows.
    async fn ready(&self, rest: &str) -> (Crew, Vec<Target>) {
        let (plan, mut crew) = (self.plan(rest), self.crew());
        let presses = crew.presses(&plan, &LEASE, self.path("state")).await.expect("presses");
        let selections = crew.follow(&plan.targets, SOON).await.expect("a store").expect("rows");
        let targets = crew.man(&plan, &LEASE, selections, presses);
        (crew, targets)
    }

    async fn start(&self, rest: &str) -> Consumer {
        let (mut crew, targets) = self.ready(rest).await;
        for target in targets {
            let stop = crew.stop.clone();
            crew.ending.spawn(async move {
                target.run(stop).await;
                Ok("target")
            });
        }
        Consumer { crew }
    }

    async fn commit(&self, ops: &[Op]) {
        self.store.commit(ops, None, None).await.expect("the memory store takes it");
    }

    async fn put(&self, number: usize) {
        self.commit(&[maker::put(number, "web")]).await;
    }

    async fn delete(&self, number: usize) {
        self.commit(&[Op::Delete { key: maker::key(number) }]).await;
    }

    async fn get(&self, key: Key) -> Option<Entry> {
        self.store.get(&maker::keys().format(&key)).await.expect("the memory store answers")
    }

    async fn request(&self) -> Option<SignalRequest> {
        let entry = self.get(signal_key()).await?;
        Some(SignalRequest::decode(&entry.value).expect("a request"))
    }

    /// The request that replaces the one of `last`.
    async fn request_after(&self, last: Option<&SignalRequest>) -> SignalRequest {
        until(async || self.request().await.filter(|request| Some(request) != last)).await
    }

    /// Answers as the agent of node `h1`.
    async fn ack(&self, request: &SignalRequest, outcome: Outcome) {
        let SignalRequest { generation, attempt, .. } = *request;
        let (containers, detail, at) = (vec![], "because".to_owned(), Timestamp::UNIX_EPOCH);
        let ack = SignalAck { v: V1, generation, attempt, outcome, containers, detail, at };
        let name = |text: &str| text.parse().expect("a name");
        let key = Key::Ack(name("h1"), "c1".parse().expect("a name"), "web".parse().expect("a name"));
        self.commit(&[Op::Put { key: maker::keys().format(&key), value: wire::encode(&ack) }]).await;
    }

    async fn file_has(&self, text: &str) {
        until(async || self.file().contains(text).then_some(())).await;
    }
}

impl Consumer {
    fn reason(&self, part: &str) -> Option<String> {
        self.crew.reason(part)
    }

    async fn is_well(&self) {
        until(async || self.crew.health.report().0.then_some(())).await;
    }

    async fn is_ill(&self, part: &str, reason: &str) {
        let found = async || self.reason(part).filter(|found| found.contains(reason));
        until(found).await;
    }
}

fn signal_key() -> Key {
    Key::Signal("c1".parse().expect("a name"), "web".parse().expect("a name"))
}

/// Looks until it is there.
async fn until<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..100_000 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it never came");
}

/// Lets everything settle that has no time to wait for.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(2)).await;
}

fn with_signal() -> String {
    format!("format = \"citus-workers\"\n{SIGNAL}")
}

#[tokio::test(start_paused = true)]
async fn a_change_is_installed_and_signalled_until_it_is_acked() {
    let scene = Scene::new();
    scene.put(1).await;
    let consumer = scene.start(&with_signal()).await;
    scene.file_has("10.0.0.1 8001\n").await;
    let first = scene.request_after(None).await;
    consumer.is_ill("notify web", "waiting for an agent to signal container proxy").await;
    scene.ack(&first, Outcome::Delivered).await;
    consumer.is_well().await;
    scene.put(2).await;
    scene.file_has("10.0.0.1 8001\n10.0.0.2 8002\n").await;
    let second = scene.request_after(Some(&first)).await;
    assert!(second.generation > first.generation);
    assert_eq!(second.attempt, 1);
}

#[tokio::test(start_paused = true)]
async fn a_signal_that_failed_is_asked_for_again() {
    let scene = Scene::new();
    let consumer = scene.start(&with_signal()).await;
    let first = scene.request_after(None).await;
    scene.ack(&first, Outcome::Failed).await;
    consumer.is_ill("notify web", "HUP to container proxy: node h1 failed: because").await;
    let second = scene.request_after(Some(&first)).await;
    assert_eq!((second.generation, second.attempt), (first.generation, 2));
    assert_eq!(second.asked_at, first.asked_at);
    scene.ack(&second, Outcome::Refused).await;
    let third = scene.request_after(Some(&second)).await;
    assert_eq!(third.attempt, 3);
    scene.ack(&third, Outcome::Delivered).await;
    consumer.is_well().await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_install_and_ack_is_notified_after_the_restart() {
    let scene = Scene::new();
    scene.put(1).await;
    let crashed = scene.start(&with_signal()).await;
    let first = scene.request_after(None).await;
    drop(crashed);
    let consumer = scene.start(&with_signal()).await;
    let second = scene.request_after(Some(&first)).await;
    assert_ne!(second.generation, first.generation, "the file is as it was, and still it is owed");
    scene.ack(&second, Outcome::Delivered).await;
    consumer.is_well().await;
    settle().await;
    drop(consumer);
    let consumer = scene.start(&with_signal()).await;
    consumer.is_well().await;
    settle().await;
    assert_eq!(scene.request().await, Some(second), "what was acked is not asked for again");
}

#[tokio::test(start_paused = true)]
async fn going_back_to_the_acked_file_is_notified_also_after_a_crash() {
    let scene = Scene::new();
    scene.put(1).await;
    let crashed = scene.start(&with_signal()).await;
    let first = scene.request_after(None).await;
    scene.ack(&first, Outcome::Delivered).await;
    until(async || scene.path("state/web.acked.json").exists().then_some(())).await;
    scene.put(2).await;
    let second = scene.request_after(Some(&first)).await;
    scene.delete(2).await;
    let third = scene.request_after(Some(&second)).await;
    assert_eq!(scene.file(), "10.0.0.1 8001\n", "as it was acked, but the target may run with the second");
    drop(crashed);
    let _consumer = scene.start(&with_signal()).await;
    let fourth = scene.request_after(Some(&third)).await;
    assert_ne!(fourth.generation, third.generation);
}

#[tokio::test(start_paused = true)]
async fn an_ack_of_an_earlier_installation_settles_nothing() {
    let scene = Scene::new();
    let consumer = scene.start(&with_signal()).await;
    let first = scene.request_after(None).await;
    scene.put(1).await;
    let second = scene.request_after(Some(&first)).await;
    scene.ack(&first, Outcome::Delivered).await;
    consumer.is_ill("notify web", "waiting").await;
    assert!(!scene.path("state/web.acked.json").exists());
    scene.ack(&second, Outcome::Delivered).await;
    consumer.is_well().await;
    until(async || scene.path("state/web.acked.json").exists().then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn what_does_not_change_the_file_is_neither_written_nor_signalled() {
    let scene = Scene::new();
    scene.put(1).await;
    let consumer = scene.start(&with_signal()).await;
    let first = scene.request_after(None).await;
    scene.ack(&first, Outcome::Delivered).await;
    consumer.is_well().await;
    let inode = fs::metadata(scene.path("file")).expect("a file").ino();
    let tagged = Instance { tags: vec!["blue".to_owned()], ..maker::instance(1, "web") };
    let failing = Instance { status: Status::Failing, ..maker::instance(2, "web") };
    for (number, instance) in [(1, tagged), (2, failing)] {
        scene.commit(&[Op::Put { key: maker::key(number), value: wire::encode(&instance) }]).await;
        settle().await;
    }
    assert_eq!(fs::metadata(scene.path("file")).expect("a file").ino(), inode);
    assert_eq!(scene.request().await, Some(first));
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_is_opened_anew_with_the_requests_that_stand() {
    let scene = Scene::new();
    let consumer = scene.start(&with_signal()).await;
    let request = scene.request_after(None).await;
    let lease = scene.get(signal_key()).await.and_then(|entry| entry.lease).expect("a lease");
    scene.store.revoke(lease).await.expect("it lives");
    assert_eq!(scene.request().await, None);
    assert_eq!(scene.request_after(None).await, request);
    scene.ack(&request, Outcome::Delivered).await;
    consumer.is_well().await;
    consumer.crew.end().await;
    assert_eq!(scene.request().await, None, "at the end the session goes, and its requests with it");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_another_host_holds_stops_no_file() {
    let scene = Scene::new();
    let key = maker::keys().format(&Key::Consumer("c1".parse().expect("a name")));
    let record = ConsumerRecord {
        v: V1,
        host: "elsewhere".to_owned(),
        holder: "other".to_owned(),
        targets: vec![],
        version: "0".to_owned(),
        started_at: Timestamp::UNIX_EPOCH,
        ttl_seconds: 60,
    };
    let lease = scene.store.grant(LEASE.ttl).await.expect("a lease");
    let claim = [Op::Put { key, value: wire::encode(&record) }];
    scene.store.commit(&claim, Some(lease), None).await.expect("a claim");
    scene.put(1).await;
    let consumer = scene.start(&with_signal()).await;
    scene.file_has("10.0.0.1 8001").await;
    consumer.is_ill("session", "held by elsewhere").await;
    assert_eq!(scene.request().await, None);
    scene.request_after(None).await;
    assert_eq!(consumer.reason("session"), None, "the other's lease has ended");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_has_lost_everything_empties_no_file_until_the_agents_had_their_time() {
    let scene = Scene::new();
    scene.put(1).await;
    let consumer = scene.start("format = \"citus-workers\"").await;
    scene.file_has("10.0.0.1 8001").await;
    // The watch finds its history gone, and lists a store without instances.
    let entry = [Op::Delete { key: maker::key(1) }];
    let revision = scene.store.commit(&entry, None, None).await.expect("a commit");
    scene.store.compact(revision);
    consumer.is_ill("target web", "the store was found without any instance").await;
    assert_eq!(scene.file(), "10.0.0.1 8001\n");
    scene.put(2).await;
    scene.file_has("10.0.0.2 8002").await;
    assert!(!scene.file().contains("10.0.0.1"), "once agents register again, what is gone is gone");
}

#[tokio::test(start_paused = true)]
async fn the_last_instance_that_goes_while_it_is_watched_empties_the_file_at_once() {
    let scene = Scene::new();
    scene.put(1).await;
    let _consumer = scene.start("format = \"citus-workers\"").await;
    scene.file_has("10.0.0.1 8001").await;
    scene.delete(1).await;
    until(async || scene.file().is_empty().then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn a_mass_loss_is_held_for_the_guards_time() {
    let scene = Scene::new();
    for number in 1..=4 {
        scene.put(number).await;
    }
    let guard = "format = \"citus-workers\"\nguard = { max_loss = \"50%\", hold = \"60s\" }";
    let consumer = scene.start(guard).await;
    scene.file_has("10.0.0.4").await;
    let gone: Vec<Op> = (2..=4).map(|number| Op::Delete { key: maker::key(number) }).collect();
    scene.commit(&gone).await;
    consumer.is_ill("target web", "3 of 4 instances vanished at once: more than guard.max_loss, 50%").await;
    let held_since = tokio::time::Instant::now();
    assert_eq!(scene.file().lines().count(), 4);
    until(async || (scene.file().lines().count() == 1).then_some(())).await;
    assert!(held_since.elapsed() >= Duration::from_secs(59));
    consumer.is_well().await;
}

#[tokio::test(start_paused = true)]
async fn a_template_that_fails_keeps_the_last_file_and_is_tried_again() {
    let scene = Scene::new();
    scene.put(1).await;
    let template = scene.path("list.j2");
    fs::write(&template, "{{ instances[0].endpoint }}\n").expect("a file");
    let consumer = scene.start(&format!("template = \"{}\"", template.display())).await;
    scene.file_has("10.0.0.1:8001").await;
    scene.delete(1).await;
    consumer.is_ill("target web", "line 1: `instances[0]` is undefined").await;
    assert_eq!(scene.file(), "10.0.0.1:8001\n");
    fs::write(&template, "none\n").expect("a file");
    scene.file_has("none").await;
    consumer.is_well().await;
}

#[tokio::test]
async fn a_file_that_its_check_refuses_is_not_installed() {
    let scene = Scene::new();
    scene.put(1).await;
    let check = "format = \"citus-workers\"\ncheck = \"sh -c 'grep -q 10.0.0.1 {file} || (echo no one >&2; exit 1)'\"";
    let consumer = scene.start(check).await;
    scene.file_has("10.0.0.1 8001").await;
    consumer.is_well().await;
    scene.delete(1).await;
    let reason = "the check refuses the new file: sh ended with exit code 1: no one";
    consumer.is_ill("target web", reason).await;
    assert_eq!(scene.file(), "10.0.0.1 8001\n");
    let left = fs::read_dir(scene.dir.path()).expect("a folder").flatten();
    assert!(left.map(|entry| entry.file_name()).all(|name| !name.to_string_lossy().contains(".rollcall-")));
    scene.put(1).await;
    consumer.is_well().await;
}

#[tokio::test]
async fn a_command_that_fails_is_run_until_it_works() {
    let scene = Scene::new();
    let (runs, works) = (scene.path("runs"), scene.path("works"));
    let command = format!("sh -c 'echo {{file}} >> {}; test -e {}'", runs.display(), works.display());
    let consumer = scene.start(&format!("format = \"json\"\nnotify = {{ command = {command:?} }}")).await;
    consumer.is_ill("notify web", "notify: sh ended with exit code 1").await;
    fs::write(&works, "").expect("a file");
    consumer.is_well().await;
    let runs = fs::read_to_string(runs).expect("a file");
    assert!(runs.lines().count() >= 2);
    assert!(runs.lines().all(|line| line.ends_with("/file")), "{runs}");
}

#[tokio::test(start_paused = true)]
async fn once_is_done_with_the_ack_and_fails_without() {
    let scene = Scene::new();
    scene.put(1).await;
    let (mut crew, targets) = scene.ready(&with_signal()).await;
    let failed = crew.work_once(targets, SOON).await.expect_err("nobody acks").to_string();
    assert_eq!(
        failed,
        "target web: its notification was not acked within --wait (10s): waiting for an agent to signal \
         container proxy"
    );
    crew.end().await;
    let (mut crew, targets) = scene.ready(&with_signal()).await;
    let agent = async {
        let request = scene.request_after(None).await;
        scene.ack(&request, Outcome::Delivered).await;
    };
    let (done, ()) = tokio::join!(crew.work_once(targets, SOON), agent);
    done.expect("it was acked");
    assert!(scene.path("state/web.acked.json").exists());
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_at_the_start_is_said_before_anything_is_touched() {
    let scene = Scene::new();
    let dest = scene.path("file");
    for (rest, prepare, expected) in [
        ("format = \"json\"", "folder", format!("dest is {}: expected a file", dest.display())),
        ("template = \"/no/such.j2\"", "", "cannot read the template /no/such.j2: No such file".to_owned()),
    ] {
        if prepare == "folder" {
            fs::create_dir(&dest).expect("a folder");
        }
        let made = scene.crew().presses(&scene.plan(rest), &LEASE, scene.path("state")).await;
        let error = made.map(drop).expect_err(rest).to_string();
        assert!(error.starts_with("target web: ") && error.contains(&expected), "{error}");
        if prepare == "folder" {
            fs::remove_dir(&dest).expect("a folder");
        }
    }
    fs::write(scene.path("blocked"), "").expect("a file");
    let made = scene.crew().presses(&scene.plan(&with_signal()), &LEASE, scene.path("blocked")).await;
    let error = made.map(drop).expect_err("a file is no folder").to_string();
    assert!(error.starts_with("--state-dir is ") && error.contains("expected a folder"), "{error}");
    assert!(!dest.exists());
}

#[tokio::test(start_paused = true)]
async fn a_linked_destination_is_written_through_its_link() {
    let scene = Scene::new();
    scene.put(1).await;
    fs::create_dir(scene.path("real")).expect("a folder");
    symlink("real/workers", scene.path("file")).expect("a link");
    let _consumer = scene.start("format = \"citus-workers\"").await;
    scene.file_has("10.0.0.1 8001").await;
    assert!(fs::symlink_metadata(scene.path("file")).expect("a link").is_symlink());
    assert!(scene.path("real/workers").is_file());
}
