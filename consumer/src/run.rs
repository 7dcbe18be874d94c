//! Runs a consumer: wires the store, the roll, the targets and their couriers, and ends them together.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use rollcall_agent::{Life, OnExit};
use rollcall_shared::{
    cli::Failure,
    health::{self, Health},
    key::Keys,
    record::{self, ConsumerRecord, LeaseSettings},
    reflector::{Reflector, Update},
    shutdown,
    store::{Store, etcd::EtcdStore, memory::MemoryStore},
    telemetry,
    wire::V1,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    condition::Condition,
    config::{Notify, TargetSettings},
    dry_run,
    embedded::{self, Embedded},
    guard::GuardSettings,
    notify::{
        Courier, Notifier,
        acks::AckBook,
        command::CommandNotifier,
        process::ProcessNotifier,
        requests::Requests,
        signal::{SignalNotifier, Standing},
    },
    press::Press,
    roll::{self, Roll},
    select::Selection,
    settings::{ConsumerSettings, Plan, Settings, host_name},
    target::{Line, Target},
};

/// The health report's line of the store.
const STORE_PART: &str = "store";
/// How long the tasks may take to end when they are asked to.
const FAREWELL: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT, or, with `--once` and `--dry-run`, until it is done.
///
/// # Errors
/// A sentence for the user; what it says of a setting comes before anything was touched.
pub async fn run(settings: Settings) -> Result<(), Failure> {
    let plan = settings.plan().map_err(Failure::Usage)?;
    let Settings { consumer, target: _, citus: _, etcd, lease, logs: _, agent } = settings;
    let ConsumerSettings { name: _, config: _, state_dir, listen, once, dry_run, wait } = consumer;
    let stop = shutdown::on_signal().map_err(|error| failed(format!("cannot take signals: {error}")))?;
    let keys = etcd.prefix.clone();
    let life = Life { wait, lease, on_exit: OnExit::Revoke };
    let embedded = plan.embedded.then(|| Embedded::new(agent, life, &plan));
    let store: Arc<dyn Store> = match embedded {
        Some(_) => Arc::new(MemoryStore::new()),
        None => Arc::new(EtcdStore::new(etcd).map_err(|error| Failure::Usage(error.to_string()))?),
    };
    let mut crew = Crew {
        ending: JoinSet::new(),
        attending: JoinSet::new(),
        agent: JoinSet::new(),
        health: Health::default(),
        stop,
        agent_stop: CancellationToken::new(),
        store,
        keys,
    };
    let presses = if dry_run { vec![] } else { crew.presses(&plan, &lease, state_dir).await? };
    if !once && !dry_run {
        crew.serve(listen).await?;
    }
    if let Some(embedded) = embedded {
        crew.embed(embedded).await?;
    }
    let result = match crew.follow(&plan.targets, wait).await? {
        // Asked to stop before there was anything to do.
        None => Ok(()),
        Some(selections) if dry_run => show(&plan.targets, &selections),
        Some(selections) => {
            let targets = crew.man(&plan, &lease, selections, presses);
            if once { crew.work_once(targets, wait).await } else { crew.work(targets).await }
        }
    };
    crew.end().await;
    result
}

fn show(targets: &[TargetSettings], selections: &[watch::Receiver<Selection>]) -> Result<(), Failure> {
    for (target, selection) in targets.iter().zip(selections) {
        print!("{}", dry_run::diff(target, &selection.borrow()).map_err(failed)?);
    }
    Ok(())
}

fn failed(reason: impl ToString) -> Failure {
    Failure::Failed(reason.to_string())
}

/// Tasks that run until they are stopped; one that ends before that ends them all.
type Tasks = JoinSet<Result<&'static str, Failure>>;

/// The tasks that run beside each other, and what they share.
struct Crew {
    /// What ends by itself when it is asked to stop.
    ending: Tasks,
    /// What is dropped at the end.
    attending: Tasks,
    /// The embedded agent, which ends last: its registrations go with it, and no target may see that.
    agent: Tasks,
    health: Health,
    stop: CancellationToken,
    agent_stop: CancellationToken,
    store: Arc<dyn Store>,
    keys: Keys,
}

impl Crew {
    /// A press for each target: the last of what is checked before anything starts.
    async fn presses(
        &self,
        plan: &Plan,
        lease: &LeaseSettings,
        state_dir: std::path::PathBuf,
    ) -> Result<Vec<Press>, Failure> {
        // The memory store loses nothing, and starts empty.
        let hold_suspect = if plan.embedded { Duration::ZERO } else { lease.ttl };
        let targets = plan.targets.clone();
        let make = move || {
            let press = |target: &TargetSettings| {
                let guard = GuardSettings { hold_suspect, ..target.guard };
                Press::new(target, guard, &state_dir)
            };
            targets.iter().map(press).collect::<Result<Vec<_>, _>>()
        };
        let made = tokio::task::spawn_blocking(make).await.expect("making a press does not panic");
        made.map_err(failed)
    }

    /// Serves health and metrics.
    async fn serve(&mut self, listen: health::Listen) -> Result<(), Failure> {
        let metrics = telemetry::start_metrics().map_err(failed)?;
        let Some(listener) = health::bind(listen).await.map_err(failed)? else { return Ok(()) };
        let (health, stop) = (self.health.clone(), self.stop.clone());
        self.ending.spawn(async move {
            let served = health::serve(listener, health, metrics, stop).await;
            served
                .map(|()| "health server")
                .map_err(|error| failed(format!("the health server failed: {error}")))
        });
        Ok(())
    }

    /// Starts the embedded agent and waits until it has registered what runs.
    async fn embed(&mut self, embedded: Embedded) -> Result<(), Failure> {
        let running =
            embedded.run(self.store.clone(), self.keys.clone(), self.health.clone(), self.agent_stop.clone());
        self.agent.spawn(async move { Ok(running.await.map(|()| "agent")?) });
        let health = self.health.clone();
        tokio::select! {
            () = embedded::registered(&health) => Ok(()),
            ended = self.watch_over() => ended,
        }
    }

    /// Follows the roll for the targets, and waits until they have their first rows. `None` when asked to
    /// stop before.
    async fn follow(
        &mut self,
        targets: &[TargetSettings],
        wait: Duration,
    ) -> Result<Option<Vec<watch::Receiver<Selection>>>, Failure> {
        let select =
            |target: &TargetSettings| watch::Sender::new(Selection::new(Arc::new(target.select.clone())));
        let senders: Vec<_> = targets.iter().map(select).collect();
        let mut receivers: Vec<_> = senders.iter().map(watch::Sender::subscribe).collect();
        let (keys, health) = (self.keys.clone(), self.health.clone());
        let read = move |entry| roll::read(&keys, entry);
        let (reflector, updates) =
            Reflector::reading(self.store.clone(), self.keys.instances(), health, STORE_PART, read);
        let roll = Roll::new(self.keys.clone());
        self.attending.spawn(async move {
            // In one task, so that a change is handed on without another one being woken.
            tokio::join!(biased; reflector.run(), hand_on(updates, roll, senders));
            Ok("reflector")
        });
        let first = async {
            for receiver in &mut receivers {
                if receiver.changed().await.is_err() {
                    return;
                }
            }
        };
        let late = tokio::select! {
            first = tokio::time::timeout(wait, first) => first.is_err(),
            ended = self.watch_over() => return ended.map(|()| None),
        };
        if late {
            let reason = self.reason(STORE_PART).unwrap_or_default();
            let waited = humantime::format_duration(wait);
            return Err(failed(format!("--etcd could not be read within --wait ({waited}): {reason}")));
        }
        receivers.iter_mut().for_each(watch::Receiver::mark_changed);
        Ok(Some(receivers))
    }

    /// The targets, each with a courier where there is somebody to notify.
    fn man(
        &mut self,
        plan: &Plan,
        lease: &LeaseSettings,
        selections: Vec<watch::Receiver<Selection>>,
        presses: Vec<Press>,
    ) -> Vec<Target> {
        let standing = watch::Sender::new(Standing::new());
        let mut acks = AckBook::new(self.keys.clone(), plan.consumer.clone());
        let mut targets = Vec::new();
        let mut signals = false;
        for ((settings, selection), press) in plan.targets.iter().zip(selections).zip(presses) {
            let line = settings.notify.as_ref().map(|notify| {
                signals |= matches!(notify, Notify::Signal { .. });
                self.connect(settings, notify, &standing, &mut acks)
            });
            targets.push(Target::new(settings, selection, press, line, self.health.clone()));
        }
        if signals {
            let (reflector, updates) =
                Reflector::new(self.store.clone(), self.keys.acks(), self.health.clone(), "acks");
            self.attending.spawn(async move {
                tokio::join!(biased; reflector.run(), acks.follow(updates));
                Ok("reflector of acks")
            });
        }
        self.claim(plan, lease, standing.subscribe());
        targets
    }

    /// Sets a courier to work.
    fn connect(
        &mut self,
        settings: &TargetSettings,
        notify: &Notify,
        standing: &watch::Sender<Standing>,
        acks: &mut AckBook,
    ) -> Line {
        let target = settings.name.clone();
        let notifier = match notify.clone() {
            Notify::Signal { to, signal } => {
                let (standing, acks) = (standing.clone(), acks.open(target.clone()));
                Notifier::Signal(SignalNotifier { target: target.clone(), to, signal, standing, acks })
            }
            Notify::Process { pid_file, signal } => Notifier::Process(ProcessNotifier { pid_file, signal }),
            Notify::Command { command, timeout } => {
                Notifier::Command(CommandNotifier { command, dest: settings.dest.clone(), timeout })
            }
        };
        let (orders, ordered) = watch::channel(None);
        // A courier has one order at a time.
        let (done, acked) = mpsc::channel(1);
        let part = format!("notify {target}");
        self.health.well(&part);
        let condition = Condition::new(self.health.clone(), part);
        let courier =
            Courier { target: target.to_string(), notifier, orders: ordered, acks: done, condition };
        self.attending.spawn(async move {
            courier.run().await;
            Ok("courier")
        });
        Line { orders, acks: acked }
    }

    /// Claims the consumer's name, and keeps its requests in the store.
    fn claim(&mut self, plan: &Plan, lease: &LeaseSettings, standing: watch::Receiver<Standing>) {
        let record = ConsumerRecord {
            v: V1,
            host: host_name(),
            holder: record::new_holder(),
            targets: plan.targets.iter().map(|target| target.name.to_string()).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: Timestamp::now(),
            ttl_seconds: lease.ttl.as_secs(),
        };
        self.health.ill("session", "not opened yet");
        let condition = Condition::new(self.health.clone(), "session".to_owned());
        let who = (plan.consumer.clone(), record);
        let (store, keys) = (self.store.clone(), self.keys.clone());
        let requests = Requests::new(store, keys, who, lease.refresh, standing, condition);
        let stop = self.stop.clone();
        self.ending.spawn(async move { requests.run(stop).await.map(|()| "session").map_err(failed) });
    }

    /// Has the targets at work until we are asked to stop.
    async fn work(&mut self, targets: Vec<Target>) -> Result<(), Failure> {
        for target in targets {
            let stop = self.stop.clone();
            self.ending.spawn(async move {
                target.run(stop).await;
                Ok("target")
            });
        }
        self.watch_over().await
    }

    /// Has each target at work once; gives the last failure, after all of them.
    async fn work_once(&mut self, mut targets: Vec<Target>, wait: Duration) -> Result<(), Failure> {
        let mut result = Ok(());
        for target in &mut targets {
            let name = target.name().clone();
            let done = tokio::select! {
                done = target.once(wait) => done,
                ended = self.watch_over() => {
                    return ended.and(Err(failed(format!("target {name}: asked to stop before it was done"))));
                }
            };
            if let Err(error) = done {
                let more = self.reason(&format!("notify {name}")).map(|line| format!(": {line}"));
                result = Err(failed(format!("target {name}: {error}{}", more.unwrap_or_default())));
            }
        }
        result
    }

    /// Waits until we are asked to stop, which is no failure, or one of the tasks ends, which is.
    async fn watch_over(&mut self) -> Result<(), Failure> {
        let ended = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Ok(()),
            Some(ended) = self.ending.join_next() => ended,
            Some(ended) = self.attending.join_next() => ended,
            Some(ended) = self.agent.join_next() => ended,
        };
        Err(match ended {
            Ok(Ok(what)) => failed(format!("the {what} has ended unasked")),
            Ok(Err(failure)) => failure,
            Err(error) => failed(error),
        })
    }

    /// Why a part is not well.
    fn reason(&self, part: &str) -> Option<String> {
        let (_, report) = self.health.report();
        report["conditions"][part].as_str().filter(|line| *line != "ok").map(str::to_owned)
    }

    /// Ends everything: what ends by itself, then the agent, and then the rest.
    async fn end(mut self) {
        self.stop.cancel();
        drain(&mut self.ending).await;
        self.agent_stop.cancel();
        drain(&mut self.agent).await;
    }
}

async fn drain(tasks: &mut Tasks) {
    let drained = tokio::time::timeout(FAREWELL, async {
        while let Some(ended) = tasks.join_next().await {
            if let Ok(Err(error)) = ended {
                tracing::warn!(%error, "ended badly");
            }
        }
    });
    if drained.await.is_err() {
        tracing::warn!("did not end in time, dropped");
    }
}

/// Keeps every target's selection up with what the reflector finds.
async fn hand_on(
    mut updates: mpsc::Receiver<Update<roll::Read>>,
    mut roll: Roll,
    selections: Vec<watch::Sender<Selection>>,
) {
    while let Some(update) = updates.recv().await {
        let shifts = roll.apply(update);
        metrics::gauge!("rollcall_consumer_roll_instances").set(roll.len() as f64);
        for selection in &selections {
            selection.send_if_modified(|selection| selection.apply(&shifts));
        }
    }
}

#[cfg(test)]
mod tests;
