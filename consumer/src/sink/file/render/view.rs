//! An instance as JSON and templates show it.

use std::collections::BTreeMap;

use rollcall_shared::model::{
    instance::{Address, Endpoint, Instance, Protocol, Status},
    name::{ContainerId, ContainerName, NodeName, ServiceName},
};
use serde::Serialize;

use crate::roll::Row;

/// An instance as JSON and templates show it.
#[derive(Serialize)]
pub(super) struct View<'r> {
    service: &'r ServiceName,
    node: &'r NodeName,
    container: &'r ContainerName,
    id: &'r ContainerId,
    image: &'r str,
    address: &'r Address,
    port: u16,
    endpoint: String,
    protocol: Protocol,
    container_port: u16,
    network: Option<&'r str>,
    status: Status,
    weight: u16,
    started_at: jiff::Timestamp,
    tags: &'r [String],
    labels: &'r BTreeMap<String, String>,
    environment: &'r BTreeMap<String, String>,
    alternatives: &'r [Endpoint],
}

impl<'r> View<'r> {
    pub fn of(row: &'r Row) -> Self {
        let Row { id, endpoint, instance, since: _ } = row;
        let Instance { v: _, service, container, id: container_id, image, .. } = &**instance;
        Self {
            service,
            node: &id.node,
            container,
            id: container_id,
            image,
            address: &endpoint.address,
            port: endpoint.port,
            endpoint: endpoint.to_string(),
            protocol: instance.protocol,
            container_port: instance.container_port,
            network: instance.network.as_deref(),
            status: instance.status,
            weight: instance.weight,
            started_at: instance.started_at,
            tags: &instance.tags,
            labels: &instance.labels,
            environment: &instance.environment,
            alternatives: &instance.alternatives,
        }
    }
}
