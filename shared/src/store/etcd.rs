//! The store in etcd (API v3), the only file that names `etcd_client`.
//!
//! One connection at a time: it stays with a member until that one fails, then goes to the next.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, Error, EventType, GetOptions, KeyValue, PutOptions, Txn,
    TxnOp, WatchOptions, WatchResponse, WatchStream,
};
use futures_util::{StreamExt, stream};

use super::{
    Batch, Change, Entry, Guard, LeaseId, Listing, Op, Pages, Revision, Store, StoreError, Watch, is_folder,
    settings::EtcdSettings,
};

/// etcd's default limit of writes in a transaction (`--max-txn-ops`).
const OPS_PER_TRANSACTION: usize = 128;
/// Below etcd's default limit of a request's size, 1.5 MiB (`--max-request-bytes`).
const BYTES_PER_TRANSACTION: usize = 1 << 20;
/// Keys in one page of a listing, some 1 MiB of instances: etcd takes no longer for all pages than for one,
/// and each is read while it makes the next.
const PAGE: i64 = 2048;
/// The largest answer taken, in bytes: a page of the largest values, or a long catch-up of a watch.
const LARGEST_ANSWER: usize = 256 << 20;

/// A store in etcd.
pub struct EtcdStore {
    settings: EtcdSettings,
    options: ConnectOptions,
    /// The connection in use, with the index of its endpoint.
    connection: Mutex<(usize, Option<Client>)>,
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdStore").field("endpoints", &self.settings.endpoints).finish_non_exhaustive()
    }
}

impl EtcdStore {
    /// A store at the endpoints of the settings. Connects when first used.
    ///
    /// # Errors
    /// A certificate or key that cannot be read, as [`StoreError::Invalid`] naming the setting.
    pub fn new(settings: EtcdSettings) -> Result<Self, StoreError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(settings.dial_timeout)
            .with_timeout(settings.command_timeout)
            // Finds a member that went away without a word; etcd allows a ping every 5 s.
            .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
            // A member cut off from its peers ends its watches instead of keeping silent.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some((user, password)) = settings.credentials()? {
            options = options.with_user(user, password);
        }
        if let Some(tls) = settings.tls()? {
            options = options.with_tls(tls);
        }
        Ok(Self { settings, options, connection: Mutex::new((0, None)) })
    }

    /// The connection in use, or a new one to the endpoint whose turn it is.
    async fn client(&self) -> Result<(usize, Client), StoreError> {
        let (index, open) = self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(client) = open {
            return Ok((index, client));
        }
        let endpoint = &self.settings.endpoints[index % self.settings.endpoints.len()];
        let connect = Client::connect([endpoint], Some(self.options.clone()));
        let client = match tokio::time::timeout(self.settings.dial_timeout, connect).await {
            Ok(connected) => connected.map_err(|error| self.failed(index, error))?,
            Err(_) => return Err(self.failed(index, timed_out("connecting"))),
        };
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.0 == index {
            connection.1 = Some(client.clone());
        }
        Ok((index, client))
    }

    /// Classifies an error, and leaves the endpoint if it is the endpoint's fault.
    fn failed(&self, index: usize, error: Error) -> StoreError {
        let endpoint = &self.settings.endpoints[index % self.settings.endpoints.len()];
        let error = classify(endpoint, error);
        if matches!(error, StoreError::Unavailable(_)) {
            let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
            if connection.0 == index {
                *connection = (index.wrapping_add(1), None);
            }
        }
        error
    }

    /// Runs a call on the connection in use, and on each other endpoint once if that one is not
    /// available. Every call through here may be repeated without harm.
    async fn call<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut last = None;
        for _ in &self.settings.endpoints {
            let (index, client) = match self.client().await {
                Ok(connected) => connected,
                Err(error @ StoreError::Unavailable(_)) => {
                    last = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let answer = match tokio::time::timeout(self.settings.command_timeout, call(client)).await {
                Ok(answer) => answer,
                Err(_) => Err(timed_out("waiting for an answer")),
            };
            match answer.map_err(|error| self.failed(index, error)) {
                Err(error @ StoreError::Unavailable(_)) => last = Some(error),
                answer => return answer,
            }
        }
        Err(last.unwrap_or_else(|| StoreError::Invalid("no etcd endpoint is set".to_owned())))
    }

    /// Reads a page at a revision, or now where that is 0; gives where the next page starts, if there is one.
    async fn page(
        &self,
        from: Vec<u8>,
        end: Option<Vec<u8>>,
        revision: Revision,
    ) -> Result<(Listing, Option<Vec<u8>>), StoreError> {
        let options = GetOptions::new().with_limit(PAGE).with_revision(revision.0);
        let options = match end {
            Some(end) => options.with_range(end),
            None => options,
        };
        let mut answer = self
            .call(|client| {
                let (from, options) = (from.clone(), options.clone());
                async move {
                    let mut kv = client.kv_client().max_decoding_message_size(LARGEST_ANSWER);
                    kv.get(from, Some(options)).await
                }
            })
            .await?;
        let revision = match revision {
            Revision(0) => Revision(answer.header().map_or(0, |header| header.revision())),
            revision => revision,
        };
        // The next key in order is the last one with a zero byte behind it.
        let next = answer.kvs().last().filter(|_| answer.more()).map(|last| [last.key(), &[0]].concat());
        let entries = answer.take_kvs().into_iter().map(entry).collect();
        Ok((Listing { entries, revision }, next))
    }
}

fn timed_out(doing: &str) -> Error {
    Error::IoError(std::io::Error::new(std::io::ErrorKind::TimedOut, format!("timed out {doing}")))
}

fn classify(endpoint: &str, error: Error) -> StoreError {
    // The numbers are gRPC's status codes, which etcd_client does not re-export.
    const INVALID_ARGUMENT: i32 = 3;
    const NOT_FOUND: i32 = 5;
    const PERMISSION_DENIED: i32 = 7;
    const UNAUTHENTICATED: i32 = 16;
    let said = |text: &str| format!("etcd at {endpoint}: {text}");
    match error {
        Error::GRpcStatus(status) => {
            let message = status.message();
            match i32::from(status.code()) {
                NOT_FOUND if message.contains("lease not found") => StoreError::LeaseNotFound,
                PERMISSION_DENIED | UNAUTHENTICATED => StoreError::Denied(said(message)),
                INVALID_ARGUMENT if message.contains("authentication") || message.contains("user") => {
                    StoreError::Denied(said(message))
                }
                INVALID_ARGUMENT => StoreError::Invalid(said(message)),
                _ => StoreError::Unavailable(said(&chain(&status))),
            }
        }
        Error::LeaseKeepAliveError(message) if message.contains("lease not found") => {
            StoreError::LeaseNotFound
        }
        Error::InvalidArgs(message) => StoreError::Invalid(said(&message)),
        Error::InvalidUri(error) => StoreError::Invalid(said(&error.to_string())),
        error => StoreError::Unavailable(said(&error.to_string())),
    }
}

/// An error and its causes on one line, without what a cause repeats: the cause of a gRPC status is
/// where a refused connection or a bad certificate is named.
fn chain(error: &dyn std::error::Error) -> String {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    match causes.pop() {
        Some(root) => root,
        None => error.to_string(),
    }
}

fn lease(id: i64) -> Option<LeaseId> {
    (id != 0).then_some(LeaseId(id))
}

fn entry(kv: KeyValue) -> Entry {
    let (revision, lease) = (Revision(kv.mod_revision()), lease(kv.lease()));
    let (key, value) = kv.into_key_value();
    // Rollcall writes only ASCII keys; what is not UTF-8 is not ours and parses as no key.
    let key =
        String::from_utf8(key).unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned());
    Entry { key, value, revision, lease }
}

fn compare(guard: &Guard) -> Compare {
    // etcd gives an absent key the revision 0.
    let revision = guard.revision.unwrap_or_default();
    Compare::mod_revision(guard.key.clone(), CompareOp::Equal, revision.0)
}

/// Splits writes into transactions: within etcd's limits, and no key twice in one, which etcd refuses.
fn transactions(ops: &[Op]) -> Vec<&[Op]> {
    let mut chunks = Vec::new();
    let mut start = 0;
    let mut bytes = 0;
    let mut keys = std::collections::HashSet::new();
    for (index, op) in ops.iter().enumerate() {
        let size = match op {
            Op::Put { key, value } => key.len() + value.len(),
            Op::Delete { key } => key.len(),
        };
        let full = index - start == OPS_PER_TRANSACTION || bytes + size > BYTES_PER_TRANSACTION;
        if index > start && (full || keys.contains(op.key())) {
            chunks.push(&ops[start..index]);
            (start, bytes) = (index, 0);
            keys.clear();
        }
        keys.insert(op.key());
        bytes += size;
    }
    if start < ops.len() {
        chunks.push(&ops[start..]);
    }
    chunks
}

fn transaction(ops: &[Op], lease: Option<LeaseId>, guard: Option<&Guard>) -> Txn {
    let put_options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
    let write = |op: &Op| match op {
        Op::Put { key, value } => TxnOp::put(key.clone(), value.clone(), put_options.clone()),
        Op::Delete { key } => TxnOp::delete(key.clone(), None),
    };
    Txn::new()
        .when(guard.map(compare).into_iter().collect::<Vec<_>>())
        .and_then(ops.iter().map(write).collect::<Vec<_>>())
}

#[async_trait]
impl Store for EtcdStore {
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let granted =
            self.call(|client| async move { client.lease_client().grant(seconds, None).await }).await?;
        Ok(LeaseId(granted.id()))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        // A stream for each: its first answer is the one that etcd_client checks for a lost lease.
        self.call(|client| async move { client.lease_client().keep_alive(lease.0).await.map(drop) }).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.call(|client| async move { client.lease_client().revoke(lease.0).await.map(drop) }).await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let answer = self.call(|client| async move { client.kv_client().get(key, None).await }).await?;
        Ok(answer.kvs().first().cloned().map(entry))
    }

    async fn commit(
        &self,
        ops: &[Op],
        lease: Option<LeaseId>,
        guard: Option<&Guard>,
    ) -> Result<Revision, StoreError> {
        let chunks = if ops.is_empty() { vec![ops] } else { transactions(ops) };
        let mut newest = Revision::default();
        for chunk in chunks {
            let answer = self
                .call(|client| async move { client.kv_client().txn(transaction(chunk, lease, guard)).await })
                .await?;
            if let Some(Guard { key, .. }) = guard.filter(|_| !answer.succeeded()) {
                return Err(StoreError::GuardFailed { key: key.clone() });
            }
            newest = Revision(answer.header().map_or(0, |header| header.revision()));
        }
        Ok(newest)
    }

    fn pages<'a>(&'a self, prefix: &'a str) -> Pages<'a> {
        // Revision 0 is the newest; the pages after the first stay at the first one's.
        let start = Some((prefix.as_bytes().to_vec(), Revision::default()));
        let end = is_folder(prefix).then(|| end_of(prefix));
        let next = move |position: Option<(Vec<u8>, Revision)>| {
            let end = end.clone();
            async move {
                let Some((from, revision)) = position else { return Ok(None) };
                let (page, next) = self.page(from, end, revision).await?;
                let revision = page.revision;
                Ok(Some((page, next.map(|from| (from, revision)))))
            }
        };
        stream::try_unfold(start, next).boxed()
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let (index, client) = self.client().await?;
        let options = WatchOptions::new().with_start_revision(after.0 + 1);
        let options = if is_folder(prefix) { options.with_prefix() } else { options };
        let open = async {
            let mut watch = client.watch_client().max_decoding_message_size(LARGEST_ANSWER);
            let mut stream = watch.watch(prefix, Some(options)).await?;
            let created = stream.message().await?;
            Ok::<_, Error>((stream, created))
        };
        let opened = match tokio::time::timeout(self.settings.command_timeout, open).await {
            Ok(opened) => opened,
            Err(_) => Err(timed_out("opening a watch")),
        };
        let (stream, created) = opened.map_err(|error| self.failed(index, error))?;
        let endpoint = self.settings.endpoints[index % self.settings.endpoints.len()].clone();
        let created = created.ok_or_else(|| closed(&endpoint))?;
        let now = Revision(created.header().map_or(0, |header| header.revision()));
        if now < after {
            return Err(StoreError::RolledBack { read: after, now });
        }
        let first = batch(&endpoint, &created)?;
        let follow = stream::unfold(Some((stream, endpoint)), follow);
        Ok(stream::iter(first.map(Ok)).chain(follow).boxed())
    }
}

/// The end of the range of keys that start with `prefix`, as etcd counts it: the prefix with its last
/// byte plus one. Prefixes are ASCII, so that the last byte can always grow.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

type Following = Option<(WatchStream, String)>;

async fn follow(following: Following) -> Option<(Result<Batch, StoreError>, Following)> {
    let (mut stream, endpoint) = following?;
    loop {
        let answer = match stream.message().await {
            Ok(Some(answer)) => batch(&endpoint, &answer),
            Ok(None) => Err(closed(&endpoint)),
            Err(error) => Err(classify(&endpoint, error)),
        };
        match answer {
            Ok(Some(batch)) => return Some((Ok(batch), Some((stream, endpoint)))),
            Ok(None) => {}
            Err(error) => return Some((Err(error), None)),
        }
    }
}

fn closed(endpoint: &str) -> StoreError {
    StoreError::Unavailable(format!("etcd at {endpoint}: it closed the watch"))
}

fn batch(endpoint: &str, answer: &WatchResponse) -> Result<Option<Batch>, StoreError> {
    if answer.compact_revision() > 0 {
        return Err(StoreError::Compacted { first: Revision(answer.compact_revision()) });
    }
    if answer.canceled() {
        let reason = answer.cancel_reason();
        return Err(if reason.contains("permission denied") {
            StoreError::Denied(format!("etcd at {endpoint}: {reason}"))
        } else {
            StoreError::Unavailable(format!("etcd at {endpoint}: it ended the watch: {reason}"))
        });
    }
    let change = |event: &etcd_client::Event| {
        let kv = event.kv()?;
        Some(match event.event_type() {
            EventType::Put => Change::Put(entry(kv.clone())),
            EventType::Delete => {
                let entry = entry(kv.clone());
                Change::Delete { key: entry.key, revision: entry.revision }
            }
        })
    };
    let changes: Vec<Change> = answer.events().iter().filter_map(change).collect();
    Ok(changes.last().map(Change::revision).map(|revision| Batch { changes, revision }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: usize, bytes: usize) -> Op {
        Op::Put { key: format!("/k/{key}"), value: vec![b'x'; bytes] }
    }

    #[test]
    fn writes_are_split_at_etcds_limits_and_at_a_repeated_key() {
        let lengths = |ops: &[Op]| transactions(ops).iter().map(|chunk| chunk.len()).collect::<Vec<_>>();
        let many: Vec<Op> = (0..300).map(|key| put(key, 10)).collect();
        assert_eq!(lengths(&many), [128, 128, 44]);
        let large: Vec<Op> = (0..3).map(|key| put(key, BYTES_PER_TRANSACTION - 100)).collect();
        assert_eq!(lengths(&large), [1, 1, 1]);
        assert_eq!(lengths(&[put(1, 2 * BYTES_PER_TRANSACTION)]), [1]);
        assert_eq!(lengths(&[put(1, 1), put(2, 1), put(1, 2)]), [2, 1]);
    }
}
