//! Where a port is asked.
//!
//! A check asks the container itself where it can: at its own address, on a bridge of this host. What is registered is
//! mostly a published port, and there Docker's proxy, or that of a rootless engine, takes connections before the
//! application does: a port that only the proxy opens would pass. Elsewhere (overlay networks, macvlan, an engine on
//! another host), and where the container has the host's own network, the registered endpoint is asked, as consumers
//! do. 127.0.0.1 never stands in for it: what the host's processes offer there alone is no port of the container's.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use rollcall_shared::model::instance::{Address, Endpoint, Instance};

use crate::inventory::container::{Addresses, Container};

/// Where a port is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The container's own addresses; none where it has the host's network.
    own: Vec<Own>,
    /// The port inside the container.
    port: u16,
    /// Where consumers reach it.
    registered: Endpoint,
}

/// An address of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Own {
    ip: IpAddr,
    gateway: Option<Ipv4Addr>,
}

impl Target {
    /// The target of an instance whose container has the network of this one: its own, or the one that it shares.
    pub fn new(network: &Container, instance: &Instance) -> Self {
        let own = |addresses: &Addresses| {
            let Addresses { v4, v6, gateway } = *addresses;
            v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6)).map(move |ip| Own { ip, gateway })
        };
        let mut own: Vec<Own> = match network.host_network {
            true => Vec::new(),
            false => network.networks.values().flat_map(own).collect(),
        };
        // Of several networks, first the one that consumers use.
        own.sort_by_key(|own| Address::Ip(own.ip) != instance.address);
        Self { own, port: instance.container_port, registered: instance.endpoint() }
    }

    /// The address to ask; `None` where this agent can reach none of them. `is_local` tells whether an address is this
    /// host's own, `is_neighbour` whether it is on a network of this host's.
    pub fn choose(
        &self,
        is_local: impl Fn(IpAddr) -> bool,
        is_neighbour: impl Fn(IpAddr) -> bool,
    ) -> Option<SocketAddr> {
        let is_on_bridge = |own: &&Own| own.gateway.is_some_and(|gateway| is_local(gateway.into()));
        if let Some(own) = self.own.iter().find(is_on_bridge) {
            return Some(SocketAddr::new(own.ip, self.port));
        }
        match self.registered.address {
            Address::Ip(ip) => Some(SocketAddr::new(ip, self.registered.port)),
            // A name is the container's author's choice, and could be anybody's.
            Address::Name(_) => {
                let own = self.own.iter().find(|own| is_neighbour(own.ip))?;
                Some(SocketAddr::new(own.ip, self.port))
            }
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.own.first() {
            Some(own) => write!(f, "at {}, or else {}", SocketAddr::new(own.ip, self.port), self.registered),
            None => write!(f, "at {}", self.registered),
        }
    }
}

#[cfg(test)]
mod tests {
    use rollcall_shared::model::instance::Instance;

    use super::*;
    use crate::{
        inventory::{RunningContainers, container::testing::container},
        registration::description::{
            self,
            tests::{policy, web},
        },
    };

    fn instance() -> Instance {
        let description = description::describe(&web(), &RunningContainers::new(), &policy());
        description.instances(&web(), &policy().node).remove(0).1
    }

    fn chosen(target: &Target, local: &str, neighbour: &str) -> Option<String> {
        let is = |text: &str| {
            let wanted: Option<IpAddr> = text.parse().ok();
            move |ip: IpAddr| Some(ip) == wanted
        };
        target.choose(is(local), is(neighbour)).map(|address| address.to_string())
    }

    #[test]
    fn the_container_is_asked_itself_on_a_bridge_of_this_host_and_what_is_registered_elsewhere() {
        let target = Target::new(&container("web"), &instance());
        assert_eq!(chosen(&target, "172.17.0.1", ""), Some("172.17.0.2:80".to_owned()));
        assert_eq!(chosen(&target, "", "172.17.0.2"), Some("10.0.0.5:8080".to_owned()));
        let host = Container { host_network: true, ..container("web") };
        assert_eq!(
            chosen(&Target::new(&host, &instance()), "172.17.0.1", ""),
            Some("10.0.0.5:8080".to_owned())
        );
    }

    #[test]
    fn a_name_is_never_looked_up() {
        let name = Address::Name("metadata.example".parse().expect("a name"));
        let target = Target::new(&container("web"), &Instance { address: name, ..instance() });
        assert_eq!(chosen(&target, "", "172.17.0.2"), Some("172.17.0.2:80".to_owned()));
        assert_eq!(chosen(&target, "", ""), None);
    }

    #[test]
    fn of_several_networks_the_one_that_is_registered_is_asked() {
        let mut web = container("web");
        let (ip, gateway) = (Ipv4Addr::new(172, 18, 0, 9), Some(Ipv4Addr::new(172, 17, 0, 1)));
        web.networks.insert("zone".to_owned(), Addresses { v4: Some(ip), v6: None, gateway });
        let instance = Instance { address: Address::Ip(ip.into()), ..instance() };
        assert_eq!(chosen(&Target::new(&web, &instance), "172.17.0.1", ""), Some("172.18.0.9:80".to_owned()));
    }
}
