//! Keeps the store as it should be: holds the node's claim and lease, and writes the differences between
//! what should be registered and what is.

use std::{collections::BTreeMap, sync::Arc, time::Duration, time::Instant};

use rollcall_shared::{
    health::Health,
    key::{Key, Keys},
    record::NodeRecord,
    reflector::{Reflector, Update},
    retry::Retry,
    session::{Session, SessionError},
    store::{Change, Op, Store, StoreError},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    container::FullId,
    containers::Running,
    desired::{Desired, Policy},
    gather::Gather,
    plan::{Values, plan},
    registered::Registered,
    watcher::Seen,
};

/// What becomes of the registrations when the agent is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnExit {
    /// They go at once.
    Revoke,
    /// They stay until their TTL is over, for an agent that is about to come back.
    Keep,
}

/// The name under which the agent's health report has the registration.
pub const HEALTH_PART: &str = "registration";

/// Writes in one transaction: etcd's default limit.
const OPS_AT_ONCE: usize = 128;
/// How long withdrawing may take when asked to stop.
const GOODBYE: Duration = Duration::from_secs(5);

/// Registers one node.
#[derive(Debug)]
pub struct Registrar {
    /// Where to.
    pub store: Arc<dyn Store>,
    /// The keys of the store.
    pub keys: Keys,
    /// The node's own record.
    pub record: NodeRecord,
    /// How often the lease is refreshed.
    pub refresh: Duration,
    /// From containers to instances.
    pub policy: Policy,
    /// What becomes of the registrations at the end.
    pub on_exit: OnExit,
    /// Where it reports.
    pub health: Health,
    /// What runs.
    pub seen: watch::Receiver<Seen>,
    /// The acks to write beside the instances.
    pub acks: watch::Receiver<Values>,
}

/// Why a session ended, where it may be followed by another.
enum End {
    Stopped,
    Lost,
}

impl Registrar {
    /// Runs until it is asked to stop.
    ///
    /// # Errors
    /// A claim that another engine holds, or another agent of this engine has taken over.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), SessionError> {
        self.health.ill(HEALTH_PART, "not registered yet");
        let claim = self.keys.format(&Key::Node(self.policy.node.clone()));
        let instances = self.keys.instances_of(&self.policy.node);
        let reflect = |prefix: String, part: &str| {
            Reflector::new(self.store.clone(), prefix, self.health.clone(), part)
        };
        let (own, mut own_updates) = reflect(instances.clone(), "own instances");
        let (claims, mut claim_updates) = reflect(claim.clone(), "own claim");
        let mut reflectors = JoinSet::new();
        let mut unstarted = Some((own, claims));
        let mut state = Writing::new(self.policy.choice.gather);
        let mut held = false;
        loop {
            let Some(session) = self.open(&claim, held, &stop).await? else { return Ok(()) };
            held = true;
            if let Some((own, claims)) = unstarted.take() {
                let standing = self.store.list(&self.keys.acks_of(&self.policy.node)).await;
                state.registered.read(standing.map(|listing| listing.entries).unwrap_or_default());
                reflectors.spawn(own.run());
                reflectors.spawn(claims.run());
                // Until what stands is known, every instance would be written as if it were new.
                if let Some(update) = own_updates.recv().await {
                    state.registered.on_update(&instances, update);
                }
            }
            let mut inputs = Inputs {
                claim: &claim,
                claims: &mut claim_updates,
                prefix: &instances,
                own: &mut own_updates,
            };
            match self.hold(&session, &mut state, &mut inputs, &stop).await {
                End::Stopped => {
                    self.leave(&session).await;
                    return Ok(());
                }
                End::Lost => {
                    self.health.ill(HEALTH_PART, "the lease was lost");
                    metrics::counter!("rollcall_agent_leases_lost_total").increment(1);
                    tracing::warn!("the lease was lost, registering anew");
                    // Agents that lose the same store at once do not come back at once.
                    let jitter =
                        self.refresh.div_f64(10.0).min(Duration::from_secs(1)).mul_f64(fastrand::f64());
                    tokio::time::sleep(jitter).await;
                }
            }
        }
    }

    /// Claims the node, for as long as it takes. `None` when asked to stop.
    async fn open(
        &self,
        claim: &str,
        held: bool,
        stop: &CancellationToken,
    ) -> Result<Option<Session>, SessionError> {
        let mut retry = Retry::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            match Session::open(&*self.store, claim, &self.record, held).await {
                Ok(session) => {
                    let (node, adopted) = (&self.policy.node, session.adopted);
                    tracing::info!(%node, adopted, "holds the node's claim");
                    return Ok(Some(session));
                }
                Err(SessionError::Store(error)) => {
                    self.health.ill(HEALTH_PART, error.to_string());
                    let delay = retry.next_delay();
                    tracing::warn!(%error, ?delay, "could not claim the node, will try again");
                    tokio::select! {
                        () = tokio::time::sleep(delay) => {}
                        () = stop.cancelled() => return Ok(None),
                    }
                }
                Err(fatal) => return Err(fatal),
            }
        }
    }

    /// Writes and refreshes under one session until it is lost or we are asked to stop.
    async fn hold(
        &mut self,
        session: &Session,
        state: &mut Writing,
        inputs: &mut Inputs<'_>,
        stop: &CancellationToken,
    ) -> End {
        // A refresh that failed is tried again well within the lease.
        let mut retry = Retry::new(Duration::from_millis(100), Duration::from_secs(5).min(self.refresh / 2));
        let mut refresh_at = Instant::now() + self.refresh;
        let mut write_at = self.plan_ahead(session, state);
        loop {
            let outcome = if write_at.is_some_and(|at| at <= Instant::now()) && !stop.is_cancelled() {
                // Not by a timer, whose steps are a millisecond.
                self.write(session, state).await
            } else {
                tokio::select! {
                    // Every branch is cancel safe: tokens, channels and timers. What follows one is not cut off.
                    biased;
                    () = stop.cancelled() => return End::Stopped,
                    Some(update) = inputs.own.recv() => {
                        if !state.registered.on_update(inputs.prefix, update) {
                            continue;
                        }
                        Ok(())
                    }
                    Some(update) = inputs.claims.recv() => {
                        if is_lost(update, inputs.claim, session) {
                            return End::Lost;
                        }
                        Ok(())
                    }
                    Ok(()) = self.seen.changed() => Ok(()),
                    Ok(()) = self.acks.changed() => Ok(()),
                    () = sleep_until(write_at) => Ok(()),
                    () = sleep_until(Some(refresh_at)) => {
                        let kept = session.keep_alive(&*self.store).await;
                        if kept.is_ok() {
                            refresh_at = Instant::now() + self.refresh;
                        }
                        kept
                    }
                }
            };
            match outcome {
                Ok(()) => {
                    retry.reset();
                    write_at = self.plan_ahead(session, state);
                }
                Err(StoreError::LeaseNotFound | StoreError::GuardFailed { .. }) => return End::Lost,
                Err(error) => {
                    self.health.ill(HEALTH_PART, error.to_string());
                    let delay = retry.next_delay();
                    tracing::warn!(%error, ?delay, "could not write to the store, will try again");
                    let again = Instant::now() + delay;
                    write_at = write_at.map(|_| again);
                    refresh_at = refresh_at.max(again);
                }
            }
        }
    }

    /// Finds what is to be written; gives when, or `None` if nothing is.
    fn plan_ahead(&mut self, session: &Session, state: &mut Writing) -> Option<Instant> {
        let seen = self.seen.borrow_and_update().clone();
        // Before Docker was listed nothing is known, and nothing is changed.
        let running = seen.running?;
        let instances = state.desired.values(&running, &self.policy, &self.keys);
        metrics::gauge!("rollcall_agent_instances").set(instances.len() as f64);
        let ops =
            plan(&[instances, &self.acks.borrow_and_update()], state.registered.entries(), session.lease());
        let now = Instant::now();
        state.urgent.clear();
        if ops.is_empty() {
            state.gather.on_nothing();
            self.health.well(HEALTH_PART);
            state.pending.clear();
            return None;
        }
        let changed = state.pending != ops;
        state.pending = ops;
        let due = state.gather.due(now, changed, seen.expects_more);
        if due > now {
            let is_urgent = self.urgency(&running);
            state.urgent = state.pending.iter().filter(|op| is_urgent(op)).cloned().collect();
        }
        Some(if state.urgent.is_empty() { due } else { now })
    }

    /// Tells which writes are not to be held back for a burst of containers: acks, which are awaited, and
    /// containers that drain, which must be let go before they end.
    fn urgency(&self, running: &BTreeMap<FullId, Running>) -> impl Fn(&Op) -> bool + use<> {
        let instances = self.keys.instances_of(&self.policy.node);
        let draining = running.values().filter(|running| running.draining);
        let draining: Vec<String> =
            draining.map(|running| format!("{instances}{}/", running.container.short_id)).collect();
        move |op| {
            !op.key().starts_with(&instances) || draining.iter().any(|prefix| op.key().starts_with(prefix))
        }
    }

    /// Writes what is urgent, or else everything that is pending.
    async fn write(&self, session: &Session, state: &mut Writing) -> Result<(), StoreError> {
        let everything = state.urgent.is_empty();
        // What fails stays pending.
        let ops = if everything { state.pending.clone() } else { state.urgent.clone() };
        let started = Instant::now();
        for ops in ops.chunks(OPS_AT_ONCE) {
            let revision = session.commit(&*self.store, ops).await?;
            state.registered.on_written(ops, session.lease(), revision);
            metrics::counter!("rollcall_agent_writes_total").increment(ops.len() as u64);
        }
        let took = started.elapsed();
        if everything {
            state.pending.clear();
            state.gather.on_written(Instant::now());
        }
        // What an embedded consumer does about it goes before what is said of it.
        tokio::task::yield_now().await;
        metrics::histogram!("rollcall_agent_commit_duration_seconds").record(took);
        for op in &ops {
            match op {
                Op::Put { key, .. } => tracing::info!(key, "registered"),
                Op::Delete { key } => tracing::info!(key, "withdrawn"),
            }
        }
        Ok(())
    }

    /// Withdraws everything, or leaves it to its TTL.
    async fn leave(&self, session: &Session) {
        if self.on_exit == OnExit::Keep {
            tracing::info!(ttl_seconds = self.record.ttl_seconds, "leaves the registrations to their TTL");
            return;
        }
        match tokio::time::timeout(GOODBYE, session.revoke(&*self.store)).await {
            Ok(Ok(())) => tracing::info!("withdrew every registration"),
            Ok(Err(error)) => tracing::error!(%error, "could not withdraw, the TTL will"),
            Err(_) => tracing::error!("could not withdraw in {GOODBYE:?}, the TTL will"),
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Where a session's news come from.
struct Inputs<'a> {
    claim: &'a str,
    claims: &'a mut mpsc::Receiver<Update>,
    prefix: &'a str,
    own: &'a mut mpsc::Receiver<Update>,
}

/// Whether the claim is no longer ours: gone, or put by another.
fn is_lost(update: Update, claim: &str, session: &Session) -> bool {
    match update {
        Update::Snapshot(listing) => {
            let ours = |entry: &rollcall_shared::store::Entry| {
                entry.key == claim && !session.is_foreign(entry.revision)
            };
            !session.is_after(listing.revision) && !listing.entries.iter().any(ours)
        }
        Update::Changes(batch) => batch.changes.iter().any(|change| {
            change.key() == claim
                && match change {
                    Change::Put(entry) => session.is_foreign(entry.revision),
                    Change::Delete { revision, .. } => session.is_foreign(*revision),
                }
        }),
    }
}

/// What a registrar carries from one write to the next.
struct Writing {
    registered: Registered,
    desired: Desired,
    gather: Gather,
    /// Everything that is to be written.
    pending: Vec<Op>,
    /// That of it which cannot wait, where the rest is held back.
    urgent: Vec<Op>,
}

impl Writing {
    fn new(window: Duration) -> Self {
        let (registered, desired) = (Registered::default(), Desired::default());
        Self { registered, desired, gather: Gather::new(window), pending: Vec::new(), urgent: Vec::new() }
    }
}
