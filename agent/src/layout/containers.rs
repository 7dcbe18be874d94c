//! The layout of etcd-container-presence: `/containers/{name}/{port}/host`, the address of the interface that a port is
//! published on, and `/containers/{name}/{port}/port`, the port of the host; `{port}` is the container's own. Values are
//! plain text. The protocol is no part of the key.

use std::net::IpAddr;

use rollcall_shared::model::instance::{Address, Status};

use super::{Entries, Layout, Subject, settings::Folder};

/// The entries of an instance. `fallback` is the host of a port that is published on every address, where another one
/// than the node's own is wanted.
pub fn entries(subject: &Subject<'_>, prefix: &Folder, fallback: Option<IpAddr>) -> Option<Entries> {
    let instance = subject.instance;
    // The tool that is stood in for has every container that runs; one that was told to stop is about to go.
    if instance.status == Status::Draining {
        return None;
    }
    let host = match fallback.filter(|_| is_published_everywhere(subject)) {
        Some(fallback) => fallback.to_string(),
        None => instance.address.to_string(),
    };
    let folder = format!("{prefix}/{}/{}", instance.container, instance.container_port);
    let pairs = [(format!("{folder}/host"), host), (format!("{folder}/port"), instance.port.to_string())];
    Some(Entries::new(Layout::Containers, pairs))
}

/// Whether the port that the instance is reached at is published on all addresses of its family.
fn is_published_everywhere(Subject { instance, bindings, .. }: &Subject<'_>) -> bool {
    // One that is reached at its own address or name is not reached by what it publishes.
    let (Address::Ip(ip), None) = (&instance.address, &instance.network) else { return false };
    bindings.iter().any(|binding| {
        binding.port == instance.port && binding.ip.is_unspecified() && binding.ip.is_ipv4() == ip.is_ipv4()
    })
}

#[cfg(test)]
mod tests {
    use rollcall_shared::model::instance::Instance;

    use super::*;
    use crate::{
        inventory::container::Binding,
        layout::testing::{instance, node, settings, shown},
    };

    fn laid_out(published_on: &str, endpoint: &str, flags: &[&str]) -> Vec<String> {
        let (node, settings, instance) = (node(), settings(flags), instance("80/tcp", endpoint));
        let to = "80".parse().expect("a port");
        let bindings = [Binding { to, ip: published_on.parse().expect("an address"), port: instance.port }];
        let subject = Subject { instance: &instance, node: &node, bindings: &bindings };
        shown(entries(&subject, &settings.containers_prefix, settings.containers_host))
    }

    #[test]
    fn a_port_published_everywhere_has_the_fallback_and_any_other_its_interfaces_address() {
        let fallback = ["--containers-host", "172.17.42.1"];
        for (published_on, endpoint, flags, host) in [
            ("0.0.0.0", "10.0.0.5:8080", &fallback[..], "172.17.42.1"),
            ("0.0.0.0", "10.0.0.5:8080", &[], "10.0.0.5"),
            ("192.168.7.5", "192.168.7.5:8080", &fallback, "192.168.7.5"),
        ] {
            assert_eq!(
                laid_out(published_on, endpoint, flags),
                [format!("/containers/web-1/80/host {host}"), "/containers/web-1/80/port 8080".to_owned()]
            );
        }
    }

    #[test]
    fn a_container_that_is_reached_at_its_own_address_has_no_fallback() {
        let (node, to) = (node(), "80".parse().expect("a port"));
        let instance = Instance { network: Some("front".to_owned()), ..instance("80/tcp", "10.5.0.2:80") };
        let bindings = [Binding { to, ip: "0.0.0.0".parse().expect("an address"), port: 80 }];
        let subject = Subject { instance: &instance, node: &node, bindings: &bindings };
        let fallback = Some("172.17.42.1".parse().expect("an address"));
        let laid_out = shown(entries(&subject, &settings(&[]).containers_prefix, fallback));
        assert_eq!(laid_out[0], "/containers/web-1/80/host 10.5.0.2");
    }

    #[test]
    fn a_container_that_was_told_to_stop_is_found_no_more_and_one_that_fails_is() {
        let (node, settings) = (node(), settings(&[]));
        let found = |status: Status| {
            let instance =
                rollcall_shared::model::instance::Instance { status, ..instance("80/tcp", "10.0.0.5:8080") };
            let subject = Subject { instance: &instance, node: &node, bindings: &[] };
            entries(&subject, &settings.containers_prefix, None).is_some()
        };
        assert_eq!(Status::ALL.map(found), [true, true, true, false]);
    }
}
