//! The settings of registration: who this host is, how its containers are reached, and which are registered.

use std::{collections::BTreeSet, fmt, str::FromStr};

use regex::Regex;
use rollcall_shared::{
    model::{
        label::LabelSelector,
        name::{ContainerName, NodeName},
    },
    process::{cli, host, setting::SettingError},
};

use super::{address::Readers, advertise::Advertise};
use crate::inventory::container::Port;

/// Who this host is, and how its containers are reached.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Node")]
pub struct NodeSettings {
    /// This host's name, unique among all agents [default: the host name; with --container, those names behind it]
    #[arg(long, env = "ROLLCALL_NODE", value_name = "NAME", global = true)]
    pub node: Option<NodeName>,
    /// Address of ports published on 0.0.0.0 or `::`: an IP, an interface or a CIDR; one of each family may be given,
    /// separated by a comma [default: the source address of the route to etcd]
    #[arg(
        long,
        env = "ROLLCALL_ADVERTISE",
        value_name = "ADDRESS,...",
        value_delimiter = ',',
        global = true
    )]
    pub advertise: Vec<Advertise>,
    /// How containers are reached: host (published ports), `network[:NAME]` (their own address) or name (their own
    /// name) [default: host]
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
pub struct FilterSettings {
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
    pub only_label: Vec<LabelSelector>,
    /// Register only containers whose image matches
    #[arg(long, env = "ROLLCALL_ONLY_IMAGE", value_name = "REGEX", value_parser = cli::regex, global = true)]
    pub only_image: Option<Regex>,
    /// Register only containers that a label or SERVICE_NAME gives a service name
    #[arg(long, env = "ROLLCALL_EXPLICIT", global = true)]
    #[arg(value_parser = clap::builder::FalseyValueParser::new())]
    pub explicit: bool,
    /// More labels that go into the registration, by name or, ending in *, by prefix [default: those that Rollcall, Compose,
    /// Swarm, Citus and nginx-proxy select by]
    #[arg(long = "export-label", env = "ROLLCALL_EXPORT_LABELS", value_name = "LABEL,...", global = true)]
    #[arg(value_delimiter = ',')]
    pub export_labels: Vec<String>,
    /// More environment variables that go into the registration, by name or, ending in *, by prefix [default: those of
    /// nginx-proxy, such as VIRTUAL_HOST]
    #[arg(long = "export-env", env = "ROLLCALL_EXPORT_ENV", value_name = "VARIABLE,...", global = true)]
    #[arg(value_delimiter = ',')]
    pub export_env: Vec<String>,
}

impl NodeSettings {
    /// Checks what depends on who reads the store.
    ///
    /// # Errors
    /// A loopback address for readers on other hosts.
    pub fn check(&self, readers: &Readers) -> Result<(), SettingError> {
        let is_loopback =
            |wanted: &&Advertise| matches!(wanted, Advertise::Ip(ip) if ip.to_canonical().is_loopback());
        match self.advertise.iter().find(is_loopback) {
            Some(wanted) if *readers != Readers::ThisHost => {
                Err(SettingError::new("--advertise", wanted, "--loopback beside it"))
            }
            _ => Ok(()),
        }
    }

    /// The name of an agent that may have others beside it, each with containers of its own: by default those are part
    /// of its name. Two such agents share nothing: each has a claim, a lease and keys of its own, and signals only what it
    /// names. One node for both would need two writers under one claim; refusing the second would refuse what
    /// etcd-container-presence's users do.
    ///
    /// # Errors
    /// None is given, and the default cannot be a name.
    pub fn name_beside(&self, containers: &[ContainerName]) -> Result<NodeName, SettingError> {
        if self.node.is_some() || containers.is_empty() {
            return self.name();
        }
        let containers: BTreeSet<&str> = containers.iter().map(ContainerName::as_str).collect();
        let name = [self.name()?.as_str()].into_iter().chain(containers).collect::<Vec<_>>().join(".");
        name.parse().map_err(|_| {
            SettingError::missing("--node", "a name, as the names of --container are too long to make one of")
        })
    }

    /// This host's name.
    ///
    /// # Errors
    /// None is given, and the host name cannot be one.
    pub fn name(&self) -> Result<NodeName, SettingError> {
        match &self.node {
            Some(node) => Ok(node.clone()),
            None => host::name().parse().map_err(|_| {
                let expected = format!("a name, as the host name {:?} cannot be one", host::name());
                SettingError::missing("--node", expected)
            }),
        }
    }
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

    #[test]
    fn agents_of_other_containers_have_other_names_whatever_the_order() {
        let settings = |node: Option<&str>| NodeSettings {
            node: node.map(|node| node.parse().expect("a name")),
            advertise: Vec::new(),
            address: None,
            ports: Vec::new(),
        };
        let name = |node: Option<&str>, containers: &[&str]| {
            let containers: Vec<ContainerName> =
                containers.iter().map(|name| name.parse().expect("a name")).collect();
            settings(node).name_beside(&containers).map(|name| name.to_string())
        };
        let host = host::name();
        assert_eq!(name(None, &[]).expect("a name"), host);
        assert_eq!(name(None, &["b", "a", "b"]).expect("a name"), format!("{host}.a.b"));
        assert_eq!(name(Some("h1"), &["a"]).expect("a name"), "h1");
        let error = name(None, &[&*"x".repeat(253)]).expect_err("it is too long").to_string();
        assert!(
            error.starts_with("--node is not given: expected a name, as the names of --container"),
            "{error}"
        );
    }

    #[test]
    fn a_loopback_address_is_refused_unless_the_readers_are_on_this_host() {
        for (ip, is_refused) in
            [("127.0.0.1", true), ("::1", true), ("::ffff:127.0.0.1", true), ("10.0.0.5", false)]
        {
            let advertise = vec![ip.parse().expect("an address")];
            let settings = NodeSettings { node: None, advertise, address: None, ports: Vec::new() };
            let error = settings.check(&Readers::AnyHost { etcd: None }).err().map(|error| error.to_string());
            assert_eq!(error.is_some(), is_refused, "{ip}");
            assert!(error.is_none_or(|error| error.contains("expected --loopback beside it")), "{ip}");
            assert!(settings.check(&Readers::ThisHost).is_ok(), "{ip}");
        }
    }
}
