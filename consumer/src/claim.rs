//! The consumer's claim on its name, and under it the requests of its targets.
//!
//! Rendering and installing never wait for it. A name that another consumer holds is tried again as soon as its record
//! says that it may be free, and seldom otherwise: each try against a living twin costs two writes. A name that was taken
//! over ends the process.

use std::{sync::Arc, time::Duration};

use rollcall_shared::{
    codec,
    keys::{Key, Keys},
    model::{
        claim::{Claim, Presence},
        consumer::ConsumerRecord,
        name::ConsumerName,
    },
    process::{backoff::Backoff, error::one_line, readiness::Readiness},
    reflector::{Cache, Decode, Reflector},
    session::{Keeper, KeeperError, LeaseSettings, OnExit},
    store::{KeyRange, Store},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::sink::file::notify::requests::RequestWriter;

/// The name under which the readiness report has the claim, as the keeper calls it.
pub const PART: &str = "claim";
/// How long a name that was refused is left alone, unless its record says that it may be free.
const FIRST_RETRY_DELAY: Duration = Duration::from_secs(15);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(60);

/// Keeps a consumer's claim.
#[derive(Debug)]
pub struct ConsumerClaim {
    /// Where the claim is.
    pub store: Arc<dyn Store>,
    /// The store's keys.
    pub keys: Keys,
    /// The name.
    pub consumer: ConsumerName,
    /// What the consumer says of itself, which changes with its targets.
    pub record: watch::Receiver<ConsumerRecord>,
    /// Its lease.
    pub lease: LeaseSettings,
    /// Where its condition is reported.
    pub readiness: Readiness,
    /// Writes under the claim.
    pub requests: RequestWriter,
}

/// Reads the record of the consumer's own name.
#[derive(Debug)]
struct DecodeRecord;

impl Decode for DecodeRecord {
    type Key = ();
    type Value = ConsumerRecord;

    fn key(&self, _: &str) -> Result<(), String> {
        Ok(())
    }

    fn value(&self, (): &(), value: Vec<u8>) -> Result<ConsumerRecord, String> {
        codec::decode(&value).map_err(|error| one_line(&error))
    }
}

impl ConsumerClaim {
    /// Runs until it is asked to stop.
    ///
    /// # Errors
    /// Another process has taken the name over.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), KeeperError> {
        let mut backoff = Backoff::new(FIRST_RETRY_DELAY, MAX_RETRY_DELAY);
        loop {
            match self.keep(&stop).await {
                Ok(()) => return Ok(()),
                Err(error @ KeeperError::TakenOver { .. }) => return Err(error),
                Err(error) => {
                    let part = self.readiness.part(PART);
                    part.failed(one_line(&error));
                    tokio::select! {
                        // No branch has taken anything when it is dropped.
                        () = self.freed(&error) => {}
                        () = tokio::time::sleep(backoff.next_delay()) => {}
                        () = stop.cancelled() => return Ok(()),
                    }
                }
            }
        }
    }

    async fn keep(&mut self, stop: &CancellationToken) -> Result<(), KeeperError> {
        let name = (self.consumer.to_string(), self.keys.format(&Key::Consumer(self.consumer.clone())));
        let (store, record) = (self.store.clone(), self.record.borrow_and_update().clone());
        let (keeper, handle) = Keeper::new(store, name, record, self.lease, OnExit::Revoke, &self.readiness);
        let (records, record) = (keeper.records(), &mut self.record);
        let told = async {
            while record.changed().await.is_ok() {
                records.send_replace(record.borrow_and_update().clone());
            }
            // Whoever changes the record has ended, as the process does.
            std::future::pending().await
        };
        tokio::select! {
            // The others have nothing to finish: the keeper ends the session, and its keys with it.
            kept = keeper.run(stop.clone()) => kept,
            () = self.requests.run(handle) => Ok(()),
            () = told => Ok(()),
        }
    }

    /// Waits until the name that was refused may be free.
    async fn freed(&self, refused: &KeeperError) {
        let (KeeperError::Refused { holder, .. } | KeeperError::Twin { holder, .. }) = refused else {
            return std::future::pending().await;
        };
        let key = self.keys.format(&Key::Consumer(self.consumer.clone()));
        let (range, part) = (KeyRange::key(key), self.readiness.part("watch of the claim"));
        let (reflector, mut updates) = Reflector::new(self.store.clone(), range, DecodeRecord, part);
        let watched = async {
            let mut records = Cache::new("claim");
            while let Some(update) = updates.recv().await {
                records.apply(update);
                if may_be_free(records.get(&()).map(|record| &record.claim), holder) {
                    return;
                }
            }
        };
        tokio::select! {
            // Both are dropped together.
            () = reflector.run() => {}
            () = watched => {}
        }
    }
}

/// Whether a name may be free that this process held when we were refused. A challenge, and the answer to one, change
/// nothing: two who are refused would else wake each other for ever.
fn may_be_free(found: Option<&Claim>, refused_by: &Claim) -> bool {
    found.is_none_or(|claim| claim.holder != refused_by.holder || claim.presence != Presence::Present)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_be_free_once_its_holder_goes_and_not_because_it_was_asked_whether_it_lives() {
        let holder = Claim::new("owner".to_owned(), 60);
        let asked = Claim { challenger: Some("someone".to_owned()), ..holder.clone() };
        let leaving = Claim { presence: Presence::Leaving, ..holder.clone() };
        let left = Claim { presence: Presence::Left, ..holder.clone() };
        let other = Claim::new("owner".to_owned(), 60);
        for (found, expected) in [
            (None, true),
            (Some(&holder), false),
            (Some(&asked), false),
            (Some(&leaving), true),
            (Some(&left), true),
            (Some(&other), true),
        ] {
            assert_eq!(may_be_free(found, &holder), expected, "{found:?}");
        }
    }
}
