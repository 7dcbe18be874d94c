//! What the coordinator has to be told: pure.
//!
//! | a passing worker | its address | what is done |
//! |---|---|---|
//! | is known | is its node's | nothing, or its new container is recorded |
//! | is known | is another one | its node is moved, two that swap by way of names that nobody has |
//! | is known, and has no node | is nobody's | it is added again, unless it is another cluster's by now |
//! | is unknown, of no group, without metadata | is nobody's | it is added |
//! | is unknown, of that node's group | is that of a node made by hand | the node is adopted |
//! | is anything else | | it is refused, and named |
//!
//! A node whose worker is gone stays as it is, and so does one that was made by hand.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    time::Duration,
};

use rollcall_shared::model::{
    instance::{Address, Endpoint},
    name::ServiceName,
};

use super::{
    identity::{Answer, Identity, Member, SystemId},
    settings::CitusConfig,
};
use crate::{
    roll::Row,
    sink::program::{self, Desired},
};

/// When to look again at what the coordinator is about to finish by itself.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// When to look again at workers that were refused, at the latest.
pub const ASK_INTERVAL: Duration = Duration::from_secs(5);

/// The plan of this program.
pub type Plan = program::Plan<Step>;

/// A node's ID in pg_dist_node.
pub type NodeId = i32;

/// A row of pg_dist_node, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its group; 0 is the coordinator's.
    pub group: i32,
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: i32,
    /// Whether it may be used.
    pub is_active: bool,
    /// Whether it is the primary of its group.
    pub is_primary: bool,
    /// Whether it has a copy of the metadata.
    pub has_metadata: bool,
    /// Whether that copy is up to date.
    pub is_synced: bool,
}

impl Node {
    /// Whether it is at this address.
    pub fn is_at(&self, endpoint: &Endpoint) -> bool {
        let is_host = match &endpoint.address {
            Address::Ip(ip) => self.host.parse::<IpAddr>().is_ok_and(|host| host == *ip),
            Address::Name(name) => self.host == name.as_str(),
        };
        is_host && self.port == i32::from(endpoint.port)
    }

    fn is_of_coordinator(&self) -> bool {
        self.group == 0
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A worker that was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its node, which may have been removed since; `None` for one that was drained.
    pub node: Option<NodeId>,
    /// The container that had its data last.
    pub member: Member,
    /// Whether an operator drained it: it is not added again.
    pub is_drained: bool,
}

/// What the coordinator and the workers say.
#[derive(Debug, Clone)]
pub struct Observed {
    /// Who the coordinator is.
    pub coordinator: SystemId,
    /// Its nodes.
    pub nodes: BTreeMap<NodeId, Node>,
    /// The workers that were recorded.
    pub known: BTreeMap<SystemId, Known>,
    /// What the workers said that were asked.
    pub answers: BTreeMap<Candidate, Answer>,
    /// For how long nodes could not be moved.
    pub stuck: BTreeMap<NodeId, Duration>,
    /// How often adding a worker failed.
    pub failed: BTreeMap<Candidate, u32>,
    /// When those that were asked and have no node are asked again.
    pub asked_again: Duration,
}

/// A worker at an address, which may be asked who it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// Which container.
    pub member: Member,
    /// Where.
    pub endpoint: Endpoint,
}

impl Candidate {
    /// The row's.
    pub fn of_row(row: &Row) -> Self {
        Self { member: Member::of_row(row), endpoint: row.endpoint.clone() }
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {} at {}", self.member, self.endpoint)
    }
}

/// A node that gets another address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The node.
    pub node: NodeId,
    /// Its address until now.
    pub from: String,
    /// Its worker, where it is now.
    pub to: Candidate,
    /// Its worker's data.
    pub system: SystemId,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Asks workers who they are, and does what follows from that.
    Ask {
        /// The workers.
        candidates: Vec<Candidate>,
        /// What is desired.
        desired: Desired,
    },
    /// Adds a worker.
    AddNode {
        /// The worker.
        candidate: Candidate,
        /// Its data.
        system: SystemId,
    },
    /// Moves a node.
    UpdateNode {
        /// The node.
        node: Move,
        /// Whether it is moved even if others hold locks on its shards: they are ended.
        force: bool,
    },
    /// Moves nodes that take each other's addresses, in one transaction.
    SwapNodes {
        /// The nodes.
        nodes: Vec<Move>,
        /// As with one.
        force: bool,
    },
    /// Records whose data a node has.
    RecordIdentity {
        /// The node.
        node: NodeId,
        /// Its worker.
        member: Member,
        /// Its worker's data.
        system: SystemId,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let forced = |force: &bool| if *force { ", by force" } else { "" };
        match self {
            Step::Ask { candidates, .. } => {
                let names: Vec<_> = candidates.iter().map(ToString::to_string).collect();
                write!(f, "ask {} who it is, and add or move it", names.join(", "))
            }
            Step::AddNode { candidate, .. } => write!(f, "add {candidate}"),
            Step::UpdateNode { node: Move { node, from, to, .. }, force } => {
                write!(f, "move node {node} from {from} to {to}{}", forced(force))
            }
            Step::SwapNodes { nodes, force } => {
                let show = |Move { node, to, .. }: &Move| format!("node {node} to {to}");
                let moves: Vec<_> = nodes.iter().map(show).collect();
                write!(f, "move {} at once{}", moves.join(", "), forced(force))
            }
            Step::RecordIdentity { node, member, system } => {
                write!(f, "record that node {node} is worker {member} with system identifier {system}")
            }
        }
    }
}

/// What is left to do.
pub fn plan(desired: &Desired, observed: &Observed, config: &CitusConfig) -> Plan {
    let mut planner = Planner { observed, config, plan: Plan::default(), settled: BTreeSet::new() };
    planner.run(desired);
    planner.plan
}

/// What is to become of a worker.
enum Verdict {
    /// Its node is where it is.
    InPlace(NodeId),
    /// It has to be asked.
    Ask,
    /// It says who it is: what follows.
    Record(NodeId, SystemId),
    Adopt(NodeId, SystemId),
    Move(NodeId, SystemId),
    Add(SystemId),
    Drained,
    Refuse(String),
}

impl Verdict {
    /// Whose data the worker is taken to have.
    fn system(&self) -> Option<SystemId> {
        match self {
            Verdict::Record(_, system)
            | Verdict::Adopt(_, system)
            | Verdict::Move(_, system)
            | Verdict::Add(system) => Some(*system),
            Verdict::InPlace(_) | Verdict::Ask | Verdict::Drained | Verdict::Refuse(_) => None,
        }
    }
}

struct Planner<'p> {
    observed: &'p Observed,
    config: &'p CitusConfig,
    plan: Plan,
    /// The nodes that have a worker.
    settled: BTreeSet<NodeId>,
}

impl Planner<'_> {
    fn run(&mut self, desired: &Desired) {
        let candidates: BTreeSet<Candidate> =
            desired.services.values().flatten().map(Candidate::of_row).collect();
        let mut verdicts: Vec<_> = candidates.into_iter().map(|one| (self.judge(&one), one)).collect();
        self.refuse_twins(&mut verdicts);
        let (mut asked, mut moves, mut adds) = (vec![], vec![], vec![]);
        for (verdict, candidate) in verdicts {
            match verdict {
                Verdict::InPlace(node) => self.settle(node),
                Verdict::Ask => asked.push(candidate),
                Verdict::Record(node, system) => self.record(node, candidate, system),
                Verdict::Adopt(node, system) => {
                    self.plan.notes.push(format!("node {node} was made by hand and is {candidate} from now on"));
                    self.record(node, candidate, system);
                }
                Verdict::Move(node, system) if let Some(service) = self.unseen(desired, system) => {
                    self.settle(node);
                    let why = format!(
                        "{candidate} is not taken for node {node} yet: whether service {service}, which had it last, \
                         has it still is looked at first"
                    );
                    self.refuse(why, SYNC_INTERVAL);
                }
                Verdict::Move(node, system) => {
                    self.settle(node);
                    let from = self.observed.nodes[&node].to_string();
                    moves.push(Move { node, from, to: candidate, system });
                }
                Verdict::Add(system) => adds.push((candidate, system)),
                Verdict::Drained => self.plan.notes.push(format!(
                    "{candidate} was drained by the operator and is left out: \"citus undrain\" lets it in again"
                )),
                Verdict::Refuse(why) => {
                    let again = self.observed.asked_again;
                    self.refuse(format!("{candidate} is left out: {why}"), again);
                }
            }
        }
        self.move_nodes(moves);
        self.add_nodes(adds);
        if !asked.is_empty() {
            self.plan.steps.push(Step::Ask { candidates: asked, desired: desired.clone() });
        }
        self.note_others(desired);
    }

    /// The service that had a worker's data last, if the round is not about it: what has the data now may be a copy.
    fn unseen(&self, desired: &Desired, system: SystemId) -> Option<ServiceName> {
        let service = &self.observed.known.get(&system)?.member.service;
        (!desired.scope.has(service)).then(|| service.clone())
    }

    fn settle(&mut self, node: NodeId) {
        self.settled.insert(node);
        let found = &self.observed.nodes[&node];
        if !found.is_active {
            let Node { host, port, .. } = found;
            self.plan.refusals.push(format!(
                "node {node} ({found}) is inactive: SELECT citus_activate_node({}, {port}) makes it active",
                quoted(host)
            ));
        }
    }

    fn record(&mut self, node: NodeId, candidate: Candidate, system: SystemId) {
        self.settle(node);
        self.plan.steps.push(Step::RecordIdentity { node, member: candidate.member, system });
    }

    fn refuse(&mut self, why: String, again: Duration) {
        self.plan.refusals.push(why);
        let sooner = self.plan.look_again.map_or(again, |at| at.min(again));
        self.plan.look_again = Some(sooner);
    }

    fn node_at(&self, endpoint: &Endpoint) -> Option<(NodeId, &Node)> {
        self.observed.nodes.iter().find(|(_, node)| node.is_at(endpoint)).map(|(id, node)| (*id, node))
    }

    /// The worker that was recorded for a node.
    fn known_of(&self, node: NodeId) -> Option<(SystemId, &Known)> {
        let mut known = self.observed.known.iter();
        known.find(|(_, known)| known.node == Some(node)).map(|(system, known)| (*system, known))
    }

    fn judge(&self, candidate: &Candidate) -> Verdict {
        let at = self.node_at(&candidate.endpoint);
        let mut known = self.observed.known.values();
        if let Some(known) = known.find(|known| known.member == candidate.member) {
            if known.is_drained {
                return Verdict::Drained;
            }
            if let (Some(node), Some((id, _))) = (known.node, at)
                && node == id
            {
                return Verdict::InPlace(id);
            }
        }
        match self.observed.answers.get(candidate) {
            None => Verdict::Ask,
            Some(Err(why)) => Verdict::Refuse(format!("it does not say who it is: {why}")),
            Some(Ok(identity)) => match unfit(identity, self.observed.coordinator) {
                Some(why) => Verdict::Refuse(why),
                None => self.judge_identity(candidate, identity, at),
            },
        }
    }

    fn judge_identity(
        &self,
        candidate: &Candidate,
        identity: &Identity,
        at: Option<(NodeId, &Node)>,
    ) -> Verdict {
        let system = identity.system;
        match (self.observed.known.get(&system), at) {
            (Some(known), _) if known.is_drained => Verdict::Drained,
            (Some(known), at) => match known.node.and_then(|id| Some((id, self.observed.nodes.get(&id)?))) {
                Some((id, node)) if !is_of_group(identity, node) => Verdict::Refuse(format!(
                    "it says that it is of group {}, and its node {id} is of group {}",
                    shown(identity),
                    node.group
                )),
                Some((id, _)) if at.is_some_and(|(at, _)| at == id) => Verdict::Record(id, system),
                Some((id, _)) => Verdict::Move(id, system),
                None => self.judge_without_node(identity, at),
            },
            (None, Some((id, node))) => self.judge_stranger_at(id, node, identity),
            (None, None) => match (self.namesake(&candidate.member), identity.group) {
                (Some((id, known)), _) => Verdict::Refuse(format!(
                    "it has system identifier {system}, and node {id}, which goes by this name, has {known}: its \
                     volume is empty or another one"
                )),
                (None, Some(0)) if identity.has_metadata => Verdict::Refuse(
                    "it has nodes or distributed tables of its own, as another cluster's coordinator has, and adding it \
                     would wipe them"
                        .to_owned(),
                ),
                (None, Some(0)) => Verdict::Add(system),
                (None, _) => Verdict::Refuse(format!(
                    "it is of group {} of a cluster, and no node is recorded with its system identifier {system}{}",
                    shown(identity),
                    self.hint_at_node(candidate, identity)
                )),
            },
        }
    }

    /// That a node that was made by hand, such as under a name, may be a worker's.
    fn hint_at_node(&self, candidate: &Candidate, identity: &Identity) -> String {
        let is_meant = |id: NodeId, node: &Node| {
            identity.group == Some(node.group) && node.is_primary && self.known_of(id).is_none()
        };
        let mut nodes = self.observed.nodes.iter().filter(|(id, node)| is_meant(**id, node));
        let (Some((id, node)), None) = (nodes.next(), self.other_cluster(identity)) else {
            return String::new();
        };
        let Endpoint { address, port } = &candidate.endpoint;
        let address = quoted(&address.to_string());
        format!(
            "; if it is node {id} ({node}), SELECT citus_update_node({id}, {address}, {port}) gives it this address"
        )
    }

    /// A worker that was recorded, and whose node was removed.
    fn judge_without_node(&self, identity: &Identity, at: Option<(NodeId, &Node)>) -> Verdict {
        match at {
            // An operator has added it again.
            Some((id, node)) => self.judge_stranger_at(id, node, identity),
            None => match self.other_cluster(identity) {
                Some(why) => Verdict::Refuse(why),
                None => Verdict::Add(identity.system),
            },
        }
    }

    /// Why a worker is another coordinator's, if it says so: groups are numbers that every cluster has.
    fn other_cluster(&self, identity: &Identity) -> Option<String> {
        let group = identity.group.filter(|group| *group != 0)?;
        let (host, port) = identity.coordinator.as_ref()?;
        let mut own = self.observed.nodes.values().filter(|node| node.is_of_coordinator());
        let is_ours = own.any(|node| (&node.host, &node.port) == (host, port));
        (!is_ours)
            .then(|| format!("it is of group {group} of another cluster, whose coordinator is {host}:{port}"))
    }

    /// A worker that was never recorded, at the address of a node.
    fn judge_stranger_at(&self, id: NodeId, node: &Node, identity: &Identity) -> Verdict {
        let system = identity.system;
        if let Some((known, _)) = self.known_of(id) {
            return Verdict::Refuse(format!(
                "it has system identifier {system}, and node {id}, whose address it has, has {known}: its volume is \
                 empty or another one"
            ));
        }
        if node.is_of_coordinator() || !node.is_primary {
            return Verdict::Refuse(format!(
                "its address is that of node {id}, which is no primary of workers"
            ));
        }
        // Whoever was never recorded has to prove it; only a node without metadata never learns its group.
        let never_learns = identity.group == Some(0) && !node.has_metadata;
        if identity.group != Some(node.group) && !never_learns {
            return Verdict::Refuse(format!(
                "it says that it is of group {}, and node {id}, whose address it has, is of group {}: its volume is \
                 empty or another one",
                shown(identity),
                node.group
            ));
        }
        self.other_cluster(identity).map_or(Verdict::Adopt(id, system), Verdict::Refuse)
    }

    /// The node whose container went by the same name.
    fn namesake(&self, member: &Member) -> Option<(NodeId, SystemId)> {
        self.observed.known.iter().find_map(|(system, known)| {
            let node = known.node.filter(|node| self.observed.nodes.contains_key(node))?;
            (known.member.has_name_of(member) && !known.is_drained).then_some((node, *system))
        })
    }

    /// Of those that have the same data, at most the one counts that is in place.
    fn refuse_twins(&self, verdicts: &mut [(Verdict, Candidate)]) {
        let mut claims: BTreeMap<SystemId, Vec<usize>> = BTreeMap::new();
        let mut in_place = BTreeSet::new();
        for (at, (verdict, _)) in verdicts.iter().enumerate() {
            if let Some(system) = verdict.system() {
                claims.entry(system).or_default().push(at);
            } else if let Verdict::InPlace(node) = verdict {
                in_place.extend(self.known_of(*node).map(|(system, _)| system));
            }
        }
        for (system, claims) in claims {
            if claims.len() == 1 && !in_place.contains(&system) {
                continue;
            }
            for at in claims {
                verdicts[at].0 = Verdict::Refuse(format!(
                    "another passing worker has its system identifier {system}: one of them is a copy"
                ));
            }
        }
    }

    fn move_nodes(&mut self, moves: Vec<Move>) {
        let moving: BTreeSet<NodeId> = moves.iter().map(|one| one.node).collect();
        let mut needed: BTreeMap<NodeId, NodeId> = BTreeMap::new();
        let mut free = vec![];
        for one in moves {
            match self.node_at(&one.to.endpoint) {
                Some((other, node)) if !moving.contains(&other) => {
                    let why = format!(
                        "{} is left where it was, at {}: its address is that of node {other} ({node})",
                        one.to, one.from
                    );
                    self.refuse(why, ASK_INTERVAL);
                }
                Some((other, _)) => {
                    needed.insert(one.node, other);
                    free.push(one);
                }
                None => free.push(one),
            }
        }
        let wanted: BTreeSet<NodeId> = needed.values().copied().collect();
        let (tied, single): (Vec<Move>, Vec<Move>) =
            free.into_iter().partition(|one| needed.contains_key(&one.node) || wanted.contains(&one.node));
        for node in single {
            let force = self.forces([node.node]);
            self.plan.steps.push(Step::UpdateNode { node, force });
        }
        if !tied.is_empty() {
            let force = self.forces(tied.iter().map(|one| one.node));
            self.plan.steps.push(Step::SwapNodes { nodes: tied, force });
        }
    }

    fn forces(&self, nodes: impl IntoIterator<Item = NodeId>) -> bool {
        let Some(after) = self.config.force_after else { return false };
        nodes.into_iter().any(|node| self.observed.stuck.get(&node).is_some_and(|stuck| *stuck >= after))
    }

    fn add_nodes(&mut self, mut adds: Vec<(Candidate, SystemId)>) {
        if adds.is_empty() {
            return;
        }
        let moves = self.plan.steps.iter().any(|step| !matches!(step, Step::RecordIdentity { .. }));
        let nodes = &self.observed.nodes;
        let unsynced = nodes.iter().find(|(_, node)| node.is_active && node.has_metadata && !node.is_synced);
        let local = nodes.values().find(|node| node.is_of_coordinator() && node.host == "localhost");
        let waits = match (local, unsynced) {
            (Some(local), _) => Some((
                format!(
                    "the coordinator's own host is set to {}, where no worker reaches it: SELECT \
                     citus_set_coordinator_host('<host>', {}) sets another one",
                    local.host, local.port
                ),
                ASK_INTERVAL,
            )),
            (None, Some((id, node))) => {
                Some((format!("the metadata of node {id} ({node}) is not synced yet"), SYNC_INTERVAL))
            }
            (None, None) if moves => Some(("other nodes are moved first".to_owned(), SYNC_INTERVAL)),
            (None, None) => None,
        };
        if let Some((why, again)) = waits {
            for (candidate, _) in adds {
                self.refuse(format!("{candidate} is not added yet: {why}"), again);
            }
            return;
        }
        // One that cannot be added holds up no other.
        adds.sort_by_key(|(candidate, _)| self.observed.failed.get(candidate).copied().unwrap_or(0));
        let steps = adds.into_iter().map(|(candidate, system)| Step::AddNode { candidate, system });
        self.plan.steps.extend(steps);
    }

    /// The nodes that have no worker: those that are gone, and those that were made by hand.
    fn note_others(&mut self, desired: &Desired) {
        let asked: BTreeSet<Member> = desired.services.values().flatten().map(Member::of_row).collect();
        for (id, node) in &self.observed.nodes {
            if self.settled.contains(id) || node.is_of_coordinator() {
                continue;
            }
            let note = match self.known_of(*id) {
                Some((_, known)) if known.is_drained => {
                    format!("node {id} ({node}) is being drained by the operator")
                }
                Some((_, known)) if !desired.scope.has(&known.member.service) => continue,
                Some((_, known)) if asked.iter().any(|member| member.has_name_of(&known.member)) => continue,
                Some((_, known)) => {
                    format!("node {id} ({node}): worker {} is gone; the node stays as it is", known.member)
                }
                None => format!("node {id} ({node}) was made by hand and is left alone"),
            };
            self.plan.notes.push(note);
        }
    }
}

/// Why a worker cannot be one, whatever was recorded.
fn unfit(identity: &Identity, coordinator: SystemId) -> Option<String> {
    if identity.system == coordinator {
        return Some("it is the coordinator itself, or a copy of it".to_owned());
    }
    if identity.is_standby {
        return Some("it is a read-only standby".to_owned());
    }
    identity.group.is_none().then(|| "its database has no Citus: CREATE EXTENSION citus adds it".to_owned())
}

/// Whether a worker may be its node. One without the metadata has not learnt its group.
fn is_of_group(identity: &Identity, node: &Node) -> bool {
    identity.group == Some(node.group)
        || (identity.group == Some(0) && !(node.has_metadata && node.is_synced))
}

fn shown(identity: &Identity) -> String {
    identity.group.map_or_else(|| "none".to_owned(), |group| group.to_string())
}

/// A text as SQL writes it.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests;
