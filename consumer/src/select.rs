//! Which instances belong to a target, in the order in which they are rendered.
//!
//! Plain values: it is told what shifted in the roll and keeps a target's rows, so that one change among
//! many instances costs the logarithm of their number. It knows no store and no file.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fmt,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::maker;

    fn endpoint(select: &Select, instance: &Instance) -> Option<String> {
        select.endpoint(&maker::id(1), instance).map(|endpoint| endpoint.to_string())
    }

    fn regex(text: &str) -> Option<Regex> {
        Some(Regex::new(text).expect("a regular expression"))
    }

    #[test]
    fn every_criterion_must_be_met() {
        let instance = Instance {
            labels: [("role".to_owned(), "front".to_owned())].into(),
            tags: vec!["blue".to_owned(), "new".to_owned()],
            ..maker::instance(1, "web")
        };
        let label = |text: &str| text.parse().expect("a label");
        let all = Select::default();
        for (meant, select) in [
            (true, all.clone()),
            (true, Select { services: vec!["api", "web"].into_iter().map(service).collect(), ..all.clone() }),
            (false, Select { services: vec![service("we")], ..all.clone() }),
            (true, Select { service_regex: regex("^w"), container_regex: regex("-1$"), ..all.clone() }),
            (false, Select { service_regex: regex("-1$"), ..all.clone() }),
            (true, Select { name_regex: regex("-1$"), ..all.clone() }),
            (true, Select { labels: vec![label("role"), label("role=front")], ..all.clone() }),
            (false, Select { labels: vec![label("role"), label("role=back")], ..all.clone() }),
            (false, Select { labels: vec![label("rol")], ..all.clone() }),
            (true, Select { nodes: vec!["h1".parse().expect("a name")], ..all.clone() }),
            (false, Select { nodes: vec!["h2".parse().expect("a name")], ..all.clone() }),
            (true, Select { ports: vec![80], ..all.clone() }),
            (false, Select { ports: vec![8001], ..all.clone() }),
            (false, Select { protocol: Some(Protocol::Udp), ..all.clone() }),
            (true, Select { tags: vec!["new".to_owned()], ..all.clone() }),
            (false, Select { tags: vec!["new".to_owned(), "red".to_owned()], ..all.clone() }),
            (false, Select { statuses: vec![Status::Draining], ..all.clone() }),
        ] {
            assert_eq!(endpoint(&select, &instance).is_some(), meant, "{select:?}");
        }
    }

    fn service(name: &str) -> ServiceName {
        name.parse().expect("a name")
    }

    #[test]
    fn the_family_picks_among_all_endpoints() {
        let v6 = Endpoint { address: Address::Ip("fd00::1".parse().expect("an address")), port: 9 };
        let instance = Instance { alternatives: vec![v6], ..maker::instance(1, "web") };
        let of = |family| Select { family: Some(family), ..Select::default() };
        assert_eq!(endpoint(&of(Family::Ipv4), &instance), Some("10.0.0.1:8001".to_owned()));
        assert_eq!(endpoint(&of(Family::Ipv6), &instance), Some("[fd00::1]:9".to_owned()));
        assert_eq!(endpoint(&of(Family::Ipv6), &maker::instance(1, "web")), None);
    }

    #[test]
    fn only_a_pattern_that_is_a_plain_name_names_a_service() {
        let named = |text: &str| Select { name_regex: regex(text), ..Select::default() }.named_services();
        assert_eq!(named("web"), [service("web")]);
        assert_eq!(named("web|api"), []);
        assert_eq!(Select::default().named_services(), []);
    }

    #[test]
    fn only_what_came_after_the_first_snapshot_is_new() {
        let mut selection = Selection::new(Select::default().into());
        selection.apply(&maker::come([(maker::id(1), maker::instance(1, "web"))]));
        assert_eq!(selection.newer_than(0).count(), 0);
        selection.apply(&maker::come([(maker::id(2), maker::instance(2, "web"))]));
        let shown = selection.step();
        assert_eq!(selection.newer_than(0).count(), 1);
        assert_eq!(selection.newer_than(shown).count(), 0);
    }

    /// What an instance may become: gone, or of this service, at this place, in this status.
    fn fate() -> impl Strategy<Value = Option<Instance>> {
        let status = prop_oneof![Just(Status::Passing), Just(Status::Draining)];
        proptest::option::of(
            (0usize..3, prop_oneof![Just("web"), Just("api")], status)
                .prop_map(|(place, service, status)| Instance { status, ..maker::instance(place, service) }),
        )
    }

    proptest! {
        #[test]
        fn following_changes_comes_to_what_a_fresh_start_comes_to(
            fates in proptest::collection::vec((0usize..4, fate()), 0..30),
        ) {
            let select = Arc::new(Select::default());
            let mut followed = Selection::new(select.clone());
            let mut roll: BTreeMap<usize, Arc<Instance>> = BTreeMap::new();
            for (number, fate) in fates {
                let after = fate.map(Arc::new);
                let before = match &after {
                    Some(instance) => roll.insert(number, instance.clone()),
                    None => roll.remove(&number),
                };
                let shift = Shift { id: maker::id(number).into(), before, after };
                followed.apply(&Shifts { shifts: vec![shift], ..Shifts::default() });
            }
            let mut fresh = Selection::new(select);
            fresh.apply(&maker::come(roll.into_iter().map(|(number, instance)| {
                (maker::id(number), Arc::unwrap_or_clone(instance))
            })));
            let rows = |selection: &Selection| -> Vec<_> {
                let groups = selection.groups().iter();
                groups
                    .flat_map(|(service, group)| group.rows.iter().map(move |row| (service, row)))
                    .map(|(service, row)| (service.clone(), row.id.clone(), row.endpoint.clone(), row.instance.clone()))
                    .collect()
            };
            prop_assert_eq!(rows(&followed), rows(&fresh));
            prop_assert!(followed.groups().values().all(|group| !group.rows.is_empty()));
        }
    }
}
