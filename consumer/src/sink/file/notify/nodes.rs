//! What the nodes say of this consumer's targets: their receivers, and the acks of those nodes that have one.
//!
//! Receivers change when a target's container starts or stops, so that one watch covers all nodes. Acks come with every
//! signal: they are watched on the nodes that have receivers of ours, and there only our own.

use std::{
    collections::{BTreeMap, BTreeSet},
    marker::PhantomData,
    sync::{Arc, Mutex, PoisonError},
};

use rollcall_shared::{
    codec::{self, Value},
    keys::{Key, Keys},
    model::{
        consumer::ConsumerHome,
        name::{ConsumerName, NodeName, TargetId, TargetName},
        signal::{Acks, Receivers},
    },
    process::{error::one_line, readiness::Readiness},
    reflector::{Cache, Changed, Decode, Reflector, Update, Updates},
    store::Store,
};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinError, JoinSet},
};

use super::delivery::Reports;

/// A node's word on a target.
type NodeTarget = (NodeName, TargetId);

/// What the nodes say of each target. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct TargetReports(Arc<Mutex<BTreeMap<TargetName, watch::Sender<Reports>>>>);

impl TargetReports {
    /// What the nodes say of a target.
    pub fn subscribe(&self, target: &TargetName) -> watch::Receiver<Reports> {
        self.of(target).subscribe()
    }

    fn of(&self, target: &TargetName) -> watch::Sender<Reports> {
        let mut targets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        targets.entry(target.clone()).or_default().clone()
    }

    fn all(&self) -> Vec<watch::Sender<Reports>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// Hands each target what the nodes say of it.
#[derive(Debug)]
pub struct NodeReports {
    store: Arc<dyn Store>,
    keys: Keys,
    consumer: ConsumerName,
    readiness: Readiness,
    targets: TargetReports,
    home: watch::Sender<Option<ConsumerHome>>,
    /// The watches of acks, by node.
    watches: BTreeMap<NodeName, AckWatch>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct AckWatch {
    acks: Cache<NodeTarget, Acks>,
    task: AbortHandle,
}

/// Receivers or acks: a kind of value that a node says of a target.
trait Report: Value {
    fn key(key: Key) -> Option<NodeTarget>;
}

impl Report for Acks {
    fn key(key: Key) -> Option<NodeTarget> {
        match key {
            Key::Acks(node, target) => Some((node, target)),
            _ => None,
        }
    }
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

/// Reads the reports of one kind.
#[derive(Debug)]
struct DecodeReport<R> {
    keys: Keys,
    kind: PhantomData<R>,
}

impl<R: Report> DecodeReport<R> {
    fn new(keys: Keys) -> Self {
        Self { keys, kind: PhantomData }
    }
}

impl<R: Report> Decode for DecodeReport<R> {
    type Key = NodeTarget;
    type Value = R;

    fn key(&self, key: &str) -> Result<NodeTarget, String> {
        let key = self.keys.parse(key).map_err(|error| error.to_string())?;
        R::key(key).ok_or_else(|| "it is another kind's key".to_owned())
    }

    fn value(&self, _: &NodeTarget, value: Vec<u8>) -> Result<R, String> {
        codec::decode(&value).map_err(|error| one_line(&error))
    }
}

impl NodeReports {
    /// Reports for the targets of a consumer, those that it will have included.
    pub fn new(store: Arc<dyn Store>, keys: Keys, consumer: ConsumerName, readiness: Readiness) -> Self {
        let (targets, home) = (TargetReports::default(), watch::Sender::default());
        let (watches, tasks) = (BTreeMap::new(), JoinSet::new());
        Self { store, keys, consumer, readiness, targets, home, watches, tasks }
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
        let part = self.readiness.part("receivers");
        let decode = DecodeSaid(self.keys.clone());
        let (reflector, updates) = Reflector::new(self.store.clone(), self.keys.receivers(), decode, part);
        tokio::join!(biased; reflector.run(), self.follow(updates));
    }

    async fn follow(&mut self, mut updates: Updates<DecodeSaid>) {
        // As many as a watch may deliver before this reads them; past that the watch waits.
        let (sender, mut acked) = mpsc::channel(64);
        let mut receivers = Cache::new("receivers");
        loop {
            tokio::select! {
                // Every branch is cancel safe: channels, and a set of tasks.
                update = updates.recv() => match update {
                    Some(update) => {
                        let delta = receivers.apply(update);
                        self.on_receivers(delta.changes, &receivers, &sender);
                    }
                    None => return,
                },
                Some((node, update)) = acked.recv() => self.on_acks(&node, update),
                Some(ended) = self.tasks.join_next() => {
                    // One that was stopped has no receiver of ours any more.
                    if let Err(Ok(panic)) = ended.map_err(JoinError::try_into_panic) {
                        std::panic::resume_unwind(panic);
                    }
                }
            }
        }
    }

    fn on_receivers(
        &mut self,
        changes: Vec<Changed<About, Said>>,
        all: &Cache<About, Said>,
        acked: &mpsc::Sender<(NodeName, Update<NodeTarget, Acks>)>,
    ) {
        let mut are_ours = false;
        for Changed { key, after, .. } in changes {
            match (key, after.as_deref()) {
                (About::Receivers((node, target)), after) if target.consumer == self.consumer => {
                    are_ours = true;
                    self.targets.of(&target.target).send_modify(|reports| match after {
                        Some(Said::Receivers(receivers)) => {
                            drop(reports.receivers.insert(node, receivers.clone()));
                        }
                        _ => drop(reports.receivers.remove(&node)),
                    });
                }
                // One that goes says nothing new: a container stays in its stack.
                (About::Home(_, consumer), Some(Said::Home(home))) if consumer == self.consumer => {
                    self.home.send_replace(Some(home.clone()));
                }
                _ => {}
            }
        }
        if !are_ours {
            return;
        }
        let node_of = |about| match about {
            &About::Receivers((ref node, ref target)) if target.consumer == self.consumer => Some(node),
            _ => None,
        };
        let nodes: BTreeSet<&NodeName> = all.held().keys().filter_map(node_of).collect();
        for node in
            nodes.iter().filter(|node| !self.watches.contains_key(**node)).cloned().collect::<Vec<_>>()
        {
            self.watch(node.clone(), acked.clone());
        }
        let gone: Vec<NodeName> = self.watches.keys().filter(|node| !nodes.contains(node)).cloned().collect();
        for node in gone {
            if let Some(AckWatch { task, .. }) = self.watches.remove(&node) {
                task.abort();
            }
            for reports in self.targets.all() {
                reports.send_if_modified(|reports| reports.acks.remove(&node).is_some());
            }
        }
    }

    /// Watches a node's acks to us.
    fn watch(&mut self, node: NodeName, acked: mpsc::Sender<(NodeName, Update<NodeTarget, Acks>)>) {
        let part = self.readiness.part(format!("acks of {node}"));
        let (decode, range) =
            (DecodeReport::<Acks>::new(self.keys.clone()), self.keys.acks_to(&node, &self.consumer));
        let (reflector, mut updates) = Reflector::new(self.store.clone(), range, decode, part);
        let name = node.clone();
        let forward = async move {
            while let Some(update) = updates.recv().await {
                if acked.send((name.clone(), update)).await.is_err() {
                    return;
                }
            }
        };
        let task = self.tasks.spawn(async move {
            tokio::join!(biased; reflector.run(), forward);
        });
        self.watches.insert(node, AckWatch { acks: Cache::new("acks"), task });
    }

    fn on_acks(&mut self, node: &NodeName, update: Update<NodeTarget, Acks>) {
        let Some(watch) = self.watches.get_mut(node) else { return };
        for Changed { key: (_, target), after, .. } in watch.acks.apply(update).changes {
            self.targets.of(&target.target).send_modify(|reports| match after {
                Some(acks) => drop(reports.acks.insert(node.clone(), (*acks).clone())),
                None => drop(reports.acks.remove(node)),
            });
        }
    }
}
