//! What the nodes say of this consumer's targets: their receivers and checkers, and the answers of those nodes that have
//! one.
//!
//! Receivers change when a target's container starts or stops, so that one watch covers all nodes. Acks and verdicts come
//! with every request: they are watched on the nodes that have receivers or checkers of ours, and there only our own.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use rollcall_shared::{
    codec,
    keys::{Key, Keys},
    model::{
        check::Verdicts,
        consumer::ConsumerHome,
        name::{ConsumerName, NodeName, TargetName},
        signal::{Acks, Receivers},
    },
    process::{error::one_line, readiness::Readiness},
    reflector::{Cache, Changed, Decode, Reflector, Updates},
    store::Store,
};
use tokio::sync::watch;

use super::{
    delivery::Reports,
    watches::{Answer, NodeTarget, Source, Watches},
};

/// What the nodes say of each target. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct TargetReports(Arc<Mutex<BTreeMap<TargetName, watch::Sender<Reports>>>>);

impl TargetReports {
    /// What the nodes say of a target.
    pub fn subscribe(&self, target: &TargetName) -> watch::Receiver<Reports> {
        self.of(target).subscribe()
    }

    pub(super) fn of(&self, target: &TargetName) -> watch::Sender<Reports> {
        let mut targets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        targets.entry(target.clone()).or_default().clone()
    }

    pub(super) fn all(&self) -> Vec<watch::Sender<Reports>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// Hands each target what the nodes say of it.
#[derive(Debug)]
pub struct NodeReports {
    source: Source,
    targets: TargetReports,
    home: watch::Sender<Option<ConsumerHome>>,
    acks: Watches<Acks>,
    verdicts: Watches<Verdicts>,
}

/// What is reported in the range of receivers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum About {
    /// A target's receivers on a node.
    Receivers(NodeTarget),
    /// The container that a consumer runs in.
    Home(NodeName, ConsumerName),
}

/// A report in the range of receivers.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    Receivers(Receivers),
    Home(ConsumerHome),
}

/// Reads what is in the range of receivers.
#[derive(Debug)]
struct DecodeSaid(Keys);

impl Decode for DecodeSaid {
    type Key = About;
    type Value = Said;

    fn key(&self, key: &str) -> Result<About, String> {
        match self.0.parse(key).map_err(|error| error.to_string())? {
            Key::Receivers(node, target) => Ok(About::Receivers((node, target))),
            Key::Home(node, consumer) => Ok(About::Home(node, consumer)),
            _ => Err("it is another kind's key".to_owned()),
        }
    }

    fn value(&self, about: &About, value: Vec<u8>) -> Result<Said, String> {
        let said = match about {
            About::Receivers(_) => codec::decode(&value).map(Said::Receivers),
            About::Home(..) => codec::decode(&value).map(Said::Home),
        };
        said.map_err(|error| one_line(&error))
    }
}

impl NodeReports {
    /// Reports for the targets of a consumer, those that it will have included.
    pub fn new(store: Arc<dyn Store>, keys: Keys, consumer: ConsumerName, readiness: Readiness) -> Self {
        let (source, targets) = (Source { store, keys, consumer, readiness }, TargetReports::default());
        let (acks, verdicts) =
            (Watches::new(source.clone(), targets.clone()), Watches::new(source.clone(), targets.clone()));
        Self { source, targets, home: watch::Sender::default(), acks, verdicts }
    }

    /// Where they are handed out.
    pub fn targets(&self) -> TargetReports {
        self.targets.clone()
    }

    /// What the agent of the consumer's host says of the container that the consumer runs in.
    pub fn home(&self) -> watch::Receiver<Option<ConsumerHome>> {
        self.home.subscribe()
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) {
        let Source { store, keys, readiness, consumer: _ } = self.source.clone();
        let part = readiness.part("receivers");
        let (reflector, updates) = Reflector::new(store, keys.receivers(), DecodeSaid(keys.clone()), part);
        tokio::join!(biased; reflector.run(), self.follow(updates));
    }

    async fn follow(&mut self, mut updates: Updates<DecodeSaid>) {
        let mut receivers = Cache::new("receivers");
        loop {
            tokio::select! {
                // Every branch is cancel safe: a channel, and watches.
                update = updates.recv() => match update {
                    Some(update) => {
                        let delta = receivers.apply(update);
                        self.on_receivers(delta.changes, &receivers);
                    }
                    None => return,
                },
                () = self.acks.next() => {}
                () = self.verdicts.next() => {}
            }
        }
    }

    fn on_receivers(&mut self, changes: Vec<Changed<About, Said>>, all: &Cache<About, Said>) {
        let mut are_ours = false;
        for Changed { key, after, .. } in changes {
            match (key, after.as_deref()) {
                (About::Receivers((node, target)), after) if target.consumer == self.source.consumer => {
                    are_ours = true;
                    self.targets.of(&target.target).send_modify(|reports| match after {
                        Some(Said::Receivers(receivers)) => {
                            drop(reports.receivers.insert(node, receivers.clone()));
                        }
                        _ => drop(reports.receivers.remove(&node)),
                    });
                }
                // One that goes says nothing new: a container stays in its stack.
                (About::Home(_, consumer), Some(Said::Home(home))) if consumer == self.source.consumer => {
                    self.home.send_replace(Some(home.clone()));
                }
                _ => {}
            }
        }
        if are_ours {
            self.acks.retain(&nodes::<Acks>(&self.source.consumer, all));
            self.verdicts.retain(&nodes::<Verdicts>(&self.source.consumer, all));
        }
    }
}

/// The nodes that may answer a consumer.
fn nodes<'a, A: Answer>(consumer: &ConsumerName, all: &'a Cache<About, Said>) -> BTreeSet<&'a NodeName> {
    let may_answer = |about: &'a About, said: &Said| match (about, said) {
        (About::Receivers((node, target)), Said::Receivers(receivers)) => {
            (target.consumer == *consumer && A::is_awaited(receivers)).then_some(node)
        }
        _ => None,
    };
    all.held().iter().filter_map(|(about, held)| may_answer(about, &held.value)).collect()
}
