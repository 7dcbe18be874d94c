//! Keeps what is registered of this node as it should be: a thin shell around the [`Planner`].
//!
//! It writes at once. What comes while a commit is under way is committed together. A commit that failed is tried again
//! with backoff. One that failed because of the claim or the lease makes the keeper look at both, and a new session is
//! written under at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use rollcall_shared::{
    codec,
    keys::Keys,
    model::{instance::Instance, name::NodeName},
    process::{
        backoff::Backoff,
        error::one_line,
        readiness::{Part, Readiness},
        time::sleep_until,
    },
    reflector::Updates,
    session::{Refusals, Session, keeper::SessionHandle},
    store::{KeyRange, Op, Revision, Store, StoreError},
};
use tokio::{sync::watch, time::Instant};

use super::{
    description::Policy,
    desired::Desired,
    observed::{Kind, LayoutUpdates, Observed, Raw},
    plan::{Layouts, Next, Planner, SignalReports},
};
use crate::{checks::prober::Exchange, inventory::watcher::InventoryReceiver};

/// The name under which the readiness report has the registration: it is ready once everything is registered.
pub const PART: &str = "registration";

/// How long the first registration is not said to be there, at most, while a checked port was not asked yet: whoever
/// lists what is registered then, as the embedded consumer does, finds what passes.
const FIRST_PROBES_TIMEOUT: Duration = Duration::from_secs(3);

/// Registers one node.
#[derive(Debug)]
pub struct Registrar {
    store: Arc<dyn Store>,
    /// The keys of instances, which are logged as registered and withdrawn.
    instances: KeyRange,
    planner: Planner,
    backoff: Backoff,
    part: Part,
    /// Until when the first probes are waited for; `None` before it is known what runs.
    probes_until: Option<Instant>,
    inputs: Inputs,
    /// The keys of others that were named.
    said: BTreeSet<String>,
}

/// What a registrar reads.
#[derive(Debug)]
pub struct Inputs {
    /// The node's session.
    pub sessions: SessionHandle,
    /// What runs.
    pub inventory: InventoryReceiver,
    /// What is to be checked of the containers, and what was found.
    pub checks: Exchange,
    /// What is to be registered of signals.
    pub reports: watch::Receiver<Option<Arc<SignalReports>>>,
    /// What the store has of the node's acks.
    pub acks: Updates<Raw>,
    /// What the store has of the node's instances.
    pub instances: Updates<Raw>,
    /// What the store has of the node's receivers.
    pub receivers: Updates<Raw>,
    /// What the store has of the node's verdicts.
    pub verdicts: Updates<Raw>,
    /// What the store has in the layouts.
    pub layouts: LayoutUpdates,
}

/// Describes the registrar's metrics.
pub fn describe_metrics() {
    metrics::describe_gauge!("rollcall_agent_instances", "Instances that this host should have registered");
    metrics::describe_gauge!(
        "rollcall_agent_refused_writes",
        "Writes that the store refuses; each is tried again alone"
    );
    metrics::describe_gauge!(
        "rollcall_agent_layout_conflicts",
        "Keys of layouts that are someone else's; what wants them is set aside"
    );
    metrics::describe_counter!("rollcall_agent_writes_total", "Keys that were written to the store");
    metrics::describe_histogram!(
        "rollcall_agent_commit_duration_seconds",
        metrics::Unit::Seconds,
        "How long a commit took that succeeded"
    );
}

impl Registrar {
    /// A registrar of the policy's node.
    pub fn new(
        store: Arc<dyn Store>,
        keys: &Keys,
        policy: Policy,
        inputs: Inputs,
        readiness: &Readiness,
    ) -> Self {
        let node: NodeName = policy.node.clone();
        let observed = Observed::new(keys, &node, &policy.layouts);
        let refusals = Refusals::with_wholes(policy.layouts.pairs().into_iter().collect());
        let mut desired = Desired::new(policy, keys.clone());
        desired.judge(inputs.checks.verdicts.borrow().clone());
        let planner = Planner {
            desired,
            reports: None,
            observed,
            retry_at: None,
            refusals,
            layouts: Layouts::default(),
        };
        Self {
            store,
            instances: keys.instances_of(&node),
            planner,
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(5)),
            part: readiness.part(PART),
            probes_until: None,
            inputs,
            said: BTreeSet::new(),
        }
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) {
        let mut session = self.inputs.sessions.session();
        let mut recoveries = self.store.recoveries();
        loop {
            let wake_at = match &session {
                None => None,
                Some(session) => match self.planner.next(session.lease(), Instant::now()) {
                    Next::Write(ops) => {
                        self.write(session, ops).await;
                        continue;
                    }
                    Next::WaitUntil(at) => {
                        self.report();
                        Some(at)
                    }
                    Next::Idle => {
                        self.report();
                        self.probes_until.filter(|until| *until > Instant::now())
                    }
                },
            };
            tokio::select! {
                // Every branch is cancel safe: channels and a timer.
                biased;
                () = self.inputs.sessions.changed() => session = self.on_session(),
                Ok(()) = self.inputs.inventory.changed() => self.on_inventory(),
                Ok(()) = self.inputs.checks.verdicts.changed() => {
                    let verdicts = self.inputs.checks.verdicts.borrow_and_update().clone();
                    self.planner.desired.judge(verdicts);
                }
                Ok(()) = self.inputs.reports.changed() => {
                    self.planner.reports = self.inputs.reports.borrow_and_update().clone();
                }
                Some(update) = self.inputs.acks.recv() => self.planner.observed.apply(Kind::Acks, update),
                Some(update) = self.inputs.instances.recv() => {
                    self.planner.observed.apply(Kind::Instances, update);
                }
                Some(update) = self.inputs.receivers.recv() => {
                    self.planner.observed.apply(Kind::Receivers, update);
                }
                (kind, update) = self.inputs.layouts.next() => {
                    self.planner.observed.apply(kind, update);
                }
                Some(update) = self.inputs.verdicts.recv() => self.planner.observed.apply(Kind::Verdicts, update),
                () = recoveries.next() => self.planner.hasten(),
                () = sleep_until(wake_at) => {}
            }
        }
    }

    /// Reports that there is nothing to write now.
    fn report(&mut self) {
        self.say_conflicts();
        let set_aside = self.planner.refusals.set_aside();
        metrics::gauge!("rollcall_agent_refused_writes").set(set_aside.len() as f64);
        if !self.planner.is_ready() || self.planner.retry_at.is_some() {
            return;
        }
        // What is too large is one container's doing. Anything else is the store's, or a role's.
        let worst =
            set_aside.iter().max_by_key(|(_, write)| !matches!(*write.error, StoreError::TooLarge { .. }));
        let Some((key, write)) = worst else { return self.report_registered() };
        let more = match set_aside.len() - 1 {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        let reason = format!("cannot write {key}{more}: {}", one_line(&*write.error));
        match *write.error {
            StoreError::TooLarge { .. } => self.part.noted(reason),
            _ => self.part.failed(reason),
        }
    }

    /// Names each key of someone else's once.
    fn say_conflicts(&mut self) {
        let conflicts = &self.planner.layouts.conflicts;
        metrics::gauge!("rollcall_agent_layout_conflicts").set(conflicts.len() as f64);
        for key in conflicts.difference(&self.said) {
            tracing::warn!(
                key,
                "this key is someone else's: its container is set aside in the layout until it goes"
            );
        }
        self.said.clone_from(conflicts);
    }

    /// Readers of Rollcall's own keys have everything, so that it is no more than worth a note.
    fn report_conflicts(&self) {
        let conflicts = &self.planner.layouts.conflicts;
        let Some(key) = conflicts.first() else { return self.part.ready() };
        let more = match conflicts.len() - 1 {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        self.part.noted(format!("{key} is someone else's{more}: set aside in the layout until it goes"));
    }

    /// Reports that everything is registered.
    fn report_registered(&self) {
        let is_awaited = self.probes_until.is_some_and(|until| Instant::now() < until);
        if is_awaited && self.planner.desired.is_unchecked() {
            self.part.waiting("the first probes of checked ports are under way");
        } else {
            self.report_conflicts();
        }
    }

    fn on_session(&mut self) -> Option<Session> {
        let session = self.inputs.sessions.session();
        if session.is_some() {
            // What failed may have failed because of the last session.
            self.planner.hasten();
        } else {
            self.part.waiting("there is no session until the node is claimed again");
        }
        session
    }

    fn on_inventory(&mut self) {
        let Some(running) = self.inputs.inventory.borrow_and_update().clone() else { return };
        self.planner.desired.update(running);
        self.probes_until.get_or_insert_with(|| Instant::now() + FIRST_PROBES_TIMEOUT);
        let instances = self.planner.desired.values().map_or(0, |values| values.len());
        metrics::gauge!("rollcall_agent_instances").set(instances as f64);
        let definitions = self.planner.desired.definitions();
        self.inputs.checks.definitions.send_if_modified(|before| {
            let is_modified = **before != definitions;
            if is_modified {
                *before = Arc::new(definitions);
            }
            is_modified
        });
    }

    async fn write(&mut self, session: &Session, ops: Vec<Op>) {
        let began = Instant::now();
        match session.commit(&*self.store, &ops).await {
            Ok(revisions) => {
                let took = began.elapsed();
                let withdrawn = self.withdrawn(&ops);
                self.on_written(session, &ops, revisions);
                // Whoever waits for the write goes first.
                tokio::task::yield_now().await;
                metrics::histogram!("rollcall_agent_commit_duration_seconds").record(took);
                metrics::counter!("rollcall_agent_writes_total").increment(ops.len() as u64);
                ops.iter().for_each(|op| self.log(op, &withdrawn));
            }
            Err(error) if Refusals::is_refusal(&error) => self.on_refused(&ops, error),
            Err(error) => self.on_failed(session, &error),
        }
    }

    fn on_written(&mut self, session: &Session, ops: &[Op], revisions: Vec<Revision>) {
        self.backoff.reset();
        self.planner.retry_at = None;
        self.planner.refusals.taken(ops);
        for (op, revision) in ops.iter().zip(revisions) {
            self.planner.observed.on_written(op.clone(), session.lease(), revision);
        }
    }

    /// One that is refused alone is set aside, named, and tried again; the others go on.
    fn on_refused(&mut self, ops: &[Op], error: StoreError) {
        let reason = one_line(&error);
        if self.planner.refusals.refused(ops, error, Instant::now())
            && let [op, ..] = ops
        {
            tracing::warn!(key = op.key(), reason, "the store refuses this write: set aside");
        }
    }

    fn on_failed(&mut self, session: &Session, error: &StoreError) {
        if matches!(error, StoreError::GuardFailed { .. } | StoreError::LeaseNotFound) {
            self.inputs.sessions.doubt(session.clone());
        }
        self.part.failed(one_line(error));
        self.planner.retry_at = Some(Instant::now() + self.backoff.next_delay());
    }

    /// What the store had of the instances that these writes withdraw, by key.
    fn withdrawn(&self, ops: &[Op]) -> BTreeMap<String, Vec<u8>> {
        let held = |op: &Op| match op {
            Op::Delete { key } if self.instances.contains(key) => {
                let value = self.planner.observed.get(Kind::Instances, key)?;
                Some((key.clone(), value.to_vec()))
            }
            _ => None,
        };
        ops.iter().filter_map(held).collect()
    }

    fn log(&self, op: &Op, withdrawn: &BTreeMap<String, Vec<u8>>) {
        match op {
            Op::Put { key, value } if self.instances.contains(key) => {
                log_instance(key, Some(value), "registered")
            }
            Op::Delete { key } if self.instances.contains(key) => {
                log_instance(key, withdrawn.get(key), "withdrawn");
            }
            Op::Put { key, .. } => tracing::debug!(key, "written"),
            Op::Delete { key } => tracing::debug!(key, "deleted"),
        }
    }
}

/// Says what happened to an instance, by the names that people know it by.
fn log_instance(key: &str, value: Option<&Vec<u8>>, what: &'static str) {
    match value.and_then(|value| codec::decode::<Instance>(value).ok()) {
        Some(instance) => {
            let Instance { container, service, status, .. } = &instance;
            tracing::info!(%container, %service, endpoint = %instance.endpoint(), %status, key, "{what}");
        }
        None => tracing::info!(key, "{what}"),
    }
}
