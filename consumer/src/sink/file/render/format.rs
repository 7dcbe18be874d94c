//! The built-in formats. They are compiled in; an instance that a format cannot express is left out and named.

use std::{collections::BTreeSet, net::IpAddr};

use askama::Template as _;
use rollcall_shared::model::{
    instance::{Address, Protocol},
    name::ServiceName,
};

use super::{
    RenderError,
    block::{Block, Body},
    envoy_eds, host_lines,
    hosts::{Hosts, Standing},
    installed::Installed,
    nginx::Nginx,
    nginx_proxy, prometheus,
    settings::RenderSettings,
    traefik,
    view::View,
};
use crate::{
    roll::Row,
    sink::haproxy::lines::{backend, lines},
};

/// A built-in format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A line `host port` for each worker: Citus's pg_worker_list.conf.
    CitusWorkers,
    /// An `upstream` block for each service.
    NginxUpstream,
    /// A `backend` section for each service.
    HaproxyBackend,
    /// The virtual hosts that containers declare by VIRTUAL_HOST, as nginx-proxy serves them: a whole default.conf.
    NginxProxy,
    /// A whole configuration of HAProxy: a frontend, and a backend with checks for each service.
    Haproxy,
    /// The endpoints of a service, as Envoy's clusters of the type EDS read them: a file for each service.
    EnvoyEds,
    /// A dynamic configuration of Traefik for its file provider: a service of HTTP for each service.
    Traefik,
    /// The targets of Prometheus, for its file_sd_configs and http_sd_configs.
    Prometheus,
    /// Lines of /etc/hosts for each container and service.
    Hosts,
    /// A JSON array of everything that is known.
    Json,
}

impl Format {
    /// The protocol that the format means where a target names none.
    pub fn protocol(self) -> Option<Protocol> {
        match self {
            Format::CitusWorkers
            | Format::NginxUpstream
            | Format::HaproxyBackend
            | Format::NginxProxy
            | Format::Haproxy
            | Format::EnvoyEds
            | Format::Traefik
            | Format::Prometheus => Some(Protocol::Tcp),
            Format::Hosts | Format::Json => None,
        }
    }

    /// Whether instances of the protocol can be expressed.
    pub fn speaks(self, protocol: Protocol) -> bool {
        match self {
            Format::CitusWorkers
            | Format::HaproxyBackend
            | Format::NginxProxy
            | Format::Haproxy
            | Format::EnvoyEds
            | Format::Traefik
            | Format::Prometheus => protocol == Protocol::Tcp,
            Format::NginxUpstream | Format::Hosts | Format::Json => true,
        }
    }
}

/// What stands at the top of a file, where its syntax has comments.
pub(super) const HEADER: &str = "# Rendered by Rollcall; do not edit.\n";

impl Format {
    /// The media type of plain text.
    pub const TEXT: &str = "text/plain; charset=utf-8";

    /// The media type of what is rendered.
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Json | Format::EnvoyEds | Format::Traefik | Format::Prometheus => "application/json",
            Format::CitusWorkers
            | Format::NginxUpstream
            | Format::HaproxyBackend
            | Format::NginxProxy
            | Format::Haproxy
            | Format::Hosts => Self::TEXT,
        }
    }

    /// Whether its program resolves host names when it loads the file, and refuses all of it for one that does not.
    pub(super) fn resolves_at_load(self) -> bool {
        matches!(self, Format::NginxUpstream | Format::NginxProxy)
    }

    /// Whether it is a whole configuration, of which there is one for all services.
    pub fn is_whole(self) -> bool {
        matches!(self, Format::NginxProxy | Format::Haproxy | Format::Traefik)
    }

    /// Whether its program takes one service from each file.
    pub(super) fn is_of_one_service(self) -> bool {
        self == Format::EnvoyEds
    }

    /// How the names of its files must end, as its program tells by that what they are; any may where there is none.
    pub fn extensions(self) -> &'static [&'static str] {
        match self {
            Format::EnvoyEds | Format::Prometheus => &["json"],
            Format::Traefik => &["yml", "yaml"],
            Format::CitusWorkers
            | Format::NginxUpstream
            | Format::HaproxyBackend
            | Format::NginxProxy
            | Format::Haproxy
            | Format::Hosts
            | Format::Json => &[],
        }
    }

    /// Whether its program takes services for one whose names differ in case only, and refuses the second.
    pub(super) fn ignores_case(self) -> bool {
        self == Format::NginxUpstream
    }

    /// What a file has whose program refuses some of what is new.
    pub(super) fn read(self, text: &str) -> Installed {
        match self {
            Format::NginxUpstream => Installed::of_upstreams(text),
            // Its upstreams are no services.
            Format::NginxProxy => Installed { services: BTreeSet::new(), ..Installed::of_upstreams(text) },
            Format::EnvoyEds => Installed::of_assignments(text),
            Format::CitusWorkers
            | Format::HaproxyBackend
            | Format::Haproxy
            | Format::Traefik
            | Format::Prometheus
            | Format::Hosts
            | Format::Json => Installed::default(),
        }
    }

    /// One service's part of the file, of the names that were looked up.
    pub(super) fn block(
        self,
        service: &ServiceName,
        rows: &[&Row],
        hosts: &Hosts,
        RenderSettings { nginx, runtime, .. }: &RenderSettings,
    ) -> Result<Block, RenderError> {
        match self {
            Format::Json => json(rows),
            Format::CitusWorkers => servers(rows, true, |servers| CitusWorkers { servers }.render()),
            Format::NginxUpstream => {
                let (rows, unresolved) = match nginx.resolves_later() {
                    true => (rows.to_vec(), vec![]),
                    false => resolved(rows, hosts),
                };
                let render = |servers: &[&Row]| NginxUpstream::new(service, servers, nginx).render();
                let mut block = servers(&rows, true, render)?;
                let unresolved =
                    unresolved.iter().map(|row| format!("{}, which does not resolve", name(row)));
                block.left_out.extend(unresolved);
                Ok(block)
            }
            Format::NginxProxy => Ok(candidates(rows, hosts)),
            Format::EnvoyEds => envoy_eds::block(service, rows),
            Format::Traefik => traefik::block(service, rows),
            Format::Prometheus => prometheus::block(rows),
            Format::Hosts => Ok(host_lines::block(rows)),
            Format::HaproxyBackend | Format::Haproxy => servers(rows, false, |servers| {
                let backend = &backend(service, runtime.as_ref());
                HaproxyBackend { backend, lines: lines(servers, runtime.as_ref()) }.render()
            }),
        }
    }

    /// The file of these parts, where it is no more than that.
    pub(super) fn join<'b>(self, blocks: impl Iterator<Item = &'b str>) -> Vec<u8> {
        let blocks: Vec<&str> = blocks.filter(|block| !block.is_empty()).collect();
        let text = match self {
            // As workerlist-gen wrote it, for those who read it line by line.
            Format::CitusWorkers | Format::EnvoyEds => blocks.concat(),
            Format::NginxUpstream
            | Format::HaproxyBackend
            | Format::Hosts
            | Format::NginxProxy
            | Format::Traefik
            | Format::Haproxy => [&[HEADER], blocks.as_slice()].concat().concat(),
            Format::Json | Format::Prometheus if blocks.is_empty() => "[]\n".to_owned(),
            Format::Json | Format::Prometheus => format!("[\n{}\n]\n", blocks.join(",\n")),
        };
        text.into_bytes()
    }
}

/// A block of the servers that can be reached. Where endpoints are to be distinct, one that two agents name, as they may
/// where containers are known by name, is one server.
pub(super) fn servers<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    rows: &[&Row],
    are_distinct: bool,
    render: impl FnOnce(&[&Row]) -> Result<String, E>,
) -> Result<Block, RenderError> {
    let (mut servers, unreachable): (Vec<&Row>, Vec<&Row>) =
        rows.iter().partition(|row| is_reachable(&row.endpoint.address));
    if are_distinct {
        servers.dedup_by_key(|row| &row.endpoint);
    }
    Ok(Block {
        body: Body::Text(render(&servers).map_err(|error| RenderError::Format(error.into()))?),
        instances: servers.len(),
        left_out: unreachable.iter().map(|row| name(row)).collect(),
        hosts: vec![],
    })
}

/// The instances whose containers declare virtual hosts. What cannot be reached keeps its host, without a server.
fn candidates(rows: &[&Row], hosts: &Hosts) -> Block {
    let unusable = |row: &Row| match &row.endpoint.address {
        address if !is_reachable(address) => Some("which nobody can reach"),
        Address::Name(name) if hosts.standing(name) == Standing::LeftOut => Some("which does not resolve"),
        _ => None,
    };
    let candidates = rows.iter().filter_map(|row| nginx_proxy::candidate(row, unusable(row))).collect();
    Block { body: Body::Candidates(candidates), instances: 0, left_out: vec![], hosts: vec![] }
}

/// The rows whose host names may stand in the file, and the others.
fn resolved<'r>(rows: &[&'r Row], hosts: &Hosts) -> (Vec<&'r Row>, Vec<&'r Row>) {
    rows.iter().partition(|row| match &row.endpoint.address {
        Address::Ip(_) => true,
        Address::Name(name) => hosts.standing(name) != Standing::LeftOut,
    })
}

/// An instance as messages name it.
pub(super) fn name(row: &Row) -> String {
    format!("{} of {} at {}", row.instance.container, row.id.node, row.endpoint)
}

/// Whether traffic can go to an address at all.
pub(crate) fn is_reachable(address: &Address) -> bool {
    match address {
        Address::Ip(IpAddr::V4(ip)) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        Address::Ip(IpAddr::V6(ip)) => !ip.is_unspecified() && !ip.is_multicast(),
        Address::Name(_) => true,
    }
}

/// One instance a line, with commas between them.
fn json(rows: &[&Row]) -> Result<Block, RenderError> {
    let line = |row: &&Row| serde_json::to_string(&View::of(row));
    let lines = rows.iter().map(line).collect::<Result<Vec<_>, _>>();
    let text = lines.map_err(|error| RenderError::Format(error.into()))?.join(",\n");
    Ok(Block { body: Body::Text(text), instances: rows.len(), left_out: vec![], hosts: vec![] })
}

#[derive(askama::Template)]
#[template(path = "citus-workers.txt", escape = "none")]
struct CitusWorkers<'r> {
    servers: &'r [&'r Row],
}

#[derive(askama::Template)]
#[template(path = "nginx-upstream.txt", escape = "none")]
struct NginxUpstream<'r> {
    service: &'r ServiceName,
    servers: &'r [&'r Row],
    nginx: &'r Nginx,
    /// Whether there are other servers than backups: nginx refuses an upstream without.
    has_others: bool,
}

impl<'r> NginxUpstream<'r> {
    fn new(service: &'r ServiceName, servers: &'r [&'r Row], nginx: &'r Nginx) -> Self {
        let has_others = servers.iter().any(|row| !nginx.is_backup(&row.instance.tags));
        Self { service, servers, nginx, has_others }
    }

    /// What follows a server's endpoint.
    fn parameters(&self, row: &Row) -> String {
        let weight = match row.instance.weight {
            1 => String::new(),
            weight => format!(" weight={weight}"),
        };
        let is_name = matches!(row.endpoint.address, Address::Name(_));
        let resolve = if is_name && self.nginx.resolves_later() { " resolve" } else { "" };
        let backup = if self.has_others && self.nginx.is_backup(&row.instance.tags) { " backup" } else { "" };
        format!("{weight}{}{backup}{resolve}", self.nginx.parameters())
    }
}

#[derive(askama::Template)]
#[template(path = "haproxy-backend.txt", escape = "none")]
struct HaproxyBackend<'r> {
    backend: &'r str,
    lines: Vec<String>,
}
