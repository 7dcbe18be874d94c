//! The store: leased keys with one revision, and watches that miss nothing.
//!
//! Two implementations keep the contract, and `conformance` runs against both: [`etcd`], and [`memory`], which is the
//! embedded mode and the tests' double.

use std::{error::Error, fmt, time::Duration};

use async_trait::async_trait;
use futures_util::{TryStreamExt, stream::BoxStream};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::process::setting::SettingError;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod etcd;
pub mod memory;
pub mod settings;

/// The store's logical clock: it grows by one with every transaction that changes a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Revision(pub i64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which store it is: etcd's cluster ID. A store that was wiped and made anew has another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StoreId(pub u64);

/// A moment in the life of a store: everything up to the revision is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Which store.
    pub store: StoreId,
    /// Up to when.
    pub revision: Revision,
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

/// Which keys a listing or a watch covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    from: String,
    /// The first key after the range; `None` where the range is the key `from` alone.
    to: Option<String>,
}

impl KeyRange {
    /// One key.
    pub fn key(key: String) -> Self {
        Self { from: key, to: None }
    }

    /// Every key below a folder, whose name ends with a slash.
    pub fn folder(folder: String) -> Self {
        Self { to: Some(after(&folder)), from: folder }
    }

    /// Every key from the first folder to the last, and of those that sort between them.
    pub fn folders(first: String, last: String) -> Self {
        Self { from: first, to: Some(after(&last)) }
    }

    /// The first key, and the first one after the range.
    pub fn bounds(&self) -> (&str, Option<&str>) {
        (&self.from, self.to.as_deref())
    }

    /// Whether a key is in the range.
    pub fn contains(&self, key: &str) -> bool {
        match &self.to {
            Some(to) => (self.from.as_str()..to).contains(&key),
            None => self.from == key,
        }
    }
}

/// The first text that does not start with the folder's name: a zero sorts right behind a slash.
fn after(folder: &str) -> String {
    let name = folder.strip_suffix('/').expect("a folder's name ends with a slash");
    format!("{name}0")
}

impl fmt::Display for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.from)
    }
}

/// All keys of a range, or a page of them, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The entries, in the order of their keys.
    pub entries: Vec<Entry>,
    /// The moment; a watch goes on after it.
    pub position: Position,
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

/// Up to where a reader knows a range, and the last change there that it has seen.
///
/// The change is a witness. A store that was restored from a backup can have passed the position again by other writes; that
/// this change happened at this revision it cannot have by chance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Up to where everything is known.
    pub position: Position,
    /// The last change; `None` where the range was empty.
    pub last: Option<LastChange>,
}

/// A change that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastChange {
    /// The key.
    pub key: String,
    /// When.
    pub revision: Revision,
    /// Whether it was put then, or deleted.
    pub is_put: bool,
}

/// Tells when the store answers again after it was away, so that whoever waits to try again does so at once.
#[derive(Debug, Clone)]
pub struct Recoveries(watch::Receiver<u64>);

impl Recoveries {
    /// The changes of this count.
    pub(crate) fn of(count: watch::Receiver<u64>) -> Self {
        Self(count)
    }

    /// None, ever: of a store that is never away.
    pub fn none() -> Self {
        Self(watch::Sender::new(0).subscribe())
    }

    /// Waits for one that this reader has not been told of. Cancel safe.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// A listing as it comes: at least one page, all of one revision. It ends with its first error.
pub type Pages<'a> = BoxStream<'a, Result<Listing, StoreError>>;

/// Changes as they come. It ends with an error, or with the store.
pub type Watch = BoxStream<'static, Result<Batch, StoreError>>;

/// Why the store did not do what was asked.
///
/// `Unavailable` is worth a retry as it is. After `LeaseNotFound` a new lease is needed, after `Compacted` and
/// `WentBack` a new listing. `LoginFailed`, `Denied`, `Refused`, `TooLarge` and `Setting` stay so until someone changes a setting, here or in the
/// store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The lease has expired or was revoked.
    #[error("the lease is gone")]
    LeaseNotFound,
    /// The guard's key has changed.
    #[error("{key} has changed hands")]
    GuardFailed {
        /// The guard's key.
        key: String,
    },
    /// The history that was asked for is gone.
    #[error("the history that was asked for is compacted")]
    Compacted,
    /// The store is younger than what was read from it, or another one: it was restored from a backup, or wiped.
    #[error("the store went back from revision {} to {}, or is another store", read.revision, now.revision)]
    WentBack {
        /// What was read from it before.
        read: Position,
        /// Where it is now.
        now: Position,
    },
    /// The store cannot be reached or cannot answer now.
    #[error("{place} is not available")]
    Unavailable {
        /// The member that was asked, such as `etcd at http://10.0.0.1:2379`.
        place: String,
        /// What happened.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The user or the password is wrong.
    #[error("{place}: {message}")]
    LoginFailed {
        /// The member that was asked.
        place: String,
        /// What it said.
        message: String,
    },
    /// Permission denied.
    #[error("{place}: {message}")]
    Denied {
        /// The member that was asked.
        place: String,
        /// What it said.
        message: String,
    },
    /// The store does not take the request, and would not when asked again.
    #[error("{place}: {message}")]
    Refused {
        /// The member that was asked.
        place: String,
        /// What it said.
        message: String,
    },
    /// The request is larger than the store takes.
    #[error("{place}: {message}")]
    TooLarge {
        /// The member that was asked.
        place: String,
        /// What it said.
        message: String,
    },
    /// A setting cannot work.
    #[error(transparent)]
    Setting(#[from] SettingError),
}

/// What agent and consumer need of a store.
///
/// # Guarantees
/// - A lease that is revoked, or not kept alive for its time to live, deletes its keys in one transaction, and watchers
///   see it. Keeping alive a lease that is gone is [`StoreError::LeaseNotFound`], every time.
/// - `commit` applies its writes in order, in as few transactions as the store's limits allow, each under the guard:
///   once the guard fails, nothing further is written.
/// - `pages` are one snapshot, however many there are.
/// - `watch` gives every change after the position once and in order, or says [`StoreError::Compacted`] or
///   [`StoreError::WentBack`]. A member that lags behind is not a store that went back: another one is asked. A store
///   that went back and has passed the position again is told by [`Store::confirm`].
/// - A commit that was not answered may be applied later, even after one that followed it.
/// - Every call ends in bounded time.
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

    /// Applies writes in order; gives the revision of each. Where it fails, some of the first transactions may have
    /// been applied.
    async fn commit(
        &self,
        ops: &[Op],
        lease: Option<LeaseId>,
        guard: Option<&Guard>,
    ) -> Result<Vec<Revision>, StoreError>;

    /// Reads all keys of a range, a page at a time.
    fn pages<'a>(&'a self, range: &'a KeyRange) -> Pages<'a>;

    /// Reads all keys of a range.
    async fn list(&self, range: &KeyRange) -> Result<Listing, StoreError> {
        let append = |mut all: Listing, page: Listing| async move {
            all.entries.extend(page.entries);
            Ok(Listing { position: page.position, ..all })
        };
        let none = Listing { entries: Vec::new(), position: Position::default() };
        self.pages(range).try_fold(none, append).await
    }

    /// Watches all keys of a range, from the first change after `after`.
    async fn watch(&self, range: &KeyRange, after: Position) -> Result<Watch, StoreError>;

    /// Confirms that the store still has the history that the mark was made in. To be asked after a break.
    ///
    /// # Errors
    /// [`StoreError::WentBack`] where it has not, [`StoreError::Compacted`] where that cannot be told any more.
    async fn confirm(&self, mark: &Mark) -> Result<(), StoreError>;

    /// When it answers again after it was away.
    fn recoveries(&self) -> Recoveries;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_what_is_below_it_and_nothing_beside_it() {
        let folder = KeyRange::folder("/a/b/".to_owned());
        for (key, expected) in [
            ("/a/b/", true),
            ("/a/b/c", true),
            ("/a/b/~", true),
            ("/a/b", false),
            ("/a/b0", false),
            ("/a/bc", false),
        ] {
            assert_eq!(folder.contains(key), expected, "{key}");
        }
        let key = KeyRange::key("/a/b".to_owned());
        assert!(key.contains("/a/b") && !key.contains("/a/bc"));
    }
}
