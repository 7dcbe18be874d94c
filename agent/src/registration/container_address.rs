//! The mistake of an agent in a container of its own network: the address that it finds for the host is its container's.

use super::{advertise::Advertised, description::Policy, settings::AddressMode};
use crate::inventory::{RunningContainers, container::Addresses};

/// What is wrong, and what was expected, where an advertised address is that of a container of this engine. No other
/// host reaches the published ports there, and this one seldom does.
pub fn warning(policy: &Policy, running: &RunningContainers) -> Option<String> {
    if policy.address.mode != AddressMode::Host {
        return None;
    }
    let Advertised { v4, v6 } = policy.address.advertised;
    running.values().find_map(|running| {
        let container = &running.container;
        let is_own = |ours: &Addresses| (v4.is_some() && ours.v4 == v4) || (v6.is_some() && ours.v6 == v6);
        container.networks.values().find(|addresses| is_own(addresses))?;
        Some(format!(
            "the advertised address {} is that of container {}: expected --advertise ADDRESS with the host's own, or \
             --network host for the agent's container",
            policy.address.advertised, container.name
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registration::description::tests::{policy, web};

    fn warned(v4: Option<&str>, v6: Option<&str>, mode: &str) -> Option<String> {
        let mut policy = policy();
        policy.address.mode = mode.parse().expect("a mode");
        policy.address.advertised = Advertised {
            v4: v4.map(|ip| ip.parse().expect("an address")),
            v6: v6.map(|ip| ip.parse().expect("an address")),
        };
        warning(&policy, &RunningContainers::from([(web().container.id.clone(), web())]))
    }

    #[test]
    fn a_containers_address_is_no_hosts() {
        let expected = "the advertised address 172.17.0.2 is that of container web-1: expected --advertise ADDRESS with \
                        the host's own, or --network host for the agent's container";
        assert_eq!(warned(Some("172.17.0.2"), None, "host").as_deref(), Some(expected));
        assert_eq!(warned(Some("172.17.0.2"), None, "network"), None, "it is of no use there");
        assert_eq!(warned(Some("10.0.0.5"), None, "host"), None);
        assert_eq!(warned(None, None, "host"), None, "the container has no IPv6 address either");
        assert_eq!(warned(Some("10.0.0.5"), Some("fd00::5"), "host"), None);
    }
}
