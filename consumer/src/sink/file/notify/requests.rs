//! Keeps the requests of all targets in the store, under the consumer's session: those for signals and those for checks.
//!
//! A request is put when a container has to be signalled or to check a file, and deleted once every one has answered. Under a new
//! session, everything that is still to be requested is put again.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rollcall_shared::{
    codec::{self, Value},
    keys::{Key, Keys},
    model::name::{ConsumerName, NodeName, TargetId, TargetName},
    process::{backoff::Backoff, error::one_line, readiness::Part, time::sleep_until},
    session::{Due, Refusals, Session, keeper::SessionHandle},
    store::{Op, Recoveries, Store, StoreError},
};
use tokio::{sync::watch, time::Instant};

use super::signal::AllRequests;
use crate::sink::file::check::examination::Checks;

/// The checks of all targets that are to be in the store.
pub type AllChecks = BTreeMap<TargetName, Checks>;

/// What is to be requested, and where it is told since when it can be.
#[derive(Debug)]
pub struct Requested {
    /// The signals.
    pub signals: watch::Receiver<AllRequests>,
    /// The checks.
    pub checks: watch::Receiver<AllChecks>,
    /// Since when there is a session, if there is one: agents can read the consumer's record then.
    pub session: watch::Sender<Option<Instant>>,
}

/// How long a session that is in doubt is waited for before the write is tried again.
const DOUBT_TIMEOUT: Duration = Duration::from_secs(5);

/// Requests as the store has them, by key.
type Values = BTreeMap<String, Vec<u8>>;

/// Puts and deletes requests.
#[derive(Debug)]
pub struct RequestWriter {
    /// Where to.
    store: Arc<dyn Store>,
    /// Its keys.
    keys: Keys,
    /// Whose requests they are.
    consumer: ConsumerName,
    /// What is to be requested.
    requested: Requested,
    /// What was written, and under which session; nothing at first.
    written: Option<(Session, Values)>,
    /// The requests that the store refuses.
    refusals: Refusals,
    /// Its condition.
    part: Part,
}

impl RequestWriter {
    /// A writer that has written nothing yet.
    pub fn new(
        store: Arc<dyn Store>,
        keys: Keys,
        consumer: ConsumerName,
        requested: Requested,
        part: Part,
    ) -> Self {
        Self { store, keys, consumer, requested, written: None, refusals: Refusals::default(), part }
    }

    /// Runs for as long as the session is kept. It may be dropped, and run again with another handle.
    pub async fn run(&mut self, mut handle: SessionHandle) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut recoveries = self.store.recoveries();
        let mut was_held = false;
        loop {
            let session = handle.session();
            self.tell(session.is_some());
            let Some(session) = session else {
                if was_held {
                    // Also where the lease comes back: a store that went back has it, and not what was written.
                    self.written = None;
                }
                handle.changed().await;
                continue;
            };
            was_held = true;
            let known = self.written.clone().filter(|(last, _)| last.lease() == session.lease());
            let known = known.map(|(_, known)| known).unwrap_or_default();
            let wanted = self.wanted();
            let ops = match self.refusals.choose(plan(&known, &wanted), Instant::now()) {
                Due::Now(ops) => ops,
                Due::At(at) => {
                    self.written = Some((session, known));
                    self.wait(&mut handle, &mut recoveries, Some(at)).await;
                    continue;
                }
                Due::Nothing => {
                    self.part.ready();
                    self.written = Some((session, known));
                    self.wait(&mut handle, &mut recoveries, None).await;
                    continue;
                }
            };
            match session.commit(&*self.store, &ops).await {
                Ok(_) => {
                    backoff.reset();
                    self.refusals.taken(&ops);
                    self.written = Some((session, written(known, ops)));
                }
                Err(StoreError::LeaseNotFound | StoreError::GuardFailed { .. }) => {
                    self.written = Some((session.clone(), known));
                    handle.doubt(session);
                    // Where the keeper finds nothing wrong, the session stays and the write is tried again.
                    let _ = tokio::time::timeout(DOUBT_TIMEOUT, handle.changed()).await;
                }
                Err(error) if Refusals::is_refusal(&error) => {
                    self.written = Some((session, known));
                    self.part.failed(one_line(&error));
                    self.refusals.refused(&ops, error, Instant::now());
                }
                Err(error) => {
                    self.written = Some((session, known));
                    self.part.failed(one_line(&error));
                    tokio::select! {
                        // No branch has taken anything when it is dropped.
                        () = tokio::time::sleep(backoff.next_delay()) => {}
                        () = recoveries.next() => self.recovered(),
                        () = handle.changed() => {}
                    }
                }
            }
        }
    }

    /// Waits until something else is to be requested, the session changes, the store is back, or that time has come.
    async fn wait(
        &mut self,
        handle: &mut SessionHandle,
        recoveries: &mut Recoveries,
        until: Option<Instant>,
    ) {
        tokio::select! {
            // Every branch is cancel safe. Where no target signals anybody, there is no sender.
            Ok(()) = self.requested.signals.changed() => {}
            Ok(()) = self.requested.checks.changed() => {}
            () = handle.changed() => {}
            () = recoveries.next() => self.recovered(),
            () = sleep_until(until) => {}
        }
    }

    /// Tells since when there is a session.
    fn tell(&self, is_held: bool) {
        self.requested.session.send_if_modified(|since| {
            let is_modified = since.is_some() != is_held;
            *since = since.filter(|_| is_held).or(is_held.then(Instant::now));
            is_modified
        });
    }

    /// The store was away, and may have been restored to before our writes: they are made again. Agents answer a request
    /// that they have answered before with the same ack.
    fn recovered(&mut self) {
        self.written = None;
        self.refusals.hasten(Instant::now());
    }

    /// What is to be in the store.
    fn wanted(&mut self) -> Values {
        let Self { keys, consumer, requested: Requested { signals, checks, .. }, .. } = self;
        let mut values = values(&signals.borrow_and_update(), consumer, keys, Key::Signal);
        values.extend(self::values(&checks.borrow_and_update(), consumer, keys, Key::Check));
        values
    }
}

/// The requests of one kind as the store is to have them.
fn values<R: Value>(
    all: &BTreeMap<TargetName, BTreeMap<NodeName, R>>,
    consumer: &ConsumerName,
    keys: &Keys,
    key: impl Fn(NodeName, TargetId) -> Key,
) -> Values {
    let each = |(target, requests): (&TargetName, &BTreeMap<NodeName, R>)| {
        let target = TargetId { consumer: consumer.clone(), target: target.clone() };
        let value = |(node, request): (&NodeName, &R)| {
            (keys.format(&key(node.clone(), target.clone())), codec::encode(request))
        };
        requests.iter().map(value).collect::<Vec<_>>()
    };
    all.iter().flat_map(each).collect()
}

/// The writes between what is there and what is wanted.
fn plan(known: &Values, wanted: &Values) -> Vec<Op> {
    let puts = wanted.iter().filter(|(key, value)| known.get(*key) != Some(*value));
    let puts = puts.map(|(key, value)| Op::Put { key: key.clone(), value: value.clone() });
    let gone = known.keys().filter(|key| !wanted.contains_key(*key));
    puts.chain(gone.map(|key| Op::Delete { key: key.clone() })).collect()
}

/// What is there after these writes.
fn written(mut known: Values, ops: Vec<Op>) -> Values {
    for op in ops {
        match op {
            Op::Put { key, value } => drop(known.insert(key, value)),
            Op::Delete { key } => drop(known.remove(&key)),
        }
    }
    known
}
