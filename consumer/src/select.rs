//! Which instances belong to a target, in the order in which they are rendered.
//!
//! Plain values: it is told what shifted in the roll and keeps a target's rows, so that one change among
//! many instances costs the logarithm of their number. It knows no store and no file.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    str::FromStr,
    sync::Arc,
};

use regex::Regex;
use rollcall_shared::{
    instance::{Address, Endpoint, Instance, InstanceId, Protocol, Status},
    name::{NodeName, ServiceName},
};

use crate::roll::{Shift, Shifts};

/// A family of IP addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Version 4.
    Ipv4,
    /// Version 6.
    Ipv6,
}

/// A label that an instance must have, and its value where one is given: `NAME` or `NAME=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The label's name.
    pub name: String,
    /// The value it must have.
    pub value: Option<String>,
}

impl FromStr for Label {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if name.is_empty() {
            return Err(format!("{text:?} is not a label: expected NAME or NAME=VALUE"));
        }
        Ok(Self { name: name.to_owned(), value })
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.value.iter().try_for_each(|value| write!(f, "={value}"))
    }
}

impl Label {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        match (labels.get(&self.name), &self.value) {
            (Some(found), Some(wanted)) => found == wanted,
            (found, None) => found.is_some(),
            (None, Some(_)) => false,
        }
    }
}

/// Which instances belong to a target. Every criterion that is given must be met; in a list of names,
/// ports or statuses, one of them.
#[derive(Debug, Clone)]
pub struct Select {
    /// Services by name.
    pub services: Vec<ServiceName>,
    /// A pattern that the service's name must contain.
    pub service_regex: Option<Regex>,
    /// A pattern that the container's name must contain.
    pub container_regex: Option<Regex>,
    /// A pattern that the service's or the container's name must contain.
    pub name_regex: Option<Regex>,
    /// Labels, all of which it must have.
    pub labels: Vec<Label>,
    /// Nodes by name.
    pub nodes: Vec<NodeName>,
    /// Ports inside the container.
    pub ports: Vec<u16>,
    /// The protocol.
    pub protocol: Option<Protocol>,
    /// Tags, all of which it must have.
    pub tags: Vec<String>,
    /// Statuses.
    pub statuses: Vec<Status>,
    /// The family of its address, picked among all it is reached at.
    pub family: Option<Family>,
}

impl Default for Select {
    fn default() -> Self {
        Self {
            services: vec![],
            service_regex: None,
            container_regex: None,
            name_regex: None,
            labels: vec![],
            nodes: vec![],
            ports: vec![],
            protocol: None,
            tags: vec![],
            statuses: vec![Status::Passing],
            family: None,
        }
    }
}

fn one_of<T: PartialEq>(wanted: &[T], found: &T) -> bool {
    wanted.is_empty() || wanted.contains(found)
}

fn contains(pattern: Option<&Regex>, names: &[&str]) -> bool {
    pattern.is_none_or(|pattern| names.iter().any(|name| pattern.is_match(name)))
}

impl Select {
    /// Where the target reaches the instance, if it belongs to the target.
    pub fn endpoint(&self, id: &InstanceId, instance: &Instance) -> Option<Endpoint> {
        let service = instance.service.as_str();
        let container = instance.container.as_str();
        let meant = one_of(&self.statuses, &instance.status)
            && one_of(&self.services, &instance.service)
            && one_of(&self.nodes, &id.node)
            && one_of(&self.ports, &instance.container_port)
            && self.protocol.is_none_or(|protocol| protocol == instance.protocol)
            && self.labels.iter().all(|label| label.matches(&instance.labels))
            && self.tags.iter().all(|tag| instance.tags.contains(tag))
            && contains(self.service_regex.as_ref(), &[service])
            && contains(self.container_regex.as_ref(), &[container])
            && contains(self.name_regex.as_ref(), &[service, container]);
        if meant { self.pick(instance) } else { None }
    }

    /// The first endpoint of the wanted family; a name may be of any.
    fn pick(&self, instance: &Instance) -> Option<Endpoint> {
        let fits = |address: &Address| match (self.family, address) {
            (Some(Family::Ipv4), Address::Ip(ip)) => ip.is_ipv4(),
            (Some(Family::Ipv6), Address::Ip(ip)) => ip.is_ipv6(),
            (None, _) | (_, Address::Name(_)) => true,
        };
        if fits(&instance.address) {
            return Some(instance.endpoint());
        }
        instance.alternatives.iter().find(|endpoint| fits(&endpoint.address)).cloned()
    }

    /// The services that are there also while they have no instance.
    pub fn named_services(&self) -> Vec<ServiceName> {
        match &self.name_regex {
            // A pattern that is a plain name means the service of that name first of all.
            Some(pattern) if self.services.is_empty() => pattern.as_str().parse().into_iter().collect(),
            _ => self.services.clone(),
        }
    }
}

/// An instance as a target sees it.
#[derive(Debug, Clone)]
pub struct Row {
    /// Which instance.
    pub id: Arc<InstanceId>,
    /// Where the target reaches it.
    pub endpoint: Endpoint,
    /// The instance.
    pub instance: Arc<Instance>,
    /// The step of the selection with which it came in; 0 for those that were there first.
    pub since: u64,
}

impl PartialEq for Row {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Row {}

impl PartialOrd for Row {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Row {
    fn cmp(&self, other: &Self) -> Ordering {
        (&self.endpoint, &self.id).cmp(&(&other.endpoint, &other.id))
    }
}

/// A target's rows of one service, in the order of address and port.
#[derive(Debug, Default)]
pub struct Group {
    /// The rows; never none.
    pub rows: BTreeSet<Row>,
    /// The step of the selection with which they last changed.
    pub step: u64,
}

/// A target's rows, by service.
#[derive(Debug)]
pub struct Selection {
    select: Arc<Select>,
    groups: BTreeMap<ServiceName, Group>,
    /// Counts the changes since the first snapshot.
    step: u64,
    /// Whether a first snapshot has come.
    listed: bool,
    /// Whether a listing found no instance at all, as in a store that has lost everything, and none has
    /// come since.
    suspect: bool,
}

impl Selection {
    /// An empty selection that waits for its first snapshot.
    pub fn new(select: Arc<Select>) -> Self {
        Self { select, groups: BTreeMap::new(), step: 0, listed: false, suspect: false }
    }

    /// Takes in what shifted, and tells whether the rows may have changed.
    pub fn apply(&mut self, shifts: &Shifts) -> bool {
        let first = !std::mem::replace(&mut self.listed, true);
        self.step += u64::from(!first);
        let was_suspect = self.suspect;
        self.suspect = shifts.nothing_left && (shifts.relisted || self.suspect);
        let mut changed = first || was_suspect != self.suspect;
        for Shift { id, before, after } in &shifts.shifts {
            let old = before.as_ref().and_then(|instance| self.row(id, instance));
            let new = after.as_ref().and_then(|instance| self.row(id, instance));
            changed |= old.is_some() || new.is_some();
            let old = old.and_then(|row| self.take(&row));
            if let Some(row) = new {
                let since = old.map_or(self.step, |old| old.since);
                self.insert(Row { since, ..row });
            }
        }
        changed
    }

    fn row(&self, id: &Arc<InstanceId>, instance: &Arc<Instance>) -> Option<Row> {
        let endpoint = self.select.endpoint(id, instance)?;
        Some(Row { id: id.clone(), endpoint, instance: instance.clone(), since: 0 })
    }

    fn take(&mut self, row: &Row) -> Option<Row> {
        let service = &row.instance.service;
        let group = self.groups.get_mut(service)?;
        let taken = group.rows.take(row);
        group.step = self.step;
        if group.rows.is_empty() {
            self.groups.remove(service);
        }
        taken
    }

    fn insert(&mut self, row: Row) {
        let group = match self.groups.get_mut(&row.instance.service) {
            Some(group) => group,
            None => self.groups.entry(row.instance.service.clone()).or_default(),
        };
        group.step = self.step;
        group.rows.insert(row);
    }

    /// The services that have rows, in the order of their names.
    pub fn groups(&self) -> &BTreeMap<ServiceName, Group> {
        &self.groups
    }

    /// The rows that came in after the step.
    pub fn newer_than(&self, step: u64) -> impl Iterator<Item = &Row> {
        let changed = self.groups.values().filter(move |group| group.step > step);
        changed.flat_map(|group| &group.rows).filter(move |row| row.since > step)
    }

    /// Counts the changes since the first snapshot; see [`Row::since`].
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Whether the whole store was found without an instance by a listing, which a store that has lost
    /// its data looks like.
    pub fn is_suspect(&self) -> bool {
        self.suspect
    }
}

/// Whether traffic can go to an address at all.
pub fn is_reachable(address: &Address) -> bool {
    match address {
        Address::Ip(IpAddr::V4(ip)) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        Address::Ip(IpAddr::V6(ip)) => !ip.is_unspecified() && !ip.is_multicast(),
        Address::Name(_) => true,
    }
}
