//! Reads back what a built-in format has written: what stands in a file over a restart.

use std::collections::BTreeSet;

use rollcall_shared::model::{
    instance::Address,
    name::{ContainerName, ServiceName},
};
use serde::Deserialize;

/// What a file has.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Installed {
    /// Its services.
    pub services: BTreeSet<ServiceName>,
    /// The names, among the addresses of its servers.
    pub hosts: BTreeSet<ContainerName>,
}

impl Installed {
    /// Of nginx's upstreams. What is no line of ours says nothing.
    pub fn of_upstreams(text: &str) -> Self {
        let service = |line: &str| line.strip_prefix("upstream ")?.strip_suffix(" {")?.parse().ok();
        let lines = || text.lines().map(str::trim);
        Self { services: lines().filter_map(service).collect(), hosts: lines().filter_map(host).collect() }
    }

    /// Of Envoy's assignments, one file after another. What comes after something else says nothing.
    pub fn of_assignments(text: &str) -> Self {
        let responses = serde_json::Deserializer::from_str(text).into_iter::<Response>();
        let assignments = responses.map_while(Result::ok).flat_map(|response| response.resources);
        Self { services: assignments.map(|one| one.cluster_name).collect(), hosts: BTreeSet::new() }
    }
}

/// The parts of an `envoy-eds` file that say whose it is.
#[derive(Deserialize)]
struct Response {
    resources: Vec<Assignment>,
}

#[derive(Deserialize)]
struct Assignment {
    cluster_name: ServiceName,
}

/// The host name of a line such as `server NAME:PORT weight=2;`.
fn host(line: &str) -> Option<ContainerName> {
    let endpoint = line.strip_prefix("server ")?.strip_suffix(';')?.split(' ').next()?;
    let (address, _port) = endpoint.rsplit_once(':')?;
    match Address::try_from(address.to_owned()) {
        Ok(Address::Name(name)) => Some(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_are_read_back_as_they_were_written_and_nothing_else_is() {
        let text = "# Rendered by Rollcall; do not edit.\n\nupstream web {\n    server app-1:80;\n    \
                    server app-2:80 weight=3;\n    server 10.0.0.1:80;\n    server [fd00::2]:80;\n    \
                    server unix:/x;\n    server ;\n}\n\nupstream zoo {\n    server 127.0.0.1:9 down;\n}\n\
                    upstream a b {\nserver_name app-3:80;\n    # server app-4:80;\n";
        let Installed { services, hosts } = Installed::of_upstreams(text);
        assert_eq!(services.iter().map(ServiceName::as_str).collect::<Vec<_>>(), ["web", "zoo"]);
        let hosts: Vec<_> = hosts.iter().map(ContainerName::as_str).collect();
        assert_eq!(hosts, ["app-1", "app-2", "unix"]);
        assert_eq!(Installed::of_upstreams(""), Installed::default());
    }
}
