//! Finds the host's own addresses again and again: an agent may start before the network is there, and addresses change.

use std::{fmt, sync::Arc, time::Duration};

use rollcall_shared::process::readiness::{Part, Readiness};
use tokio::{sync::watch, task::spawn_blocking};

use super::advertise::{Advertised, Found};
use crate::inventory::watcher::InventoryNotifier;

/// The name under which the readiness report has the host's addresses.
pub const PART: &str = "address";

/// The host's addresses as they change; none of either family until some are found.
pub type AddressReceiver = watch::Receiver<Advertised>;

/// How often an address that is missing is looked for.
const MISSING_INTERVAL: Duration = Duration::from_secs(1);

/// Finds the host's addresses.
pub struct AddressFinder {
    search: Arc<dyn Fn() -> Found + Send + Sync>,
    part: Part,
    advertised: watch::Sender<Advertised>,
}

impl fmt::Debug for AddressFinder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressFinder").field("advertised", &self.advertised).finish_non_exhaustive()
    }
}

impl AddressFinder {
    /// A finder that searches like this, and where it publishes what it finds.
    pub fn new(
        search: impl Fn() -> Found + Send + Sync + 'static,
        readiness: &Readiness,
    ) -> (Self, AddressReceiver) {
        let (advertised, receiver) = watch::channel(Advertised::default());
        (Self { search: Arc::new(search), part: readiness.part(PART), advertised }, receiver)
    }

    /// Runs until it is dropped. `is_complete` is what the first [`AddressFinder::look`] gave.
    pub async fn run(self, mut is_complete: bool, refresh: Duration, inventory: InventoryNotifier) {
        loop {
            let pause = if is_complete { refresh } else { MISSING_INTERVAL.min(refresh) };
            tokio::time::sleep(pause).await;
            let before = *self.advertised.borrow();
            is_complete = self.look().await;
            if before != *self.advertised.borrow() {
                inventory.notify();
            }
        }
    }

    /// Looks once; tells whether there is all that was looked for. Looking up etcd's name may block.
    pub async fn look(&self) -> bool {
        let search = self.search.clone();
        let found = spawn_blocking(move || search()).await.expect("searching does not panic");
        self.on_found(&found);
        found.missing.is_empty()
    }

    /// An address that has gone without another in its place stays: whoever cannot be reached is not registered
    /// elsewhere by that, and it may be back in a moment.
    fn on_found(&self, Found { advertised, missing }: &Found) {
        let missing = missing.join("; ");
        if *advertised == Advertised::default() {
            return self.part.waiting(match *self.advertised.borrow() {
                before if before == Advertised::default() => {
                    format!("this host has no address yet: {missing}")
                }
                before => {
                    format!("this host has lost its address and stays registered at {before}: {missing}")
                }
            });
        }
        let is_modified = self.advertised.send_if_modified(|before| {
            let is_modified = before != advertised;
            *before = *advertised;
            is_modified
        });
        if is_modified {
            tracing::info!(%advertised, "this host's addresses");
        }
        if missing.is_empty() { self.part.ready() } else { self.part.noted(missing) }
    }
}
