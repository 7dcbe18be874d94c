//! Runs an agent: wires its rooms, in the order in which the data flows.

use std::{sync::Arc, time::Duration};

use rollcall_shared::{
    codec::V1,
    keys::{Key, Keys},
    model::{claim::Claim, node::NodeRecord},
    process::{backoff::Backoff, readiness::Readiness},
    reflector::Reflector,
    session::{Keeper, KeeperError, LeaseSettings, OnExit, keeper::SessionHandle},
    store::Store,
};
use tokio::{sync::Notify, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    Error, Settings,
    checks::{
        self, Prober,
        probe::{Probe, Sockets},
        prober::Exchange,
    },
    docker::{Docker, Engine},
    exec::{ExecSettings, checks::DecodeCheck},
    inventory::{Watcher, watcher::InventoryReceiver},
    layout::LayoutSettings,
    registration::{
        self, Policy, Registrar,
        address::Readers,
        advertise,
        finder::AddressFinder,
        observed::{Kind, LayoutUpdates},
        reporter::OmissionReporter,
    },
    signals::{
        self, Dispatcher, SignalSettings,
        decode::{DecodeConsumer, DecodeRequest},
        dispatcher::{Host, ReportsReceiver},
    },
};

/// An agent of one Docker host.
#[derive(Debug)]
pub struct Agent {
    /// What it is told.
    pub settings: Settings,
    /// Its lease.
    pub lease: LeaseSettings,
    /// How long it waits for Docker and the store at the start.
    pub wait: Duration,
    /// What becomes of its registrations at the end.
    pub on_exit: OnExit,
    /// Where it registers.
    pub store: Arc<dyn Store>,
    /// The store's keys.
    pub keys: Keys,
    /// Who reads the store.
    pub readers: Readers,
    /// Where it reports how it fares.
    pub readiness: Readiness,
    /// What it writes beside Rollcall's own keys.
    pub layouts: LayoutSettings,
    /// Whether it signals only the containers that `--container` names: others may have an agent of their own.
    pub is_confined: bool,
    /// Asks for a list of Docker's containers at once, instead of at the next refresh.
    pub relist: Arc<Notify>,
}

impl Agent {
    /// Runs until it is asked to stop.
    ///
    /// # Errors
    /// Settings that cannot work, and Docker or the store out of reach at the start. Later it tries again and says so
    /// in its readiness; only a name that belongs to another agent ends it.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let (policy, finder) = self.policy()?;
        let startup = Startup { deadline: Instant::now() + self.wait, stop };
        let connect = || async { Ok(Docker::connect(&self.settings.docker).await?) };
        match startup.attempt(connect).await? {
            Some(docker) => {
                let probe = Sockets::new(self.settings.docker.docker_host.as_deref());
                self.run_on(Arc::new(docker), Arc::new(probe), policy, finder, startup).await
            }
            None => Ok(()),
        }
    }

    /// What the settings say, and the finder of what depends on the host's network.
    fn policy(&self) -> Result<(Policy, AddressFinder), Error> {
        let (wanted, readers) = (self.settings.node.advertise.clone(), self.readers.clone());
        let search = move || advertise::find(&wanted, &readers);
        let (finder, addresses) = AddressFinder::new(search, &self.readiness);
        let Settings { node, filter, checks, .. } = &self.settings;
        let policy = Policy::new(node, filter, *checks, &self.readers, addresses, &self.layouts)?;
        Ok((policy, finder))
    }

    /// Runs on an engine that is connected to.
    async fn run_on(
        self,
        engine: Arc<dyn Engine>,
        probe: Arc<dyn Probe>,
        policy: Policy,
        finder: AddressFinder,
        startup: Startup,
    ) -> Result<(), Error> {
        let span = tracing::info_span!("node", name = %policy.node);
        self.work(engine, probe, policy, finder, startup).instrument(span).await
    }

    async fn work(
        self,
        engine: Arc<dyn Engine>,
        probe: Arc<dyn Probe>,
        policy: Policy,
        finder: AddressFinder,
        startup: Startup,
    ) -> Result<(), Error> {
        crate::describe_metrics();
        let key = self.keys.format(&Key::Node(policy.node.clone()));
        let id = startup.attempt(|| async { Ok(engine.id().await?) });
        let Some(engine_id) = id.await? else { return Ok(()) };
        // A store that cannot be reached now is likely a wrong setting.
        let own = self.keys.instances_of(&policy.node);
        let found = startup.attempt(|| async { Ok(self.store.list(&own).await?) });
        let Some(found) = found.await? else { return Ok(()) };
        let draining = registration::left_behind::draining(&found.entries);
        let (prober, checks) = Prober::new(probe, checks::verdict::left_behind(&found.entries, &self.keys));
        // Before anything is described: a predecessor's registrations stay as they are.
        let looked = startup.attempt(|| async { Ok(finder.look().await) });
        let Some(is_complete) = looked.await? else { return Ok(()) };

        // The address may change, and the instances say it.
        let claim = Claim::new(engine_id, self.lease.ttl.as_secs());
        let record = NodeRecord { v: V1, claim };
        let name = (policy.node.to_string(), key);
        let (keeper, sessions) =
            Keeper::new(self.store.clone(), name, record, self.lease, self.on_exit, &self.readiness);
        let (grace, refresh) = (self.settings.docker.docker_grace, self.lease.refresh);
        let relist = self.relist;
        let (watcher, inventory) =
            Watcher::new(engine.clone(), draining, refresh, grace, relist, &self.readiness);
        let mut tasks = Tasks::default();
        tasks.spawn("address finder", finder.run(is_complete, refresh, watcher.notifier()));
        tasks.spawn("watcher", watcher.run());
        tasks.spawn("prober", prober.run());
        let containers = if self.is_confined { self.settings.filter.containers.clone() } else { Vec::new() };
        let node = policy.node.clone();
        let host = Host { engine, store: self.store, keys: self.keys, node, containers };
        let wiring = Wiring { host, readiness: self.readiness, sessions, inventory };
        let reports = wiring.dispatch(self.settings.signals, self.settings.exec, &mut tasks);
        wiring.register(policy, reports, checks, &mut tasks);
        tokio::select! {
            // The keeper ends by the token, in bounded time. Nothing else goes on meanwhile.
            kept = keeper.run(startup.stop.clone()) => kept.map_err(|error| match error {
                KeeperError::Twin { .. } if self.is_confined => Error::TwinBeside(error),
                error => Error::Claim(error),
            }),
            ended = tasks.ended(&startup.stop) => Err(Error::Ended(ended)),
        }
    }
}

/// What the rooms share.
struct Wiring {
    host: Host,
    readiness: Readiness,
    sessions: SessionHandle,
    inventory: InventoryReceiver,
}

impl Wiring {
    /// Spawns the dispatcher; gives what it wants registered.
    fn dispatch(&self, settings: SignalSettings, exec: ExecSettings, tasks: &mut Tasks) -> ReportsReceiver {
        let Host { store, keys, node, engine: _, containers: _ } = &self.host;
        let part = self.readiness.part("consumers");
        let decode = DecodeConsumer(keys.clone());
        let (consumer_reflector, consumers) = Reflector::new(store.clone(), keys.consumers(), decode, part);
        let part = self.readiness.part("signal requests");
        let decode = DecodeRequest(keys.clone());
        let (request_reflector, requests) =
            Reflector::new(store.clone(), keys.signals_to(node), decode, part);
        let part = self.readiness.part("check requests");
        let decode = DecodeCheck(keys.clone());
        let (check_reflector, checks) = Reflector::new(store.clone(), keys.checks_of(node), decode, part);
        let (sessions, inventory) = (self.sessions.clone(), self.inventory.clone());
        let inputs = signals::dispatcher::Inputs { sessions, inventory, consumers, requests, checks };
        let (dispatcher, reports) =
            Dispatcher::new(self.host.clone(), settings, exec, inputs, &self.readiness);
        tasks.spawn("dispatcher", async move {
            tokio::select! {
                // In one task, so that a request is handed on without waking another. None of them ends by itself.
                biased;
                () = request_reflector.run() => {}
                () = consumer_reflector.run() => {}
                () = check_reflector.run() => {}
                () = dispatcher.run() => {}
            }
        });
        reports
    }

    /// Spawns the registrar.
    fn register(self, policy: Policy, reports: ReportsReceiver, checks: Exchange, tasks: &mut Tasks) {
        let Host { store, keys, node, engine: _, containers: _ } = self.host;
        let layouts = &policy.layouts;
        let mut observe = |kind: Kind| {
            let (reflector, updates) = kind.reflector(store.clone(), &keys, &node, layouts, &self.readiness);
            tasks.spawn("reflector of its own keys", reflector.run());
            updates
        };
        let inputs = registration::registrar::Inputs {
            acks: observe(Kind::Acks),
            instances: observe(Kind::Instances),
            receivers: observe(Kind::Receivers),
            verdicts: observe(Kind::Verdicts),
            layouts: LayoutUpdates(
                layouts.layouts().into_iter().map(Kind::Layout).map(|kind| (kind, observe(kind))).collect(),
            ),
            sessions: self.sessions,
            inventory: self.inventory,
            checks,
            reports,
        };
        let reporter = OmissionReporter::new(policy.clone(), inputs.inventory.clone(), &self.readiness);
        tasks.spawn("reporter of what is left out", reporter.run());
        let registrar = Registrar::new(store, &keys, policy, inputs, &self.readiness);
        tasks.spawn("registrar", registrar.run());
    }
}

/// The tasks of an agent, which run until they are dropped.
#[derive(Debug, Default)]
struct Tasks(JoinSet<&'static str>);

impl Tasks {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let named = async move {
            task.await;
            name
        };
        self.0.spawn(named.in_current_span());
    }

    /// Waits until one has ended by itself, which none should; gives its name. Ends them all when asked to stop.
    async fn ended(&mut self, stop: &CancellationToken) -> &'static str {
        tokio::select! {
            // Neither branch has taken anything when it is dropped.
            biased;
            () = stop.cancelled() => {}
            Some(ended) = self.0.join_next() => return ended.unwrap_or("task that panicked"),
        }
        self.0.shutdown().await;
        std::future::pending().await
    }
}

/// The start: what is not there when a host boots may be there in a moment.
struct Startup {
    /// Until when it is waited for.
    deadline: Instant,
    stop: CancellationToken,
}

impl Startup {
    /// Tries until it works or the deadline has passed; gives `None` when asked to stop before.
    async fn attempt<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<Option<T>, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let mut tries = async || {
            loop {
                match attempt().await {
                    Err(error) if error.is_worth_a_retry() && Instant::now() < self.deadline => {
                        let again = Instant::now() + backoff.next_delay();
                        tokio::time::sleep_until(again.min(self.deadline)).await;
                    }
                    tried => return tried,
                }
            }
        };
        tokio::select! {
            // What is dropped has only asked.
            biased;
            () = self.stop.cancelled() => Ok(None),
            tried = tries() => tried.map(Some),
        }
    }
}

#[cfg(test)]
mod tests;
