//! Keeps the signal requests of all targets in the store, under the consumer's session.
//!
//! A request is put when a receiver has to be signalled and deleted once every receiver has answered. Under a new
//! session, everything that is still to be requested is put again.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rollcall_shared::{
    codec,
    keys::{Key, Keys},
    model::{
        name::{ConsumerName, NodeName, TargetId, TargetName},
        signal::SignalRequest,
    },
    process::{backoff::Backoff, error::one_line, readiness::Part},
    session::{Session, keeper::SessionHandle},
    store::{Op, Store, StoreError},
};
use tokio::sync::watch;

use super::signal::AllRequests;

/// How long a session that is in doubt is waited for before the write is tried again.
const DOUBT_TIMEOUT: Duration = Duration::from_secs(5);

type Addressed = BTreeMap<(TargetName, NodeName), SignalRequest>;

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
    requests: watch::Receiver<AllRequests>,
    /// What was written, and under which session; nothing at first.
    written: Option<(Session, Addressed)>,
    /// Its condition.
    part: Part,
}

impl RequestWriter {
    /// A writer that has written nothing yet.
    pub fn new(
        store: Arc<dyn Store>,
        keys: Keys,
        consumer: ConsumerName,
        requests: watch::Receiver<AllRequests>,
        part: Part,
    ) -> Self {
        Self { store, keys, consumer, requests, written: None, part }
    }

    /// Runs for as long as the session is kept. It may be dropped, and run again with another handle.
    pub async fn run(&mut self, mut handle: SessionHandle) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut was_held = false;
        loop {
            let Some(session) = handle.session() else {
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
            let wanted = addressed(&self.requests.borrow_and_update());
            let ops = self.plan(&known, &wanted);
            if ops.is_empty() {
                self.part.ready();
                self.written = Some((session, known));
                tokio::select! {
                    // Both branches are cancel safe. Where no target signals anybody, there is no sender.
                    Ok(()) = self.requests.changed() => {}
                    () = handle.changed() => {}
                }
                continue;
            }
            match session.commit(&*self.store, &ops).await {
                Ok(_) => {
                    backoff.reset();
                    self.written = Some((session, wanted));
                }
                Err(StoreError::LeaseNotFound | StoreError::GuardFailed { .. }) => {
                    self.written = Some((session.clone(), known));
                    handle.doubt(session);
                    // Where the keeper finds nothing wrong, the session stays and the write is tried again.
                    let _ = tokio::time::timeout(DOUBT_TIMEOUT, handle.changed()).await;
                }
                Err(error) => {
                    self.written = Some((session, known));
                    self.part.failed(one_line(&error));
                    tokio::select! {
                        // Neither branch has taken anything when it is dropped.
                        () = tokio::time::sleep(backoff.next_delay()) => {}
                        () = handle.changed() => {}
                    }
                }
            }
        }
    }

    /// The writes between what is there and what is wanted.
    fn plan(&self, known: &Addressed, wanted: &Addressed) -> Vec<Op> {
        let key = |(target, node): &(TargetName, NodeName)| {
            let target = TargetId { consumer: self.consumer.clone(), target: target.clone() };
            self.keys.format(&Key::Signal(node.clone(), target))
        };
        let puts = wanted.iter().filter(|(to, request)| known.get(*to) != Some(*request));
        let puts = puts.map(|(to, request)| Op::Put { key: key(to), value: codec::encode(request) });
        let gone = known.keys().filter(|to| !wanted.contains_key(*to));
        puts.chain(gone.map(|to| Op::Delete { key: key(to) })).collect()
    }
}

fn addressed(all: &AllRequests) -> Addressed {
    let each = |(target, requests): (&TargetName, &super::delivery::Requests)| {
        let addressed =
            |(node, request): (&NodeName, &SignalRequest)| ((target.clone(), node.clone()), request.clone());
        requests.iter().map(addressed).collect::<Vec<_>>()
    };
    all.iter().flat_map(each).collect()
}
