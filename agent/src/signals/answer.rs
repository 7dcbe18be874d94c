//! What became of one receiver of a request, and how that is acked, counted and logged.

use std::sync::Arc;

use jiff::Timestamp;
use rollcall_shared::model::{
    name::TargetId,
    signal::{Ack, RequestedReceiver, SignalRequest},
};

use crate::inventory::container::Container;

/// What became of one receiver of a request.
#[derive(Debug)]
pub struct Answer {
    /// Whose request it is.
    pub target: TargetId,
    /// The request.
    pub request: Arc<SignalRequest>,
    /// The receiver.
    pub requested: RequestedReceiver,
    /// Its container.
    pub container: Arc<Container>,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a signal.
#[derive(Debug)]
pub enum Outcome {
    /// It was sent.
    Delivered,
    /// It is not allowed, and what would allow it.
    Refused(String),
    /// It could not be sent, and why.
    Failed(String),
}

/// Describes the metrics of answers.
pub fn describe_metrics() {
    metrics::describe_counter!(
        "rollcall_agent_signals_total",
        "Signals that were requested of containers of this host, by outcome"
    );
}

impl Answer {
    /// The ack of it.
    pub fn ack(&self, at: Timestamp) -> Ack {
        let RequestedReceiver { incarnation, attempt } = self.requested;
        let failure = self.outcome.failure().map(str::to_owned);
        Ack { incarnation, generation: self.request.generation, attempt, failure, at }
    }

    /// Counts and logs it.
    pub fn log(&self) {
        let TargetId { consumer, target } = &self.target;
        let (signal, container) = (self.request.signal, &self.container.name);
        metrics::counter!("rollcall_agent_signals_total", "outcome" => self.outcome.label()).increment(1);
        match self.outcome.failure() {
            None => tracing::info!(%consumer, %target, %signal, %container, "signalled"),
            Some(reason) => {
                tracing::warn!(%consumer, %target, %signal, %container, reason, "could not signal");
            }
        }
    }
}

impl Outcome {
    fn label(&self) -> &'static str {
        match self {
            Outcome::Delivered => "delivered",
            Outcome::Refused(_) => "refused",
            Outcome::Failed(_) => "failed",
        }
    }

    /// Why the signal was not delivered, if so.
    fn failure(&self) -> Option<&str> {
        match self {
            Outcome::Delivered => None,
            Outcome::Refused(reason) | Outcome::Failed(reason) => Some(reason),
        }
    }
}
