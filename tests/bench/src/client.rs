//! A client of etcd, as Rollcall has one.

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use rollcall_shared::store::{KeyRange, Op, Store, Watch, etcd::EtcdStore, settings::EtcdSettings};
use rollcall_tests::Etcd;
use tokio::runtime::{Builder, Runtime};

#[derive(Parser)]
struct EtcdCli {
    #[command(flatten)]
    etcd: EtcdSettings,
}

/// A store in etcd with a runtime of its own, on the thread that calls it.
pub struct Client {
    runtime: Runtime,
    store: EtcdStore,
}

impl Client {
    /// A client that connects when first used.
    pub fn new(etcd: &Etcd) -> Result<Self> {
        Self::of(&[etcd.endpoint()])
    }

    /// A client of these endpoints.
    pub fn of(endpoints: &[String]) -> Result<Self> {
        let EtcdCli { etcd } = EtcdCli::try_parse_from(["bench", "--etcd", &endpoints.join(",")])?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, store: EtcdStore::new(etcd)? })
    }

    /// Writes keys without a lease.
    pub fn commit(&self, ops: &[Op]) -> Result<()> {
        self.runtime.block_on(self.store.commit(ops, None, None))?;
        Ok(())
    }

    /// Whether a write is taken within this time.
    pub fn is_taken(&self, op: &Op, within: Duration) -> bool {
        let commit = self.store.commit(std::slice::from_ref(op), None, None);
        self.block_on(async { tokio::time::timeout(within, commit).await }).is_ok_and(|taken| taken.is_ok())
    }

    /// The keys of a range.
    pub fn keys(&self, range: &KeyRange) -> Result<Vec<String>> {
        let listing = self.block_on(self.store.list(range))?;
        Ok(listing.entries.into_iter().map(|entry| entry.key).collect())
    }

    /// Watches a range from now on.
    pub fn watch(&self, range: &KeyRange) -> Result<Watch> {
        self.block_on(async {
            let now = self.store.list(range).await?.position;
            Ok(self.store.watch(range, now).await?)
        })
    }

    /// Runs a future on the client's runtime.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }
}
