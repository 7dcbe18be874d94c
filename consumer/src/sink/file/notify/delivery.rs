//! Which receivers still have to be signalled for a change, and which have failed. Pure.
//!
//! The nodes say who the receivers are and what became of the requests; this says what to request next. A receiver that
//! refuses or fails is reported and tried again alone: it holds nobody else up. One that appears later is signalled as
//! well, whatever any clock says, as nobody knows whether it has read the new content.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rollcall_shared::{
    codec::V1,
    model::{
        check::Verdicts,
        name::{ContainerName, NodeName},
        signal::{Ack, Acks, Incarnation, Receiver, Receivers, RequestedReceiver, Signal, SignalRequest},
    },
    process::backoff::Backoff,
};
use tokio::time::Instant;

use crate::target::generation::Generation;

/// What the nodes say of one target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reports {
    /// The target's receivers on each node.
    pub receivers: BTreeMap<NodeName, Receivers>,
    /// The answers of each node.
    pub acks: BTreeMap<NodeName, Acks>,
    /// The verdicts of each node.
    pub verdicts: BTreeMap<NodeName, Verdicts>,
}

/// The requests that are to be in the store, by the node that they are addressed to.
pub type Requests = BTreeMap<NodeName, SignalRequest>;

/// How a delivery stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What is to be requested.
    pub requests: Requests,
    /// Whether every receiver has taken the change, and there is one.
    pub is_complete: bool,
    /// What keeps receivers from taking it, on one line each.
    pub failures: Vec<String>,
    /// How many receivers there are.
    pub receivers: usize,
    /// When to look again, if nothing happens before.
    pub retry_at: Option<Instant>,
}

/// The delivery of one change to every receiver.
#[derive(Debug)]
pub struct Delivery {
    signal: Signal,
    generation: Generation,
    /// The receivers that have taken the change.
    taken: BTreeSet<Incarnation>,
    /// The receivers whose last attempt failed.
    failed: BTreeMap<Incarnation, Failure>,
}

#[derive(Debug)]
struct Failure {
    attempt: u32,
    reason: String,
    retry_at: Instant,
    backoff: Backoff,
}

/// The first wait before a failed receiver is tried again, and the longest.
const RETRY_DELAYS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

impl Delivery {
    /// The delivery of a change that some receivers may have taken before.
    pub fn new(signal: Signal, generation: Generation, taken: BTreeSet<Incarnation>) -> Self {
        Self { signal, generation, taken, failed: BTreeMap::new() }
    }

    /// The change.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The receivers that have taken it.
    pub fn taken(&self) -> &BTreeSet<Incarnation> {
        &self.taken
    }

    /// Takes what the nodes say now, and tells what is to be done.
    pub fn progress(&mut self, reports: &Reports, now: Instant) -> Progress {
        for ack in reports.acks.values().flat_map(|acks| &acks.acks) {
            self.take(ack, now);
        }
        let mut progress = Progress {
            requests: Requests::new(),
            is_complete: true,
            failures: Vec::new(),
            receivers: 0,
            retry_at: None,
        };
        for (node, Receivers { receivers, .. }) in &reports.receivers {
            let wanted =
                receivers.iter().filter_map(|receiver| self.wanted(node, receiver, now, &mut progress));
            let wanted: Vec<RequestedReceiver> = wanted.collect();
            if !wanted.is_empty() {
                progress.requests.insert(node.clone(), self.request(wanted));
            }
        }
        progress.is_complete &= progress.receivers > 0;
        progress
    }

    fn request(&self, receivers: Vec<RequestedReceiver>) -> SignalRequest {
        SignalRequest { v: V1, generation: self.generation.0, signal: self.signal, receivers }
    }

    fn take(&mut self, ack: &Ack, now: Instant) {
        let Ack { incarnation, generation, attempt, failure, at: _ } = ack;
        if *generation != self.generation.0 || self.taken.contains(incarnation) {
            return;
        }
        let Some(reason) = failure else {
            self.failed.remove(incarnation);
            self.taken.insert(*incarnation);
            return;
        };
        let failed = self.failed.entry(*incarnation).or_insert_with(|| Failure {
            attempt: 0,
            reason: String::new(),
            retry_at: now,
            backoff: Backoff::new(RETRY_DELAYS.0, RETRY_DELAYS.1),
        });
        if *attempt > failed.attempt {
            let retry_at = now + failed.backoff.next_delay();
            (failed.attempt, failed.reason, failed.retry_at) = (*attempt, reason.clone(), retry_at);
        }
    }

    /// What is to be requested for a receiver now, if anything.
    fn wanted(
        &self,
        node: &NodeName,
        receiver: &Receiver,
        now: Instant,
        progress: &mut Progress,
    ) -> Option<RequestedReceiver> {
        let Receiver { incarnation, name, refused } = receiver;
        progress.receivers += 1;
        if self.taken.contains(incarnation) {
            return None;
        }
        progress.is_complete = false;
        if let Some(reason) = refused {
            progress.failures.push(format!("node {node} refuses: {reason}"));
            return None;
        }
        let attempt = match self.failed.get(incarnation) {
            None => 1,
            Some(failed) => {
                progress.failures.push(shown(node, name, &failed.reason));
                if failed.retry_at > now {
                    let sooner = progress.retry_at.map_or(failed.retry_at, |at| at.min(failed.retry_at));
                    progress.retry_at = Some(sooner);
                    return None;
                }
                failed.attempt + 1
            }
        };
        Some(RequestedReceiver { incarnation: *incarnation, attempt })
    }
}

fn shown(node: &NodeName, name: &ContainerName, reason: &str) -> String {
    format!("node {node} could not signal container {name}: {reason}")
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    const GENERATION: u64 = 7;

    fn incarnation(number: u8) -> Incarnation {
        let container = format!("{number:012x}").parse().expect("an ID");
        Incarnation { container, started_at: Timestamp::UNIX_EPOCH }
    }

    fn receiver(number: u8) -> Receiver {
        let name = format!("proxy-{number}").parse().expect("a name");
        Receiver { incarnation: incarnation(number), name, refused: None }
    }

    fn ack(number: u8, attempt: u32, failure: Option<&str>) -> Ack {
        Ack {
            incarnation: incarnation(number),
            generation: GENERATION,
            attempt,
            failure: failure.map(str::to_owned),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    fn delivery(taken: &[u8]) -> Delivery {
        Delivery::new(Signal::HUP, Generation(GENERATION), taken.iter().map(|n| incarnation(*n)).collect())
    }

    /// Receivers 1 and 2 on node h1, and 3 on h2.
    fn reports(acks: Vec<Ack>) -> Reports {
        let node = |name: &str| name.parse::<NodeName>().expect("a name");
        let receivers = |all: Vec<Receiver>| Receivers { v: V1, receivers: all, checkers: vec![] };
        let (first, second) = (receivers(vec![receiver(1), receiver(2)]), receivers(vec![receiver(3)]));
        Reports {
            receivers: BTreeMap::from([(node("h1"), first), (node("h2"), second)]),
            acks: BTreeMap::from([(node("h1"), Acks { v: V1, acks })]),
            ..Reports::default()
        }
    }

    /// The requests as `node: receiver/attempt ...`.
    fn requested(progress: &Progress) -> Vec<String> {
        let one = |RequestedReceiver { incarnation, attempt }: &RequestedReceiver| {
            format!("{}/{attempt}", incarnation.container.as_str().trim_start_matches('0'))
        };
        let show = |(node, request): (&NodeName, &SignalRequest)| {
            format!("{node}: {}", request.receivers.iter().map(one).collect::<Vec<_>>().join(" "))
        };
        progress.requests.iter().map(show).collect()
    }

    #[test]
    fn every_receiver_on_every_node_is_asked_for_until_it_has_acked() {
        let (mut delivery, now) = (delivery(&[]), Instant::now());
        let progress = delivery.progress(&reports(vec![]), now);
        assert_eq!(requested(&progress), ["h1: 1/1 2/1", "h2: 3/1"]);
        let progress = delivery.progress(&reports(vec![ack(1, 1, None)]), now);
        assert_eq!(requested(&progress), ["h1: 2/1", "h2: 3/1"]);
        assert!(!progress.is_complete);
        let progress = delivery.progress(&reports(vec![ack(2, 1, None), ack(3, 1, None)]), now);
        assert!(progress.is_complete && progress.requests.is_empty(), "{progress:?}");
    }

    #[test]
    fn without_a_receiver_nothing_is_complete() {
        let progress = delivery(&[]).progress(&Reports::default(), Instant::now());
        assert!(!progress.is_complete && progress.requests.is_empty());
        assert_eq!(progress.receivers, 0);
    }

    #[test]
    fn an_ack_of_another_change_counts_for_nothing() {
        let other = Ack { generation: GENERATION - 1, ..ack(1, 5, None) };
        let progress = delivery(&[]).progress(&reports(vec![other]), Instant::now());
        assert_eq!(requested(&progress), ["h1: 1/1 2/1", "h2: 3/1"]);
    }

    #[test]
    fn a_receiver_that_failed_is_tried_again_alone_after_a_while() {
        let (mut delivery, now) = (delivery(&[]), Instant::now());
        let failed = vec![ack(1, 1, Some("no such process")), ack(2, 1, None), ack(3, 1, None)];
        let progress = delivery.progress(&reports(failed.clone()), now);
        assert_eq!(requested(&progress), [""; 0]);
        assert_eq!(progress.failures, ["node h1 could not signal container proxy-1: no such process"]);
        let retry_at = progress.retry_at.expect("it is tried again");
        assert!(retry_at > now && retry_at <= now + RETRY_DELAYS.0 * 2);
        let progress = delivery.progress(&reports(failed), retry_at);
        assert_eq!(requested(&progress), ["h1: 1/2"]);
        let progress = delivery.progress(&reports(vec![ack(1, 2, None)]), retry_at);
        assert!(progress.is_complete);
    }

    #[test]
    fn a_receiver_that_refuses_is_reported_and_holds_nobody_up() {
        let mut refusing = reports(vec![ack(2, 1, None), ack(3, 1, None)]);
        let node = refusing.receivers.first_entry().expect("a node").into_mut();
        node.receivers[0].refused = Some("container proxy-1 allows no HUP".to_owned());
        let (mut delivery, now) = (delivery(&[]), Instant::now());
        let progress = delivery.progress(&refusing, now);
        assert_eq!(requested(&progress), [""; 0]);
        assert_eq!(progress.failures, ["node h1 refuses: container proxy-1 allows no HUP"]);
        assert!(!progress.is_complete);
        let progress = delivery.progress(&reports(vec![]), now);
        assert_eq!(requested(&progress), ["h1: 1/1"], "it is asked for as soon as it is allowed");
    }

    #[test]
    fn who_has_taken_it_before_is_not_asked_for_and_who_was_restarted_is() {
        let (mut delivery, now) = (delivery(&[1, 2, 3]), Instant::now());
        assert!(delivery.progress(&reports(vec![]), now).is_complete);
        let mut restarted = reports(vec![]);
        let node = restarted.receivers.first_entry().expect("a node").into_mut();
        node.receivers[0].incarnation.started_at = Timestamp::MAX;
        let progress = delivery.progress(&restarted, now);
        assert_eq!(requested(&progress), ["h1: 1/1"]);
    }
}
