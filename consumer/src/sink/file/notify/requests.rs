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
    pub store: Arc<dyn Store>,
    /// Its keys.
    pub keys: Keys,
    /// Whose requests they are.
    pub consumer: ConsumerName,
    /// What is to be requested.
    pub requests: watch::Receiver<AllRequests>,
    /// Its condition.
    pub part: Part,
}

impl RequestWriter {
    /// Runs for as long as the session is kept.
    pub async fn run(&mut self, mut handle: SessionHandle) {
        let mut written: Option<(Session, Addressed)> = None;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            let Some(session) = handle.session() else {
                written = None;
                handle.changed().await;
                continue;
            };
            let known = written.take().filter(|(last, _)| last.lease() == session.lease());
            let known = known.map(|(_, known)| known).unwrap_or_default();
            let wanted = addressed(&self.requests.borrow_and_update());
            let ops = self.plan(&known, &wanted);
            if ops.is_empty() {
                self.part.ready();
                written = Some((session, known));
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
                    written = Some((session, wanted));
                }
                Err(StoreError::LeaseNotFound | StoreError::GuardFailed { .. }) => {
                    written = Some((session.clone(), known));
                    handle.doubt(session);
                    // Where the keeper finds nothing wrong, the session stays and the write is tried again.
                    let _ = tokio::time::timeout(DOUBT_TIMEOUT, handle.changed()).await;
                }
                Err(error) => {
                    written = Some((session, known));
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
