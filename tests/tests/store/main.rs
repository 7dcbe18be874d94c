//! The store on real etcd: its contract, and what only etcd can do: members that fail, restores, certificates, users.

mod contract;
mod elections;
mod restores;
mod secrets;
mod silence;

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use futures_util::StreamExt;
use rollcall_shared::store::{
    Batch, KeyRange, LastChange, Mark, Op, Position, Store, StoreError, Watch, etcd::EtcdStore,
    settings::EtcdSettings,
};

/// What is expected to happen at all happens by then.
const TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    etcd: EtcdSettings,
}

/// A store with the settings that the command line would give it.
fn store(endpoints: &[String], flags: &[&str]) -> Result<EtcdStore> {
    let etcd = format!("--etcd={}", endpoints.join(","));
    let Cli { etcd } = Cli::try_parse_from(["test", &etcd].iter().chain(flags))?;
    Ok(EtcdStore::new(etcd)?)
}

fn range() -> KeyRange {
    KeyRange::folder("/a/".to_owned())
}

/// Commits one write, and gives where the store is then.
async fn commit(store: &EtcdStore, key: &str) -> Result<Position> {
    let revisions = store.commit(&put(key), None, None).await?;
    let position = store.list(&range()).await?.position;
    // One that was answered late was sent twice.
    assert!(position.revision >= revisions[0]);
    Ok(position)
}

fn put(key: &str) -> [Op; 1] {
    [Op::Put { key: key.to_owned(), value: b"value".to_vec() }]
}

/// The mark of a reader that has seen this put last.
fn mark(key: &str, position: Position) -> Mark {
    let last = LastChange { key: key.to_owned(), revision: position.revision, is_put: true };
    Mark { position, last: Some(last) }
}

/// Tries until the store is available, and for the time-out at most.
async fn available<T>(mut call: impl AsyncFnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let begun = Instant::now();
    loop {
        match call().await {
            Err(StoreError::Unavailable { .. }) if begun.elapsed() < TIMEOUT => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            done => return done,
        }
    }
}

/// The next changes of a watch.
async fn next(watch: &mut Watch) -> Result<Batch> {
    let next = tokio::time::timeout(TIMEOUT, watch.next()).await?;
    Ok(next.expect("it ends with an error")?)
}
