//! What a target's loss guard holds at a moment, with the lost rows that stay in the meantime.

use std::collections::BTreeMap;

use rollcall_shared::model::name::ServiceName;
use tokio::time::Instant;

use super::selection::Row;
use crate::target::loss_guard::Hold;

/// What is held at a moment.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Whether the whole target stays as it is, and why.
    pub floor: Option<Hold>,
    /// The services that keep the rows that they have lost.
    pub services: BTreeMap<ServiceName, Hold>,
    /// The lost rows of those services.
    pub(super) lost: BTreeMap<ServiceName, Vec<Row>>,
}

/// Which rows a service is rendered of: equal versions of a service have equal rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version {
    /// The step of the selection with which the rows changed last.
    pub(super) step: u64,
    /// How many lost rows are among them, if the service is held.
    pub(super) lost: Option<usize>,
}

impl Verdict {
    /// The lost rows that stay.
    pub fn lost(&self) -> impl Iterator<Item = &Row> {
        self.lost.values().flatten()
    }

    /// When to look again even if nothing changes.
    pub fn next_change(&self) -> Option<Instant> {
        self.floor.iter().chain(self.services.values()).filter_map(|hold| hold.until).min()
    }
}
