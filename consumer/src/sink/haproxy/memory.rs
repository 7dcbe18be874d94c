//! What a program remembers of HAProxy between its answers: nothing that decides, only since when, and where to look.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    observed::{Backend, Server},
    server::{Container, Owned, Place},
    state::{Algorithm, Info, ServerState, Stat},
};

/// What is remembered of one process of HAProxy.
#[derive(Debug, Default)]
pub struct Memory {
    /// The process, as it answered last.
    pub process: Option<Info>,
    /// What each backend was found to take.
    pub algorithms: HashMap<String, Algorithm>,
    /// The servers that HAProxy refuses to delete.
    pub pinned: BTreeSet<Place>,
    leaving: BTreeMap<Place, Leaving>,
    residents: Residents,
}

/// A server that leaves, or drains as its instance does.
#[derive(Debug, Clone, Copy)]
struct Leaving {
    /// Whether it is in maintenance already.
    is_out: bool,
    since: Instant,
    /// Whether it is a slot that is free, which stays as it is.
    is_free: bool,
}

impl Memory {
    /// Takes note of who answers. Another process has nothing of the last one.
    pub fn meet(&mut self, info: &Info) -> bool {
        let is_other = self.process.as_ref().is_none_or(|last| info.is_other(last));
        if is_other {
            *self = Self::default();
        }
        self.process = Some(info.clone());
        is_other
    }

    /// The backends that have servers that leave.
    pub fn restless(&self) -> BTreeSet<String> {
        let leaving =
            self.leaving.iter().filter(|(place, leaving)| !leaving.is_free && !self.pinned.contains(place));
        leaving.map(|(place, _)| place.backend.clone()).collect()
    }

    /// Has a server wait as if it had just gone into maintenance, as HAProxy cannot delete it yet.
    pub fn postpone(&mut self, place: &Place, now: Instant) {
        if let Some(leaving) = self.leaving.get_mut(place) {
            leaving.since = now;
        }
    }

    /// What HAProxy has of these backends, which are all that were asked for.
    pub fn observe(
        &mut self,
        names: BTreeSet<String>,
        states: Vec<ServerState>,
        stat: &Stat,
        now: Instant,
    ) -> BTreeMap<String, Backend> {
        let empty = |name: String| {
            let algorithm = self.algorithms.get(&name).copied().unwrap_or(Algorithm::Unclear);
            (name, Backend { algorithm, servers: BTreeMap::new() })
        };
        let mut backends: BTreeMap<_, _> = names.into_iter().map(empty).collect();
        let mut known = std::mem::take(&mut self.leaving);
        for (place, leaving) in &known {
            if !backends.contains_key(&place.backend) {
                self.leaving.insert(place.clone(), *leaving);
            }
        }
        for state in states {
            let place = Place { backend: state.backend.clone(), server: state.name.clone() };
            let Some(backend) = backends.get_mut(&place.backend) else { continue };
            let server = self.server(&place, state, known.remove(&place), stat, now);
            backend.servers.insert(place.server, server);
        }
        self.residents.note(&backends);
        for backend in backends.values_mut() {
            for server in backend.servers.values_mut().filter(|server| server.owned.is_some()) {
                server.others =
                    server.socket().map_or(vec![], |socket| self.residents.at(socket, &server.state));
            }
        }
        backends
    }

    fn server(
        &mut self,
        place: &Place,
        state: ServerState,
        known: Option<Leaving>,
        stat: &Stat,
        now: Instant,
    ) -> Server {
        let owned = Owned::parse(&state.name);
        let load = stat.loads.get(&(place.backend.clone(), place.server.clone())).copied();
        let is_pinned = self.pinned.contains(place);
        let mut server = Server { state, owned, load, leaves_for: Duration::ZERO, is_pinned, others: vec![] };
        let is_out = server.state.is_forced_out();
        if server.owned.is_some() && (is_out || server.state.drains()) {
            let since = known.filter(|known| known.is_out == is_out).map_or(now, |known| known.since);
            server.leaves_for = now - since;
            let is_free = server.is_free_slot();
            self.leaving.insert(place.clone(), Leaving { is_out, since, is_free });
        }
        server
    }
}

/// Where the servers of instances are that take clients.
#[derive(Debug, Default)]
struct Residents {
    by_backend: HashMap<String, Vec<SocketAddr>>,
    by_address: HashMap<SocketAddr, BTreeMap<String, Container>>,
}

impl Residents {
    fn note(&mut self, backends: &BTreeMap<String, Backend>) {
        for (name, backend) in backends {
            for socket in self.by_backend.remove(name).unwrap_or_default() {
                if let Some(there) = self.by_address.get_mut(&socket) {
                    there.remove(name);
                    if there.is_empty() {
                        self.by_address.remove(&socket);
                    }
                }
            }
            for server in backend.servers.values() {
                let takes_clients = !server.state.is_forced_out() && !server.state.drains();
                if let (true, Some(Owned::Instance(container)), Some(socket)) =
                    (takes_clients, &server.owned, server.socket())
                {
                    self.by_backend.entry(name.clone()).or_default().push(socket);
                    self.by_address.entry(socket).or_default().insert(name.clone(), container.clone());
                }
            }
        }
    }

    /// Those of other backends.
    fn at(&self, socket: SocketAddr, server: &ServerState) -> Vec<Container> {
        let there = self.by_address.get(&socket).into_iter().flatten();
        there
            .filter(|(backend, _)| **backend != server.backend)
            .map(|(_, container)| container.clone())
            .collect()
    }
}
