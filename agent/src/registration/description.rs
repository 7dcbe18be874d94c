//! From a running container to its instances, and why; or why not. Plain values.

use std::collections::{BTreeMap, BTreeSet};

use itertools::Itertools;
use rollcall_shared::{
    codec::{self, V1},
    model::{
        instance::{Instance, InstanceId, Status},
        name::NodeName,
        signal::Incarnation,
    },
    process::setting::SettingError,
};

use super::{
    address::{self, AddressPolicy, PortReached, Reached, Readers},
    export::{self, Exported},
    filter,
    finder::AddressReceiver,
    labels,
    omission::{Omission, Reason},
    settings::{AddressMode, FilterSettings, NodeSettings},
};
use crate::{
    checks::{CheckId, CheckSettings, Definition, Health, Ready, Verdicts, registrator, verdict},
    inventory::{
        Running, RunningContainers,
        container::{Binding, Check, Container, Port},
    },
    layout::{self, Entries, LayoutSettings, Subject},
};

/// How many instances a container may have: its labels are its author's, and the store is everybody's.
const MAX_INSTANCES: usize = 128;
/// How many omissions are named one by one that are the container's as a whole.
const MAX_REFUSED: usize = 16;

/// What the registration of a container depends on beside the container.
#[derive(Debug, Clone)]
pub struct Policy {
    /// This host.
    pub node: NodeName,
    /// Which containers, and with what.
    pub filter: FilterSettings,
    /// Where they are reached.
    pub address: AddressPolicy,
    /// The host's own addresses as they change.
    pub addresses: AddressReceiver,
    /// What is written beside the instances.
    pub layouts: LayoutSettings,
    /// When a container is ready that has no check.
    pub ready: Ready,
}

impl Policy {
    /// What the settings say.
    ///
    /// # Errors
    /// The host has no name that can be the node's.
    pub fn new(
        node: &NodeSettings,
        filter: &FilterSettings,
        checks: CheckSettings,
        readers: &Readers,
        addresses: AddressReceiver,
        layouts: &LayoutSettings,
    ) -> Result<Self, SettingError> {
        let address = AddressPolicy {
            mode: node.address.clone().unwrap_or(AddressMode::Host),
            advertised: *addresses.borrow(),
            loopback: *readers == Readers::ThisHost,
            ports: node.ports.clone(),
        };
        Ok(Self {
            node: node.name()?,
            filter: filter.clone(),
            address,
            addresses,
            layouts: layouts.clone(),
            ready: checks.ready,
        })
    }

    /// Takes the host's addresses as they are now; tells whether they have changed.
    pub fn follow_addresses(&mut self) -> bool {
        let advertised = *self.addresses.borrow();
        std::mem::replace(&mut self.address.advertised, advertised) != advertised
    }
}

/// What is registered of a container and why, or why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Why nothing is registered, if so.
    pub skipped: Option<Omission>,
    /// Each of its ports: what it is registered as, or why it is not.
    pub ports: Vec<(Port, Result<Described, Omission>)>,
    /// What is written beside them.
    pub layouts: Vec<Entries>,
    /// What else it asks for and does not get, while the rest is registered.
    pub refused: Vec<Omission>,
}

/// An instance and where its service's name comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// The instance.
    pub instance: Instance,
    /// The label or variable that names its service, or the image.
    pub source: String,
    /// Its check, if it has one: then the instance's status is what it is without.
    pub check: Option<Definition>,
}

/// Describes what a container should be registered as, among all that run, without what its checks find. What exceeds a
/// cap is left out alone.
pub fn describe(running: &Running, all: &RunningContainers, policy: &Policy) -> Description {
    let container = &*running.container;
    let mut refused = labels::unknown_signals(container);
    let (ports, not_taken) = match reach(container, all, policy) {
        Ok(reached) => reached,
        Err(reason) => return Description::skipped(reason, refused),
    };
    let count = ports.len();
    let (exported, kept_in) = Exported::of(container, &policy.filter, count);
    refused.extend(not_taken.into_iter().chain(kept_in).chain(registrator::unsupported(container)));
    let describe = |(port, reached): PortReached| {
        let instance = match reached {
            Ok(_) if labels::is_ignored(container, Some(port)) => {
                Err(Omission::new(Reason::Ignored, "it asks to be ignored"))
            }
            Ok(reached) => instance(running, reached, count, &exported).and_then(|described| {
                let check = Definition::of(running, all, &described.instance, policy.ready)?;
                Ok(Described { check, ..described })
            }),
            Err(reason) => Err(reason),
        };
        (port, instance)
    };
    let ports: Vec<_> = ports.into_iter().map(describe).collect();
    let (layouts, not_laid_out) = lay_out(container, all, &ports, policy);
    refused.extend(not_laid_out);
    Description { skipped: None, ports, layouts, refused: capped(refused) }
}

/// What is written in the layouts for a container's instances, and what cannot be.
pub(super) fn lay_out(
    container: &Container,
    all: &RunningContainers,
    ports: &[(Port, Result<Described, Omission>)],
    policy: &Policy,
) -> (Vec<Entries>, Vec<Omission>) {
    let network = address::network_of(container, all);
    let bindings = network.map_or(&[][..], |network| network.bindings.as_slice());
    let bindings: BTreeMap<Port, Vec<Binding>> =
        bindings.iter().map(|binding| (binding.to, *binding)).into_group_map().into_iter().collect();
    let subjects = ports.iter().filter_map(|(port, described)| {
        let instance = &described.as_ref().ok()?.instance;
        let bindings = bindings.get(port).map_or(&[][..], Vec::as_slice);
        Some(Subject { instance, node: &policy.node, bindings })
    });
    let (entries, left_out) = layout::lay_out(&policy.layouts, subjects);
    (entries, left_out.into_iter().map(|text| Omission::new(Reason::Layout, text)).collect())
}

/// The first of them, and how many more there are.
fn capped(mut refused: Vec<Omission>) -> Vec<Omission> {
    let surplus = refused.split_off(refused.len().min(MAX_REFUSED));
    let more =
        surplus.first().map(|first| Omission::new(first.reason, format!("and {} more", surplus.len())));
    refused.extend(more);
    refused
}

/// The ports of a container that is admitted, and those that are not taken: too many, or of other protocols.
fn reach(
    container: &Container,
    all: &RunningContainers,
    policy: &Policy,
) -> Result<(Vec<PortReached>, Vec<Omission>), Omission> {
    filter::admit(container, &policy.filter)?;
    let network = address::network_of(container, all)?;
    let (ports, surplus) = address::reach(container, network, &policy.address, MAX_INSTANCES)?;
    let too_many = surplus.first().map(|first| {
        let text = format!("{} ports from {first} on: expected {MAX_INSTANCES} or fewer", surplus.len());
        Omission::new(Reason::TooLarge, text)
    });
    Ok((ports, too_many.into_iter().chain(other_protocols(&network.other_ports)).collect()))
}

fn other_protocols(ports: &BTreeSet<String>) -> Option<Omission> {
    let expected = "expected a port of tcp or udp";
    let text = match (ports.first()?, ports.len()) {
        (only, 1) => format!("port {only}: {expected}"),
        (first, count) => format!("port {first} and {} more: {expected}", count - 1),
    };
    Some(Omission::new(Reason::Protocol, text))
}

fn instance(
    running: &Running,
    reached: Reached,
    ports: usize,
    exported: &Exported,
) -> Result<Described, Omission> {
    let container = &*running.container;
    let Reached { port, network, endpoints } = reached;
    let (service, source) = labels::service(container, port, ports > 1)?;
    let tags = labels::tags(container, port);
    if !tags.iter().chain([&container.image]).all(|text| codec::is_one_line(text)) {
        let text = "its tags or its image's name have a control character";
        return Err(Omission::new(Reason::Label, text));
    }
    let mut endpoints = endpoints.into_iter();
    let none = || Omission::new(Reason::Unreachable, "it has no address");
    let first = endpoints.next().ok_or_else(none)?;
    let instance = Instance {
        v: V1,
        service,
        container: container.name.clone(),
        id: container.short_id,
        image: container.image.clone(),
        address: first.address,
        port: first.port,
        protocol: port.protocol,
        container_port: port.number,
        network,
        status: status(running),
        weight: labels::weight(container, port)?,
        started_at: container.started_at,
        tags,
        labels: exported.labels.clone(),
        environment: exported.environment.clone(),
        alternatives: endpoints.collect(),
    };
    let (size, max) = (codec::encode(&instance).len(), max_value_bytes(ports));
    if size > max {
        let text =
            format!("its tags, labels and image make a value of {size} bytes: expected {max} or fewer");
        return Err(Omission::new(Reason::TooLarge, text));
    }
    Ok(Described { instance, source, check: None })
}

/// How large the value of each instance may be of a container that has so many: what is let out takes half of that at
/// most.
fn max_value_bytes(instances: usize) -> usize {
    codec::MAX_VALUE_BYTES.min(2 * export::MAX_CONTAINER_BYTES / instances.max(1))
}

fn status(running: &Running) -> Status {
    match running.container.check {
        _ if running.is_draining => Status::Draining,
        _ if running.container.paused => Status::Failing,
        Check::None | Check::Healthy => Status::Passing,
        Check::Starting => Status::Starting,
        Check::Unhealthy => Status::Failing,
    }
}

impl Description {
    /// Of a container of which nothing is registered.
    fn skipped(reason: Omission, refused: Vec<Omission>) -> Self {
        Self { skipped: Some(reason), ports: Vec::new(), layouts: Vec::new(), refused }
    }

    /// Has the instances of one run say what its checks have found; gives the checks.
    pub fn judge(&mut self, run: Incarnation, verdicts: &Verdicts) -> Vec<(CheckId, Definition)> {
        let mut checks = Vec::new();
        for (port, described) in &mut self.ports {
            let Ok(Described { instance, check: Some(check), .. }) = described else { continue };
            let id = CheckId { run, port: *port };
            let health = verdicts.get(&id).copied().unwrap_or(Health::Starting);
            instance.status = verdict::worse(instance.status, health);
            checks.push((id, check.clone()));
        }
        checks
    }

    /// The instances with their identities.
    pub fn instances(self, running: &Running, node: &NodeName) -> Vec<(InstanceId, Instance)> {
        let container = running.container.short_id;
        let identified = |(port, described): (Port, Result<Described, Omission>)| {
            let Port { number: port, protocol } = port;
            Some((InstanceId { node: node.clone(), container, port, protocol }, described.ok()?.instance))
        };
        self.ports.into_iter().filter_map(identified).collect()
    }

    /// What is left out, of which port or of the container.
    pub fn omissions(self) -> Vec<(Option<Port>, Omission)> {
        let whole = self.skipped.into_iter().chain(self.refused).map(|omission| (None, omission));
        let of_port = |(port, described): (Port, Result<_, _>)| Some((Some(port), described.err()?));
        whole.chain(self.ports.into_iter().filter_map(of_port)).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;

    use super::*;
    use crate::{
        inventory::container::{Binding, testing::container},
        registration::advertise::Advertised,
    };

    pub(crate) fn policy() -> Policy {
        let advertised = Advertised { v4: Some("10.0.0.5".parse().expect("an address")), v6: None };
        Policy {
            addresses: watch::channel(advertised).1,
            node: "h1".parse().expect("a name"),
            filter: FilterSettings {
                containers: Vec::new(),
                only_name: None,
                only_label: Vec::new(),
                only_image: None,
                explicit: false,
                export_labels: vec!["team".to_owned(), "public.*".to_owned()],
                export_env: vec!["ZONE".to_owned()],
            },
            address: AddressPolicy {
                mode: AddressMode::Host,
                advertised,
                loopback: false,
                ports: Vec::new(),
            },
            layouts: LayoutSettings::default(),
            ready: Ready::None,
        }
    }

    pub(crate) fn web() -> Running {
        let to = "80".parse().expect("a port");
        let ip = "0.0.0.0".parse().expect("an address");
        let mut web = container("web-1");
        web.bindings = vec![Binding { to, ip, port: 8080 }];
        Running { container: Arc::new(web), is_draining: false }
    }

    fn described(running: &Running) -> Instance {
        let mut instances =
            describe(running, &RunningContainers::new(), &policy()).instances(running, &policy().node);
        assert_eq!(instances.len(), 1);
        instances.remove(0).1
    }

    pub(crate) fn changed(change: impl FnOnce(&mut Container)) -> Running {
        let mut container = (*web().container).clone();
        change(&mut container);
        Running { container: Arc::new(container), is_draining: false }
    }

    fn refused(description: &Description) -> Vec<String> {
        description.refused.iter().map(Omission::to_string).collect()
    }

    #[test]
    fn of_a_greedy_container_only_what_exceeds_is_left_out_and_named() {
        let huge = changed(|c| {
            c.labels.insert("rollcall.note".to_owned(), "x".repeat(2 << 20));
            c.labels.insert("team".to_owned(), "blue".to_owned());
        });
        let description = describe(&huge, &RunningContainers::new(), &policy());
        assert_eq!(refused(&description), ["label rollcall.note has 2097152 bytes: there is room for 49138"]);
        assert_eq!(Vec::from_iter(described(&huge).labels.keys()), ["team"]);
        let ports: Vec<String> = (1..=5000).map(|port| port.to_string()).collect();
        let many = changed(|c| drop(c.labels.insert("rollcall.port".to_owned(), ports.join(","))));
        let many = Running {
            container: Container { host_network: true, ..(*many.container).clone() }.into(),
            ..many
        };
        let description = describe(&many, &RunningContainers::new(), &policy());
        assert_eq!(
            refused(&description),
            [
                "4872 ports from 129/tcp on: expected 128 or fewer",
                "label rollcall.port has 23892 bytes: there is room for 4096"
            ]
        );
        let instances = description.instances(&many, &policy().node);
        assert_eq!(instances.len(), MAX_INSTANCES);
        let tagged = changed(|c| drop(c.labels.insert("SERVICE_TAGS".to_owned(), "x".repeat(2 << 20))));
        let description = describe(&tagged, &RunningContainers::new(), &policy());
        let reason = description.ports[0].1.as_ref().expect_err("its value is too large").to_string();
        assert!(reason.contains("expected 65536 or fewer"), "{reason}");
        let tagged = |tags: usize| {
            let mut container = (*many.container).clone();
            container.labels.insert("SERVICE_TAGS".to_owned(), "x".repeat(tags));
            let running = Running { container: container.into(), is_draining: false };
            describe(&running, &RunningContainers::new(), &policy()).instances(&running, &policy().node).len()
        };
        assert_eq!((tagged(7 << 10), tagged(8 << 10)), (MAX_INSTANCES, 0), "all of them together count");
    }

    #[test]
    fn labels_that_are_as_large_as_they_may_be_fit() {
        let full = changed(|c| {
            (0..20).for_each(|n| drop(c.labels.insert(format!("public.{n}"), "\"\\".repeat(1200))));
        });
        let size = codec::encode(&described(&full)).len();
        assert!((export::MAX_BYTES * 9 / 10..codec::MAX_VALUE_BYTES).contains(&size), "{size}");
    }

    #[test]
    fn ports_of_other_protocols_are_named() {
        let sctp = changed(|c| c.other_ports = ["9/sctp".to_owned()].into());
        let description = describe(&sctp, &RunningContainers::new(), &policy());
        assert_eq!(refused(&description), ["port 9/sctp: expected a port of tcp or udp"]);
        assert_eq!(description.instances(&sctp, &policy().node).len(), 1);
    }

    #[test]
    fn however_much_is_left_out_of_a_container_is_said_in_a_few_lines() {
        let greedy = changed(|c| {
            c.other_ports = (1..=65535).map(|port| format!("{port}/sctp")).collect();
            (0..1000).for_each(|n| drop(c.labels.insert(format!("rollcall.{n}"), "a\nb".to_owned())));
        });
        let refused = refused(&describe(&greedy, &RunningContainers::new(), &policy()));
        assert_eq!(refused.len(), MAX_REFUSED + 1);
        assert_eq!(refused[0], "port 1/sctp and 65534 more: expected a port of tcp or udp");
        assert_eq!(refused[MAX_REFUSED], "and 985 more");
    }

    #[test]
    fn what_is_registered_is_read_back_as_it_was() {
        let instance = described(&web());
        assert_eq!(codec::decode::<Instance>(&codec::encode(&instance)).expect("a record"), instance);
    }

    #[test]
    fn the_status_says_the_worst_that_is_known() {
        let draining = Running { is_draining: true, ..changed(|c| c.check = Check::Healthy) };
        for (running, status) in [
            (web(), Status::Passing),
            (changed(|c| c.check = Check::Starting), Status::Starting),
            (changed(|c| c.check = Check::Unhealthy), Status::Failing),
            (changed(|c| c.paused = true), Status::Failing),
            (draining, Status::Draining),
        ] {
            assert_eq!(described(&running).status, status);
        }
    }

    #[test]
    fn registrators_checks_that_are_not_supported_are_named_and_the_rest_is_registered() {
        let running = changed(|c| drop(c.env.insert("SERVICE_CHECK_TTL".to_owned(), "30s".to_owned())));
        let description = describe(&running, &RunningContainers::new(), &policy());
        assert!(refused(&description)[0].starts_with("SERVICE_CHECK_TTL is not supported"));
        assert_eq!(described(&running).status, Status::Passing);
    }

    #[test]
    fn one_bad_label_leaves_out_its_port_and_says_why() {
        for (label, value, expected) in
            [("rollcall.weight", "much", "1 to 65535"), ("rollcall.check", "ping", "tcp, http or none")]
        {
            let running = changed(|c| drop(c.labels.insert(label.to_owned(), value.to_owned())));
            let description = describe(&running, &RunningContainers::new(), &policy());
            let reason = description.ports[0].1.as_ref().expect_err("a bad value").to_string();
            assert_eq!(reason, format!("{label} is {value:?}: expected {expected}"));
        }
    }
}
