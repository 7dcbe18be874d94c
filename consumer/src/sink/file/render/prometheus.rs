//! The format `prometheus`: a group of targets for each instance, as Prometheus reads them by `file_sd_configs` and
//! `http_sd_configs`.
//!
//! What `docker_sd_configs` knows of a container is named as there, so that the same relabelling serves; the rest begins
//! with `__meta_rollcall_`. All of these labels are gone once a target was relabelled.

use std::collections::BTreeMap;

use rollcall_shared::model::instance::{Address, Instance};
use serde::Serialize;

use super::{RenderError, block::Block, format::servers};
use crate::roll::Row;

/// One service's groups, one a line, with commas between them.
pub(super) fn block(rows: &[&Row]) -> Result<Block, RenderError> {
    servers(rows, false, |rows| {
        let groups: serde_json::Result<Vec<String>> =
            rows.iter().map(|row| serde_json::to_string(&Group::of(row))).collect();
        Ok::<_, serde_json::Error>(groups?.join(",\n"))
    })
}

#[derive(Serialize)]
struct Group {
    targets: [String; 1],
    labels: BTreeMap<String, String>,
}

impl Group {
    fn of(row: &Row) -> Self {
        Self { targets: [row.endpoint.to_string()], labels: labels(row) }
    }
}

fn labels(Row { id, endpoint, instance, since: _ }: &Row) -> BTreeMap<String, String> {
    let Instance { service, container, id: container_id, image, container_port, .. } = &**instance;
    let Instance { network, status, weight, tags, labels, .. } = &**instance;
    // Later entries overrule earlier ones of the same name.
    let of_container = labels
        .iter()
        .map(|(name, value)| (format!("__meta_docker_container_label_{}", sanitised(name)), value.clone()));
    let ip = match &endpoint.address {
        Address::Ip(ip) => Some(ip.to_string()),
        Address::Name(_) => None,
    };
    let port = Some(endpoint.port.to_string());
    let place = match network {
        Some(network) => {
            vec![("__meta_docker_network_name", Some(network.clone())), ("__meta_docker_network_ip", ip)]
        }
        None => vec![("__meta_docker_port_public", port), ("__meta_docker_port_public_ip", ip)],
    };
    let place = place.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let fixed = [
        ("__meta_docker_container_id", container_id.to_string()),
        ("__meta_docker_container_name", format!("/{container}")),
        ("__meta_docker_port_private", container_port.to_string()),
        // What __address__ was before it was relabelled.
        ("__meta_rollcall_endpoint", endpoint.to_string()),
        ("__meta_rollcall_image", image.clone()),
        ("__meta_rollcall_node", id.node.to_string()),
        ("__meta_rollcall_service", service.to_string()),
        ("__meta_rollcall_status", status.to_string()),
        ("__meta_rollcall_weight", weight.to_string()),
    ];
    let fixed = fixed.into_iter().map(|(name, value)| (name.to_owned(), value));
    // As consul_sd_configs has them: `.*,TAG,.*` finds one.
    let tags =
        (!tags.is_empty()).then(|| ("__meta_rollcall_tags".to_owned(), format!(",{},", tags.join(","))));
    of_container.chain(place).chain(fixed).chain(tags).collect()
}

/// A text as a part of a label's name: Prometheus takes letters, digits and underscores only.
fn sanitised(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}
