//! The consumer's claim on its name, and under it the requests of its targets.
//!
//! Rendering and installing never wait for it. A name that another consumer holds is tried again; a name that was taken
//! over ends the process.

use std::{sync::Arc, time::Duration};

use rollcall_shared::{
    keys::{Key, Keys},
    model::{consumer::ConsumerRecord, name::ConsumerName},
    process::{backoff::Backoff, error::one_line, readiness::Readiness},
    session::{Keeper, KeeperError, LeaseSettings, OnExit},
    store::Store,
};
use tokio_util::sync::CancellationToken;

use crate::sink::file::notify::requests::RequestWriter;

/// The name under which the readiness report has the claim, as the keeper calls it.
const PART: &str = "claim";

/// Keeps a consumer's claim.
#[derive(Debug)]
pub struct ConsumerClaim {
    /// Where the claim is.
    pub store: Arc<dyn Store>,
    /// The store's keys.
    pub keys: Keys,
    /// The name.
    pub consumer: ConsumerName,
    /// What the consumer says of itself.
    pub record: ConsumerRecord,
    /// Its lease.
    pub lease: LeaseSettings,
    /// Where its condition is reported.
    pub readiness: Readiness,
    /// Writes under the claim.
    pub requests: RequestWriter,
}

impl ConsumerClaim {
    /// Runs until it is asked to stop.
    ///
    /// # Errors
    /// Another process has taken the name over.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), KeeperError> {
        let mut backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(20));
        loop {
            match self.keep(&stop).await {
                Ok(()) => return Ok(()),
                Err(error @ KeeperError::TakenOver { .. }) => return Err(error),
                Err(error) => {
                    let part = self.readiness.part(PART);
                    part.failed(one_line(&error));
                    tokio::select! {
                        // Neither branch has taken anything when it is dropped.
                        () = tokio::time::sleep(backoff.next_delay()) => {}
                        () = stop.cancelled() => return Ok(()),
                    }
                }
            }
        }
    }

    async fn keep(&mut self, stop: &CancellationToken) -> Result<(), KeeperError> {
        let name = (self.consumer.to_string(), self.keys.format(&Key::Consumer(self.consumer.clone())));
        let (store, record) = (self.store.clone(), self.record.clone());
        let (keeper, handle) = Keeper::new(store, name, record, self.lease, OnExit::Revoke, &self.readiness);
        tokio::select! {
            // The writer has nothing to finish: the keeper ends the session, and its keys with it.
            kept = keeper.run(stop.clone()) => kept,
            () = self.requests.run(handle) => Ok(()),
        }
    }
}
