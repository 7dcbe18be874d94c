//! A session: a claim that is held, and its lease.

use crate::store::{Guard, LeaseId, Op, Revision, Store, StoreError};

/// A claim that is held, and its lease. Clones are the same session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    lease: LeaseId,
    guard: Guard,
}

impl Session {
    /// The session of the claim that was put at `revision`.
    pub(super) fn new(lease: LeaseId, key: &str, revision: Revision) -> Self {
        Self { lease, guard: Guard { key: key.to_owned(), revision: Some(revision) } }
    }

    /// The lease that everything of this session is attached to.
    pub fn lease(&self) -> LeaseId {
        self.lease
    }

    /// The condition that the claim is still ours.
    pub(super) fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Writes under the lease, as long as the claim is held.
    ///
    /// # Errors
    /// The store's; after `GuardFailed` and `LeaseNotFound` the keeper has to look at the claim again.
    pub async fn commit(&self, store: &dyn Store, ops: &[Op]) -> Result<Vec<Revision>, StoreError> {
        store.commit(ops, Some(self.lease), Some(&self.guard)).await
    }
}
