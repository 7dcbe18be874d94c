//! Runs a consumer: wires the store, the roll, the targets and the claim on its name.

use std::{
    io::{ErrorKind, Write},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use rollcall_shared::{
    codec::V1,
    keys::Keys,
    model::{
        claim::Claim,
        consumer::ConsumerRecord,
        name::{ConsumerName, TargetName},
    },
    process::{
        cli::Failure, health, readiness::Readiness, reload, service::ServiceManager, shutdown, telemetry,
        time,
    },
    reflector::Reflector,
    session::LeaseSettings,
    store::{Store, etcd::EtcdStore, memory::MemoryStore},
};
use tokio::sync::watch;
use tracing::Instrument;

use crate::{
    claim::{self, ConsumerClaim},
    config::{ConsumerSettings, Plan, Settings, TargetConfig},
    embedded::{self, Embedded},
    reload::Reloader,
    roll::{
        self, RollDecode, Selection,
        follower::{Follower, FollowerHandle, Selections},
    },
    sink::file::{
        FileSink,
        dry_run::{self, Outcome, Preview},
        notify::{Notify, nodes::NodeReports, requests::RequestWriter},
    },
    state_dir::{StateDir, StateDirError},
    supervisor::Supervisor,
    target::{self, Target},
    targets::{Targets, target_span},
};

/// The name under which the readiness report has the roll.
const ROLL_PART: &str = "roll";
/// How much longer than one attempt to notify may take it is waited for with `--once`.
const ATTEMPT_MARGIN: Duration = Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT, or, with `--once` and `--dry-run`, until it is done.
///
/// # Errors
/// A setting that cannot work, before anything is touched; a store that cannot be read at the start; with `--once` a
/// target that is not as the roll calls for.
pub async fn run(settings: Settings) -> Result<(), Failure> {
    let plan = settings.plan()?;
    let mut reloads = reload::on_signal().map_err(Failure::failed)?;
    let Settings { consumer, target: _, citus: _, etcd, lease, logs: _, agent } = settings.clone();
    let ConsumerSettings { name: _, config: _, state_dir, listen, once, dry_run, wait } = consumer;
    let stop = shutdown::on_signal().map_err(Failure::failed)?;
    let keys = etcd.prefix.clone();
    // A single run does not give up before its own calls do.
    let call_timeout = if once { etcd.dial_timeout + etcd.command_timeout } else { Duration::ZERO };
    let embedded = plan.embedded.then(|| Embedded::new(agent, lease, wait, &plan));
    let store: Arc<dyn Store> = match embedded {
        Some(_) => Arc::new(MemoryStore::new()),
        None => Arc::new(EtcdStore::new(etcd).map_err(Failure::usage)?),
    };
    let mut consumer = Consumer {
        supervisor: Supervisor::new(stop),
        readiness: Readiness::default(),
        store,
        keys,
        lease,
        wait: wait.max(call_timeout),
    };
    let opened =
        if dry_run { None } else { Some(Opened::open(&plan, state_dir, &consumer.readiness).await?) };
    if !once && !dry_run {
        consumer.serve(listen).await?;
    }
    if let Some(embedded) = embedded {
        consumer.embed(embedded).await?;
    }
    let remembered = opened.as_ref().filter(|_| !plan.embedded).map(|opened| opened.state.clone());
    let result = match (consumer.follow(&plan.targets, remembered).await?, opened) {
        // Asked to stop before there was anything to do.
        (None, _) => Ok(()),
        (Some((selections, _)), None) => show(&plan.targets, &selections).await,
        (Some((selections, follower)), Some(opened)) => {
            let (targets, at_hand) = consumer.targets(&plan, selections, opened.sinks, &opened.state);
            if once {
                consumer.once(&plan.targets, at_hand).await
            } else {
                let reloader = Reloader::new(settings, plan, opened.state, follower, targets);
                consumer.work(at_hand, reloader, async || reloads.next().await).await
            }
        }
    };
    consumer.supervisor.end().await;
    result
}

/// Shows what would change. Whoever reads it may have seen enough before its end.
async fn show(targets: &[TargetConfig], selections: &[watch::Receiver<Selection>]) -> Result<(), Failure> {
    let (mut failures, mut differs) = (Vec::new(), false);
    for (target, selection) in targets.iter().zip(selections) {
        let Preview { text, outcome } = dry_run::preview(target, selection).await;
        match std::io::stdout().lock().write_all(text.as_bytes()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(Failure::failed(error)),
            _ => {}
        }
        match outcome {
            Ok(outcome) => differs |= outcome == Outcome::Changed,
            Err(error) => failures.push(dry_run::failure(target, &error)),
        }
    }
    match (failures.is_empty(), differs) {
        (false, _) => Err(Failure::failed(failures.join("; "))),
        (true, true) => Err(Failure::Differs),
        (true, false) => Ok(()),
    }
}

/// What is opened before anything starts: the last of what is checked.
struct Opened {
    state: Arc<StateDir>,
    sinks: Vec<FileSink>,
}

impl Opened {
    async fn open(plan: &Plan, state_dir: PathBuf, readiness: &Readiness) -> Result<Self, Failure> {
        let (targets, name, part) = (plan.targets.clone(), plan.consumer.clone(), readiness.part("state"));
        let open = move || {
            targets.iter().try_for_each(FileSink::check)?;
            StateDir::open(&state_dir, &name, part)
        };
        let opened = tokio::task::spawn_blocking(open).await.expect("opening does not panic");
        let state = opened.map(Arc::new).map_err(|error| match error {
            StateDirError::Setting(error) => Failure::usage(error),
            in_use @ StateDirError::InUse { .. } => Failure::failed(in_use),
        })?;
        let sinks = Targets::sinks(state.clone(), plan.targets.clone()).await;
        Ok(Self { state, sinks })
    }
}

/// A consumer at work.
struct Consumer {
    supervisor: Supervisor,
    readiness: Readiness,
    store: Arc<dyn Store>,
    keys: Keys,
    lease: LeaseSettings,
    /// How long the store is waited for at the start, and with `--once` each target's ack.
    wait: Duration,
}

impl Consumer {
    /// Serves health and metrics.
    async fn serve(&mut self, listen: health::Listen) -> Result<(), Failure> {
        let metrics = telemetry::start_metrics().map_err(Failure::failed)?;
        target::describe_metrics();
        roll::describe_metrics();
        let Some(listener) = health::bind(listen).await.map_err(Failure::failed)? else { return Ok(()) };
        let serving = health::serve(listener, self.readiness.clone(), metrics, self.supervisor.stop.clone());
        self.supervisor.spawn_ending("health server", async move { serving.await.map_err(Failure::failed) });
        Ok(())
    }

    /// Starts the embedded agent and waits until it has registered what runs.
    async fn embed(&mut self, embedded: Embedded) -> Result<(), Failure> {
        let (store, keys, readiness) = (self.store.clone(), self.keys.clone(), self.readiness.clone());
        let running = embedded.run(store, keys, readiness.clone(), self.supervisor.agent_stop.clone());
        self.supervisor.spawn_agent(async move { Ok(running.await?) });
        tokio::select! {
            // Neither branch has taken anything when it is dropped.
            () = embedded::registered(&readiness) => Ok(()),
            ended = self.supervisor.watch() => ended,
        }
    }

    /// Follows the roll for the targets, and waits until it was listed. `None` when asked to stop before.
    async fn follow(
        &mut self,
        targets: &[TargetConfig],
        remembered: Option<Arc<StateDir>>,
    ) -> Result<Option<(Selections, FollowerHandle)>, Failure> {
        let part = self.readiness.part(ROLL_PART);
        let decode = RollDecode(self.keys.clone());
        let (reflector, updates) = Reflector::new(self.store.clone(), self.keys.roll(), decode, part);
        let (follower, mut selections, handle) = Follower::new(
            targets,
            self.keys.clone(),
            self.lease.ttl,
            remembered,
            self.readiness.part("retention"),
        );
        let stop = self.supervisor.stop.clone();
        self.supervisor.spawn_ending("follower of the roll", async move {
            tokio::select! {
                // In one task, so that a change is handed on without another one being woken.
                biased;
                () = reflector.run() => {}
                () = follower.run(updates, stop) => {}
            }
            Ok(())
        });
        let listed = async {
            for selection in &mut selections {
                if selection.wait_for(Selection::is_listed).await.is_err() {
                    return;
                }
            }
        };
        let is_late = tokio::select! {
            // Neither branch has taken anything when it is dropped.
            listed = tokio::time::timeout(self.wait, listed) => listed.is_err(),
            ended = self.supervisor.watch() => return ended.map(|()| None),
        };
        if is_late {
            let conditions = self.readiness.conditions();
            let reason = conditions.reason(ROLL_PART).unwrap_or_default();
            let waited = time::show(self.wait);
            return Err(Failure::failed(format!(
                "the roll could not be read within --wait ({waited}): {reason}"
            )));
        }
        selections.iter_mut().for_each(watch::Receiver::mark_changed);
        Ok(Some((selections, handle)))
    }

    /// The targets, opened, and the claim under which they are notified.
    fn targets(
        &mut self,
        plan: &Plan,
        selections: Selections,
        sinks: Vec<FileSink>,
        state: &Arc<StateDir>,
    ) -> (Targets, Vec<Target>) {
        let (store, keys, name) = (self.store.clone(), self.keys.clone(), plan.consumer.clone());
        let reports = NodeReports::new(store, keys, name, self.readiness.clone());
        let claim = Claim::new(state.id().to_owned(), self.lease.ttl.as_secs());
        let record = ConsumerRecord { v: V1, claim, targets: Default::default() };
        let stop = self.supervisor.stop.clone();
        let mut targets = Targets::new(stop, reports, record, self.readiness.clone());
        targets.declare(&plan.targets);
        let each = plan.targets.iter().cloned().zip(sinks).zip(selections);
        let open = |((config, sink), selection)| targets.open(&mut self.supervisor, config, sink, selection);
        let at_hand = each.map(open).collect();
        self.claim(plan.consumer.clone(), &targets, state.clone());
        (targets, at_hand)
    }

    /// Claims the consumer's name, and keeps its requests in the store.
    fn claim(&mut self, consumer: ConsumerName, targets: &Targets, state: Arc<StateDir>) {
        let (store, keys, part) = (self.store.clone(), self.keys.clone(), self.readiness.part("requests"));
        let requests =
            RequestWriter::new(store.clone(), keys.clone(), consumer.clone(), targets.requests(), part);
        let span = tracing::info_span!("session", %consumer);
        let (lease, readiness, record) = (self.lease, self.readiness.clone(), targets.record());
        let claim = ConsumerClaim { store, keys, consumer, record, lease, readiness, requests };
        let stop = self.supervisor.stop.clone();
        self.supervisor.spawn_ending("session", async move {
            // The state folder stays locked for as long as the name is claimed.
            let _state = state;
            claim.run(stop).instrument(span).await.map_err(Failure::failed)
        });
    }

    /// Has the targets at work until the process is asked to stop, and reads the settings anew when asked to.
    async fn work(
        &mut self,
        targets: Vec<Target>,
        mut reloader: Reloader,
        mut reload_asked: impl AsyncFnMut(),
    ) -> Result<(), Failure> {
        targets.into_iter().for_each(|target| reloader.targets.start(&mut self.supervisor, target));
        let service = ServiceManager::from_env();
        service.ready();
        let (readiness, stop) = (self.readiness.clone(), self.supervisor.stop.clone());
        self.supervisor.spawn_background("service manager's watch", service.run(readiness, stop));
        let part = self.readiness.part("configuration");
        part.ready();
        loop {
            tokio::select! {
                // No branch has taken anything when it is dropped.
                ended = self.supervisor.watch() => return ended,
                arrived = reloader.targets.next() => {
                    reloader.targets.begin(&mut self.supervisor, arrived);
                    continue;
                }
                () = reload_asked() => tracing::info!("asked to read the settings anew"),
            }
            service.reloading();
            tokio::select! {
                // What is dropped half way through ends with the process.
                ended = self.supervisor.watch() => return ended,
                reloaded = reloader.reload() => match reloaded {
                    Ok(()) => part.ready(),
                    Err(refused) => part.noted(format!("a reload was refused, the old settings stay: {refused}")),
                },
            }
            service.ready();
        }
    }

    /// Has each target at work once; gives every failure, after all of them.
    async fn once(&mut self, configs: &[TargetConfig], mut targets: Vec<Target>) -> Result<(), Failure> {
        let mut failures = Vec::new();
        // They are kept until the end: a notifier ends with its target, which counts as unasked.
        for (config, target) in configs.iter().zip(&mut targets) {
            let (name, span) = (&config.name, target_span(&config.name));
            let attempt = config.file.notify.as_ref().and_then(Notify::timeout).unwrap_or_default();
            let done = tokio::select! {
                // A target that is dropped half way through is as after a crash.
                done = target.once(self.wait.max(attempt + ATTEMPT_MARGIN)).instrument(span) => done,
                ended = self.supervisor.watch() => {
                    let stopped = Failure::failed(format!("target {name}: asked to stop before it was done"));
                    return ended.and(Err(stopped));
                }
            };
            if let Err(error) = done {
                failures.push(format!("target {name}: {error}{}", self.reasons(name)));
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(Failure::failed(failures.join("; "))) }
    }

    /// Why a target's notification may not have been acked.
    fn reasons(&self, target: &TargetName) -> String {
        let (conditions, notify) = (self.readiness.conditions(), format!("notify {target}"));
        let parts = [claim::PART, "requests", "receivers", &notify];
        parts.iter().filter_map(|part| conditions.reason(part)).map(|reason| format!(": {reason}")).collect()
    }
}

#[cfg(test)]
mod tests;
