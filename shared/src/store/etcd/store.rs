//! The store's trait, by etcd's calls.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use etcd_client::GetOptions;
use futures_util::{StreamExt, stream};

use super::{
    call::Size,
    certificates::Certificates,
    convert::{entry, position, transaction, transactions},
    error::unavailable,
    members::Members,
    watch,
};
use crate::store::{
    Entry, Guard, KeyRange, LastChange, LeaseId, Listing, Mark, Op, Pages, Position, Recoveries, Revision,
    Store, StoreError, Watch, settings::EtcdSettings,
};

/// Keys in one page of a listing, some 1 MiB of instances: etcd takes no longer for all pages than for one, and each is
/// read while it makes the next.
const MAX_PAGE_KEYS: i64 = 2048;
/// The largest answer taken, in bytes: a page of the largest values.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// A store in etcd.
#[derive(Debug)]
pub struct EtcdStore {
    members: Arc<Members>,
    certificates: Certificates,
}

impl EtcdStore {
    /// A store at the endpoints of the settings. Connects when first used.
    ///
    /// # Errors
    /// A certificate, key or password that cannot be read, as [`StoreError::Setting`].
    pub fn new(settings: EtcdSettings) -> Result<Self, StoreError> {
        settings.credentials()?;
        settings.tls()?;
        Ok(Self { members: Arc::new(Members::new(settings)), certificates: Certificates::default() })
    }

    /// Reads a page at a revision, or now where that is 0; gives where the next page starts, if there is one.
    async fn page(
        &self,
        from: Vec<u8>,
        to: Option<&str>,
        revision: Revision,
    ) -> Result<(Listing, Option<Vec<u8>>), StoreError> {
        let options = GetOptions::new().with_limit(MAX_PAGE_KEYS).with_revision(revision.0);
        let options = match to {
            Some(to) => options.with_range(to),
            None => options,
        };
        let get = self.members.call(Size::Large, |connection| {
            let (from, options) = (from.clone(), options.clone());
            async move {
                let mut kv = connection.client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES);
                kv.get(from, Some(options)).await
            }
        });
        let mut answer = get.await?;
        let now = position(answer.header());
        let position = if revision == Revision(0) { now } else { Position { revision, ..now } };
        // The next key in order is the last one with a zero byte behind it.
        let next = answer.kvs().last().filter(|_| answer.more()).map(|last| [last.key(), &[0]].concat());
        let entries = answer.take_kvs().into_iter().map(entry).collect();
        Ok((Listing { entries, position }, next))
    }

    /// A key at a revision, or now where that is 0, and where the store is: read from the majority, behind which no
    /// member lags.
    async fn key_at(&self, key: &str, revision: Revision) -> Result<(Option<Entry>, Position), StoreError> {
        let get = self.members.call(Size::Small, |connection| async move {
            let options = GetOptions::new().with_revision(revision.0);
            connection.client.kv_client().get(key, Some(options)).await
        });
        let mut answer = get.await?;
        let position = position(answer.header());
        Ok((answer.take_kvs().into_iter().next().map(entry), position))
    }

    /// Opens a watch.
    async fn open(&self, range: &KeyRange, after: Position) -> Result<watch::Opened, StoreError> {
        self.members.call(Size::Large, |connection| watch::open(connection, range, after)).await
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let grant = self.members.call(Size::Small, |connection| async move {
            connection.client.lease_client().grant(seconds, None).await
        });
        Ok(LeaseId(grant.await?.id()))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.certificates.look(self.members.settings().clone());
        // A stream for each: its first answer is the one that etcd_client checks for a lost lease.
        let keep = self.members.call(Size::Small, |connection| async move {
            connection.client.lease_client().keep_alive(lease.0).await.map(drop)
        });
        keep.await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let revoke = self.members.call(Size::Small, |connection| async move {
            connection.client.lease_client().revoke(lease.0).await.map(drop)
        });
        revoke.await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.key_at(key, Revision(0)).await?.0)
    }

    async fn commit(
        &self,
        ops: &[Op],
        lease: Option<LeaseId>,
        guard: Option<&Guard>,
    ) -> Result<Vec<Revision>, StoreError> {
        let mut revisions = Vec::with_capacity(ops.len());
        for chunk in transactions(ops) {
            let commit = self.members.call(Size::Small, |connection| async move {
                connection.client.kv_client().txn(transaction(chunk, lease, guard)).await
            });
            let answer = commit.await?;
            if let Some(Guard { key, .. }) = guard.filter(|_| !answer.succeeded()) {
                return Err(StoreError::GuardFailed { key: key.clone() });
            }
            let Position { revision, .. } = position(answer.header());
            revisions.extend(chunk.iter().map(|_| revision));
        }
        Ok(revisions)
    }

    fn pages<'a>(&'a self, range: &'a KeyRange) -> Pages<'a> {
        let (from, to) = range.bounds();
        // Revision 0 is the newest; the pages after the first stay at the first one's.
        let start = Some((from.as_bytes().to_vec(), Revision::default()));
        let next = move |position: Option<(Vec<u8>, Revision)>| async move {
            let Some((from, revision)) = position else { return Ok(None) };
            let (page, next) = self.page(from, to, revision).await?;
            let revision = page.position.revision;
            Ok(Some((page, next.map(|from| (from, revision)))))
        };
        stream::try_unfold(start, next).boxed()
    }

    async fn watch(&self, range: &KeyRange, after: Position) -> Result<Watch, StoreError> {
        let (from, _) = range.bounds();
        let token = self.members.token();
        let mut opened = self.open(range, after).await?;
        if opened.is_denied() {
            // An older etcd says so also of a token that has expired. A call that reads finds that out, and logs in.
            self.key_at(from, Revision(0)).await?;
            if self.members.token() != token {
                opened = self.open(range, after).await?;
            }
        }
        let now = opened.position();
        if now.store != after.store {
            return Err(StoreError::WentBack { read: after, now });
        }
        if now.revision < after.revision {
            // Either the store went back, or this member lags behind the one that was read before.
            let (_, now) = self.key_at(from, Revision(0)).await?;
            if now.store != after.store || now.revision < after.revision {
                return Err(StoreError::WentBack { read: after, now });
            }
            let lags = unavailable(&opened.connection.endpoint, "it lags behind the other members");
            self.members.leave(&opened.connection, &lags);
            return Err(lags);
        }
        opened.follow(self.members.clone())
    }

    async fn confirm(&self, mark: &Mark) -> Result<(), StoreError> {
        let Mark { position: read, last } = mark;
        let Some(LastChange { key, revision, is_put }) = last else { return Ok(()) };
        let (_, now) = self.key_at(key, Revision(0)).await?;
        if now.store != read.store || now.revision < read.revision {
            return Err(StoreError::WentBack { read: *read, now });
        }
        let (found, _) = self.key_at(key, *revision).await?;
        let has_happened = if *is_put {
            found.is_some_and(|entry| entry.revision == *revision)
        } else {
            let (before, _) = self.key_at(key, Revision(revision.0 - 1)).await?;
            found.is_none() && before.is_some()
        };
        if has_happened { Ok(()) } else { Err(StoreError::WentBack { read: *read, now }) }
    }

    fn recoveries(&self) -> Recoveries {
        self.members.recoveries()
    }
}
