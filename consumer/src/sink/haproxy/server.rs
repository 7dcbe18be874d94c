//! What servers are called, in the file as on the socket, and what each is to be.

use std::{fmt, net::IpAddr};

use rollcall_shared::model::{
    instance::{Address, Endpoint, Status},
    name::{ContainerId, ContainerName, NodeName},
};

use crate::roll::Row;

/// HAProxy's greatest weight.
const GREATEST_WEIGHT: u16 = 256;

/// The name of an instance's server: stable as long as the instance is there, and its own. Colons cannot stand in the
/// names of nodes and containers; HAProxy takes letters, digits and `_:.-`.
pub fn name(row: &Row) -> String {
    format!("{}:{}:{}:{}", row.id.node, row.instance.container, row.id.port, row.id.container)
}

/// The weight of an instance's server.
pub fn weight(row: &Row) -> u16 {
    row.instance.weight.min(GREATEST_WEIGHT)
}

/// What the names of slots begin with; their number follows.
const SLOT: &str = "rollcall-slot-";

/// The name of a slot, of which 1 is the first.
pub fn slot_name(number: usize) -> String {
    format!("{SLOT}{number}")
}

/// A server's name that Rollcall gave.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owned {
    /// The server of an instance.
    Instance(Container),
    /// A slot.
    Slot(usize),
}

impl Owned {
    /// What the name says; `None` for a server that somebody else made.
    pub fn parse(name: &str) -> Option<Self> {
        if let Some(number) = name.strip_prefix(SLOT) {
            return number.parse().ok().filter(|_| !number.starts_with(['0', '+'])).map(Self::Slot);
        }
        let parts: Vec<_> = name.split(':').collect();
        let [node, container, port, id] = parts[..] else { return None };
        let _: ContainerName = container.parse().ok()?;
        let _: u16 = port.parse().ok()?;
        (id.len() == 12).then_some(())?;
        Some(Self::Instance(Container { node: node.parse().ok()?, id: id.parse().ok()? }))
    }
}

/// A container, wherever it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Container {
    node: NodeName,
    id: ContainerId,
}

/// Where a server is, as messages and commands name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Its backend.
    pub backend: String,
    /// Its name within that.
    pub server: String,
}

impl fmt::Display for Place {
    /// `backend/server`, as HAProxy's commands want it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.backend, self.server)
    }
}

/// The server that an instance is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name, where it has one of its own.
    pub name: String,
    /// Where it is reached.
    pub endpoint: Endpoint,
    /// Its weight.
    pub weight: u16,
    /// Whether it takes no new clients.
    pub drains: bool,
    /// Whose it is.
    pub container: Container,
}

impl Wanted {
    /// The servers of a service's instances. Where all drain, none does: one that finishes is better than none.
    pub fn of<'r>(rows: impl IntoIterator<Item = &'r Row>) -> Vec<Self> {
        let mut wanted: Vec<Self> = rows
            .into_iter()
            .map(|row| Self {
                name: name(row),
                endpoint: row.endpoint.clone(),
                weight: weight(row),
                drains: row.instance.status == Status::Draining,
                container: Container { node: row.id.node.clone(), id: row.id.container },
            })
            .collect();
        if wanted.iter().all(|server| server.drains) {
            wanted.iter_mut().for_each(|server| server.drains = false);
        }
        wanted
    }

    /// Its IP address; `None` for a host name, which HAProxy resolves as it starts, and not at run time.
    pub fn ip(&self) -> Option<IpAddr> {
        match self.endpoint.address {
            Address::Ip(ip) => Some(ip),
            Address::Name(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rollcall_shared::model::instance::Instance;

    use super::*;
    use crate::testing;

    fn row(number: usize, status: Status) -> Row {
        let instance = Instance { status, weight: 300, ..testing::instance(number, "web") };
        Row {
            id: testing::id(number).into(),
            endpoint: instance.endpoint(),
            instance: instance.into(),
            since: 0,
        }
    }

    #[test]
    fn rollcall_knows_its_own_servers_by_their_names() {
        let name = name(&row(1, Status::Passing));
        assert_eq!(name, "h1:web-1:80:000000000001");
        let container = Container { node: testing::node("h1"), id: testing::id(1).container };
        assert_eq!(Owned::parse(&name), Some(Owned::Instance(container)));
        assert_eq!(Owned::parse(&slot_name(12)), Some(Owned::Slot(12)));
        for others in [
            "web1",
            "a:b",
            "h1:web-1:80:000000000001:x",
            "h1:web-1:80:00000000000g",
            "h1:web-1:x:000000000001",
        ] {
            assert_eq!(Owned::parse(others), None, "{others}");
        }
        for others in ["rollcall-slot-", "rollcall-slot-01", "rollcall-slot-x", "rollcall-slot-+1"] {
            assert_eq!(Owned::parse(others), None, "{others}");
        }
    }

    #[test]
    fn a_server_drains_as_its_instance_does_unless_all_do() {
        let (drains, passes) = (row(1, Status::Draining), row(2, Status::Passing));
        let wanted = Wanted::of([&drains, &passes]);
        assert_eq!(wanted.iter().map(|server| server.drains).collect::<Vec<_>>(), [true, false]);
        assert_eq!(wanted[0].weight, 256);
        assert!(!Wanted::of([&drains])[0].drains);
    }

    proptest! {
        #[test]
        fn a_name_has_only_what_haproxy_takes(node in "[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,20}", container in "[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,20}") {
            let mut row = row(1, Status::Passing);
            row.id = std::sync::Arc::new(testing::id_on(&node, 1));
            row.instance = Instance { container: container.parse().expect("a name"), ..testing::instance(1, "web") }.into();
            let name = name(&row);
            prop_assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "_:.-".contains(c)));
            prop_assert!(matches!(Owned::parse(&name), Some(Owned::Instance(_))));
        }
    }
}
