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

    /// An address that has gone without another in its place stays, and while something is missing so does every one:
    /// whoever cannot be reached is not registered elsewhere by that, and it may be back in a moment.
    fn on_found(&self, Found { advertised: found, missing }: &Found) {
        let before = *self.advertised.borrow();
        let now = if missing.is_empty() { found.or(before) } else { before.or(*found) };
        if now != before {
            tracing::info!(advertised = %now, "this host's addresses");
            self.advertised.send_replace(now);
        }
        let (none, missing) = (Advertised::default(), missing.join("; "));
        if now == none {
            self.part.waiting(format!("this host has no address yet: {missing}"));
        } else if *found == none {
            let lost = "this host has lost its address and stays registered at";
            self.part.waiting(format!("{lost} {now}: {missing}"));
        } else if missing.is_empty() {
            self.part.ready();
        } else {
            self.part.noted(missing);
        }
    }
}

#[cfg(test)]
mod tests {
    use rollcall_shared::process::readiness::Condition;

    use super::*;

    fn found(ips: &[&str], missing: &[&str]) -> Found {
        let of = |is_v6: bool| ips.iter().find(|ip| ip.contains(':') == is_v6);
        let advertised = Advertised {
            v4: of(false).map(|ip| ip.parse().expect("an address")),
            v6: of(true).map(|ip| ip.parse().expect("an address")),
        };
        Found { advertised, missing: missing.iter().map(|text| (*text).to_owned()).collect() }
    }

    #[test]
    fn what_goes_or_is_missing_moves_nothing_and_what_is_there_is_followed() {
        let readiness = Readiness::default();
        let (finder, addresses) = AddressFinder::new(Found::default, &readiness);
        for (ips, missing, expected) in [
            (vec!["10.0.0.5", "fd00::5"], vec![], "10.0.0.5,fd00::5"),
            // etcd's name is not found, and the default route leads elsewhere.
            (vec!["192.168.7.5"], vec!["the route to etcd"], "10.0.0.5,fd00::5"),
            // A family has no route for a moment.
            (vec!["10.0.0.5"], vec![], "10.0.0.5,fd00::5"),
            // One of two interfaces has gone, and the other has the same family.
            (vec!["10.1.0.5"], vec!["eth0"], "10.0.0.5,fd00::5"),
            (vec!["10.1.0.5"], vec![], "10.1.0.5,fd00::5"),
        ] {
            finder.on_found(&found(&ips, &missing));
            assert_eq!(addresses.borrow().to_string(), expected, "{ips:?}");
            let condition = readiness.conditions().get(PART).cloned();
            assert_eq!(condition == Some(Condition::Ready), missing.is_empty(), "{condition:?}");
        }
    }
}
