//! Turns a selection into the bytes of a file. This folder alone names the template engines.
//!
//! The built-in formats are compiled in; a user's template is read each time. An instance that a format cannot express
//! is left out and named, and never stops the rest. Nothing is written here.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use askama::Template as _;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value, context, value::Serde};
use rollcall_shared::{
    model::{
        instance::{Address, Endpoint, Instance, Protocol, Status},
        name::{ContainerId, ContainerName, NodeName, ServiceName, TargetName},
    },
    process::setting::SettingError,
};
use serde::Serialize;

use crate::roll::{Row, Selection, Verdict, Version};

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
    /// A JSON array of everything that is known.
    Json,
}

impl Format {
    /// The protocol that the format means where a target names none.
    pub fn protocol(self) -> Option<Protocol> {
        match self {
            Format::CitusWorkers | Format::NginxUpstream | Format::HaproxyBackend => Some(Protocol::Tcp),
            Format::Json => None,
        }
    }

    /// Whether instances of the protocol can be expressed.
    pub fn speaks(self, protocol: Protocol) -> bool {
        match self {
            Format::CitusWorkers | Format::HaproxyBackend => protocol == Protocol::Tcp,
            Format::NginxUpstream | Format::Json => true,
        }
    }
}

/// What a target's file is made by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A built-in format.
    Format(Format),
    /// The user's template, in the Jinja language.
    Template(PathBuf),
}

/// Why nothing was rendered. All of it may be otherwise with the next roll or the next edit.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The template's file cannot be read.
    #[error("cannot read the template {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The template is wrong, or fails with this roll.
    #[error("the template {path} fails: {reason}", path = path.display())]
    Template {
        /// The file.
        path: PathBuf,
        /// Where and why, on one line.
        reason: String,
    },
    /// A built-in format failed.
    #[error("the format fails")]
    Format(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A file's content.
#[derive(Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// How many instances are in it.
    pub instances: usize,
    /// The instances that the format cannot express.
    pub left_out: Vec<String>,
}

/// Renders one target.
#[derive(Debug)]
pub struct Renderer {
    target: TargetName,
    content: Content,
    /// Services that are there also while they have no instance.
    named: Vec<ServiceName>,
    /// What each service came to, as long as its rows have not changed: one change among many instances
    /// costs what its own service costs.
    blocks: HashMap<ServiceName, (Version, Block)>,
}

/// What one service comes to.
#[derive(Debug)]
struct Block {
    body: Body,
    instances: usize,
    left_out: Vec<String>,
}

#[derive(Debug)]
enum Body {
    /// Its part of the file.
    Text(String),
    /// Its list, as templates see it.
    List(Vec<Value>),
}

impl Renderer {
    /// A renderer for the target. The `named` services are there also while they have no instance.
    pub fn new(target: TargetName, content: Content, named: Vec<ServiceName>) -> Self {
        Self { target, content, named, blocks: HashMap::new() }
    }

    /// Checks what can be checked before there is a roll: that a template can be read and parsed.
    ///
    /// # Errors
    /// The template cannot be used.
    pub fn check(&self) -> Result<(), SettingError> {
        match &self.content {
            Content::Format(_) => Ok(()),
            Content::Template(path) => {
                let unusable = |error| match error {
                    RenderError::Read { source, .. } => {
                        SettingError::caused("template", path.display(), source)
                    }
                    RenderError::Template { reason, .. } => {
                        SettingError::caused("template", path.display(), reason)
                    }
                    error @ RenderError::Format(_) => SettingError::caused("template", path.display(), error),
                };
                environment(path).map(drop).map_err(unusable)
            }
        }
    }

    /// Renders the selection, with what the verdict holds.
    ///
    /// # Errors
    /// A template that cannot be read or fails.
    pub fn render(&mut self, selection: &Selection, verdict: &Verdict) -> Result<Rendered, RenderError> {
        let services = selection.services(verdict);
        self.blocks.retain(|service, _| services.binary_search(&service).is_ok());
        for service in &services {
            let version = selection.version(service, verdict);
            if self.blocks.get(*service).is_none_or(|(known, _)| *known != version) {
                let block = self.block(service, &selection.rows(service, verdict))?;
                self.blocks.insert((*service).clone(), (version, block));
            }
        }
        let absent = self.named.iter().filter(|name| services.binary_search(name).is_err());
        let absent: Vec<(&ServiceName, Block)> =
            absent.map(|name| Ok((name, self.block(name, &[])?))).collect::<Result<_, RenderError>>()?;
        let present = services.iter().map(|service| (*service, &self.blocks[*service].1));
        let mut blocks: Vec<(&ServiceName, &Block)> =
            absent.iter().map(|(name, block)| (*name, block)).chain(present).collect();
        blocks.sort_by_key(|(service, _)| *service);
        let bytes = match &self.content {
            Content::Format(format) => format.join(blocks.iter().filter_map(|(_, block)| block.text())),
            Content::Template(path) => self.fill(path, &blocks)?,
        };
        Ok(Rendered {
            bytes,
            instances: blocks.iter().map(|(_, block)| block.instances).sum(),
            left_out: blocks.iter().flat_map(|(_, block)| &block.left_out).cloned().collect(),
        })
    }

    fn block(&self, service: &ServiceName, rows: &[&Row]) -> Result<Block, RenderError> {
        match &self.content {
            Content::Format(format) => format.block(service, rows),
            Content::Template(_) => {
                let list = rows.iter().map(|row| Value::from(Serde(View::of(row)))).collect();
                Ok(Block { body: Body::List(list), instances: rows.len(), left_out: vec![] })
            }
        }
    }

    /// Fills the user's template in.
    fn fill(&self, path: &Path, blocks: &[(&ServiceName, &Block)]) -> Result<Vec<u8>, RenderError> {
        let environment = environment(path)?;
        let failed = |error| failed(path, &error);
        let instances: Vec<Value> = blocks.iter().flat_map(|(_, block)| block.list()).cloned().collect();
        let services: BTreeMap<&str, Value> = blocks
            .iter()
            .map(|(service, block)| (service.as_str(), block.list().iter().cloned().collect()))
            .collect();
        let target = context! { name => self.target.as_str() };
        let context = context! { instances, services, target };
        let template = environment.get_template(MAIN).map_err(failed)?;
        Ok(template.render(context).map_err(failed)?.into_bytes())
    }
}

impl Block {
    fn text(&self) -> Option<&str> {
        match &self.body {
            Body::Text(text) => Some(text),
            Body::List(_) => None,
        }
    }

    fn list(&self) -> &[Value] {
        match &self.body {
            Body::Text(_) => &[],
            Body::List(list) => list,
        }
    }
}

/// What stands at the top of a file, where its syntax has comments.
const HEADER: &str = "# Rendered by Rollcall; do not edit.\n";

impl Format {
    /// One service's part of the file.
    fn block(self, service: &ServiceName, rows: &[&Row]) -> Result<Block, RenderError> {
        match self {
            Format::Json => json(rows),
            Format::CitusWorkers => servers(rows, true, |servers| CitusWorkers { servers }.render()),
            Format::NginxUpstream => {
                servers(rows, true, |servers| NginxUpstream { service, servers }.render())
            }
            Format::HaproxyBackend => {
                servers(rows, false, |servers| HaproxyBackend::new(service, servers).render())
            }
        }
    }

    /// The file of these parts.
    fn join<'b>(self, blocks: impl Iterator<Item = &'b str>) -> Vec<u8> {
        let blocks: Vec<&str> = blocks.filter(|block| !block.is_empty()).collect();
        let text = match self {
            // As workerlist-gen wrote it, for those who read it line by line.
            Format::CitusWorkers => blocks.concat(),
            Format::NginxUpstream | Format::HaproxyBackend => {
                [&[HEADER], blocks.as_slice()].concat().concat()
            }
            Format::Json if blocks.is_empty() => "[]\n".to_owned(),
            Format::Json => format!("[\n{}\n]\n", blocks.join(",\n")),
        };
        text.into_bytes()
    }
}

/// A block of the servers that can be reached. Where endpoints are to be distinct, one that two agents name, as they may
/// where containers are known by name, is one server.
fn servers(
    rows: &[&Row],
    are_distinct: bool,
    render: impl FnOnce(&[&Row]) -> askama::Result<String>,
) -> Result<Block, RenderError> {
    let (mut servers, unreachable): (Vec<&Row>, Vec<&Row>) =
        rows.iter().partition(|row| is_reachable(&row.endpoint.address));
    if are_distinct {
        servers.dedup_by_key(|row| &row.endpoint);
    }
    let name = |row: &&Row| format!("{} of {} at {}", row.instance.container, row.id.node, row.endpoint);
    Ok(Block {
        body: Body::Text(render(&servers).map_err(|error| RenderError::Format(error.into()))?),
        instances: servers.len(),
        left_out: unreachable.iter().map(name).collect(),
    })
}

/// The name of the user's template within its environment; no included file can have it.
const MAIN: &str = "/";

/// A strict environment with the user's template, whose folder is where it includes others from.
fn environment(path: &Path) -> Result<Environment<'static>, RenderError> {
    let source =
        fs::read_to_string(path).map_err(|source| RenderError::Read { path: path.to_owned(), source })?;
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    let mut syntax = environment.syntax().to_builder();
    syntax.keep_trailing_newline(true).trim_blocks(true).lstrip_blocks(true);
    environment.set_syntax(syntax.build().expect("the usual delimiters do not contradict each other"));
    environment.set_loader(minijinja::path_loader(path.parent().unwrap_or(Path::new("."))));
    environment.add_template_owned(MAIN, source).map_err(|error| failed(path, &error))?;
    Ok(environment)
}

fn failed(path: &Path, error: &minijinja::Error) -> RenderError {
    let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    let what = error.detail().map_or_else(|| error.kind().to_string(), ToOwned::to_owned);
    let reason = format!("{line}{what}").replace(char::is_control, " ");
    RenderError::Template { path: path.to_owned(), reason }
}

/// Whether traffic can go to an address at all.
fn is_reachable(address: &Address) -> bool {
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
    Ok(Block { body: Body::Text(text), instances: rows.len(), left_out: vec![] })
}

/// An instance as JSON and templates show it.
#[derive(Serialize)]
struct View<'r> {
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
    alternatives: &'r [Endpoint],
}

impl<'r> View<'r> {
    fn of(row: &'r Row) -> Self {
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
            alternatives: &instance.alternatives,
        }
    }
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
}

#[derive(askama::Template)]
#[template(path = "haproxy-backend.txt", escape = "none")]
struct HaproxyBackend<'r> {
    service: &'r ServiceName,
    servers: &'r [&'r Row],
    /// Names that more than one server would have.
    ambiguous: HashSet<String>,
}

impl<'r> HaproxyBackend<'r> {
    fn new(service: &'r ServiceName, servers: &'r [&'r Row]) -> Self {
        let mut names = HashSet::new();
        let ambiguous = servers.iter().map(|row| server_name(row)).filter(|name| !names.insert(name.clone()));
        Self { service, servers, ambiguous: ambiguous.collect() }
    }

    /// Unique within a backend, as HAProxy wants it: a container that is held may stand beside the one of the same name
    /// that has taken its place.
    fn name(&self, row: &Row) -> String {
        let name = server_name(row);
        if self.ambiguous.contains(&name) { format!("{name}:{}", row.id.container) } else { name }
    }

    fn weight(&self, row: &Row) -> u16 {
        /// HAProxy's greatest weight.
        const GREATEST: u16 = 256;
        row.instance.weight.min(GREATEST)
    }

    /// A name may resolve only once its container is there; HAProxy would refuse to start without.
    fn is_resolved_later(&self, row: &Row) -> bool {
        matches!(row.endpoint.address, Address::Name(_))
    }
}

/// Colons cannot stand in the names of nodes and containers.
fn server_name(row: &Row) -> String {
    format!("{}:{}:{}", row.id.node, row.instance.container, row.id.port)
}

#[cfg(test)]
mod tests;
