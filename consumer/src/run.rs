//! Runs a consumer: wires the store, the roll, the targets and the claim on its name.

use std::{
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rollcall_shared::{
    codec::V1,
    keys::Keys,
    model::{
        claim::Claim,
        consumer::{ConsumerHome, ConsumerRecord},
        name::{ConsumerName, ContainerId},
    },
    process::{
        cli::Failure,
        error::one_line,
        health::{self, Explainer, Listen},
        readiness::Readiness,
        reload,
        service::ServiceManager,
        setting::SettingError,
        shutdown, telemetry, time,
    },
    reflector::Reflector,
    session::LeaseSettings,
    store::{Store, etcd::EtcdStore, memory::MemoryStore},
};
use tokio::sync::watch;
use tracing::Instrument;

use crate::{
    answers,
    claim::{self, ConsumerClaim},
    config::{ConsumerSettings, Plan, Settings, TargetConfig},
    embedded::{self, Embedded},
    home::{self, OwnStack},
    reload::Reloader,
    roll::{
        self, RollDecode, Selection,
        follower::{Follower, FollowerHandle, Selections},
    },
    sink::{
        self,
        file::notify::{Notify, nodes::NodeReports, requests::RequestWriter},
        preview::{self, Outcome, Preview},
    },
    state_dir::{StateDir, StateDirError},
    supervisor::Supervisor,
    target::{self, Target, TargetError, matched::Matched},
    targets::{Published, Targets, target_span},
};

/// The name under which the readiness report has the roll.
const ROLL_PART: &str = "roll";
/// How long an agent may take to tell the consumer's own stack before the readiness report says that it is waited for.
const OWN_STACK_DELAY: Duration = Duration::from_secs(3);
/// What is said then.
const NO_OWN_STACK: &str = "own stack is not known: expected an agent on this host, or --stack NAME";
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
        published: Published::default(),
    };
    let state = match dry_run {
        true => None,
        false => Some(open_state(&plan, state_dir.clone(), &consumer.readiness).await?),
    };
    if !once && !dry_run {
        if settings.consumer.config.is_none() {
            plan.targets.iter().filter(|target| target.is_unnotified()).for_each(warn_unnotified);
        }
        let explainer = embedded.as_ref().map(|embedded| embedded.explainer(consumer.keys.clone()));
        consumer.published.pages.expect(&plan.targets);
        consumer.serve(listen, explainer).await?;
    }
    if let Some(embedded) = embedded {
        consumer.embed(embedded).await?;
    }
    let result = match state {
        None => consumer.dry_run(plan, &state_dir).await,
        Some(state) => consumer.keep(settings, plan, state, once, async || reloads.next().await).await,
    };
    consumer.supervisor.end().await;
    result
}

/// A line of flags without a notifier has most likely forgotten it.
fn warn_unnotified(target: &TargetConfig) {
    tracing::warn!(
        file = %target.sink,
        "nobody is told of a new file: expected --notify-pid-file, --notify-command, --notify-container, \
         --notify-service or --notify-label, unless its reader looks by itself"
    );
}

/// Shows what would change. Whoever reads it may have seen enough before its end.
async fn show(
    targets: &[TargetConfig],
    selections: &[watch::Receiver<Selection>],
    state_dir: &Path,
) -> Result<(), Failure> {
    let (mut failures, mut differs) = (Vec::new(), false);
    for (target, selection) in targets.iter().zip(selections) {
        let has_matched = Matched::is_remembered_in(state_dir, target);
        let Preview { text, outcome } = preview::preview(target, selection, has_matched).await;
        match std::io::stdout().lock().write_all(text.as_bytes()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(Failure::failed(error)),
            _ => {}
        }
        match outcome {
            Ok(outcome) => differs |= outcome == Outcome::Changed,
            Err(error) => failures.push(format!("target {}: {}", target.name, one_line(&*error))),
        }
    }
    match (failures.is_empty(), differs) {
        (false, _) => Err(Failure::failed(failures.join("; "))),
        (true, true) => Err(Failure::Differs),
        (true, false) => Ok(()),
    }
}

/// Checks the targets, and opens the state folder: the last of what is checked before anything starts.
async fn open_state(plan: &Plan, dir: PathBuf, readiness: &Readiness) -> Result<Arc<StateDir>, Failure> {
    let (targets, name, part) = (plan.targets.clone(), plan.consumer.clone(), readiness.part("state"));
    let open = move || {
        targets.iter().try_for_each(sink::check)?;
        StateDir::open(&dir, &name, part)
    };
    let opened = tokio::task::spawn_blocking(open).await.expect("opening does not panic");
    opened.map(Arc::new).map_err(|error| match error {
        StateDirError::Setting(error) => Failure::usage(error),
        in_use @ StateDirError::InUse { .. } => Failure::failed(in_use),
    })
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
    published: Published,
}

impl Consumer {
    /// Shows what would change.
    async fn dry_run(&mut self, plan: Plan, state_dir: &Path) -> Result<(), Failure> {
        if plan.wants_own_stack() && home::own_container().is_some() {
            let expected = "--stack NAME beside --dry-run, which asks no agent for it";
            return Err(SettingError::new("stack", "own", expected).into());
        }
        let plan = plan.with_own_stack(None)?;
        match self.follow(&plan.targets, None).await? {
            Some((selections, _)) => show(&plan.targets, &selections, state_dir).await,
            None => Ok(()),
        }
    }

    /// Keeps the targets, once or until the process is asked to stop.
    async fn keep(
        &mut self,
        settings: Settings,
        plan: Plan,
        state: Arc<StateDir>,
        once: bool,
        reload_asked: impl AsyncFnMut(),
    ) -> Result<(), Failure> {
        let mut targets = self.targets(&plan, &state);
        let wanted = home::own_container().filter(|_| plan.wants_own_stack());
        let own_stack = match wanted {
            Some(container) => {
                match self.ask_own_stack(container, &plan, &mut targets, &state, once).await? {
                    Some(name) => OwnStack::Known(name),
                    None => return Ok(()),
                }
            }
            None => OwnStack::NotAsked,
        };
        let plan = plan.with_own_stack(own_stack.name())?;
        let remembered = (!plan.embedded).then(|| state.clone());
        // None where it was asked to stop before there was anything to do.
        let Some((selections, follower)) = self.follow(&plan.targets, remembered).await? else {
            return Ok(());
        };
        let at_hand = self.open(&plan, &mut targets, selections, &state).await;
        if wanted.is_none() {
            self.claim(plan.consumer.clone(), &targets, state.clone());
        }
        if once {
            return self.once(&plan.targets, at_hand).await;
        }
        let reloader = Reloader::new(settings, plan, own_stack, state, follower, targets);
        self.work(at_hand, reloader, reload_asked).await
    }

    /// Asks the agent of this host which stack the consumer's own container belongs to. Until it has answered, nothing
    /// is installed and nobody is signalled. `None` when asked to stop before.
    async fn ask_own_stack(
        &mut self,
        container: ContainerId,
        plan: &Plan,
        targets: &mut Targets,
        state: &Arc<StateDir>,
        once: bool,
    ) -> Result<Option<Option<String>>, Failure> {
        let part = self.readiness.part("own stack");
        targets.ask_home(container);
        self.claim(plan.consumer.clone(), targets, state.clone());
        let mut home = targets.home(&mut self.supervisor);
        let is_it =
            |home: &Option<ConsumerHome>| home.as_ref().is_some_and(|home| home.container == container);
        let reminder = if once { self.wait } else { OWN_STACK_DELAY };
        let answered = async {
            match tokio::time::timeout(reminder, home.wait_for(is_it)).await {
                Ok(answered) => return answered.ok().and_then(|home| home.clone()),
                Err(_) if once => return None,
                Err(_) => part.waiting(NO_OWN_STACK),
            }
            home.wait_for(is_it).await.ok().and_then(|home| home.clone())
        };
        tokio::select! {
            // Neither branch has taken anything when it is dropped.
            home = answered => match home {
                Some(ConsumerHome { stack, .. }) => {
                    let stack_name = stack.as_deref().unwrap_or("none");
                    tracing::info!(stack = stack_name, "this container's own stack is known");
                    Ok(Some(stack))
                }
                None => Err(Failure::failed(NO_OWN_STACK)),
            },
            ended = self.supervisor.watch() => ended.map(|()| None),
        }
    }

    /// Serves health and metrics.
    async fn serve(&mut self, listen: Listen, explainer: Option<Explainer>) -> Result<(), Failure> {
        let metrics = telemetry::start_metrics().map_err(Failure::failed)?;
        target::describe_metrics();
        roll::describe_metrics();
        let Some(listener) = health::bind(listen).await.map_err(Failure::failed)? else { return Ok(()) };
        let (readiness, stop) = (self.readiness.clone(), self.supervisor.stop.clone());
        let Published { board, pages } = self.published.clone();
        let routes = answers::routes(board, pages);
        let routes = routes.merge(explainer.map(health::explaining).unwrap_or_default());
        let serving = health::serve(listener, readiness, metrics, routes, stop);
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
            ended = self.supervisor.watch() => ended.map_err(embedded::failure),
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

    /// No targets yet, and what the consumer says of itself.
    fn targets(&self, plan: &Plan, state: &Arc<StateDir>) -> Targets {
        let (store, keys, name) = (self.store.clone(), self.keys.clone(), plan.consumer.clone());
        let reports = NodeReports::new(store, keys, name, self.readiness.clone());
        let claim = Claim::new(state.id().to_owned(), self.lease.ttl.as_secs());
        let record = ConsumerRecord { v: V1, claim, container: None, targets: Default::default() };
        let stop = self.supervisor.stop.clone();
        Targets::new(stop, reports, record, self.readiness.clone(), self.published.clone())
    }

    /// Opens the targets of the plan.
    async fn open(
        &mut self,
        plan: &Plan,
        targets: &mut Targets,
        selections: Selections,
        state: &Arc<StateDir>,
    ) -> Vec<Target> {
        let sinks = targets.sinks(state.clone(), plan.targets.clone()).await;
        targets.declare(&plan.targets);
        let each = plan.targets.iter().cloned().zip(sinks).zip(selections);
        let open = |((config, sink), selection)| targets.open(&mut self.supervisor, config, sink, selection);
        each.map(open).collect()
    }

    /// Claims the consumer's name, and keeps its requests in the store.
    fn claim(&mut self, consumer: ConsumerName, targets: &Targets, state: Arc<StateDir>) {
        let (store, keys, part) = (self.store.clone(), self.keys.clone(), self.readiness.part("requests"));
        let requests =
            RequestWriter::new(store.clone(), keys.clone(), consumer.clone(), targets.requested(), part);
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
            let attempt = config.sink.notify().and_then(Notify::timeout).unwrap_or_default();
            let done = tokio::select! {
                // A target that is dropped half way through is as after a crash.
                done = target.once(self.wait.max(attempt + ATTEMPT_MARGIN)).instrument(span) => done,
                ended = self.supervisor.watch() => {
                    let stopped = Failure::failed(format!("target {name}: asked to stop before it was done"));
                    return ended.and(Err(stopped));
                }
            };
            if let Err(error) = done {
                let reasons = match &error {
                    TargetError::NotAcked { .. } => self.reasons(config),
                    TargetError::NotApplied(_) | TargetError::Ended => String::new(),
                };
                failures.push(format!("target {name}: {error}{reasons}"));
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(Failure::failed(failures.join("; "))) }
    }

    /// Why a target's notification may not have been acked.
    fn reasons(&self, config: &TargetConfig) -> String {
        let notifier = config.sink.shared().unwrap_or(&config.name);
        let (conditions, notify) = (self.readiness.conditions(), format!("notify {notifier}"));
        let target = format!("target {}", config.name);
        let parts = [claim::PART, "requests", "receivers", &notify, &target];
        parts.iter().filter_map(|part| conditions.reason(part)).map(|reason| format!(": {reason}")).collect()
    }
}

#[cfg(test)]
mod tests;
