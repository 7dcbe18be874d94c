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

    /// Those of other backends: a few, as one is enough.
    fn at(&self, socket: SocketAddr, server: &ServerState) -> Vec<Container> {
        let there = self.by_address.get(&socket).into_iter().flatten();
        let others = there.filter(|(backend, _)| **backend != server.backend);
        others.take(4).map(|(_, container)| container.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "h1:web-1:80:000000000001";
    const API: &str = "h1:api-2:80:000000000002";

    fn info(pid: u32) -> Info {
        Info { version: "2.8.1".parse().expect("one"), pid, uptime: 60, is_stopping: false }
    }

    /// HAProxy has this server, and no other one in the backend: what is made of it.
    fn observe(memory: &mut Memory, backend: &str, name: &str, admin: u32) -> Server {
        let text = format!(
            "1\n# be_id be_name srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_check_state \
             srv_fqdn srv_port\n3 {backend} {name} 10.0.0.1 2 {admin} 1 1 6 - 80\n"
        );
        let states = ServerState::parse_all(&text).expect("an answer");
        let backends = memory.observe([backend.to_owned()].into(), states, &Stat::default(), Instant::now());
        backends[backend].servers[name].clone()
    }

    #[tokio::test(start_paused = true)]
    async fn each_state_of_leaving_has_its_own_time() {
        let second = Duration::from_secs(1);
        let mut memory = Memory::default();
        for (admin, expected) in [(0, 0), (8, 0), (8, 1), (8, 2), (1, 0), (1, 1), (0, 0), (1, 0)] {
            assert_eq!(observe(&mut memory, "web", WEB, admin).leaves_for, second * expected, "{admin}");
            assert_eq!(memory.restless().contains("web"), admin != 0);
            // Another backend does not matter.
            observe(&mut memory, "api", API, 0);
            tokio::time::advance(second).await;
        }
        memory.postpone(&Place { backend: "web".to_owned(), server: WEB.to_owned() }, Instant::now());
        assert_eq!(observe(&mut memory, "web", WEB, 1).leaves_for, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn another_process_has_nothing_of_the_last_one() {
        let mut memory = Memory::default();
        assert!(memory.meet(&info(1)));
        memory.algorithms.insert("web".to_owned(), Algorithm::Static);
        observe(&mut memory, "web", WEB, 8);
        assert!(!memory.meet(&info(1)) && !memory.restless().is_empty());
        assert!(memory.meet(&info(2)));
        assert!(memory.restless().is_empty() && memory.algorithms.is_empty());
    }

    #[test]
    fn whose_address_it_is_elsewhere_is_known_until_that_leaves() {
        let mut memory = Memory::default();
        observe(&mut memory, "api", API, 0);
        let Some(Owned::Instance(other)) = Owned::parse(API) else { panic!("it is Rollcall's") };
        assert_eq!(observe(&mut memory, "web", WEB, 0).others, [other]);
        observe(&mut memory, "api", API, 8);
        assert!(observe(&mut memory, "web", WEB, 0).others.is_empty());
    }
}
