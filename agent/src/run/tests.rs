//! The agent as a whole, on the memory store, a scripted engine and a paused clock.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    task::Poll,
};

use async_trait::async_trait;
use clap::Parser;
use futures_util::{FutureExt, StreamExt, poll, stream};
use jiff::{SignedDuration, Timestamp};
use rollcall_shared::{
    codec,
    model::{
        instance::{Instance, Status},
        name::TargetId,
        signal::{Acks, Delivery, Incarnation, Receivers},
    },
    process::readiness::Condition,
    store::{
        Change, Entry, Guard, KeyRange, LeaseId, Mark, Op, Pages, Position, Recoveries, Revision, StoreError,
        Watch, memory::MemoryStore,
    },
};
use tokio::{sync::watch, task::JoinHandle};

use super::*;
use crate::{
    checks::testing::{Answers, ScriptedPorts},
    docker::testing::{Call, ScriptedEngine},
    inventory::container::{Action, Binding, Container, testing::container},
    registration::advertise::{Advertised, Found},
};

mod checking;
mod executing;
mod layouts;
mod registering;
mod signalling;
mod stopping;

const LEASE: LeaseSettings = LeaseSettings { ttl: Duration::from_secs(60), refresh: Duration::from_secs(30) };
/// How long nothing but a timer takes.
const AT_ONCE: Duration = Duration::from_millis(1);

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
}

/// An agent that runs. Dropping it is a crash.
struct Running {
    relist: Arc<Notify>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
    readiness: Readiness,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    fn start(store: impl Store, engine: &ScriptedEngine) -> Self {
        Self::start_with(store, engine, OnExit::Revoke)
    }

    fn start_with(store: impl Store, engine: &ScriptedEngine, on_exit: OnExit) -> Self {
        let agent = Self::agent(store, on_exit);
        let (policy, finder) = agent.policy().expect("it can work");
        Self::spawn(agent, engine, policy, finder)
    }

    fn agent(store: impl Store, on_exit: OnExit) -> Agent {
        let settings = Flags::parse_from(["agent", "--node", "h1", "--advertise", "10.0.0.5"]).settings;
        Agent {
            settings,
            lease: LEASE,
            wait: Duration::from_secs(10),
            on_exit,
            store: Arc::new(store),
            keys: keys(),
            readers: Readers::ThisHost,
            readiness: Readiness::default(),
            layouts: LayoutSettings::default(),
            is_confined: false,
            relist: Arc::default(),
        }
    }

    /// Starts one that finds the host's addresses like this.
    fn start_on(
        store: impl Store,
        engine: &ScriptedEngine,
        search: impl Fn() -> Found + Send + Sync + 'static,
    ) -> Self {
        let agent = Self::agent(store, OnExit::Revoke);
        let (finder, addresses) = AddressFinder::new(search, &agent.readiness);
        let Settings { node, filter, checks, .. } = &agent.settings;
        let policy = Policy::new(node, filter, *checks, &agent.readers, addresses, &agent.layouts)
            .expect("it can work");
        Self::spawn(agent, engine, policy, finder)
    }

    fn spawn(agent: Agent, engine: &ScriptedEngine, policy: Policy, finder: AddressFinder) -> Self {
        Self::spawn_with(agent, engine, ScriptedPorts::default(), policy, finder)
    }

    fn spawn_with(
        agent: Agent,
        engine: &ScriptedEngine,
        ports: ScriptedPorts,
        policy: Policy,
        finder: AddressFinder,
    ) -> Self {
        let (stop, readiness) = (CancellationToken::new(), agent.readiness.clone());
        let relist = agent.relist.clone();
        let startup = Startup { deadline: Instant::now() + agent.wait, stop: stop.clone() };
        let running = agent.run_on(Arc::new(engine.clone()), Arc::new(ports), policy, finder, startup);
        Self { relist, stop, task: tokio::spawn(running), readiness }
    }

    async fn end(&mut self) -> Result<(), Error> {
        (&mut self.task).await.expect("it does not panic")
    }

    /// Asks it to stop; gives how long it took.
    async fn stop(mut self) -> Duration {
        let asked = Instant::now();
        self.stop.cancel();
        self.end().await.expect("it ends in order");
        asked.elapsed()
    }

    fn condition(&self, part: &str) -> Condition {
        self.readiness.conditions().get(part).cloned().expect("there is such a part")
    }
}

/// A store that may hang and fail where the other one does not.
#[derive(Debug, Clone)]
struct GatedStore {
    store: MemoryStore,
    gates: watch::Sender<Gates>,
    /// Whether a watch of a node's record tells nothing.
    is_claim_silent: bool,
    /// How many commits of instances were tried.
    commits: Arc<AtomicUsize>,
    /// How many times a lease was kept alive.
    keep_alives: Arc<AtomicUsize>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Gates {
    grant: Gate,
    /// Of commits that write instances.
    commit: Gate,
    /// Of listings of the consumers' records.
    consumers: Gate,
    /// Which puts are refused.
    refused: Refused,
}

/// Which puts of instances a store refuses, and as what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Refused {
    #[default]
    Nothing,
    /// Those with this text, as too large.
    TooLarge(&'static str),
    /// All, as there is no space left.
    NoSpace,
}

impl Refused {
    fn check(self, ops: &[Op]) -> Result<(), StoreError> {
        let (place, put) = ("the gate".to_owned(), |needle: &str| {
            ops.iter().any(|op| match op {
                Op::Put { value, .. } => String::from_utf8_lossy(value).contains(needle),
                Op::Delete { .. } => false,
            })
        });
        match self {
            Refused::TooLarge(needle) if put(needle) => {
                Err(StoreError::TooLarge { place, message: "request is too large".to_owned() })
            }
            Refused::NoSpace if put("") => {
                Err(StoreError::Refused { place, message: "database space exceeded".to_owned() })
            }
            _ => Ok(()),
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Gate {
    #[default]
    Open,
    Hangs,
    Fails,
}

impl GatedStore {
    fn new(store: &MemoryStore) -> Self {
        let (store, gates) = (store.clone(), watch::Sender::default());
        Self { store, gates, is_claim_silent: false, commits: Arc::default(), keep_alives: Arc::default() }
    }

    fn refuse(&self, refused: Refused) {
        self.gates.send_modify(|gates| gates.refused = refused);
    }

    fn set_grant(&self, gate: Gate) {
        self.gates.send_modify(|gates| gates.grant = gate);
    }

    fn set_commit(&self, gate: Gate) {
        self.gates.send_modify(|gates| gates.commit = gate);
    }

    fn set_consumers(&self, gate: Gate) {
        self.gates.send_modify(|gates| gates.consumers = gate);
    }

    async fn pass(&self, gate: impl Fn(&Gates) -> Gate) -> Result<(), StoreError> {
        let mut gates = self.gates.subscribe();
        let passed =
            gates.wait_for(|gates| gate(gates) != Gate::Hangs).await.expect("it lives as long as self");
        match gate(&passed) {
            Gate::Open | Gate::Hangs => Ok(()),
            Gate::Fails => {
                Err(StoreError::Unavailable { place: "the gate".to_owned(), source: "it is shut".into() })
            }
        }
    }
}

#[async_trait]
impl Store for GatedStore {
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.pass(|gates| gates.grant).await?;
        self.store.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.keep_alives.fetch_add(1, Ordering::Relaxed);
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke(lease).await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn commit(
        &self,
        ops: &[Op],
        lease: Option<LeaseId>,
        guard: Option<&Guard>,
    ) -> Result<Vec<Revision>, StoreError> {
        if ops.iter().any(|op| instances().contains(op.key())) {
            self.commits.fetch_add(1, Ordering::Relaxed);
            self.pass(|gates| gates.commit).await?;
            let refused = self.gates.borrow().refused;
            refused.check(ops)?;
        }
        self.store.commit(ops, lease, guard).await
    }

    fn pages<'a>(&'a self, range: &'a KeyRange) -> Pages<'a> {
        if *range != keys().consumers() {
            return self.store.pages(range);
        }
        let passed = async move {
            // A listing that fails is not what is tested here.
            let _ = self.pass(|gates| gates.consumers).await;
            self.store.pages(range)
        };
        passed.flatten_stream().boxed()
    }

    async fn watch(&self, range: &KeyRange, after: Position) -> Result<Watch, StoreError> {
        if self.is_claim_silent && range.contains("/rollcall/nodes/h1") {
            return Ok(stream::pending().boxed());
        }
        self.store.watch(range, after).await
    }

    async fn confirm(&self, mark: &Mark) -> Result<(), StoreError> {
        self.store.confirm(mark).await
    }

    fn recoveries(&self) -> Recoveries {
        self.store.recoveries()
    }
}

fn keys() -> Keys {
    "/rollcall".parse().expect("a prefix")
}

fn instances() -> KeyRange {
    keys().instances_of(&"h1".parse().expect("a name"))
}

fn engine() -> ScriptedEngine {
    ScriptedEngine::new("THE:ENGINE")
}

/// A container that publishes a port.
fn web(name: &str) -> Container {
    let (to, ip) = ("80".parse().expect("a port"), "0.0.0.0".parse().expect("an address"));
    Container { bindings: vec![Binding { to, ip, port: 8080 }], ..container(name) }
}

/// Lets everything happen that is due within this time.
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

async fn entries(store: &MemoryStore, range: &KeyRange) -> Vec<Entry> {
    store.list(range).await.expect("the store is up").entries
}

async fn registered_instances(store: &MemoryStore) -> Vec<Instance> {
    let entries = entries(store, &instances()).await;
    entries.iter().map(|entry| codec::decode(&entry.value).expect("an instance")).collect()
}

/// The names of the containers that are registered.
async fn registered(store: &MemoryStore) -> Vec<String> {
    let mut names: Vec<String> =
        registered_instances(store).await.iter().map(|instance| instance.container.to_string()).collect();
    names.sort();
    names
}

/// A watch of a range, from now on.
async fn watch(store: &MemoryStore, range: &KeyRange) -> Watch {
    let position = store.list(range).await.expect("the store is up").position;
    store.watch(range, position).await.expect("the store is up")
}

/// Whether a watch has nothing to tell.
async fn is_quiet(watch: &mut Watch) -> bool {
    matches!(poll!(watch.next()), Poll::Pending)
}
