//! What HAProxy has, as a plan sees it: its own answers, and since when servers leave.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{
    server::{Container, Owned},
    state::{Algorithm, Info, Load, ServerState},
};

/// What HAProxy has of the backends that were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Which process it is.
    pub info: Info,
    /// The backends. One that was asked for and is not here is not in its configuration.
    pub backends: BTreeMap<String, Backend>,
}

/// A backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Whether its balance algorithm takes servers and weights at run time.
    pub algorithm: Algorithm,
    /// Its servers by name.
    pub servers: BTreeMap<String, Server>,
}

/// A server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// What HAProxy says of it.
    pub state: ServerState,
    /// Which of Rollcall's it is; `None` for one that somebody else made.
    pub owned: Option<Owned>,
    /// What it has of clients. Asked for where it is Rollcall's and drains or is in maintenance; taken after its state.
    pub load: Option<Load>,
    /// For how long Rollcall has seen it drain, or else be in maintenance; zero where it does neither.
    pub leaves_for: Duration,
    /// Whether HAProxy has refused to delete it, as its configuration refers to it.
    pub is_pinned: bool,
    /// Whose servers at the same address Rollcall has seen in backends that were not asked for.
    pub others: Vec<Container>,
}

impl Server {
    /// Where it is, if that is an IP address.
    pub fn socket(&self) -> Option<SocketAddr> {
        self.state.ip.map(|ip| SocketAddr::new(ip, self.state.port))
    }

    /// Whether it is at this address.
    pub fn is_at(&self, ip: Option<IpAddr>, port: u16) -> bool {
        ip.is_some() && self.state.ip == ip && self.state.port == port
    }

    /// Whether it is a slot.
    pub fn is_slot(&self) -> bool {
        matches!(self.owned, Some(Owned::Slot(_)))
    }

    /// Whether it is a slot that nobody has, or has connections of.
    pub fn is_free_slot(&self) -> bool {
        self.is_slot() && self.state.is_forced_out() && self.load.is_some_and(Load::is_none)
    }
}
