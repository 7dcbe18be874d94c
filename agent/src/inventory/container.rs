//! A running container as the agent knows it, and what Docker says of containers as time goes by. Plain values: nothing
//! here asks Docker.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
    sync::Arc,
};

use jiff::Timestamp;
use rollcall_shared::model::{
    instance::Protocol,
    name::{ContainerId, ContainerName},
    signal::{Incarnation, Signal},
};

/// A container's full ID: 64 hexadecimal digits. Shared: it is the key of everything that is known of it.
pub type FullId = Arc<str>;

/// A port inside a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// The number; never 0.
    pub number: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl fmt::Display for Port {
    /// As Docker writes it: `80/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol)
    }
}

impl FromStr for Port {
    type Err = String;

    /// Takes `80`, `80/tcp` or `53/udp`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        match (number.parse(), protocol.parse()) {
            (Ok(number), Ok(protocol)) if number != 0 => Ok(Self { number, protocol }),
            _ => Err(format!("{text:?} is not a port: expected 1 to 65535, and /tcp or /udp behind it")),
        }
    }
}

/// A port of the host that leads to a container's port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Binding {
    /// The port inside the container.
    pub to: Port,
    /// The host's address; unspecified for all of its family.
    pub ip: IpAddr,
    /// The host's port; never 0.
    pub port: u16,
}

/// A container's addresses on one network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4.
    pub v4: Option<Ipv4Addr>,
    /// Global IPv6.
    pub v6: Option<Ipv6Addr>,
    /// The gateway of the network's IPv4; the host itself, where the network is a bridge of the host's.
    pub gateway: Option<Ipv4Addr>,
}

/// What a container's HEALTHCHECK says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// It has none.
    None,
    /// It has not passed yet.
    Starting,
    /// It passes.
    Healthy,
    /// It fails.
    Unhealthy,
}

/// When Docker starts a container again that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// It does not.
    Never,
    /// Always.
    Always,
    /// Unless someone has stopped it.
    UnlessStopped,
    /// Where it has failed.
    OnFailure,
}

impl fmt::Display for Restart {
    /// As `docker run --restart` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Restart::Never => "no",
            Restart::Always => "always",
            Restart::UnlessStopped => "unless-stopped",
            Restart::OnFailure => "on-failure",
        })
    }
}

/// A container that runs. Its labels and variables often hold secrets: printing it shows neither.
#[derive(Clone, PartialEq, Eq)]
pub struct Container {
    /// The full ID.
    pub id: FullId,
    /// The ID as keys have it.
    pub short_id: ContainerId,
    /// The name, without Docker's leading slash.
    pub name: ContainerName,
    /// The image as it was asked for.
    pub image: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its environment variables.
    pub env: BTreeMap<String, String>,
    /// Whether it is paused.
    pub paused: bool,
    /// What its HEALTHCHECK says.
    pub check: Check,
    /// When it started.
    pub started_at: Timestamp,
    /// Its first process, in Docker's PID namespace.
    pub pid: Option<i32>,
    /// The signal that asks it to stop.
    pub stop_signal: Signal,
    /// Whether it or its image names that signal; otherwise it is Docker's own default.
    pub names_stop_signal: bool,
    /// When Docker starts it again.
    pub restart: Restart,
    /// Whether it has the host's network for its own.
    pub host_network: bool,
    /// The container whose network it shares, by its ID or name.
    pub network_of: Option<String>,
    /// The ports that it or its image exposes.
    pub exposed: BTreeSet<Port>,
    /// Those of other protocols, as Docker writes them.
    pub other_ports: BTreeSet<String>,
    /// The host's ports that lead to it.
    pub bindings: Vec<Binding>,
    /// Its networks by name.
    pub networks: BTreeMap<String, Addresses>,
}

impl Container {
    /// This run of it.
    pub fn incarnation(&self) -> Incarnation {
        Incarnation { container: self.short_id, started_at: self.started_at }
    }

    /// Whether a signal asks it to end: its own stop signal, and those that ask any process to. KILL does not ask: the end
    /// is an event of its own, at once, and marking it before would only delay it. Others mean what their receiver says
    /// (QUIT has a JVM print its threads, USR1 has many a server reload), and Docker does not tell a `docker stop --signal`
    /// from a `docker kill --signal`.
    pub fn is_stopped_by(&self, signal: Signal) -> bool {
        signal == self.stop_signal || [Signal::TERM, Signal::INT].contains(&signal)
    }
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, short_id, started_at, .. } = self;
        write!(f, "Container({name} {short_id}, started at {started_at})")
    }
}

/// What a list says of a container: enough to see that more must be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The full ID.
    pub id: FullId,
    /// The name, without Docker's leading slash.
    pub name: String,
    /// Whether it is paused.
    pub paused: bool,
    /// What its HEALTHCHECK says.
    pub check: Check,
    /// The names of its networks.
    pub networks: BTreeSet<String>,
}

impl Summary {
    /// Whether the list says something else than what is known.
    pub fn differs(&self, known: &Container) -> bool {
        self.name != known.name.as_str()
            || self.paused != known.paused
            || self.check != known.check
            || !self.networks.iter().eq(known.networks.keys())
    }
}

/// What Docker said happened to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The full ID.
    pub id: FullId,
    /// What happened.
    pub action: Action,
    /// When, by the engine's clock.
    pub at: Timestamp,
}

/// What happens to containers, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It has started.
    Start,
    /// It was sent a signal.
    Kill(Signal),
    /// It has ended.
    Die,
    /// Something about it has changed, such as its health, its name or its networks.
    Change,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printing_a_container_shows_neither_labels_nor_variables() {
        let mut web = testing::container("web");
        web.labels.insert("password".to_owned(), "secret".to_owned());
        web.env.insert("SERVICE_TOKEN".to_owned(), "secret".to_owned());
        let printed = format!("{web:?}");
        assert!(printed.contains("web") && !printed.contains("secret"), "{printed}");
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Containers for tests.

    use super::*;

    impl Summary {
        /// What a list says of a container.
        pub(crate) fn of(container: &Container) -> Self {
            Self {
                id: container.id.clone(),
                name: container.name.to_string(),
                paused: container.paused,
                check: container.check,
                networks: container.networks.keys().cloned().collect(),
            }
        }
    }

    /// A running container without a port, on the bridge network.
    pub(crate) fn container(name: &str) -> Container {
        // FNV-1a, so that containers of other names have other short IDs.
        let hash = name.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
            (hash ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b)
        });
        let id = format!("{hash:032x}").repeat(2);
        let gateway = Some(Ipv4Addr::new(172, 17, 0, 1));
        let addresses = Addresses { v4: Some(Ipv4Addr::new(172, 17, 0, 2)), v6: None, gateway };
        Container {
            short_id: id.parse().expect("an ID"),
            id: id.into(),
            name: name.parse().expect("a name"),
            image: "example/app:1".to_owned(),
            labels: BTreeMap::new(),
            env: BTreeMap::new(),
            paused: false,
            check: Check::None,
            started_at: Timestamp::UNIX_EPOCH,
            pid: Some(1234),
            stop_signal: Signal::TERM,
            names_stop_signal: false,
            restart: Restart::Never,
            host_network: false,
            network_of: None,
            exposed: BTreeSet::new(),
            other_ports: BTreeSet::new(),
            bindings: Vec::new(),
            networks: BTreeMap::from([("bridge".to_owned(), addresses)]),
        }
    }
}
