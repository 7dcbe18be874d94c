//! Tells a target that its file has changed, and goes on until it is acked or superseded.
//!
//! A notification that failed is tried again with growing delays; only a newer installation ends it. What
//! must outlive a restart stands in the ledger, not here.

use std::time::Duration;

use rollcall_shared::retry::Retry;
use tokio::sync::{mpsc, watch};

use crate::{condition::Condition, generation::Generation};

pub mod acks;
pub mod command;
pub mod process;
pub mod requests;
pub mod signal;

use command::CommandNotifier;
use process::ProcessNotifier;
use signal::SignalNotifier;

/// How one target is told.
#[derive(Debug)]
pub enum Notifier {
    /// Containers, through the store.
    Signal(SignalNotifier),
    /// A process of this host.
    Process(ProcessNotifier),
    /// A command.
    Command(CommandNotifier),
}

impl Notifier {
    /// Tries once, and ends when the target has been told.
    async fn attempt(
        &mut self,
        generation: Generation,
        attempt: u32,
        condition: &mut Condition,
    ) -> Result<(), String> {
        match self {
            Notifier::Signal(signal) => signal.attempt(generation, attempt, condition).await,
            Notifier::Process(process) => process.attempt(),
            Notifier::Command(command) => command.attempt().await,
        }
    }

    /// Whether an attempt may be broken off for a newer installation. A command is not: it would leave
    /// a reload half done.
    fn may_be_broken_off(&self) -> bool {
        matches!(self, Notifier::Signal(_))
    }
}

/// Brings the news of one target's installations.
#[derive(Debug)]
pub struct Courier {
    /// The target's name, for metrics.
    pub target: String,
    /// How it is told.
    pub notifier: Notifier,
    /// The newest installation that is to be told.
    pub orders: watch::Receiver<Option<Generation>>,
    /// Takes those that were.
    pub acks: mpsc::Sender<Generation>,
    /// The line in the health report.
    pub condition: Condition,
}

impl Courier {
    /// Runs until nobody orders any more.
    pub async fn run(mut self) {
        let mut done = None;
        loop {
            let order = self.orders.wait_for(|order| *order != done).await.map(|order| *order);
            let Ok(order) = order else { return };
            if let Some(generation) = order {
                let outcome = self.deliver(generation).await;
                let (target, outcome_name) = (self.target.clone(), outcome.as_str());
                metrics::counter!("rollcall_consumer_notifications_total", "target" => target, "outcome" => outcome_name)
                    .increment(1);
                if matches!(outcome, Outcome::Acked) {
                    self.condition.well();
                    if self.acks.send(generation).await.is_err() {
                        return;
                    }
                }
            }
            done = order;
        }
    }

    async fn deliver(&mut self, generation: Generation) -> Outcome {
        let mut retry = Retry::new(Duration::from_secs(1), Duration::from_secs(30));
        for attempt in 1.. {
            let mut orders = self.orders.clone();
            let newer = orders.wait_for(|order| *order != Some(generation));
            let may_be_broken_off = self.notifier.may_be_broken_off();
            let tried = tokio::select! {
                // A request that was put stands in the store until the newer one replaces it.
                _ = newer, if may_be_broken_off => return Outcome::Superseded,
                tried = self.notifier.attempt(generation, attempt, &mut self.condition) => tried,
            };
            let Err(reason) = tried else { return Outcome::Acked };
            let target = self.target.clone();
            metrics::counter!("rollcall_consumer_notification_failures_total", "target" => target)
                .increment(1);
            self.condition.ill(reason);
            tokio::select! {
                // Neither branch holds anything.
                _ = self.orders.wait_for(|order| *order != Some(generation)) => return Outcome::Superseded,
                () = tokio::time::sleep(retry.next_delay()) => {}
            }
        }
        unreachable!("attempts are not bounded")
    }
}

/// How a notification ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Acked,
    Superseded,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Outcome::Acked => "acked",
            Outcome::Superseded => "superseded",
        }
    }
}
