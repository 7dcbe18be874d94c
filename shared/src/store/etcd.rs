//! The store in etcd (API v3), the only file that names `etcd_client`.
//!
//! One connection at a time: it stays with a member until that one fails, then goes to the next. Processes begin at
//! random members.

use std::{
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, Error, EventType, GetOptions, KeyValue, PutOptions,
    ResponseHeader, Txn, TxnOp, WatchOptions, WatchResponse, WatchStream,
};
use futures_util::{StreamExt, stream};

use super::{
    Batch, Change, Entry, Guard, KeyRange, LeaseId, Listing, Op, Pages, Position, Revision, Store,
    StoreError, StoreId, Watch, settings::EtcdSettings,
};
use crate::process::setting::SettingError;

/// etcd's default limit of writes in a transaction (`--max-txn-ops`).
const MAX_TRANSACTION_OPS: usize = 128;
/// Below etcd's default limit of a request's size, 1.5 MiB (`--max-request-bytes`).
const MAX_TRANSACTION_BYTES: usize = 1 << 20;
/// Keys in one page of a listing, some 1 MiB of instances: etcd takes no longer for all pages than for one, and each is
/// read while it makes the next.
const MAX_PAGE_KEYS: i64 = 2048;
/// The largest answer taken, in bytes: a page of the largest values, or a long catch-up of a watch.
const MAX_ANSWER_BYTES: usize = 256 << 20;
/// How often a member is pinged, so that one that went away without a word is noticed. etcd allows a ping every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long it may take to answer the ping.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// A certificate or key that cannot be read, as [`StoreError::Setting`].
    pub fn new(settings: EtcdSettings) -> Result<Self, StoreError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(settings.dial_timeout)
            .with_timeout(settings.command_timeout)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            // A member cut off from its peers ends its watches instead of keeping silent.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some((user, password)) = settings.credentials()? {
            options = options.with_user(user, password);
        }
        if let Some(tls) = settings.tls()? {
            options = options.with_tls(tls);
        }
        let first = fastrand::usize(..settings.endpoints.len().max(1));
        Ok(Self { settings, options, connection: Mutex::new((first, None)) })
    }

    /// The connection in use, or a new one to the endpoint whose turn it is.
    async fn client(&self) -> Result<(usize, Client), StoreError> {
        let (index, open) = self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(client) = open {
            return Ok((index, client));
        }
        let endpoint = self.endpoint(index);
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

    fn endpoint(&self, index: usize) -> &str {
        &self.settings.endpoints[index % self.settings.endpoints.len()]
    }

    /// Classifies an error, and leaves the endpoint if it is the endpoint's fault.
    fn failed(&self, index: usize, error: Error) -> StoreError {
        let error = classify(self.endpoint(index), error);
        if matches!(error, StoreError::Unavailable { .. }) {
            self.leave(index);
        }
        error
    }

    /// Goes on to the next endpoint, unless another task has.
    fn leave(&self, index: usize) {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.0 == index {
            *connection = (index.wrapping_add(1), None);
        }
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
                Err(error @ StoreError::Unavailable { .. }) => {
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
                Err(error @ StoreError::Unavailable { .. }) => last = Some(error),
                answer => return answer,
            }
        }
        Err(last.unwrap_or_else(|| SettingError::missing("--etcd", "one URL or more").into()))
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
        let mut answer = self
            .call(|client| {
                let (from, options) = (from.clone(), options.clone());
                async move {
                    let mut kv = client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES);
                    kv.get(from, Some(options)).await
                }
            })
            .await?;
        let now = position(answer.header());
        let position = if revision == Revision(0) { now } else { Position { revision, ..now } };
        // The next key in order is the last one with a zero byte behind it.
        let next = answer.kvs().last().filter(|_| answer.more()).map(|last| [last.key(), &[0]].concat());
        let entries = answer.take_kvs().into_iter().map(entry).collect();
        Ok((Listing { entries, position }, next))
    }

    /// Where the store is, read from the majority: no member lags behind that. The key is one that may be read.
    async fn position(&self, key: &str) -> Result<Position, StoreError> {
        let options = GetOptions::new().with_count_only();
        let read = |client: Client| {
            let options = options.clone();
            async move { client.kv_client().get(key, Some(options)).await }
        };
        Ok(position(self.call(read).await?.header()))
    }
}

/// What the header of an answer says of the member's own state.
fn position(header: Option<&ResponseHeader>) -> Position {
    let (store, revision) = header.map_or((0, 0), |header| (header.cluster_id(), header.revision()));
    Position { store: StoreId(store), revision: Revision(revision) }
}

fn timed_out(doing: &str) -> Error {
    Error::IoError(io::Error::new(io::ErrorKind::TimedOut, format!("timed out {doing}")))
}

fn place(endpoint: &str) -> String {
    format!("etcd at {endpoint}")
}

fn unavailable(endpoint: &str, reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
    StoreError::Unavailable { place: place(endpoint), source: reason.into() }
}

fn classify(endpoint: &str, error: Error) -> StoreError {
    // The numbers are gRPC's status codes, which etcd_client does not re-export.
    const INVALID_ARGUMENT: i32 = 3;
    const NOT_FOUND: i32 = 5;
    const PERMISSION_DENIED: i32 = 7;
    const UNAUTHENTICATED: i32 = 16;
    let place = place(endpoint);
    match error {
        Error::GRpcStatus(status) => {
            let message = status.message().to_owned();
            match i32::from(status.code()) {
                NOT_FOUND if message.contains("lease not found") => StoreError::LeaseNotFound,
                PERMISSION_DENIED | UNAUTHENTICATED => StoreError::Denied { place, message },
                INVALID_ARGUMENT if message.contains("authentication") || message.contains("user") => {
                    StoreError::Denied { place, message }
                }
                INVALID_ARGUMENT => StoreError::Refused { place, message },
                _ => StoreError::Unavailable { place, source: root(&status).into() },
            }
        }
        Error::LeaseKeepAliveError(message) if message.contains("lease not found") => {
            StoreError::LeaseNotFound
        }
        Error::InvalidArgs(message) => StoreError::Refused { place, message },
        Error::InvalidUri(error) => StoreError::Refused { place, message: error.to_string() },
        error => StoreError::Unavailable { place, source: error.into() },
    }
}

/// The last cause of an error: of a gRPC status it is the one that names a refused connection or a bad certificate.
fn root(error: &dyn std::error::Error) -> String {
    let mut root = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        root = cause.to_string();
        next = cause.source();
    }
    root
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
        let full = index - start == MAX_TRANSACTION_OPS || bytes + size > MAX_TRANSACTION_BYTES;
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
    ) -> Result<Vec<Revision>, StoreError> {
        let mut revisions = Vec::with_capacity(ops.len());
        for chunk in transactions(ops) {
            let answer = self
                .call(|client| async move { client.kv_client().txn(transaction(chunk, lease, guard)).await })
                .await?;
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
        let (index, client) = self.client().await?;
        let (from, to) = range.bounds();
        let options = WatchOptions::new().with_start_revision(after.revision.0 + 1);
        let options = match to {
            Some(to) => options.with_range(to),
            None => options,
        };
        let open = async {
            let mut watch = client.watch_client().max_decoding_message_size(MAX_ANSWER_BYTES);
            let mut stream = watch.watch(from, Some(options)).await?;
            let created = stream.message().await?;
            Ok::<_, Error>((stream, created))
        };
        let opened = match tokio::time::timeout(self.settings.command_timeout, open).await {
            Ok(opened) => opened,
            Err(_) => Err(timed_out("opening a watch")),
        };
        let (stream, created) = opened.map_err(|error| self.failed(index, error))?;
        let endpoint = self.endpoint(index).to_owned();
        let created = created.ok_or_else(|| closed(&endpoint))?;
        let now = position(created.header());
        if now.store != after.store {
            return Err(StoreError::WentBack { read: after, now });
        }
        if now.revision < after.revision {
            // Either the store went back, or this member lags behind the one that was read before.
            let now = self.position(from).await?;
            if now.store != after.store || now.revision < after.revision {
                return Err(StoreError::WentBack { read: after, now });
            }
            self.leave(index);
            return Err(unavailable(&endpoint, "it lags behind the other members"));
        }
        let first = batch(&endpoint, &created)?;
        let follow = stream::unfold(Some((stream, endpoint)), follow);
        Ok(stream::iter(first.map(Ok)).chain(follow).boxed())
    }
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
    unavailable(endpoint, "it closed the watch")
}

fn batch(endpoint: &str, answer: &WatchResponse) -> Result<Option<Batch>, StoreError> {
    if answer.compact_revision() > 0 {
        return Err(StoreError::Compacted { first: Revision(answer.compact_revision()) });
    }
    if answer.canceled() {
        let reason = answer.cancel_reason();
        return Err(if reason.contains("permission denied") {
            StoreError::Denied { place: place(endpoint), message: reason.to_owned() }
        } else {
            unavailable(endpoint, format!("it ended the watch: {reason}"))
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
        let large: Vec<Op> = (0..3).map(|key| put(key, MAX_TRANSACTION_BYTES - 100)).collect();
        assert_eq!(lengths(&large), [1, 1, 1]);
        assert_eq!(lengths(&[put(1, 2 * MAX_TRANSACTION_BYTES)]), [1]);
        assert_eq!(lengths(&[put(1, 1), put(2, 1), put(1, 2)]), [2, 1]);
    }
}
