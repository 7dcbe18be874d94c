//! Delivers the signals that consumers ask for, and publishes the acks for the registrar to write.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use rollcall_shared::{
    key::{Key, Keys},
    name::{ConsumerName, NodeName, TargetName},
    reflector::Update,
    signal::{Outcome, SignalAck, SignalRequest},
    store::{Change, Entry},
    wire,
};
use tokio::sync::{mpsc, watch};

use crate::{
    deliveries::{self, Decision, Recipient, Rules},
    kill::Killer,
    plan::Values,
    watcher::Seen,
};

/// Whose target.
type Asked = (ConsumerName, TargetName);

/// Delivers signals to the containers of one host.
#[derive(Debug)]
pub struct Deliverer {
    /// Sends the signals.
    pub killer: Killer,
    /// This host.
    pub node: NodeName,
    /// The keys of the store.
    pub keys: Keys,
    /// What may be delivered.
    pub rules: Rules,
    /// The last answer to each target, seeded with those in the store.
    pub acks: BTreeMap<Asked, SignalAck>,
    /// Where the acks are published, by key.
    pub published: watch::Sender<Values>,
}

impl Deliverer {
    /// Reads acks from the store's entries, so that a restarted agent delivers nothing twice.
    pub fn read_acks(keys: &Keys, entries: &[Entry]) -> BTreeMap<Asked, SignalAck> {
        let read = |entry: &Entry| match keys.parse(&entry.key) {
            Ok(Key::Ack(_, consumer, target)) => {
                Some(((consumer, target), SignalAck::decode(&entry.value).ok()?))
            }
            _ => None,
        };
        entries.iter().filter_map(read).collect()
    }

    /// Runs until its requests or containers end.
    pub async fn run(mut self, mut updates: mpsc::Receiver<Update>, mut seen: watch::Receiver<Seen>) {
        let mut requests: BTreeMap<Asked, SignalRequest> = BTreeMap::new();
        self.publish();
        loop {
            let settled = self.deliver(&requests, &seen).await;
            let wait = async {
                match settled {
                    Some(delay) => tokio::time::sleep(delay).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Every branch is cancel safe: two channels and a timer.
                update = updates.recv() => match update {
                    Some(update) => self.take(&mut requests, update),
                    None => return,
                },
                changed = seen.changed() => if changed.is_err() { return },
                () = wait => {}
            }
        }
    }

    fn take(&self, requests: &mut BTreeMap<Asked, SignalRequest>, update: Update) {
        let changes = match update {
            Update::Snapshot(listing) => {
                requests.clear();
                listing.entries.into_iter().map(Change::Put).collect()
            }
            Update::Changes(batch) => batch.changes,
        };
        for change in changes {
            let Ok(Key::Signal(consumer, target)) = self.keys.parse(change.key()) else { continue };
            match change {
                Change::Put(entry) => match SignalRequest::decode(&entry.value) {
                    Ok(request) => drop(requests.insert((consumer, target), request)),
                    Err(error) => {
                        metrics::counter!("rollcall_agent_bad_values_total").increment(1);
                        tracing::warn!(key = entry.key, %error, "skipped a signal request");
                    }
                },
                Change::Delete { .. } => drop(requests.remove(&(consumer, target))),
            }
        }
    }

    /// Does what is to be done now; gives when to look again.
    async fn deliver(
        &mut self,
        requests: &BTreeMap<Asked, SignalRequest>,
        seen: &watch::Receiver<Seen>,
    ) -> Option<Duration> {
        let running = seen.borrow().running.clone()?;
        self.killer.retain(|id| running.contains_key(id));
        let mut again: Option<Duration> = None;
        for (asked, request) in requests {
            let now = Timestamp::now();
            let answered = self.acks.get(asked);
            let ack = match deliveries::decide(request, answered, &running, &self.rules, now) {
                Decision::Nothing => continue,
                Decision::Wait(delay) => {
                    again = Some(again.map_or(delay, |sooner| sooner.min(delay)));
                    continue;
                }
                Decision::Answer(ack) => ack,
                Decision::Deliver(recipients) => self.send(request, &recipients).await,
            };
            let (consumer, target) = asked;
            let outcome = format!("{:?}", ack.outcome).to_lowercase();
            metrics::counter!("rollcall_agent_signals_total", "outcome" => outcome).increment(1);
            if ack.outcome == Outcome::Delivered {
                tracing::info!(%consumer, %target, signal = %request.signal, to = %request.to, "signalled");
            } else {
                tracing::warn!(%consumer, %target, signal = %request.signal, reason = ack.detail, "did not signal");
            }
            self.acks.insert(asked.clone(), ack);
            self.publish();
        }
        again
    }

    async fn send(&mut self, request: &SignalRequest, recipients: &[Recipient]) -> SignalAck {
        let mut failures = Vec::new();
        for recipient in recipients {
            if let Err(error) = self.killer.kill(recipient, request.signal).await {
                failures.push(error.to_string());
            }
        }
        let outcome = if failures.is_empty() { Outcome::Delivered } else { Outcome::Failed };
        let containers = recipients.iter().map(|recipient| recipient.short_id).collect();
        deliveries::answer(request, outcome, containers, failures.join("; "), Timestamp::now())
    }

    fn publish(&self) {
        let value = |((consumer, target), ack): (&Asked, &SignalAck)| {
            let key = Key::Ack(self.node.clone(), consumer.clone(), target.clone());
            (self.keys.format(&key), wire::encode(ack))
        };
        self.published.send_replace(self.acks.iter().map(value).collect());
    }
}
