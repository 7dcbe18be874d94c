//! When registrations reach etcd: a watch of all instances, on a thread of its own.

use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use futures_util::StreamExt;
use rollcall_shared::store::{Change, KeyRange};
use rollcall_tests::Etcd;

use crate::client::Client;
use crate::clock::now;

/// A change of an instance's key.
#[derive(Debug)]
pub struct Registration {
    /// When the watch showed it, since 1970.
    pub at: Duration,
    /// The short ID of the instance's container.
    pub container: String,
    /// Whether the key was put, and not deleted.
    pub is_put: bool,
}

/// A running watch; it ends with etcd.
pub struct RegistrationWatch(Receiver<Registration>);

impl RegistrationWatch {
    /// Watches from now on.
    pub fn start(etcd: &Etcd) -> Result<Self> {
        let client = Client::new(etcd)?;
        let mut watch = client.watch(&KeyRange::folder("/rollcall/instances/".to_owned()))?;
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            while let Some(Ok(batch)) = client.block_on(watch.next()) {
                let at = now();
                for registration in batch.changes.iter().filter_map(|change| registration(change, at)) {
                    if sender.send(registration).is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Self(receiver))
    }

    /// What was shown since the last call.
    pub fn take(&self) -> Vec<Registration> {
        self.0.try_iter().collect()
    }
}

fn registration(change: &Change, at: Duration) -> Option<Registration> {
    let container = change.key().rsplit('/').nth(1)?.to_owned();
    Some(Registration { at, container, is_put: matches!(change, Change::Put(_)) })
}
