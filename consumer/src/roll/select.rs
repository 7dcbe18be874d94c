//! Which instances belong to a target, and where the target reaches each.

use regex::Regex;
use rollcall_shared::model::{
    instance::{Address, Endpoint, Instance, InstanceId, Protocol, Status},
    label::LabelSelector,
    name::{NodeName, ServiceName},
};

use super::{fallback::AllFailing, stack_choice::StackChoice};

/// A family of IP addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Version 4.
    Ipv4,
    /// Version 6.
    Ipv6,
}

/// Which instances belong to a target. Every criterion that is given must be met; in a list of names, ports or
/// statuses, one of them.
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
    pub labels: Vec<LabelSelector>,
    /// The stack that its container belongs to.
    pub stack: Option<StackChoice>,
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
    /// What becomes of a service of which no instance has one of them.
    pub all_failing: AllFailing,
    /// The family of its address, picked among all it is reached at.
    pub family: Option<Family>,
}

/// Services that are there also while they have no instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Named {
    /// The services.
    pub services: Vec<ServiceName>,
    /// Whether they are meant only where nothing else is found.
    pub is_guess: bool,
}

impl Default for Select {
    fn default() -> Self {
        Self {
            services: vec![],
            service_regex: None,
            container_regex: None,
            name_regex: None,
            labels: vec![],
            stack: None,
            nodes: vec![],
            ports: vec![],
            protocol: None,
            tags: vec![],
            statuses: vec![Status::Passing],
            all_failing: AllFailing::Keep,
            family: None,
        }
    }
}

impl PartialEq for Select {
    /// Patterns are the same where they are written alike.
    fn eq(&self, other: &Self) -> bool {
        self.criteria() == other.criteria()
    }
}

fn one_of<T: PartialEq>(wanted: &[T], found: &T) -> bool {
    wanted.is_empty() || wanted.contains(found)
}

fn contains(pattern: Option<&Regex>, names: &[&str]) -> bool {
    pattern.is_none_or(|pattern| names.iter().any(|name| pattern.is_match(name)))
}

impl Select {
    /// Everything that it says, to be compared.
    fn criteria(&self) -> impl PartialEq {
        let Self { services, service_regex, container_regex, name_regex, labels, nodes, ports, .. } = self;
        let Self { stack, protocol, tags, statuses, all_failing, family, .. } = self;
        let patterns =
            [service_regex, container_regex, name_regex].map(|regex| regex.as_ref().map(Regex::as_str));
        let named = (patterns, services, labels, stack, nodes);
        (named, (ports, protocol, tags, statuses, all_failing, family))
    }

    /// Where the target reaches the instance, if it belongs to the target.
    pub fn endpoint(&self, id: &InstanceId, instance: &Instance) -> Option<Endpoint> {
        if one_of(&self.statuses, &instance.status) { self.in_any_status(id, instance) } else { None }
    }

    /// Where the target reaches an instance that has none of its statuses, and may stand in where none has.
    pub fn stand_in(&self, id: &InstanceId, instance: &Instance) -> Option<Endpoint> {
        let may = self.all_failing == AllFailing::Keep
            && matches!(instance.status, Status::Draining | Status::Failing)
            && !one_of(&self.statuses, &instance.status);
        if may { self.in_any_status(id, instance) } else { None }
    }

    /// Where the target reaches the instance, if it meets all but the status.
    fn in_any_status(&self, id: &InstanceId, instance: &Instance) -> Option<Endpoint> {
        let service = instance.service.as_str();
        let container = instance.container.as_str();
        let meant = one_of(&self.services, &instance.service)
            && one_of(&self.nodes, &id.node)
            && one_of(&self.ports, &instance.container_port)
            && self.protocol.is_none_or(|protocol| protocol == instance.protocol)
            && self.labels.iter().all(|label| label.matches(&instance.labels))
            && self.stack.as_ref().is_none_or(|stack| stack.matches(&instance.labels))
            && self.tags.iter().all(|tag| instance.tags.contains(tag))
            && contains(self.service_regex.as_ref(), &[service])
            && contains(self.container_regex.as_ref(), &[container])
            && contains(self.name_regex.as_ref(), &[service, container]);
        if meant { self.pick(instance) } else { None }
    }

    /// The first endpoint of the wanted family; a name may be of any.
    pub(super) fn pick(&self, instance: &Instance) -> Option<Endpoint> {
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
    pub fn named_services(&self) -> Named {
        match &self.name_regex {
            // A pattern that is a plain name may mean the service of that name, or containers.
            Some(pattern) if self.services.is_empty() => {
                Named { services: pattern.as_str().parse().into_iter().collect(), is_guess: true }
            }
            _ => Named { services: self.services.clone(), is_guess: false },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn endpoint(select: &Select, instance: &Instance) -> Option<String> {
        select.endpoint(&testing::id(1), instance).map(|endpoint| endpoint.to_string())
    }

    fn regex(text: &str) -> Option<Regex> {
        Some(Regex::new(text).expect("a regular expression"))
    }

    #[test]
    fn every_criterion_must_be_met() {
        let instance = Instance {
            labels: [("role".to_owned(), "front".to_owned())].into(),
            tags: vec!["blue".to_owned(), "new".to_owned()],
            ..testing::instance(1, "web")
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
        let instance = Instance { alternatives: vec![v6], ..testing::instance(1, "web") };
        let of = |family| Select { family: Some(family), ..Select::default() };
        assert_eq!(endpoint(&of(Family::Ipv4), &instance), Some("10.0.0.1:8001".to_owned()));
        assert_eq!(endpoint(&of(Family::Ipv6), &instance), Some("[fd00::1]:9".to_owned()));
        assert_eq!(endpoint(&of(Family::Ipv6), &testing::instance(1, "web")), None);
    }

    #[test]
    fn only_a_pattern_that_is_a_plain_name_names_a_service() {
        let named =
            |text: &str| Select { name_regex: regex(text), ..Select::default() }.named_services().services;
        assert_eq!(named("web"), [service("web")]);
        assert_eq!(named("web|api"), []);
        assert_eq!(Select::default().named_services(), Named::default());
    }
}
