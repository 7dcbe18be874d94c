//! What is to be done, from what is desired and what HAProxy has. Pure.
//!
//! A server belongs to an instance by its name, a slot by its address. What somebody else made stays as it is, and is
//! named; what somebody did to Rollcall's servers is put back. Whether a server is up is for HAProxy's checks alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use super::{
    draft::Draft,
    leaving::{self, Leaving},
    observed::{Backend, Observed, Server},
    server::{Container, Owned, Place, Wanted},
    settings::{Method, RuntimeConfig},
    state::{Algorithm, Info},
    step::Action,
};
use crate::sink::{
    file::render::is_reachable,
    program::{Desired, Scope},
};

/// The version that adds and deletes servers without `experimental-mode`.
pub const DYNAMIC_SINCE: (u32, u32) = (2, 6);

/// What is to be done.
pub fn plan(config: &RuntimeConfig, desired: &Desired, observed: &Observed) -> Draft {
    let mut draft = Draft::default();
    let mut wanted = wanted(config, desired, observed, &mut draft);
    for (backend, servers) in &wanted {
        for server in servers {
            if let Some(ip) = server.ip() {
                let tenant = (backend.clone(), server.container.clone());
                draft.tenants.entry(SocketAddr::new(ip, server.endpoint.port)).or_default().push(tenant);
            }
        }
    }
    for (name, backend) in &observed.backends {
        match wanted.remove(name) {
            Some(wanted) => Planner { config, info: &observed.info, name, backend }.plan(wanted, &mut draft),
            None => vacate(name, backend, &mut draft),
        }
    }
    for (backend, servers) in wanted {
        if !servers.is_empty() {
            draft.refuse(format!("HAProxy has no backend {backend}"));
            draft.plan.reloads.push(format!("backend {backend} is new"));
        }
    }
    draft.finish()
}

/// The servers of each backend that the scope is about.
fn wanted(
    config: &RuntimeConfig,
    desired: &Desired,
    observed: &Observed,
    draft: &mut Draft,
) -> BTreeMap<String, Vec<Wanted>> {
    let Desired { scope, services } = desired;
    let mut about: BTreeSet<_> = services.keys().filter(|service| scope.has(service)).cloned().collect();
    match scope {
        Scope::All => about.extend(observed.backends.keys().filter_map(|name| config.backend.service(name))),
        Scope::Services(services) => about.extend(services.iter().cloned()),
    }
    let mut servers = |service| {
        let (rows, left_out): (Vec<_>, Vec<_>) =
            services.get(service).into_iter().flatten().partition(|row| is_reachable(&row.endpoint.address));
        let names = left_out.iter().map(|row| format!("{} at {}", row.instance.container, row.endpoint));
        draft.plan.notes.extend(names.map(|name| format!("left out: {name}, which nobody can reach")));
        Wanted::of(rows)
    };
    about.iter().map(|service| (config.backend.name(service), servers(service))).collect()
}

/// Takes servers out whose address another container has got, in a backend that the round is not about.
fn vacate(name: &str, backend: &Backend, draft: &mut Draft) {
    for (server, found) in backend.servers.iter().filter(|(_, found)| found.owned.is_some()) {
        let place = Place { backend: name.to_owned(), server: server.clone() };
        if found.state.drains()
            && !found.state.is_forced_out()
            && is_taken_over(&place, found, draft).is_some()
        {
            draft.step(&place, Action::Vacate { cuts: true });
        }
    }
}

/// Whether another container has the address of a server that leaves, and whether that is another backend's. A
/// container that is merely named otherwise, or is another service's now, is still the same.
fn is_taken_over(place: &Place, server: &Server, draft: &Draft) -> Option<bool> {
    let tenants = draft.tenants.get(&server.socket()?).map_or(&[][..], Vec::as_slice);
    let is_other = |container: &Container| match &server.owned {
        Some(Owned::Instance(own)) => own != container,
        Some(Owned::Slot(_)) | None => true,
    };
    let is_known = |container: &Container| tenants.iter().any(|(_, tenant)| tenant == container);
    let here = tenants.iter().filter(|(_, container)| is_other(container));
    let elsewhere = server.others.iter().filter(|other| is_other(other) && !is_known(other));
    let backends: Vec<bool> =
        here.map(|(backend, _)| *backend != place.backend).chain(elsewhere.map(|_| true)).collect();
    (!backends.is_empty()).then(|| backends.contains(&true))
}

/// Plans one backend.
struct Planner<'p> {
    config: &'p RuntimeConfig,
    info: &'p Info,
    name: &'p str,
    backend: &'p Backend,
}

impl Planner<'_> {
    fn plan(&self, wanted: Vec<Wanted>, draft: &mut Draft) {
        let mut rest: BTreeMap<&str, &Server> =
            self.backend.servers.iter().map(|(name, server)| (name.as_str(), server)).collect();
        let theirs: Vec<_> =
            rest.iter().filter(|(_, server)| server.owned.is_none()).map(|(name, _)| *name).collect();
        rest.retain(|_, server| server.owned.is_some());
        let is_ours = |name: &str| rest.contains_key(name);
        let (named, unnamed): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|server| is_ours(&server.name));
        let mut fixed = vec![];
        for server in named {
            let found = rest.remove(server.name.as_str()).expect("it was found by its name");
            self.mend(&self.place(&server.name), found, &server, &mut fixed, draft);
        }
        let mut homeless = vec![];
        for server in unnamed {
            match take_slot(&mut rest, &server) {
                Some((slot, found)) => self.mend(&self.place(slot), found, &server, &mut fixed, draft),
                None => homeless.push(server),
            }
        }
        self.settle(homeless, &mut rest, &mut fixed, draft);
        for (name, server) in rest {
            self.leave(&self.place(name), server, draft);
        }
        self.note(&theirs, &fixed, draft);
    }

    fn place(&self, server: &str) -> Place {
        Place { backend: self.name.to_owned(), server: server.to_owned() }
    }

    /// Puts a server back to what it should be.
    fn mend(
        &self,
        place: &Place,
        found: &Server,
        wanted: &Wanted,
        fixed: &mut Vec<String>,
        draft: &mut Draft,
    ) {
        let state = &found.state;
        let is_there = match wanted.ip() {
            ip @ Some(_) => found.is_at(ip, wanted.endpoint.port),
            None => {
                state.host.as_deref() == Some(&wanted.endpoint.address.to_string())
                    && state.port == wanted.endpoint.port
            }
        };
        match wanted.ip() {
            _ if is_there => {}
            Some(ip) => {
                let to = SocketAddr::new(ip, wanted.endpoint.port);
                let is_down = !state.is_up && !state.is_in_maintenance() && !wanted.drains;
                draft.step(place, Action::Move { to, is_down });
            }
            None => self.refuse_name(wanted, draft),
        }
        if state.weight != wanted.weight {
            match self.backend.algorithm {
                Algorithm::Dynamic => draft.step(place, Action::Weigh(wanted.weight)),
                _ if state.initial_weight == wanted.weight => draft.step(place, Action::Weigh(wanted.weight)),
                _ => fixed.push(place.server.clone()),
            }
        }
        if state.is_unchecked() {
            draft.step(place, Action::Check);
        }
        if wanted.drains && (!state.drains() || state.is_forced_out()) {
            draft.step(place, Action::Drain);
        } else if !wanted.drains && (state.drains() || state.is_forced_out()) {
            draft.step(place, Action::Ready);
        }
    }

    /// Adds servers, or puts them into free slots.
    fn settle(
        &self,
        homeless: Vec<Wanted>,
        rest: &mut BTreeMap<&str, &Server>,
        fixed: &mut Vec<String>,
        draft: &mut Draft,
    ) {
        let obstacle = self.obstacle();
        let mut free: Vec<&str> =
            rest.iter().filter(|(_, server)| server.is_free_slot()).map(|(name, _)| *name).rev().collect();
        let mut unplaced = 0;
        for server in homeless {
            let Some(ip) = server.ip() else {
                self.refuse_name(&server, draft);
                continue;
            };
            let at = SocketAddr::new(ip, server.endpoint.port);
            if obstacle.is_none() {
                let options = self.config.server_options.clone();
                let add = Action::Add { at, weight: server.weight, options, drains: server.drains };
                draft.step(&self.place(&server.name), add);
            } else if let Some(slot) = free.pop() {
                let found = rest.remove(slot).expect("it was found by its name");
                self.mend(&self.place(slot), found, &server, fixed, draft);
            } else {
                unplaced += 1;
            }
        }
        if let (true, Some(obstacle)) = (unplaced > 0, obstacle) {
            self.refuse_more(unplaced, &obstacle, draft);
        }
    }

    /// Why the backend takes no servers at run time, if it does not.
    fn obstacle(&self) -> Option<String> {
        let version = &self.info.version;
        match (self.config.method, self.backend.algorithm) {
            (Method::Slots, _) => Some("its servers are in slots".to_owned()),
            _ if version.branch < DYNAMIC_SINCE => {
                Some(format!("HAProxy {version} takes no servers at run time, as 2.6 and later do"))
            }
            (_, Algorithm::Dynamic) => None,
            (_, Algorithm::Static | Algorithm::Unclear) => {
                Some("its balance algorithm takes no servers at run time".to_owned())
            }
        }
    }

    fn refuse_more(&self, unplaced: usize, obstacle: &str, draft: &mut Draft) {
        let name = self.name;
        let slots = self.backend.servers.values().filter(|server| server.is_slot()).count();
        if slots == 0 {
            let hint = match self.config.method {
                Method::Slots => "the configuration has no slots yet",
                Method::Auto | Method::Dynamic => "method = \"slots\" saves the reload",
            };
            draft.refuse(format!("backend {name} has no place for {unplaced} instances: {obstacle}; {hint}"));
            draft.plan.reloads.push(format!("backend {name} has no place for {unplaced} instances"));
            return;
        }
        draft.refuse(format!(
            "backend {name} has no free slot for {unplaced} instances: it has {slots}, all taken"
        ));
        draft
            .plan
            .reloads
            .push(format!("backend {name} has no free slot among its {slots}, and the file has more"));
    }

    fn refuse_name(&self, server: &Wanted, draft: &mut Draft) {
        let (name, endpoint) = (&server.name, &server.endpoint);
        draft.refuse(format!(
            "{name} in backend {} is at {endpoint}: HAProxy resolves host names as it starts, and takes only IP addresses \
             at run time",
            self.name
        ));
        draft.plan.reloads.push(format!("{endpoint} in backend {} is a host name", self.name));
    }

    fn leave(&self, place: &Place, server: &Server, draft: &mut Draft) {
        if !server.state.is_forced_out()
            && let Some(is_of_another) = is_taken_over(place, server, draft)
        {
            return draft.step(place, Action::Vacate { cuts: is_of_another });
        }
        match leaving::leave(server, self.config.drain_timeout) {
            Leaving::Now(action) => draft.step(place, action),
            Leaving::Later(pause) => draft.look_again(pause.max(Duration::from_millis(10))),
            Leaving::Stays if server.is_slot() => {}
            Leaving::Stays => draft.plan.notes.push(format!(
                "server {place} stays in maintenance: HAProxy's configuration refers to it, so that it cannot be deleted"
            )),
        }
    }

    fn note(&self, theirs: &[&str], fixed: &[String], draft: &mut Draft) {
        let (name, notes) = (self.name, &mut draft.plan.notes);
        if !theirs.is_empty() {
            let list = Draft::list(theirs.iter().copied());
            notes.push(format!(
                "backend {name} has servers that Rollcall did not make, and leaves alone: {list}"
            ));
        }
        if !fixed.is_empty() {
            let list = Draft::list(fixed.iter().map(String::as_str));
            notes
                .push(format!("backend {name} keeps the weights of {list}: its balance algorithm is static"));
        }
        let has_slots = self.backend.servers.values().any(Server::is_slot);
        if let (Some(obstacle), Method::Auto, true) = (self.obstacle(), self.config.method, has_slots) {
            notes.push(format!("backend {name} has its servers in slots: {obstacle}"));
        }
    }
}

/// Takes the slot at a server's address, rather one in service than one that leaves.
fn take_slot<'s>(rest: &mut BTreeMap<&'s str, &'s Server>, wanted: &Wanted) -> Option<(&'s str, &'s Server)> {
    let is_at = |server: &Server| match wanted.ip() {
        ip @ Some(_) => server.is_at(ip, wanted.endpoint.port),
        None => {
            server.state.port == wanted.endpoint.port
                && server.state.host.as_deref() == Some(&wanted.endpoint.address.to_string())
        }
    };
    let slots = rest.iter().filter(|(_, server)| server.is_slot() && is_at(server));
    let (slot, server) =
        slots.min_by_key(|(_, server)| (server.state.is_forced_out(), server.state.drains()))?;
    let found = (*slot, *server);
    rest.remove(found.0);
    Some(found)
}

#[cfg(test)]
mod tests;
