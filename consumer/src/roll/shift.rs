//! What an update did to the roll: the instances that changed, and why those that went did so.

use std::sync::Arc;

use rollcall_shared::{
    model::instance::{Instance, InstanceId},
    store::Revision,
};

/// What happened to one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shift {
    /// Which one.
    pub id: Arc<InstanceId>,
    /// What it was, if it was there.
    pub before: Option<Arc<Instance>>,
    /// What it is, if it is there.
    pub after: Option<Arc<Instance>>,
    /// Why it went; `Some` exactly where `after` is `None`.
    pub departure: Option<Departure>,
}

/// Why an instance went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// Its node, which is still there, has withdrawn it.
    Withdrawn,
    /// Its node went, and had said so before.
    Goodbye,
    /// Its node went without a word: its lease expired, or it did not register again after the store went back.
    Lost,
}

/// What an update did to the roll.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Shifts {
    /// The instances that changed, each once.
    pub shifts: Vec<Shift>,
    /// How many instances are kept, since the store went back, without it saying so.
    pub unconfirmed: usize,
    /// Whether the store has been listed. Before that, the roll is what was remembered.
    pub listed: bool,
    /// The store's revision that the roll is of.
    pub revision: Revision,
}
