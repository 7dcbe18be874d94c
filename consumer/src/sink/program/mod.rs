//! Programs that are told directly what to serve: no file, no signal, and what counts is what they answer.
//!
//! ```text
//! selection -> desired ─┐
//!           observe ────┴─> plan -> apply, step by step -> observe again: nothing left to do means applied
//! ```
//!
//! A [`Program`] knows one protocol, and decides nothing but in [`Program::plan`], which is pure. The [`Reconciler`] is
//! the sink that all programs share: which services a round is about, what the loss guard holds, and whether what was
//! done is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use async_trait::async_trait;
use rollcall_shared::model::name::ServiceName;

pub use reconciler::{Reconciler, preview};

use super::SinkError;
use crate::roll::Row;

mod reconciler;

/// A program that is told directly.
#[async_trait]
pub trait Program: Send + fmt::Debug + 'static {
    /// What it has.
    type Observed: Send;
    /// One thing to do. Shown to users, as in "add server web/h1-0123456789ab-80 at 10.0.0.1:8001".
    type Step: fmt::Display + Send + Sync;

    /// Reads what the program has now, as far as the scope goes. It may read more.
    ///
    /// # Errors
    /// The program cannot be asked, or is not what it should be; why, on one line. It is tried again with backoff.
    async fn observe(&mut self, scope: &Scope) -> Result<Self::Observed, SinkError>;

    /// What is left to do so that the program has what is desired: pure, and without steps where it has. Only what
    /// Rollcall made is changed or removed.
    fn plan(&self, desired: &Desired, observed: &Self::Observed) -> Plan<Self::Step>;

    /// Does one step. Doing it twice does no harm.
    ///
    /// # Errors
    /// The program refuses it or does not answer. The steps after it are not done, and everything is observed anew.
    async fn apply(&mut self, step: &Self::Step) -> Result<(), SinkError>;

    /// Waits until the program is another one than was observed last, such as after a restart. Cancel safe.
    async fn restarted(&mut self) {
        std::future::pending().await
    }
}

/// Which services a round is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All that there are, and those that have gone while nobody looked.
    All,
    /// Those that have changed.
    Services(BTreeSet<ServiceName>),
}

impl Scope {
    /// Whether it has the service.
    pub fn has(&self, service: &ServiceName) -> bool {
        match self {
            Scope::All => true,
            Scope::Services(services) => services.contains(service),
        }
    }
}

/// What a program should have, as far as the scope goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// What it is about. A service of the scope that has no rows has no instances.
    pub scope: Scope,
    /// The instances of each service, in the order of their endpoints.
    pub services: BTreeMap<ServiceName, Vec<Row>>,
}

/// What is left to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<S> {
    /// What is to be done now, in order.
    pub steps: Vec<S>,
    /// What cannot be had, and why, on one line each: until that changes the target is not as it should be.
    pub refusals: Vec<String>,
    /// What is worth a look and stops nothing, on one line each, such as what an operator made by hand.
    pub notes: Vec<String>,
    /// What the program can have only if it reads the file beside it anew, on one line each.
    pub reloads: Vec<String>,
    /// When to look again although nothing changes, such as at servers that drain.
    pub look_again: Option<Duration>,
}

impl<S> Default for Plan<S> {
    fn default() -> Self {
        Self { steps: vec![], refusals: vec![], notes: vec![], reloads: vec![], look_again: None }
    }
}
