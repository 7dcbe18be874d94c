//! A signal to containers on whichever host they run: asked for in the store, delivered and acked by the
//! agent of that host.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use rollcall_shared::{
    name::{NodeName, TargetName},
    signal::{Outcome, Selector, Signal, SignalAck, SignalRequest},
    wire::V1,
};
use tokio::{sync::watch, time::Instant};

use crate::{condition::Condition, generation::Generation};

/// What the nodes have answered to one target's requests.
pub type Acks = BTreeMap<NodeName, SignalAck>;

/// The requests that stand, each until its target's next one.
pub type Standing = BTreeMap<TargetName, SignalRequest>;

/// How long an agent may take to answer before the health report says that one is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// Has containers signalled.
#[derive(Debug)]
pub struct SignalNotifier {
    /// The target.
    pub target: TargetName,
    /// Which containers.
    pub to: Selector,
    /// The signal.
    pub signal: Signal,
    /// Takes the request.
    pub standing: watch::Sender<Standing>,
    /// Gives the answers.
    pub acks: watch::Receiver<Acks>,
}

/// What the answers to a request mean.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Waiting,
    Delivered,
    Failed(String),
}

fn judge(request: &SignalRequest, acks: &Acks) -> Verdict {
    let answers = acks.iter().filter(|(_, ack)| ack.generation == request.generation);
    let mut verdict = Verdict::Waiting;
    for (node, ack) in answers {
        match ack.outcome {
            Outcome::Delivered => return Verdict::Delivered,
            // An answer to an earlier attempt was counted then.
            Outcome::Failed | Outcome::Refused if ack.attempt < request.attempt => {}
            Outcome::Failed => verdict = Verdict::Failed(format!("node {node} failed: {}", ack.detail)),
            Outcome::Refused => verdict = Verdict::Failed(format!("node {node} refused: {}", ack.detail)),
        }
    }
    verdict
}

impl SignalNotifier {
    /// Asks, and waits for an answer for as long as it takes: the request stands, and an agent looks at
    /// it again whenever a container that it means appears.
    pub(super) async fn attempt(
        &mut self,
        generation: Generation,
        attempt: u32,
        condition: &mut Condition,
    ) -> Result<(), String> {
        let request = self.ask(generation, attempt);
        let mut impatient = Box::pin(tokio::time::sleep_until(Instant::now() + PATIENCE));
        loop {
            match judge(&request, &self.acks.borrow_and_update()) {
                Verdict::Delivered => return Ok(()),
                Verdict::Failed(reason) => {
                    return Err(format!("{} to {}: {reason}", request.signal, request.to));
                }
                Verdict::Waiting => {}
            }
            tokio::select! {
                // Neither branch takes anything that it could lose.
                answered = self.acks.changed() => answered.map_err(|_| "stopping".to_owned())?,
                () = &mut impatient, if !impatient.is_elapsed() => {
                    condition.waiting(format!("waiting for an agent to signal {}", request.to));
                }
            }
        }
    }

    /// Puts the request up, in the place of the target's last one.
    fn ask(&self, generation: Generation, attempt: u32) -> SignalRequest {
        let mut request = SignalRequest {
            v: V1,
            generation: generation.0,
            attempt,
            signal: self.signal,
            to: self.to.clone(),
            asked_at: Timestamp::now(),
        };
        self.standing.send_modify(|standing| {
            let last = standing.get(&self.target).filter(|last| last.generation == request.generation);
            request.asked_at = last.map_or(request.asked_at, |last| last.asked_at);
            standing.insert(self.target.clone(), request.clone());
        });
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(generation: u64, attempt: u32) -> SignalRequest {
        SignalRequest {
            v: V1,
            generation,
            attempt,
            signal: Signal::HUP,
            to: Selector::Label("role=proxy".to_owned()),
            asked_at: Timestamp::UNIX_EPOCH,
        }
    }

    fn acks(answers: &[(&str, u64, u32, Outcome)]) -> Acks {
        let ack = |&(node, generation, attempt, outcome): &(&str, u64, u32, Outcome)| {
            let (containers, detail) = (vec![], "because".to_owned());
            let at = Timestamp::UNIX_EPOCH;
            let ack = SignalAck { v: V1, generation, attempt, outcome, containers, detail, at };
            (node.parse().expect("a name"), ack)
        };
        answers.iter().map(ack).collect()
    }

    #[test]
    fn one_delivery_is_enough_and_only_of_the_generation_asked_for() {
        use Outcome::{Delivered, Failed, Refused};
        for (answers, expected) in [
            (vec![], Verdict::Waiting),
            (vec![("h1", 7, 1, Delivered)], Verdict::Delivered),
            (vec![("h1", 7, 1, Failed), ("h2", 7, 1, Delivered)], Verdict::Delivered),
            (vec![("h1", 6, 2, Delivered)], Verdict::Waiting),
            (vec![("h1", 7, 2, Failed)], Verdict::Failed("node h1 failed: because".to_owned())),
            (vec![("h1", 7, 2, Refused)], Verdict::Failed("node h1 refused: because".to_owned())),
            (vec![("h1", 7, 1, Failed)], Verdict::Waiting),
        ] {
            assert_eq!(judge(&request(7, 2), &acks(&answers)), expected, "{answers:?}");
        }
    }
}
