//! The format `envoy-eds`: the endpoints of one service, as Envoy's clusters of the type EDS read them from a file.
//!
//! A file is a `DiscoveryResponse` with one `ClusterLoadAssignment`, both of Envoy's API v3 in JSON: a cluster of Envoy
//! refuses a file that has another number of them ("Unexpected EDS resource length"). Envoy keeps what it has when a file
//! or an assignment goes, so that a service without instances is an assignment without endpoints.

use rollcall_shared::model::{
    instance::{Address, Status},
    name::ServiceName,
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{
    RenderError,
    block::Block,
    format::{self, servers},
};
use crate::roll::Row;

/// What the resource is, as Envoy names its types.
const TYPE: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

/// One service's file. Envoy looks up no names for EDS: what is known by name only is left out.
pub(super) fn block(service: &ServiceName, rows: &[&Row]) -> Result<Block, RenderError> {
    let (mut rows, by_name): (Vec<&Row>, Vec<&Row>) =
        rows.iter().partition(|row| matches!(row.endpoint.address, Address::Ip(_)));
    // Of two with one endpoint, the one that may be used stands for it.
    rows.sort_by_key(|row| (&row.endpoint, health(row.instance.status).is_some()));
    let mut block = servers(&rows, true, |rows| file(service, rows))?;
    let by_name = by_name.iter().map(|row| format!("{}, which is known by name only", format::name(row)));
    block.left_out.extend(by_name);
    Ok(block)
}

/// The same bytes for the same servers: the version is that of the content.
fn file(service: &ServiceName, rows: &[&Row]) -> serde_json::Result<String> {
    let lines: Vec<String> =
        rows.iter().map(|row| serde_json::to_string(&LbEndpoint::of(row))).collect::<Result<_, _>>()?;
    let endpoints = match lines.as_slice() {
        [] => String::new(),
        lines => format!("{{\"lb_endpoints\":[\n{}\n]}}", lines.join(",\n")),
    };
    let name = serde_json::to_string(service.as_str())?;
    let assignment = format!("{{\"@type\":\"{TYPE}\",\"cluster_name\":{name},\"endpoints\":[{endpoints}]}}");
    let version: String =
        Sha256::digest(&assignment).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{{\"version_info\":\"{version}\",\"resources\":[\n{assignment}\n]}}\n"))
}

#[derive(Serialize)]
struct LbEndpoint {
    endpoint: Endpoint,
    #[serde(skip_serializing_if = "Option::is_none")]
    health_status: Option<&'static str>,
    load_balancing_weight: u16,
}

#[derive(Serialize)]
struct Endpoint {
    address: SocketAddressField,
}

#[derive(Serialize)]
struct SocketAddressField {
    socket_address: SocketAddress,
}

#[derive(Serialize)]
struct SocketAddress {
    address: String,
    port_value: u16,
}

impl LbEndpoint {
    fn of(row: &Row) -> Self {
        let socket_address =
            SocketAddress { address: row.endpoint.address.to_string(), port_value: row.endpoint.port };
        Self {
            endpoint: Endpoint { address: SocketAddressField { socket_address } },
            health_status: health(row.instance.status),
            // Never 0, which Envoy refuses.
            load_balancing_weight: row.instance.weight,
        }
    }
}

/// What is said of an instance that gets no new requests while others can take them (Envoy's `HealthStatus`).
fn health(status: Status) -> Option<&'static str> {
    match status {
        Status::Draining => Some("DRAINING"),
        Status::Failing => Some("UNHEALTHY"),
        Status::Starting | Status::Passing => None,
    }
}
