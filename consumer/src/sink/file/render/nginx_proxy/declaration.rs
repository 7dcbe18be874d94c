//! What a container declares of its virtual hosts, by the environment variables of nginx-proxy or labels of the same
//! names.

use std::{fmt, str::FromStr, sync::Arc};

use jiff::Timestamp;
use rollcall_shared::model::{
    instance::{Endpoint, Instance, InstanceId},
    name::ContainerName,
};

use super::{
    host_name::{HostName, HostNameError},
    multiports::{self, PlaceText},
    path::{VirtualPath, parse_path},
    settings::{HttpsMethod, StrictTransport},
};
use crate::roll::Row;

/// The protocol that a container speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proto {
    Http,
    Https,
    Grpc,
    Grpcs,
    Uwsgi,
    Fastcgi,
}

impl Proto {
    const ALL: [Self; 6] =
        [Proto::Http, Proto::Https, Proto::Grpc, Proto::Grpcs, Proto::Uwsgi, Proto::Fastcgi];

    pub fn as_str(self) -> &'static str {
        match self {
            Proto::Http => "http",
            Proto::Https => "https",
            Proto::Grpc => "grpc",
            Proto::Grpcs => "grpcs",
            Proto::Uwsgi => "uwsgi",
            Proto::Fastcgi => "fastcgi",
        }
    }
}

impl FromStr for Proto {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|proto| proto.as_str() == text);
        found.ok_or("http, https, grpc, grpcs, uwsgi or fastcgi")
    }
}

/// What a container declares. Its texts are of types that nginx takes.
#[derive(Debug)]
pub(super) struct Declaration {
    pub names: Vec<HostName>,
    pub port: Option<u16>,
    pub path: VirtualPath,
    pub dest: String,
    pub proto: Proto,
    /// Where FastCGI's scripts are, in the container.
    pub root: String,
    /// Whether only internal clients are served.
    pub is_internal: bool,
    pub cert_name: Option<String>,
    pub https_method: Option<HttpsMethod>,
    pub hsts: Option<StrictTransport>,
}

/// An instance whose container declares virtual hosts.
#[derive(Debug)]
pub struct Candidate {
    pub(super) id: Arc<InstanceId>,
    pub(super) container: ContainerName,
    pub(super) endpoint: Endpoint,
    pub(super) weight: u16,
    pub(super) started_at: Timestamp,
    /// Why no traffic can go to it.
    pub(super) unusable: Option<&'static str>,
    /// What it declares, or why nothing of it can be used.
    pub(super) declared: Result<Vec<Declaration>, String>,
    /// What it declares that cannot be used, while the rest can.
    pub(super) flaws: Vec<String>,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.container, self.id.node)
    }
}

/// What a row's container declares, if it is anything.
pub(in super::super) fn candidate(row: &Row, unusable: Option<&'static str>) -> Option<Candidate> {
    let instance = &*row.instance;
    let mut flaws = vec![];
    let declared = declared(instance, &mut flaws)?;
    Some(Candidate {
        id: row.id.clone(),
        container: instance.container.clone(),
        endpoint: row.endpoint.clone(),
        weight: instance.weight,
        started_at: instance.started_at,
        unusable,
        declared,
        flaws,
    })
}

/// The variable, or else the label. An empty one is none.
fn read<'i>(instance: &'i Instance, name: &str) -> Option<&'i str> {
    let value = instance.environment.get(name).or_else(|| instance.labels.get(name))?.trim();
    (!value.is_empty()).then_some(value)
}

fn flaw(name: &str, value: &str, expected: impl fmt::Display) -> String {
    /// How much of a value is shown, in characters.
    const MAX_SHOWN: usize = 80;
    let shown: String = value.chars().take(MAX_SHOWN).collect();
    format!("{name} is {shown:?}: expected {expected}")
}

fn declared(instance: &Instance, flaws: &mut Vec<String>) -> Option<Result<Vec<Declaration>, String>> {
    const MULTIPORTS: &str = "VIRTUAL_HOST_MULTIPORTS";
    // It takes the place of all others, as nginx-proxy has it.
    if let Some(text) = read(instance, MULTIPORTS) {
        let Some(places) = multiports::parse(text) else {
            return Some(Err(flaw(MULTIPORTS, text, multiports::EXPECTED)));
        };
        let mut declarations = vec![];
        for place in &places {
            match declaration(instance, place, flaws) {
                Ok(declaration) => declarations.push(declaration),
                Err(flaw) => flaws.push(format!("{MULTIPORTS} says that {flaw}")),
            }
        }
        return Some(Ok(declarations));
    }
    let hosts = read(instance, "VIRTUAL_HOST")?.to_owned();
    let text = |name| read(instance, name).map(str::to_owned);
    let place = PlaceText {
        hosts,
        port: text("VIRTUAL_PORT"),
        path: text("VIRTUAL_PATH"),
        dest: text("VIRTUAL_DEST"),
        proto: text("VIRTUAL_PROTO"),
    };
    Some(declaration(instance, &place, flaws).map(|declaration| vec![declaration]))
}

fn declaration(
    instance: &Instance,
    place: &PlaceText,
    flaws: &mut Vec<String>,
) -> Result<Declaration, String> {
    let PlaceText { hosts, port, path, dest, proto } = place;
    let path: VirtualPath = parsed("VIRTUAL_PATH", path.as_deref(), str::parse)?.unwrap_or_default();
    let dest = parsed("VIRTUAL_DEST", dest.as_deref(), parse_path)?;
    if let Some(dest) = dest.as_ref().filter(|_| path.location.is_regex()) {
        return Err(flaw("VIRTUAL_DEST", dest, "none beside a VIRTUAL_PATH that is a regular expression"));
    }
    let root = parsed("VIRTUAL_ROOT", read(instance, "VIRTUAL_ROOT"), parse_path)?;
    Ok(Declaration {
        port: parsed("VIRTUAL_PORT", port.as_deref(), parse_port)?,
        path,
        dest: dest.unwrap_or_default(),
        proto: parsed("VIRTUAL_PROTO", proto.as_deref(), str::parse)?.unwrap_or(Proto::Http),
        root: root.unwrap_or_else(|| "/var/www/public".to_owned()),
        is_internal: parsed("NETWORK_ACCESS", read(instance, "NETWORK_ACCESS"), is_internal)?
            .unwrap_or(false),
        cert_name: lenient(instance, "CERT_NAME", flaws).map(|CertName(name)| name),
        https_method: lenient(instance, "HTTPS_METHOD", flaws),
        hsts: lenient(instance, "HSTS", flaws),
        names: names(hosts, flaws)?,
    })
}

/// The names of a list, of which there is one at least, and what is wrong with the others.
fn names(list: &str, flaws: &mut Vec<String>) -> Result<Vec<HostName>, String> {
    let (mut names, mut bad) = (vec![], vec![]);
    for text in list.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        match HostName::parse_one(text) {
            Ok(some) => names.extend(some),
            Err(HostNameError(expected)) => bad.push(flaw("VIRTUAL_HOST", text, expected)),
        }
    }
    if names.is_empty() {
        return Err(bad.pop().unwrap_or_else(|| flaw("VIRTUAL_HOST", list, "a host name")));
    }
    flaws.append(&mut bad);
    Ok(names)
}

/// A setting without which the container would be served otherwise than it wants: it is not served at all.
fn parsed<T>(
    name: &str,
    value: Option<&str>,
    parse: impl FnOnce(&str) -> Result<T, &'static str>,
) -> Result<Option<T>, String> {
    let Some(value) = value else { return Ok(None) };
    parse(value).map(Some).map_err(|expected| flaw(name, value, expected))
}

/// A setting that has a good default, which takes its place.
fn lenient<T: FromStr<Err = &'static str>>(
    instance: &Instance,
    name: &str,
    flaws: &mut Vec<String>,
) -> Option<T> {
    parsed(name, read(instance, name), str::parse).unwrap_or_else(|flaw| {
        if !flaws.contains(&flaw) {
            flaws.push(flaw);
        }
        None
    })
}

fn parse_port(text: &str) -> Result<u16, &'static str> {
    text.parse().ok().filter(|port| *port != 0).ok_or("a port, 1 to 65535")
}

/// Whether only internal clients are served. Whoever asks for that by another word is not served to all.
fn is_internal(text: &str) -> Result<bool, &'static str> {
    match text {
        "internal" => Ok(true),
        "external" => Ok(false),
        _ => Err("internal or external"),
    }
}

/// The name of a certificate's files, without `.crt` and `.key`.
struct CertName(String);

impl FromStr for CertName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-*".contains(c);
        if text.len() <= 200 && !text.starts_with('.') && text.chars().all(fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err("the name of a file beside it, without .crt")
        }
    }
}
