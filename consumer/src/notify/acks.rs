//! Sorts the nodes' acks by the target that they answer.

use std::collections::HashMap;

use rollcall_shared::{
    key::{Key, Keys},
    name::{ConsumerName, NodeName, TargetName},
    reflector::Update,
    signal::SignalAck,
    store::{Change, Entry},
};
use tokio::sync::{mpsc, watch};

use super::signal::Acks;

/// Hands each target the acks of its own requests.
#[derive(Debug)]
pub struct AckBook {
    keys: Keys,
    consumer: ConsumerName,
    targets: HashMap<TargetName, watch::Sender<Acks>>,
}

impl AckBook {
    /// A book for the consumer's targets.
    pub fn new(keys: Keys, consumer: ConsumerName) -> Self {
        Self { keys, consumer, targets: HashMap::new() }
    }

    /// The acks of a target's requests, from now on.
    pub fn open(&mut self, target: TargetName) -> watch::Receiver<Acks> {
        self.targets.entry(target).or_insert_with(|| watch::Sender::new(Acks::new())).subscribe()
    }

    /// Takes in what a reflector of the acks' prefix finds, until it has gone.
    pub async fn follow(self, mut updates: mpsc::Receiver<Update>) {
        while let Some(update) = updates.recv().await {
            self.apply(update);
        }
    }

    fn apply(&self, update: Update) {
        match update {
            Update::Snapshot(listing) => {
                self.targets.values().for_each(|acks| drop(acks.send_replace(Acks::new())));
                listing.entries.iter().for_each(|entry| self.put(entry));
            }
            Update::Changes(batch) => batch.changes.iter().for_each(|change| match change {
                Change::Put(entry) => self.put(entry),
                Change::Delete { key, .. } => {
                    if let Some((node, acks)) = self.page(key) {
                        acks.send_modify(|acks| drop(acks.remove(&node)));
                    }
                }
            }),
        }
    }

    fn put(&self, entry: &Entry) {
        let Some((node, acks)) = self.page(&entry.key) else { return };
        match SignalAck::decode(&entry.value) {
            Ok(ack) => acks.send_modify(|acks| drop(acks.insert(node, ack))),
            Err(error) => tracing::warn!(key = entry.key, %error, "left out what cannot be read"),
        }
    }

    /// The node that writes the key, and the target that it is about, if that is ours.
    fn page(&self, key: &str) -> Option<(NodeName, &watch::Sender<Acks>)> {
        match self.keys.parse(key) {
            Ok(Key::Ack(node, consumer, target)) if consumer == self.consumer => {
                Some((node, self.targets.get(&target)?))
            }
            _ => None,
        }
    }
}
