//! What nodes answer to this consumer's requests: one watch for each node that has something to answer, and there only
//! of the answers to us.

use std::{
    collections::{BTreeMap, BTreeSet},
    marker::PhantomData,
    sync::Arc,
};

use rollcall_shared::{
    codec::{self, Value},
    keys::{Key, Keys},
    model::{
        check::Verdicts,
        name::{ConsumerName, NodeName, TargetId},
        signal::{Acks, Receivers},
    },
    process::{error::one_line, readiness::Readiness},
    reflector::{Cache, Decode, Reflector, Update},
    store::{KeyRange, Store},
};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinError, JoinSet},
};

use super::{delivery::Reports, nodes::TargetReports};

/// A node's word on a target.
pub type NodeTarget = (NodeName, TargetId);

/// A kind of value by which a node answers requests.
pub trait Answer: Value + Clone {
    /// What the answers are called.
    const NAME: &'static str;

    /// Which node's word on which target a key of this kind has.
    fn key(key: Key) -> Option<NodeTarget>;

    /// Where a node's answers to a consumer are.
    fn range(keys: &Keys, node: &NodeName, consumer: &ConsumerName) -> KeyRange;

    /// Whether a node that has these receivers may answer.
    fn is_awaited(receivers: &Receivers) -> bool;

    /// Where a target's reports have the answers.
    fn of(reports: &mut Reports) -> &mut BTreeMap<NodeName, Self>;
}

impl Answer for Acks {
    const NAME: &'static str = "acks";

    fn key(key: Key) -> Option<NodeTarget> {
        match key {
            Key::Acks(node, target) => Some((node, target)),
            _ => None,
        }
    }

    fn range(keys: &Keys, node: &NodeName, consumer: &ConsumerName) -> KeyRange {
        keys.acks_to(node, consumer)
    }

    fn is_awaited(receivers: &Receivers) -> bool {
        !receivers.receivers.is_empty()
    }

    fn of(reports: &mut Reports) -> &mut BTreeMap<NodeName, Self> {
        &mut reports.acks
    }
}

impl Answer for Verdicts {
    const NAME: &'static str = "verdicts";

    fn key(key: Key) -> Option<NodeTarget> {
        match key {
            Key::Verdicts(node, target) => Some((node, target)),
            _ => None,
        }
    }

    fn range(keys: &Keys, node: &NodeName, consumer: &ConsumerName) -> KeyRange {
        keys.verdicts_to(node, consumer)
    }

    fn is_awaited(receivers: &Receivers) -> bool {
        !receivers.checkers.is_empty()
    }

    fn of(reports: &mut Reports) -> &mut BTreeMap<NodeName, Self> {
        &mut reports.verdicts
    }
}

/// Reads the answers of one kind.
#[derive(Debug)]
struct DecodeAnswer<A> {
    keys: Keys,
    kind: PhantomData<A>,
}

impl<A: Answer> DecodeAnswer<A> {
    fn new(keys: Keys) -> Self {
        Self { keys, kind: PhantomData }
    }
}

impl<A: Answer> Decode for DecodeAnswer<A> {
    type Key = NodeTarget;
    type Value = A;

    fn key(&self, key: &str) -> Result<NodeTarget, String> {
        let key = self.keys.parse(key).map_err(|error| error.to_string())?;
        A::key(key).ok_or_else(|| "it is another kind's key".to_owned())
    }

    fn value(&self, _: &NodeTarget, value: Vec<u8>) -> Result<A, String> {
        codec::decode(&value).map_err(|error| one_line(&error))
    }
}

/// Where the answers are, and whose they are.
#[derive(Debug, Clone)]
pub struct Source {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Its keys.
    pub keys: Keys,
    /// Who has requested.
    pub consumer: ConsumerName,
    /// Where it is reported how the watches fare.
    pub readiness: Readiness,
}

/// The watches of one kind of answer.
#[derive(Debug)]
pub struct Watches<A> {
    source: Source,
    targets: TargetReports,
    by_node: BTreeMap<NodeName, Watch<A>>,
    tasks: JoinSet<()>,
    sender: mpsc::Sender<(NodeName, Update<NodeTarget, A>)>,
    updates: mpsc::Receiver<(NodeName, Update<NodeTarget, A>)>,
}

#[derive(Debug)]
struct Watch<A> {
    answers: Cache<NodeTarget, A>,
    task: AbortHandle,
}

impl<A: Answer> Watches<A> {
    /// No watch yet.
    pub fn new(source: Source, targets: TargetReports) -> Self {
        // As many as a watch may deliver before this reads them; past that the watch waits.
        let (sender, updates) = mpsc::channel(64);
        Self { source, targets, by_node: BTreeMap::new(), tasks: JoinSet::new(), sender, updates }
    }

    /// Watches these nodes, and no others.
    pub fn retain(&mut self, nodes: &BTreeSet<&NodeName>) {
        for node in
            nodes.iter().filter(|node| !self.by_node.contains_key(**node)).copied().collect::<Vec<_>>()
        {
            self.watch(node.clone());
        }
        let gone: Vec<NodeName> = self.by_node.keys().filter(|node| !nodes.contains(node)).cloned().collect();
        for node in gone {
            if let Some(Watch { task, .. }) = self.by_node.remove(&node) {
                task.abort();
            }
            for reports in self.targets.all() {
                reports.send_if_modified(|reports| A::of(reports).remove(&node).is_some());
            }
        }
    }

    fn watch(&mut self, node: NodeName) {
        let Source { store, keys, consumer, readiness } = &self.source;
        let part = readiness.part(format!("{} of {node}", A::NAME));
        let (decode, range) = (DecodeAnswer::<A>::new(keys.clone()), A::range(keys, &node, consumer));
        let (reflector, mut updates) = Reflector::new(store.clone(), range, decode, part);
        let (name, sender) = (node.clone(), self.sender.clone());
        let forward = async move {
            while let Some(update) = updates.recv().await {
                if sender.send((name.clone(), update)).await.is_err() {
                    return;
                }
            }
        };
        let task = self.tasks.spawn(async move {
            tokio::join!(biased; reflector.run(), forward);
        });
        self.by_node.insert(node, Watch { answers: Cache::new(A::NAME), task });
    }

    /// Hands on what has come. Cancel safe.
    pub async fn next(&mut self) {
        tokio::select! {
            // Both branches are cancel safe: a channel, and a set of tasks.
            Some((node, update)) = self.updates.recv() => self.take(&node, update),
            Some(ended) = self.tasks.join_next() => {
                // One that was stopped has nothing of ours any more.
                if let Err(Ok(panic)) = ended.map_err(JoinError::try_into_panic) {
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }

    fn take(&mut self, node: &NodeName, update: Update<NodeTarget, A>) {
        let Some(watch) = self.by_node.get_mut(node) else { return };
        for changed in watch.answers.apply(update).changes {
            let (_, target) = changed.key;
            self.targets.of(&target.target).send_modify(|reports| match changed.after {
                Some(answers) => drop(A::of(reports).insert(node.clone(), (*answers).clone())),
                None => drop(A::of(reports).remove(node)),
            });
        }
    }
}
