//! The store: leased keys with one revision, and watches that miss nothing.
//!
//! Two implementations keep the contract, and [`conformance`] is run against both: [`etcd`], and
//! [`memory`], which is the embedded mode and the tests' double.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use futures_util::{TryStreamExt, stream::BoxStream};

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod etcd;
pub mod memory;
pub mod settings;

/// The store's logical clock: it grows by one with every commit that changes a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub i64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A lease: keys attached to it go when it is revoked, or not kept alive for its time to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// When it was last put.
    pub revision: Revision,
    /// The lease it is attached to.
    pub lease: Option<LeaseId>,
}

/// All keys under a prefix, or a page of them, at one revision: as entries or what was read from them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing<T = Entry> {
    /// The entries, in the order of their keys.
    pub entries: Vec<T>,
    /// The revision of which this is a snapshot; a watch goes on after it.
    pub revision: Revision,
}

/// What happened to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It was created or written again.
    Put(Entry),
    /// It is gone: deleted, or its lease ended.
    Delete {
        /// The key.
        key: String,
        /// When.
        revision: Revision,
    },
}

impl Change {
    /// The key it is about.
    pub fn key(&self) -> &str {
        match self {
            Change::Put(entry) => &entry.key,
            Change::Delete { key, .. } => key,
        }
    }

    /// When it happened.
    pub fn revision(&self) -> Revision {
        match self {
            Change::Put(entry) => entry.revision,
            Change::Delete { revision, .. } => *revision,
        }
    }
}

/// Changes that were delivered together. Those of one revision are never split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The changes, oldest first.
    pub changes: Vec<Change>,
    /// The revision of the last one; a watch goes on after it.
    pub revision: Revision,
}

/// A write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes a key, attached to the commit's lease.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Vec<u8>,
    },
    /// Deletes a key; no error where there is none.
    Delete {
        /// The key.
        key: String,
    },
}

impl Op {
    /// The key it writes.
    pub fn key(&self) -> &str {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }
}

/// The condition of a commit: a key that has not changed since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The key.
    pub key: String,
    /// The revision at which it was last put, or `None` where it must not exist.
    pub revision: Option<Revision>,
}

/// A listing as it comes: at least one page, all of one revision. It ends with its first error.
pub type Pages<'a> = BoxStream<'a, Result<Listing, StoreError>>;

/// Changes as they come. It ends with an error, or with the store.
pub type Watch = BoxStream<'static, Result<Batch, StoreError>>;

/// Why the store did not do what was asked.
///
/// [`StoreError::Unavailable`] is worth a retry as it is. After `LeaseNotFound` a new lease is
/// needed, after `Compacted` and `RolledBack` a new listing. `Denied` and `Invalid` stay so until
/// someone changes a setting, here or in the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The lease has expired or was revoked.
    #[error("lease not found")]
    LeaseNotFound,
    /// The guard's key has changed.
    #[error("{key} has changed hands")]
    GuardFailed {
        /// The guard's key.
        key: String,
    },
    /// The history that a watch asked for is gone.
    #[error("the history up to revision {first} is compacted")]
    Compacted {
        /// The first revision that is still there.
        first: Revision,
    },
    /// The store is younger than what was read from it: it was restored from a backup or replaced.
    #[error("the store went back from revision {read} to {now}, or is another store")]
    RolledBack {
        /// What was read from it before.
        read: Revision,
        /// Where it is now.
        now: Revision,
    },
    /// The store cannot be reached or cannot answer now.
    #[error("{0}")]
    Unavailable(String),
    /// The store does not let us.
    #[error("{0}")]
    Denied(String),
    /// The request or a setting cannot work.
    #[error("{0}")]
    Invalid(String),
}

/// Whether a prefix is all keys below it, and not one key alone.
fn is_folder(prefix: &str) -> bool {
    prefix.ends_with('/')
}

/// What agent and consumer need of a store.
///
/// # Guarantees
/// - A lease that is revoked, or not kept alive for its time to live, deletes its keys, and watchers
///   see it. Keeping alive a lease that is gone is [`StoreError::LeaseNotFound`], every time.
/// - `commit` applies its writes in order, in as few transactions as the store's limits allow, each
///   under the guard: once the guard fails, nothing further is written.
/// - `pages` are one snapshot, however many there are.
/// - `watch` gives every change after the revision once and in order, or says
///   [`StoreError::Compacted`] or [`StoreError::RolledBack`].
/// - Every call ends in bounded time.
///
/// A prefix ends in a slash and means all keys below it; without one it means that key alone, so that who
/// may read one key only can also list and watch it.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Grants a lease. The store may raise a time to live that is too short for it.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Gives a lease its full time to live again.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease and deletes its keys in one step. A lease that is gone is `LeaseNotFound`.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Reads one key.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// Applies writes in order; gives the revision of the last one. No writes: the current revision.
    async fn commit(
        &self,
        ops: &[Op],
        lease: Option<LeaseId>,
        guard: Option<&Guard>,
    ) -> Result<Revision, StoreError>;

    /// Reads all keys of a prefix, a page at a time.
    fn pages<'a>(&'a self, prefix: &'a str) -> Pages<'a>;

    /// Reads all keys of a prefix.
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let together = |mut all: Listing, page: Listing| async move {
            all.entries.extend(page.entries);
            Ok(Listing { revision: page.revision, ..all })
        };
        let none = Listing { entries: Vec::new(), revision: Revision::default() };
        self.pages(prefix).try_fold(none, together).await
    }

    /// Watches all keys of a prefix, from the first change after `after`.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError>;
}
