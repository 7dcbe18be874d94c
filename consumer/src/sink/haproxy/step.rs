//! One thing to do to one server, and the commands that do it.

use std::{fmt, net::SocketAddr};

use super::{command::Command, server::Place, settings::ServerOptions};

/// One thing to do to one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The server.
    pub place: Place,
    /// What is done to it.
    pub action: Action,
}

/// What is done to a server. The order is that of a plan: what must not get connections any more goes first, and what
/// takes the load comes before others leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It takes nothing more, as another container has its address. Connections that are kept are closed.
    Vacate {
        /// Whether requests that it has are cut: they might reach the other container, which is another service's.
        cuts: bool,
    },
    /// It is added.
    Add {
        /// Where it is.
        at: SocketAddr,
        /// Its weight.
        weight: u16,
        /// What else it is told.
        options: ServerOptions,
        /// Whether it takes no new clients.
        drains: bool,
    },
    /// It gets another address.
    Move {
        /// The new one.
        to: SocketAddr,
        /// Whether HAProxy is to forget that it was down at the old one.
        is_down: bool,
    },
    /// It gets another weight.
    Weigh(u16),
    /// Its check is switched on.
    Check,
    /// It takes clients.
    Ready,
    /// It takes no new clients, except those that are bound to it.
    Drain,
    /// It takes nothing more and is not checked.
    Maintain,
    /// It is deleted.
    Delete,
}

impl Action {
    /// Its place in the order of a plan.
    pub fn rank(&self) -> u8 {
        match self {
            Action::Vacate { .. } => 0,
            Action::Move { .. } => 1,
            Action::Add { .. } | Action::Weigh(_) | Action::Check => 2,
            Action::Ready => 3,
            Action::Drain => 4,
            Action::Maintain => 5,
            Action::Delete => 6,
        }
    }
}

impl Step {
    /// The commands, in order. Each may be done twice.
    pub fn commands(&self) -> Vec<Command> {
        let Self { place, action } = self;
        let set = |what: fmt::Arguments<'_>| Command::silent(format!("set server {place} {what}"));
        let state = |state: &str| set(format_args!("state {state}"));
        match action {
            Action::Vacate { cuts: false } | Action::Maintain => vec![state("maint")],
            Action::Vacate { cuts: true } => {
                vec![state("maint"), Command::silent(format!("shutdown sessions server {place}"))]
            }
            Action::Add { at, weight, options, drains } => {
                let line = format!("add server {place} {at} weight {weight} {}", options.as_str());
                let mut commands = vec![Command::add(line.trim_end().to_owned())];
                if options.checks() {
                    commands.push(Command::silent(format!("enable health {place}")));
                }
                commands.push(state(if *drains { "drain" } else { "ready" }));
                commands
            }
            Action::Move { to, is_down } => {
                let text = format!("set server {place} addr {} port {}", to.ip(), to.port());
                let moved = Command::address(text);
                // Out of maintenance it is up until a check says otherwise.
                if *is_down { vec![state("maint"), moved, state("ready")] } else { vec![moved] }
            }
            Action::Weigh(weight) => vec![set(format_args!("weight {weight}"))],
            Action::Check => vec![Command::silent(format!("enable health {place}"))],
            Action::Ready => vec![state("ready")],
            Action::Drain => vec![state("drain")],
            Action::Delete => vec![Command::delete(format!("del server {place}"))],
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, action } = self;
        match action {
            Action::Vacate { cuts: false } => {
                write!(f, "put server {place} into maintenance, as another container has its address")
            }
            Action::Vacate { cuts: true } => {
                write!(
                    f,
                    "put server {place} into maintenance and end its requests, as another service has its address"
                )
            }
            Action::Add { at, weight, drains, options: _ } => {
                write!(f, "add server {place} at {at}, weight {weight}")?;
                if *drains { f.write_str(", draining") } else { Ok(()) }
            }
            Action::Move { to, .. } => write!(f, "move server {place} to {to}"),
            Action::Weigh(weight) => write!(f, "give server {place} weight {weight}"),
            Action::Check => write!(f, "switch on the check of server {place}"),
            Action::Ready => write!(f, "put server {place} into service"),
            Action::Drain => write!(f, "drain server {place}"),
            Action::Maintain => write!(f, "put server {place} into maintenance"),
            Action::Delete => write!(f, "delete server {place}"),
        }
    }
}
