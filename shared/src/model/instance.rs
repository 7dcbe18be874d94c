//! An instance: one container port that can be reached.

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::name::{ContainerId, ContainerName, NameError, NodeName, ServiceName};
use crate::codec::{self, V1, Value};

/// The transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Transmission Control Protocol.
    Tcp,
    /// User Datagram Protocol.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

impl FromStr for Protocol {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tcp" => Ok(Protocol::Tcp),
            "udp" => Ok(Protocol::Udp),
            _ => Err(format!("{text:?} is not a protocol: expected tcp or udp")),
        }
    }
}

/// Whether an instance should be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Its health check has not passed yet.
    Starting,
    /// Healthy, or without a health check.
    Passing,
    /// Its health check fails, or the container is paused.
    Failing,
    /// It has been told to stop and finishes what it has.
    Draining,
}

impl Status {
    /// Every status, in the order of an instance's life.
    pub const ALL: [Status; 4] = [Status::Starting, Status::Passing, Status::Failing, Status::Draining];

    /// The status as it is written in records and settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Starting => "starting",
            Status::Passing => "passing",
            Status::Failing => "failing",
            Status::Draining => "draining",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Status {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Status::ALL.into_iter().find(|status| status.as_str() == text).ok_or_else(|| {
            let known = Status::ALL.map(Status::as_str).join(", ");
            format!("{text:?} is not a status: expected one of {known}")
        })
    }
}

/// Where an instance is reached: an IP address, or a name that the reader's network resolves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Address {
    /// An IP address.
    Ip(IpAddr),
    /// A name on a container network.
    Name(ContainerName),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Ip(ip) => ip.fmt(f),
            Address::Name(name) => name.fmt(f),
        }
    }
}

impl From<Address> for String {
    fn from(address: Address) -> String {
        address.to_string()
    }
}

impl TryFrom<String> for Address {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        match text.parse() {
            Ok(ip) => Ok(Address::Ip(ip)),
            Err(_) => text.try_into().map(Address::Name),
        }
    }
}

/// An address and a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// The address.
    pub address: Address,
    /// The port; never 0.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    /// `address:port`, an IPv6 address in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            address => write!(f, "{address}:{}", self.port),
        }
    }
}

/// Which instance: the part of its key that identifies it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId {
    /// The node whose agent registered it.
    pub node: NodeName,
    /// The container it belongs to.
    pub container: ContainerId,
    /// The port inside the container; never 0.
    pub port: u16,
    /// That port's protocol.
    pub protocol: Protocol,
}

/// One container port that can be reached, as an agent registers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The format's version.
    pub v: V1,
    /// The service it is an instance of.
    pub service: ServiceName,
    /// The container's name.
    pub container: ContainerName,
    /// The container's short ID.
    pub id: ContainerId,
    /// The image as the container was started with; one line.
    pub image: String,
    /// Where it is reached.
    pub address: Address,
    /// The port to reach it at; never 0.
    pub port: u16,
    /// The protocol of both ports.
    pub protocol: Protocol,
    /// The port inside the container; never 0.
    pub container_port: u16,
    /// The container network that the address is of, if it is the container's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Whether to use it.
    pub status: Status,
    /// Its share of the load relative to the others of its service; never 0.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: u16,
    /// When the container started, by its host's clock.
    pub started_at: Timestamp,
    /// Free words that a consumer may select by; each on one line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The labels that the agent's operator lets out; each on one line.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The environment variables that the agent's operator lets out; each on one line.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Other endpoints of the same container port, such as its IPv6 binding.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<Endpoint>,
}

fn one() -> u16 {
    1
}

fn is_one(weight: &u16) -> bool {
    *weight == 1
}

impl Instance {
    /// The endpoint to reach it at.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint { address: self.address.clone(), port: self.port }
    }
}

impl Value for Instance {
    const WHAT: &'static str = "instance";

    fn flaw(&self) -> Option<&'static str> {
        let texts = [&self.image].into_iter().chain(&self.network).chain(&self.tags);
        let pairs = self.labels.iter().chain(&self.environment).flat_map(|(name, value)| [name, value]);
        if self.port == 0 || self.container_port == 0 || self.alternatives.iter().any(|e| e.port == 0) {
            Some("port 0")
        } else if self.weight == 0 {
            Some("weight 0")
        } else if texts.chain(pairs).any(|text| !codec::is_one_line(text)) {
            Some("a control character in a text")
        } else {
            None
        }
    }
}
