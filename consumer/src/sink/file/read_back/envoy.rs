//! What Envoy has, by its administration interface: `GET /clusters?format=json` (envoy.admin.v3.Clusters).
//!
//! A cluster follows the service of its `eds_service_name`, else that of its own name. Services that no cluster follows are
//! none of Envoy's business, unless it follows none at all.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::Deserialize;

use super::{
    Mismatch,
    comparison::{Listing, shown, some},
};

/// Where the clusters and their hosts are.
pub(super) const CLUSTERS: &str = "/clusters?format=json";
/// Where it says how many files it has refused.
pub(super) const STATS: &str = "/stats?format=json&filter=update_rejected";

/// A file of endpoints, as far as it counts.
#[derive(Deserialize)]
struct Response {
    resources: Vec<Assignment>,
}

#[derive(Deserialize)]
struct Assignment {
    cluster_name: String,
    #[serde(default)]
    endpoints: Vec<Locality>,
}

#[derive(Deserialize)]
struct Locality {
    #[serde(default)]
    lb_endpoints: Vec<LbEndpoint>,
}

#[derive(Deserialize)]
struct LbEndpoint {
    endpoint: Endpoint,
    health_status: Option<String>,
    load_balancing_weight: Option<u64>,
}

#[derive(Deserialize)]
struct Endpoint {
    address: Address,
}

/// The one kind of address that is compared; others are as good as none.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Address {
    socket_address: SocketAddressField,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SocketAddressField {
    address: String,
    port_value: u32,
}

#[derive(Deserialize)]
struct Clusters {
    #[serde(default)]
    cluster_statuses: Vec<Cluster>,
}

#[derive(Deserialize)]
struct Cluster {
    name: String,
    eds_service_name: Option<String>,
    #[serde(default)]
    host_statuses: Vec<Host>,
}

#[derive(Deserialize)]
struct Host {
    address: Address,
    weight: Option<u64>,
    #[serde(default)]
    health_status: Health,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Health {
    eds_health_status: Option<String>,
}

#[derive(Deserialize)]
struct Stats {
    #[serde(default)]
    stats: Vec<Stat>,
}

/// A counter; histograms have neither.
#[derive(Deserialize)]
struct Stat {
    name: Option<String>,
    value: Option<serde_json::Value>,
}

/// Compares what is installed with the clusters.
pub(super) fn compare(installed: &[u8], answer: &[u8]) -> Result<(), Mismatch> {
    let desired = desired(installed).map_err(Mismatch::Installed)?;
    let clusters: Clusters = serde_json::from_slice(answer).map_err(Mismatch::Answer)?;
    let followed = clusters.cluster_statuses.iter().filter_map(|cluster| {
        let service = cluster.eds_service_name.as_ref().filter(|name| !name.is_empty());
        Some((cluster, desired.get(service.unwrap_or(&cluster.name))?))
    });
    let followed: Vec<_> = followed.collect();
    let with_endpoints = desired.iter().filter(|(_, hosts)| !hosts.is_empty()).map(|(name, _)| shown(name));
    let none = some(with_endpoints, |names| format!("has no cluster that follows {names}"));
    if let (true, Some(difference)) = (followed.is_empty(), none) {
        return Err(Mismatch::Differs(difference));
    }
    let differences = followed.into_iter().filter_map(|(cluster, hosts)| {
        let difference = hosts.difference(&found(cluster))?;
        Some(format!("{difference} in cluster {}", shown(&cluster.name)))
    });
    match some(differences, |differences| differences) {
        Some(differences) => Err(Mismatch::Differs(differences)),
        None => Ok(()),
    }
}

/// The hosts of each service.
fn desired(installed: &[u8]) -> serde_json::Result<BTreeMap<String, Listing>> {
    let mut services: BTreeMap<String, Listing> = BTreeMap::new();
    for response in serde_json::Deserializer::from_slice(installed).into_iter::<Response>() {
        for Assignment { cluster_name, endpoints } in response?.resources {
            let hosts = services.entry(cluster_name).or_default();
            for LbEndpoint { endpoint, health_status, load_balancing_weight } in
                endpoints.into_iter().flat_map(|locality| locality.lb_endpoints)
            {
                hosts.add(name(&endpoint.address), state(health_status, load_balancing_weight));
            }
        }
    }
    Ok(services)
}

fn found(cluster: &Cluster) -> Listing {
    let mut hosts = Listing::default();
    for Host { address, weight, health_status } in &cluster.host_statuses {
        hosts.add(name(address), state(health_status.eds_health_status.clone(), *weight));
    }
    hosts
}

/// Addresses are the same however they are written.
fn name(Address { socket_address: SocketAddressField { address, port_value } }: &Address) -> String {
    match (address.parse(), u16::try_from(*port_value)) {
        (Ok(ip), Ok(port)) => SocketAddr::new(ip, port).to_string(),
        _ => format!("{address}:{port_value}"),
    }
}

fn state(health: Option<String>, weight: Option<u64>) -> String {
    let health = health.filter(|health| !matches!(health.as_str(), "HEALTHY" | "UNKNOWN"));
    let weight = format!("weight {}", weight.unwrap_or(1));
    health.map_or(weight.clone(), |health| format!("{weight}, {health}"))
}

/// That files were refused since Envoy started, if any were.
pub(super) fn refusals(answer: &[u8]) -> Option<String> {
    let stats: Stats = serde_json::from_slice(answer).ok()?;
    let clusters = stats.stats.into_iter().filter_map(|Stat { name, value }| {
        let cluster = name?.strip_prefix("cluster.")?.strip_suffix(".update_rejected")?.to_owned();
        (value?.as_u64()? > 0).then(|| shown(&cluster))
    });
    some(clusters, |names| format!("it has refused files of {names} since it started, and logs why"))
}
