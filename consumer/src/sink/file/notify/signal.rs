//! Notifies containers, wherever they run: a thin shell around [`super::delivery`].

use std::collections::BTreeMap;

use rollcall_shared::{
    model::{name::TargetName, signal::Delivery as Rule},
    process::{readiness::Part, time::sleep_until},
};
use tokio::{
    sync::watch,
    time::{Duration, Instant},
};

use super::{
    Notification, Order,
    delivery::{Delivery, Progress, Reports, Requests},
};

/// The requests of all targets that are to be in the store.
pub type AllRequests = BTreeMap<TargetName, Requests>;

/// How long agents may take before the readiness report says that they are waited for.
const REPORT_DELAY: Duration = Duration::from_secs(3);

/// Has containers signalled.
#[derive(Debug)]
pub struct SignalNotifier {
    /// The target.
    pub target: TargetName,
    /// Which signal, and to which containers.
    pub rule: Rule,
    /// What the nodes say of the target.
    pub reports: watch::Receiver<Reports>,
    /// Where the requests of all targets are published.
    pub requests: watch::Sender<AllRequests>,
    /// What is to be delivered.
    pub orders: watch::Receiver<Option<Order>>,
    /// Where to tell who has taken it.
    pub notifications: watch::Sender<Option<Notification>>,
    /// Its condition.
    pub part: Part,
}

impl SignalNotifier {
    /// Runs until nobody orders any more.
    pub async fn run(mut self) {
        let mut delivery: Option<Delivery> = None;
        let mut ordered_at = Instant::now();
        let mut reported = None;
        loop {
            let order = self.orders.borrow_and_update().clone();
            if let Some(Order { generation, taken, was_complete: _ }) = order
                && delivery.as_ref().is_none_or(|delivery| delivery.generation() != generation)
            {
                delivery = Some(Delivery::new(self.rule.signal, generation, taken));
                (ordered_at, reported) = (Instant::now(), None);
            }
            let mut retry_at = None;
            if let Some(delivery) = &mut delivery {
                let progress = delivery.progress(&self.reports.borrow_and_update(), Instant::now());
                self.request(&progress.requests);
                let report = Notification {
                    generation: delivery.generation(),
                    is_complete: progress.is_complete,
                    receivers: delivery.taken().clone(),
                };
                retry_at = progress.retry_at;
                if reported.as_ref() != Some(&report) {
                    if self.notifications.send(Some(report.clone())).is_err() {
                        return;
                    }
                    reported = Some(report);
                }
                let patient_until = ordered_at + REPORT_DELAY;
                self.show(&progress, Instant::now() >= patient_until);
                if !progress.is_complete && Instant::now() < patient_until {
                    retry_at = Some(retry_at.map_or(patient_until, |at| at.min(patient_until)));
                }
            }
            tokio::select! {
                // Every branch is cancel safe: two watches and a timer.
                ordered = self.orders.changed() => if ordered.is_err() { return },
                reported = self.reports.changed() => if reported.is_err() { return },
                () = sleep_until(retry_at) => {}
            }
        }
    }

    /// Publishes the target's requests, if they are others than before.
    fn request(&self, requests: &Requests) {
        self.requests.send_if_modified(|all| {
            if all.get(&self.target).unwrap_or(&Requests::new()) == requests {
                return false;
            }
            all.insert(self.target.clone(), requests.clone());
            true
        });
    }

    fn show(&self, progress: &Progress, is_late: bool) {
        if let Some(first) = progress.failures.first() {
            let more = match progress.failures.len() - 1 {
                0 => String::new(),
                more => format!(", and {more} more"),
            };
            self.part.failed(format!("{}: {first}{more}", self.rule));
        } else if progress.is_complete {
            self.part.ready();
        } else if is_late && progress.receivers == 0 {
            // A name that is misspelled looks like this.
            self.part.failed(format!("waiting for a container to signal: {}", self.rule.to));
        } else if is_late {
            self.part.waiting(format!("waiting for an agent to signal {}", self.rule.to));
        }
    }
}
