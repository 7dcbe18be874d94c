//! From and to etcd's own values.

use etcd_client::{
    Compare, CompareOp, EventType, KeyValue, PutOptions, ResponseHeader, Txn, TxnOp, WatchResponse,
};

use crate::store::{Batch, Change, Entry, Guard, LeaseId, Op, Position, Revision, StoreId};

/// etcd's default limit of writes in a transaction (`--max-txn-ops`).
const MAX_TRANSACTION_OPS: usize = 128;
/// Below etcd's default limit of a request's size, 1.5 MiB (`--max-request-bytes`).
const MAX_TRANSACTION_BYTES: usize = 1 << 20;

/// What the header of an answer says of the member's own state.
pub(super) fn position(header: Option<&ResponseHeader>) -> Position {
    let (store, revision) = header.map_or((0, 0), |header| (header.cluster_id(), header.revision()));
    Position { store: StoreId(store), revision: Revision(revision) }
}

pub(super) fn entry(kv: KeyValue) -> Entry {
    let (revision, lease) = (Revision(kv.mod_revision()), lease(kv.lease()));
    let (key, value) = kv.into_key_value();
    // Rollcall writes only ASCII keys; what is not UTF-8 is not ours and parses as no key.
    let key =
        String::from_utf8(key).unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned());
    Entry { key, value, revision, lease }
}

fn lease(id: i64) -> Option<LeaseId> {
    (id != 0).then_some(LeaseId(id))
}

/// The changes of a watch's answer, if it has some.
pub(super) fn batch(answer: &WatchResponse) -> Option<Batch> {
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
    changes.last().map(Change::revision).map(|revision| Batch { changes, revision })
}

pub(super) fn transaction(ops: &[Op], lease: Option<LeaseId>, guard: Option<&Guard>) -> Txn {
    let put_options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
    let write = |op: &Op| match op {
        Op::Put { key, value } => TxnOp::put(key.clone(), value.clone(), put_options.clone()),
        Op::Delete { key } => TxnOp::delete(key.clone(), None),
    };
    Txn::new()
        .when(guard.map(compare).into_iter().collect::<Vec<_>>())
        .and_then(ops.iter().map(write).collect::<Vec<_>>())
}

fn compare(guard: &Guard) -> Compare {
    // etcd gives an absent key the revision 0.
    let revision = guard.revision.unwrap_or_default();
    Compare::mod_revision(guard.key.clone(), CompareOp::Equal, revision.0)
}

/// Splits writes into transactions: within etcd's limits, and no key twice in one, which etcd refuses. Neighbours of one
/// folder stay together where they fit: a reader may need all of them at once.
pub(super) fn transactions(ops: &[Op]) -> Vec<&[Op]> {
    let mut chunks = Vec::new();
    let mut start = 0;
    let mut bytes = 0;
    let mut keys = std::collections::HashSet::new();
    for (index, op) in ops.iter().enumerate() {
        let size = size_of(op);
        let full = index - start == MAX_TRANSACTION_OPS || bytes + size > MAX_TRANSACTION_BYTES;
        let is_repeated = keys.contains(op.key());
        if index > start && (full || is_repeated) {
            let end = if is_repeated { index } else { folder_start(&ops[..=index], start) };
            chunks.push(&ops[start..end]);
            start = end;
            bytes = ops[start..index].iter().map(size_of).sum();
            keys = ops[start..index].iter().map(Op::key).collect();
        }
        keys.insert(op.key());
        bytes += size;
    }
    if start < ops.len() {
        chunks.push(&ops[start..]);
    }
    chunks
}

fn size_of(op: &Op) -> usize {
    match op {
        Op::Put { key, value } => key.len() + value.len(),
        Op::Delete { key } => key.len(),
    }
}

/// Where the run of neighbours of one folder begins that the last write ends; the last one itself where the run is no
/// shorter than the transaction from `start`, or does not fit into one.
fn folder_start(ops: &[Op], start: usize) -> usize {
    fn folder(op: &Op) -> Option<&str> {
        op.key().rsplit_once('/').map(|(folder, _)| folder)
    }
    let last = ops.len() - 1;
    let run = ops[start..].iter().rev().take_while(|op| folder(op) == folder(&ops[last])).count();
    let begin = ops.len() - run;
    let fits = ops[begin..].iter().map(size_of).sum::<usize>() <= MAX_TRANSACTION_BYTES;
    if begin > start && fits { begin } else { last }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: usize, bytes: usize) -> Op {
        Op::Put { key: format!("/k/{key}"), value: vec![b'x'; bytes] }
    }

    fn pair(number: usize, bytes: usize) -> [Op; 2] {
        let key = |name: &str| format!("/containers/web/{number}/{name}");
        ["host", "port"].map(|name| Op::Put { key: key(name), value: vec![b'x'; bytes] })
    }

    #[test]
    fn a_pair_of_one_folder_is_not_split() {
        let lengths = |ops: &[Op]| transactions(ops).iter().map(|chunk| chunk.len()).collect::<Vec<_>>();
        let odd: Vec<Op> =
            [put(0, 10)].into_iter().chain((0..100).flat_map(|number| pair(number, 10))).collect();
        assert_eq!(lengths(&odd), [127, 74]);
        let large: Vec<Op> = (0..3).flat_map(|number| pair(number, MAX_TRANSACTION_BYTES / 3 - 50)).collect();
        assert_eq!(lengths(&large), [2, 2, 2]);
        let again: Vec<Op> = [put(0, 1)].into_iter().chain(pair(1, 1)).chain(pair(1, 1)).collect();
        assert_eq!(lengths(&again), [3, 2], "no key twice");
        let huge: Vec<Op> = [put(0, 1)].into_iter().chain(pair(1, MAX_TRANSACTION_BYTES - 100)).collect();
        assert_eq!(lengths(&huge), [2, 1], "what fits into no transaction is split");
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
