//! Turns a target's rows into the bytes of its file: the only file that names the template engines.
//!
//! The built-in formats are compiled in; a user's template is read each time. An instance that a format
//! cannot express is left out and named, and is never the end of the rest. Nothing is written here.

use std::{
    collections::{BTreeMap, HashSet},
    fmt, fs,
    path::{Path, PathBuf},
};

use askama::Template as _;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value, context, value::Serde};
use rollcall_shared::{
    instance::{Address, Endpoint, Instance, Protocol, Status},
    name::{ContainerId, ContainerName, NodeName, ServiceName, TargetName},
};
use serde::Serialize;

use crate::select::{Row, is_reachable};

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
    #[error("cannot read the template {path}: {source}", path = path.display())]
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
    #[error("the format fails: {0}")]
    Format(String),
}

/// A file's content.
#[derive(Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// How many instances are in it.
    pub instances: usize,
    /// The instances that the format cannot express, and why not.
    pub left_out: Vec<String>,
}

/// Renders one target.
#[derive(Debug, Clone)]
pub struct Renderer {
    /// The target's name, which templates may show.
    pub target: TargetName,
    /// What to render by.
    pub content: Content,
    /// Services that are there also while they have no instance.
    pub services: Vec<ServiceName>,
}

impl Renderer {
    /// Checks what can be checked before there is a roll: that a template can be read and parsed.
    ///
    /// # Errors
    /// As [`Renderer::render`].
    pub fn check(&self) -> Result<(), RenderError> {
        match &self.content {
            Content::Format(_) => Ok(()),
            Content::Template(path) => environment(path).map(drop),
        }
    }

    /// Renders the rows, which come in order.
    ///
    /// # Errors
    /// A template that cannot be read or fails.
    pub fn render<'r>(
        &'r self,
        rows: impl Iterator<Item = &'r Row> + Clone,
    ) -> Result<Rendered, RenderError> {
        match &self.content {
            Content::Format(Format::Json) => json(rows),
            Content::Format(format) => self.render_servers(*format, rows),
            Content::Template(path) => self.render_template(path, rows),
        }
    }

    fn render_servers<'r>(
        &'r self,
        format: Format,
        rows: impl Iterator<Item = &'r Row>,
    ) -> Result<Rendered, RenderError> {
        let mut left_out = Vec::new();
        let reachable = rows.filter(|row| {
            let reachable = is_reachable(&row.endpoint.address);
            if !reachable {
                left_out.push(format!("{} of {} at {}", row.instance.container, row.id.node, row.endpoint));
            }
            reachable
        });
        let (text, instances) = match format {
            Format::CitusWorkers => {
                let mut seen = HashSet::new();
                let workers: Vec<&Endpoint> =
                    reachable.map(|row| &row.endpoint).filter(|endpoint| seen.insert(*endpoint)).collect();
                (CitusWorkers { workers: &workers }.render(), workers.len())
            }
            Format::NginxUpstream | Format::HaproxyBackend => {
                let same = format == Format::NginxUpstream;
                let services = self.group(reachable, same);
                let instances = services.iter().map(|service| service.servers.len()).sum();
                let text = match format {
                    Format::NginxUpstream => NginxUpstream { services: &services }.render(),
                    _ => HaproxyBackend { services: &services }.render(),
                };
                (text, instances)
            }
            Format::Json => unreachable!("JSON has no servers"),
        };
        let bytes = text.map_err(|error| RenderError::Format(error.to_string()))?.into_bytes();
        Ok(Rendered { bytes, instances, left_out })
    }

    /// The rows by service, with the services that the target names; `distinct` drops repeated endpoints.
    fn group<'r>(&'r self, rows: impl Iterator<Item = &'r Row>, distinct: bool) -> Vec<Service<'r>> {
        let mut groups: BTreeMap<&ServiceName, Vec<Server<'r>>> =
            self.services.iter().map(|name| (name, vec![])).collect();
        let mut last: Option<&Row> = None;
        for row in rows {
            let same_service = last.filter(|last| last.instance.service == row.instance.service);
            if distinct && same_service.is_some_and(|last| last.endpoint == row.endpoint) {
                continue;
            }
            groups.entry(&row.instance.service).or_default().push(Server(row));
            last = Some(row);
        }
        groups.into_iter().map(|(name, servers)| Service { name, servers }).collect()
    }

    fn render_template<'r>(
        &self,
        path: &Path,
        rows: impl Iterator<Item = &'r Row>,
    ) -> Result<Rendered, RenderError> {
        let environment = environment(path)?;
        let failed = |error| failed(path, &error);
        let mut instances = Vec::new();
        let mut services: BTreeMap<&str, Vec<Value>> =
            self.services.iter().map(|name| (name.as_str(), vec![])).collect();
        for row in rows {
            let value = Value::from(Serde(View::of(row)));
            services.entry(row.instance.service.as_str()).or_default().push(value.clone());
            instances.push(value);
        }
        let count = instances.len();
        let target = context! { name => self.target.as_str() };
        let context = context! { instances, services, target };
        let template = environment.get_template(MAIN).map_err(failed)?;
        let text = template.render(context).map_err(failed)?;
        Ok(Rendered { bytes: text.into_bytes(), instances: count, left_out: vec![] })
    }
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

fn json<'r>(rows: impl Iterator<Item = &'r Row>) -> Result<Rendered, RenderError> {
    let mut bytes = b"[".to_vec();
    let mut instances = 0;
    for row in rows {
        bytes.extend_from_slice(if instances == 0 { b"\n" } else { b",\n" });
        serde_json::to_writer(&mut bytes, &View::of(row))
            .map_err(|error| RenderError::Format(error.to_string()))?;
        instances += 1;
    }
    bytes.extend_from_slice(if instances == 0 { b"]\n" } else { b"\n]\n" });
    Ok(Rendered { bytes, instances, left_out: vec![] })
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
    workers: &'r [&'r Endpoint],
}

#[derive(askama::Template)]
#[template(path = "nginx-upstream.txt", escape = "none")]
struct NginxUpstream<'r> {
    services: &'r [Service<'r>],
}

#[derive(askama::Template)]
#[template(path = "haproxy-backend.txt", escape = "none")]
struct HaproxyBackend<'r> {
    services: &'r [Service<'r>],
}

struct Service<'r> {
    name: &'r ServiceName,
    servers: Vec<Server<'r>>,
}

struct Server<'r>(&'r Row);

impl std::ops::Deref for Server<'_> {
    type Target = Row;
    fn deref(&self) -> &Row {
        self.0
    }
}

struct ServerName<'r>(&'r Row);

impl fmt::Display for ServerName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { id, instance, .. } = self.0;
        write!(f, "{}:{}:{}", id.node, instance.container, id.port)
    }
}

/// HAProxy's greatest weight.
const HAPROXY_WEIGHT: u16 = 256;

impl Server<'_> {
    /// Unique within a backend: colons cannot stand in the names of nodes and containers.
    fn name(&self) -> ServerName<'_> {
        ServerName(self.0)
    }

    fn weight(&self) -> u16 {
        self.0.instance.weight.min(HAPROXY_WEIGHT)
    }

    /// A name may resolve only once its container is there; HAProxy would refuse to start without.
    fn is_resolved_later(&self) -> bool {
        matches!(self.0.endpoint.address, Address::Name(_))
    }
}
