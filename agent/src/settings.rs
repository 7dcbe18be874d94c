//! The agent's settings: each a flag with an environment twin.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use regex::Regex;
use rollcall_shared::{
    cli,
    name::{ContainerName, NodeName},
    signal::{Selector, Signal},
};

use crate::{advertise::Advertise, container::Port};

/// Everything that an agent is told, beside where its store is.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    #[command(flatten)]
    #[allow(missing_docs, reason = "the group says it")]
    pub docker: DockerSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "the group says it")]
    pub node: NodeSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "the group says it")]
    pub choice: ChoiceSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "the group says it")]
    pub signals: SignalSettings,
}

/// How to reach Docker.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Docker")]
pub struct DockerSettings {
    /// Docker's socket or address [default: unix:///var/run/docker.sock, then unix:///tmp/docker.sock]
    #[arg(long, env = "DOCKER_HOST", value_name = "URL", global = true)]
    pub docker_host: Option<String>,
    /// Talk TLS to a tcp:// address, and check its certificate
    #[arg(long, env = "DOCKER_TLS_VERIFY", global = true)]
    #[arg(value_parser = clap::builder::FalseyValueParser::new())]
    pub docker_tls_verify: bool,
    /// Folder of ca.pem, cert.pem and key.pem [default: ~/.docker]
    #[arg(long, env = "DOCKER_CERT_PATH", value_name = "DIR", global = true)]
    pub docker_cert_path: Option<PathBuf>,
    /// API version to speak, such as 1.41 [default: the newest that both sides know]
    #[arg(long, env = "DOCKER_API_VERSION", value_name = "VERSION", global = true)]
    pub docker_api_version: Option<String>,
    /// How long registrations stand while Docker cannot be reached
    #[arg(long, env = "ROLLCALL_DOCKER_GRACE", value_name = "TIME", default_value = "60s", global = true)]
    #[arg(value_parser = humantime::parse_duration)]
    pub docker_grace: Duration,
}

/// Who this host is, and how its containers are reached.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Node")]
pub struct NodeSettings {
    /// This host's name, unique among all agents [default: the host name]
    #[arg(long, env = "ROLLCALL_NODE", value_name = "NAME", global = true)]
    pub node: Option<NodeName>,
    /// Address of ports published on 0.0.0.0 or `::`: an IP, an interface or a CIDR; one of each family
    /// may be given, separated by a comma [default: the source address of the route to etcd]
    #[arg(
        long,
        env = "ROLLCALL_ADVERTISE",
        value_name = "ADDRESS,...",
        value_delimiter = ',',
        global = true
    )]
    pub advertise: Vec<Advertise>,
    /// How containers are reached: host (published ports), `network[:NAME]` (their own address) or name
    /// (their own name) [default: host]
    #[arg(long, env = "ROLLCALL_ADDRESS", value_name = "MODE", global = true)]
    pub address: Option<AddressMode>,
    /// Ports of every container whose own address or name is registered [default: those that it exposes]
    #[arg(long = "port", env = "ROLLCALL_PORTS", value_name = "PORT[/PROTOCOL],...", global = true)]
    #[arg(value_delimiter = ',')]
    pub ports: Vec<Port>,
}

/// Which containers are registered, and with what.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Containers")]
pub struct ChoiceSettings {
    /// Register only the containers of these names
    #[arg(long = "container", env = "ROLLCALL_CONTAINERS", value_name = "NAME,...", global = true)]
    #[arg(value_delimiter = ',')]
    pub containers: Vec<ContainerName>,
    /// Register only containers whose name matches
    #[arg(long, env = "ROLLCALL_ONLY_NAME", value_name = "REGEX", value_parser = cli::regex, global = true)]
    pub only_name: Option<Regex>,
    /// Register only containers with this label, or this label and value; all that are given must match
    #[arg(long, env = "ROLLCALL_ONLY_LABEL", value_name = "LABEL[=VALUE],...", global = true)]
    #[arg(value_delimiter = ',')]
    pub only_label: Vec<String>,
    /// Register only containers whose image matches
    #[arg(long, env = "ROLLCALL_ONLY_IMAGE", value_name = "REGEX", value_parser = cli::regex, global = true)]
    pub only_image: Option<Regex>,
    /// Register only containers that a label or SERVICE_NAME gives a service name
    #[arg(long, env = "ROLLCALL_EXPLICIT", global = true)]
    #[arg(value_parser = clap::builder::FalseyValueParser::new())]
    pub explicit: bool,
    /// Labels that go into the registration, by name or, ending in *, by prefix [default: none but rollcall.*]
    #[arg(long = "export-label", env = "ROLLCALL_EXPORT_LABELS", value_name = "LABEL,...", global = true)]
    #[arg(value_delimiter = ',')]
    pub export_labels: Vec<String>,
    /// How long a burst of changes is gathered while Docker has announced more; the first goes at once
    #[arg(long, env = "ROLLCALL_GATHER", value_name = "TIME", default_value = "1s", global = true)]
    #[arg(value_parser = humantime::parse_duration)]
    pub gather: Duration,
}

/// Which signals are delivered.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Signals")]
pub struct SignalSettings {
    /// Signals that consumers may send, to any container or to one: HUP or HUP:citus_master. A
    /// container's own label rollcall.signal=HUP,USR1 allows them too
    #[arg(
        long = "allow-signal",
        env = "ROLLCALL_ALLOW_SIGNALS",
        value_name = "SIGNAL[:CONTAINER],...",
        global = true
    )]
    #[arg(value_delimiter = ',')]
    pub allow: Vec<Allowed>,
    /// How old a container must be before it is signalled, so that its handler is in place
    #[arg(long, env = "ROLLCALL_SIGNAL_SETTLE", value_name = "TIME", default_value = "1s", global = true)]
    #[arg(value_parser = humantime::parse_duration)]
    pub signal_settle: Duration,
}

/// How an instance's address is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressMode {
    /// The host's address and the published port.
    Host,
    /// The container's own address and port, on the network of this name or on its first one.
    Network(Option<String>),
    /// The container's name and its own port.
    Name,
}

impl FromStr for AddressMode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "host" => Ok(AddressMode::Host),
            None if text == "network" => Ok(AddressMode::Network(None)),
            None if text == "name" => Ok(AddressMode::Name),
            Some(("network", name)) if !name.is_empty() => Ok(AddressMode::Network(Some(name.to_owned()))),
            _ => Err("expected host, network, network:NAME or name".to_owned()),
        }
    }
}

impl fmt::Display for AddressMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AddressMode::Host => f.write_str("host"),
            AddressMode::Network(None) => f.write_str("network"),
            AddressMode::Network(Some(name)) => write!(f, "network:{name}"),
            AddressMode::Name => f.write_str("name"),
        }
    }
}

/// A signal that may be sent, and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// The signal.
    pub signal: Signal,
    /// The containers it may be sent to; any where there is none.
    pub to: Option<Selector>,
}

impl FromStr for Allowed {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (signal, to) = match text.split_once(':') {
            Some((signal, to)) => (signal, Some(to)),
            None => (text, None),
        };
        let signal = signal.parse().map_err(|error| format!("{error}"))?;
        let to = to.map(str::parse).transpose().map_err(|error| format!("{error}"))?;
        Ok(Self { signal, to: to.map(Selector::Container) })
    }
}

impl Settings {
    /// This host's name.
    ///
    /// # Errors
    /// A sentence naming the setting, where none is given and the host name is no node name.
    pub fn node_name(&self) -> Result<NodeName, String> {
        match &self.node.node {
            Some(node) => Ok(node.clone()),
            None => {
                let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
                host.parse().map_err(|error| format!("--node is not given and the host name {error}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_modes_read_back_as_written() {
        for text in ["host", "network", "network:front", "name"] {
            assert_eq!(text.parse::<AddressMode>().expect("a mode").to_string(), text);
        }
        for text in ["", "network:", "hosts", "name:x"] {
            assert!(text.parse::<AddressMode>().is_err(), "{text:?} was taken");
        }
    }
}
