//! Where a container's ports are reached.

use std::net::IpAddr;

use itertools::Itertools;
use rollcall_shared::model::instance::{Address, Endpoint};

use super::{
    advertise::Advertised,
    labels,
    omission::{Omission, Reason},
    settings::AddressMode,
};
use crate::inventory::{
    RunningContainers,
    container::{Addresses, Binding, Container, Port},
};

/// Who reads the store: it decides which addresses are of use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readers {
    /// Processes of this host alone.
    ThisHost,
    /// Processes of any host.
    AnyHost {
        /// etcd's host and port, towards which this host's own address is found.
        etcd: Option<String>,
    },
}

/// Why nothing of the host's own is registered before its network is there.
const NO_ADDRESS: &str = "this host has no address yet";

/// What an address depends on beside the container.
#[derive(Debug, Clone)]
pub struct AddressPolicy {
    /// How addresses are found where a container does not say.
    pub mode: AddressMode,
    /// The host's own addresses.
    pub advertised: Advertised,
    /// Whether those who read the store can reach a port that is bound to the loopback interface.
    pub loopback: bool,
    /// The ports of containers whose own address or name is registered; where there are none, those that they expose.
    pub ports: Vec<Port>,
}

/// A port and where it is reached: one endpoint or more, the preferred one first, IPv4 before IPv6.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// The port inside the container.
    pub port: Port,
    /// The container network that the endpoints are on, if they are the container's own.
    pub network: Option<String>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A port and where it is reached, or why it is not.
pub type PortReached = (Port, Result<Reached, Omission>);

/// The network that Docker Swarm's routing mesh is on: readers reach no container by its address there.
const INGRESS: &str = "ingress";

/// The container whose network a container has: its own, or the one that it shares.
///
/// # Errors
/// The one that it shares does not run.
pub fn network_of<'a>(
    container: &'a Container,
    running: &'a RunningContainers,
) -> Result<&'a Container, Omission> {
    let Some(other) = &container.network_of else { return Ok(container) };
    let named = || running.values().find(|running| running.container.name.as_str() == other);
    match running.get(other.as_str()).or_else(named) {
        Some(other) => Ok(&other.container),
        None => {
            let text = format!("it shares the network of container {other}, which does not run");
            Err(Omission::new(Reason::Unreachable, text))
        }
    }
}

/// The first ports of a container, at most `max`, on the network of the second one: its own, or the one whose network it
/// shares. The second are the ports that are too many, whose addresses nobody seeks.
///
/// # Errors
/// Why the container has no port to register, or what is wrong with its labels.
pub fn reach(
    container: &Container,
    network: &Container,
    policy: &AddressPolicy,
    max: usize,
) -> Result<(Vec<PortReached>, Vec<Port>), Omission> {
    let mode = match labels::address(container) {
        None => policy.mode.clone(),
        Some(text) => text.parse().map_err(|_| {
            Omission::of_value("rollcall.address", text, "host, network, network:NAME or name")
        })?,
    };
    let wanted = labels::ports(container)?;
    let own_port = matches!(mode, AddressMode::Network(_) | AddressMode::Name) || network.host_network;
    let mut ports: Vec<Port> = match &wanted {
        Some(ports) => ports.clone(),
        None if own_port && !policy.ports.is_empty() => policy.ports.clone(),
        None if own_port => {
            let exposed = container.exposed.union(&network.exposed).copied();
            exposed.chain(labels::virtual_port(container)).collect()
        }
        None => network.bindings.iter().map(|binding| binding.to).collect(),
    };
    ports.sort_unstable();
    ports.dedup();
    if ports.is_empty() {
        let text = match mode {
            AddressMode::Host if network.networks.contains_key(INGRESS) => {
                "it publishes no port of its own: Swarm's routing mesh has it, unless it is published with mode=host"
            }
            AddressMode::Host if !network.host_network => "it publishes no port",
            _ => "it exposes no port, and neither rollcall.port nor --port gives one",
        };
        return Err(Omission::new(Reason::NoPort, text));
    }
    let surplus = ports.split_off(ports.len().min(max));
    let bindings = network.bindings.iter().into_group_map_by(|binding| binding.to);
    let reached = |port| {
        let bound = bindings.get(&port).map_or(&[][..], Vec::as_slice);
        let found = endpoints(container, network, port, bound, &mode, policy);
        (port, found.map_err(|text| Omission::new(Reason::Unreachable, text)))
    };
    Ok((ports.into_iter().map(reached).collect(), surplus))
}

fn endpoints(
    container: &Container,
    network: &Container,
    port: Port,
    bound: &[&Binding],
    mode: &AddressMode,
    policy: &AddressPolicy,
) -> Result<Reached, String> {
    let at = |ips: Vec<IpAddr>| {
        ips.into_iter().map(|ip| Endpoint { address: Address::Ip(ip), port: port.number }).collect()
    };
    let (name, endpoints) = match mode {
        AddressMode::Host | AddressMode::Network(_) if network.host_network => {
            (None, at(own(policy.advertised)?))
        }
        AddressMode::Host => (None, published(bound, policy)?),
        AddressMode::Name => {
            let address = Address::Name(container.name.clone());
            (None, vec![Endpoint { address, port: port.number }])
        }
        AddressMode::Network(wanted) => {
            let (name, ips) = on_network(network, wanted.as_deref())?;
            (Some(name), at(ips))
        }
    };
    Ok(Reached { port, network: name, endpoints })
}

fn own(advertised: Advertised) -> Result<Vec<IpAddr>, String> {
    let own = advertised.v4.map(IpAddr::V4).into_iter().chain(advertised.v6.map(IpAddr::V6));
    if advertised == Advertised::default() { Err(NO_ADDRESS.to_owned()) } else { Ok(own.collect()) }
}

fn published(bound: &[&Binding], policy: &AddressPolicy) -> Result<Vec<Endpoint>, String> {
    let mut endpoints = Vec::new();
    let mut reasons = Vec::new();
    for binding in bound {
        match host_ip(binding.ip, policy) {
            Ok(ip) => endpoints.push(Endpoint { address: Address::Ip(ip), port: binding.port }),
            Err(reason) => reasons.push(reason),
        }
    }
    endpoints.sort_unstable();
    endpoints.dedup();
    if endpoints.is_empty() {
        reasons.sort();
        reasons.dedup();
        return Err(if reasons.is_empty() { "it is not published".to_owned() } else { reasons.join("; ") });
    }
    Ok(endpoints)
}

/// The address at which a port is reached that is published on this one.
fn host_ip(published: IpAddr, policy: &AddressPolicy) -> Result<IpAddr, String> {
    if published.to_canonical().is_loopback() && !policy.loopback {
        return Err(format!(
            "it is published on {published}, which only this host reaches: expected --loopback"
        ));
    }
    if !published.is_unspecified() {
        return Ok(published);
    }
    policy.advertised.like(published).ok_or_else(|| match policy.advertised {
        Advertised { v4: None, v6: None } => NO_ADDRESS.to_owned(),
        _ => format!("it is published on {published} and --advertise has no such address"),
    })
}

fn on_network(container: &Container, wanted: Option<&str>) -> Result<(String, Vec<IpAddr>), String> {
    let have: Vec<&str> = container.networks.keys().map(String::as_str).collect();
    // The routing mesh's network is never a choice.
    let is_meant = |name: &str| wanted.map_or(name != INGRESS, |wanted| wanted == name);
    let mut candidates = container.networks.iter().filter(|(name, _)| is_meant(name));
    let ips = |addresses: &Addresses| -> Vec<IpAddr> {
        addresses.v4.map(IpAddr::V4).into_iter().chain(addresses.v6.map(IpAddr::V6)).collect()
    };
    let found = candidates.find_map(|(name, addresses)| {
        let ips = ips(addresses);
        (!ips.is_empty()).then(|| (name.clone(), ips))
    });
    found.ok_or_else(|| match wanted {
        Some(wanted) => format!("it has no address on network {wanted}, only on: {}", have.join(", ")),
        None => "it has no address on any network".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::container::testing::container;

    fn policy(mode: &str) -> AddressPolicy {
        AddressPolicy {
            mode: mode.parse().expect("a mode"),
            advertised: Advertised {
                v4: Some("10.0.0.5".parse().expect("an address")),
                v6: Some("fd00::5".parse().expect("an address")),
            },
            loopback: false,
            ports: Vec::new(),
        }
    }

    fn port(text: &str) -> Port {
        text.parse().expect("a port")
    }

    fn publishing(bindings: &[(&str, &str, u16)]) -> Container {
        let binding = |(to, ip, port_on_host): &(&str, &str, u16)| Binding {
            to: port(to),
            ip: ip.parse().expect("an address"),
            port: *port_on_host,
        };
        Container { bindings: bindings.iter().map(binding).collect(), ..container("web") }
    }

    /// Each port with its endpoints, or the reason in brackets.
    fn shown(container: &Container, policy: &AddressPolicy) -> Vec<String> {
        let ports = match reach(container, container, policy, usize::MAX) {
            Ok((ports, _)) => ports,
            Err(reason) => return vec![format!("({reason})")],
        };
        let show = |(port, reached): PortReached| match reached {
            Ok(reached) => {
                let endpoints: Vec<String> = reached.endpoints.iter().map(Endpoint::to_string).collect();
                format!("{port} {}", endpoints.join(" "))
            }
            Err(reason) => format!("{port} ({reason})"),
        };
        ports.into_iter().map(show).collect()
    }

    #[test]
    fn a_port_published_everywhere_has_the_hosts_address_of_each_family() {
        let web = publishing(&[("80/tcp", "::", 8080), ("80/tcp", "0.0.0.0", 8080)]);
        assert_eq!(shown(&web, &policy("host")), ["80/tcp 10.0.0.5:8080 [fd00::5]:8080"]);
    }

    #[test]
    fn every_binding_counts_with_its_own_address() {
        let web = publishing(&[
            ("80/tcp", "192.168.7.5", 8080),
            ("80/tcp", "0.0.0.0", 8081),
            ("53/udp", "192.168.7.5", 53),
        ]);
        assert_eq!(
            shown(&web, &policy("host")),
            ["53/udp 192.168.7.5:53", "80/tcp 10.0.0.5:8081 192.168.7.5:8080"]
        );
    }

    #[test]
    fn a_port_published_on_loopback_is_registered_only_for_this_hosts_readers() {
        let web = publishing(&[("80/tcp", "127.0.0.1", 8080)]);
        assert_eq!(
            shown(&web, &policy("host")),
            ["80/tcp (it is published on 127.0.0.1, which only this host reaches: expected --loopback)"]
        );
        let here = AddressPolicy { loopback: true, ..policy("host") };
        assert_eq!(shown(&web, &here), ["80/tcp 127.0.0.1:8080"]);
    }

    #[test]
    fn before_the_host_has_an_address_nothing_stands_in_for_it() {
        let unknown = AddressPolicy { advertised: Advertised::default(), ..policy("host") };
        let mut web = publishing(&[("80/tcp", "0.0.0.0", 8080), ("81/tcp", "192.168.7.5", 81)]);
        let expected = ["80/tcp (this host has no address yet)", "81/tcp 192.168.7.5:81"];
        assert_eq!(shown(&web, &unknown), expected);
        web = Container { host_network: true, bindings: vec![], exposed: [port("80")].into(), ..web };
        assert_eq!(shown(&web, &unknown), ["80/tcp (this host has no address yet)"]);
    }

    #[test]
    fn a_container_that_publishes_nothing_says_so() {
        assert_eq!(shown(&container("web"), &policy("host")), ["(it publishes no port)"]);
    }

    #[test]
    fn its_own_address_is_that_of_the_network_asked_for() {
        let mut web = container("web");
        web.exposed.insert(port("80"));
        let front = Addresses { v4: Some("10.5.0.2".parse().expect("an address")), ..Addresses::default() };
        web.networks.insert("front".to_owned(), front);
        assert_eq!(shown(&web, &policy("network")), ["80/tcp 172.17.0.2:80"]);
        assert_eq!(shown(&web, &policy("network:front")), ["80/tcp 10.5.0.2:80"]);
        assert_eq!(
            shown(&web, &policy("network:back")),
            ["80/tcp (it has no address on network back, only on: bridge, front)"]
        );
        assert_eq!(shown(&web, &policy("name")), ["80/tcp web:80"]);
    }

    #[test]
    fn the_network_of_swarms_routing_mesh_is_never_chosen() {
        let mut task = container("task");
        task.exposed.insert(port("80"));
        let at = |ip: &str| Addresses { v4: Some(ip.parse().expect("an address")), ..Addresses::default() };
        task.networks = [("ingress".to_owned(), at("10.255.0.3")), ("app".to_owned(), at("10.0.9.2"))].into();
        assert_eq!(shown(&task, &policy("network")), ["80/tcp 10.0.9.2:80"]);
        assert!(shown(&task, &policy("host"))[0].contains("Swarm's routing mesh has it"));
        task.networks.remove("app");
        assert_eq!(shown(&task, &policy("network")), ["80/tcp (it has no address on any network)"]);
    }

    #[test]
    fn a_label_decides_for_one_container() {
        let mut web = container("web");
        web.labels.insert("rollcall.address".to_owned(), "network".to_owned());
        web.labels.insert("rollcall.port".to_owned(), "81".to_owned());
        assert_eq!(shown(&web, &policy("host")), ["81/tcp 172.17.0.2:81"]);
        web.labels.insert("rollcall.address".to_owned(), "elsewhere".to_owned());
        assert!(shown(&web, &policy("host"))[0].contains("rollcall.address is \"elsewhere\""));
    }

    #[test]
    fn a_host_network_container_has_its_exposed_ports_at_the_hosts_address() {
        let mut web = Container { host_network: true, ..container("web") };
        web.exposed.insert(port("80"));
        assert_eq!(shown(&web, &policy("host")), ["80/tcp 10.0.0.5:80 [fd00::5]:80"]);
        assert_eq!(shown(&web, &policy("network")), ["80/tcp 10.0.0.5:80 [fd00::5]:80"]);
    }

    #[test]
    fn the_operators_ports_stand_for_those_that_are_exposed() {
        let policy = AddressPolicy { ports: vec![port("5432")], ..policy("name") };
        let mut worker = container("worker");
        assert_eq!(shown(&worker, &policy), ["5432/tcp worker:5432"]);
        worker.exposed.insert(port("80"));
        assert_eq!(shown(&worker, &policy), ["5432/tcp worker:5432"]);
        worker.labels.insert("rollcall.port".to_owned(), "6432".to_owned());
        assert_eq!(shown(&worker, &policy), ["6432/tcp worker:6432"]);
    }

    #[test]
    fn a_container_without_an_address_is_not_registered() {
        let mut web = container("web");
        web.exposed.insert(port("80"));
        web.networks.insert("bridge".to_owned(), Addresses::default());
        assert_eq!(shown(&web, &policy("network")), ["80/tcp (it has no address on any network)"]);
    }

    #[test]
    fn of_more_ports_than_may_be_only_the_first_are_sought() {
        let all: Vec<_> = (1..=10_001).map(|n| (format!("{n}/udp"), "0.0.0.0", n)).collect();
        let all: Vec<_> = all.iter().map(|(port, ip, n)| (port.as_str(), *ip, *n)).collect();
        let many = publishing(&all);
        let (ports, surplus) = reach(&many, &many, &policy("host"), 128).expect("it publishes ports");
        assert_eq!((ports.len(), surplus.len()), (128, 9873));
        let last = ports[127].1.as_ref().expect("it is reached");
        assert_eq!((last.endpoints[0].to_string(), surplus[0]), ("10.0.0.5:128".to_owned(), port("129/udp")));
    }
}
