//! What became of the requests: the latest answer of each container to each target. Pure.

use std::collections::BTreeMap;

use rollcall_shared::model::{
    check::Verdict,
    name::TargetId,
    signal::{Ack, Incarnation, Receiver},
};

use super::policy::Candidates;

/// The latest answers. They are kept as long as the container runs, so that nobody is signalled or asked twice.
#[derive(Debug)]
pub struct Answers<A>(BTreeMap<TargetId, BTreeMap<Incarnation, A>>);

/// An answer to a request: an ack, or a verdict.
pub trait ToRequest: Clone {
    /// Which run of which container it is about.
    fn incarnation(&self) -> Incarnation;
}

impl ToRequest for Ack {
    fn incarnation(&self) -> Incarnation {
        self.incarnation
    }
}

impl ToRequest for Verdict {
    fn incarnation(&self) -> Incarnation {
        self.incarnation
    }
}

impl<A> Default for Answers<A> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<A: ToRequest> Answers<A> {
    /// Takes an answer.
    pub fn take(&mut self, target: TargetId, answer: A) {
        self.0.entry(target).or_default().insert(answer.incarnation(), answer);
    }

    /// The last answer of a container to a target.
    pub fn last(&self, target: &TargetId, incarnation: &Incarnation) -> Option<&A> {
        self.0.get(target)?.get(incarnation)
    }

    /// The last answers of a target's containers, in their order.
    pub fn of(&self, target: &TargetId, receivers: &[Receiver]) -> Vec<A> {
        let last = |receiver: &Receiver| self.last(target, &receiver.incarnation).cloned();
        receivers.iter().filter_map(last).collect()
    }

    /// Forgets the answers to a target.
    pub fn forget(&mut self, target: &TargetId) {
        self.0.remove(target);
    }

    /// Forgets the answers of containers that do not run any more.
    pub fn retain(&mut self, candidates: &Candidates) {
        if candidates.is_empty() {
            // Docker may be away: the same runs may be there again when it is back.
            return;
        }
        for answers in self.0.values_mut() {
            answers.retain(|incarnation, _| candidates.contains_key(incarnation));
        }
        self.0.retain(|_, answers| !answers.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::{SignedDuration, Timestamp};
    use tokio::time::Instant;

    use super::*;
    use crate::{
        inventory::container::{Container, testing::container},
        signals::policy::Candidate,
    };

    fn target() -> TargetId {
        TargetId { consumer: "c1".parse().expect("a name"), target: "web".parse().expect("a name") }
    }

    fn candidates(container: &Container) -> Candidates {
        let candidate = Candidate { container: Arc::new(container.clone()), ready_at: Instant::now() };
        Candidates::from([(container.incarnation(), candidate)])
    }

    /// A memory of one answer of the container.
    fn memory(container: &Container) -> Answers<Ack> {
        let mut memory = Answers::default();
        let (incarnation, at) = (container.incarnation(), Timestamp::UNIX_EPOCH);
        memory.take(target(), Ack { incarnation, generation: 1, attempt: 1, failure: None, at });
        memory
    }

    #[test]
    fn an_answer_is_kept_while_its_container_runs_and_while_docker_is_away() {
        let proxy = container("proxy");
        let mut memory = memory(&proxy);
        for candidates in [candidates(&proxy), Candidates::new()] {
            memory.retain(&candidates);
            assert!(memory.last(&target(), &proxy.incarnation()).is_some());
        }
        let started_at = proxy.started_at + SignedDuration::from_secs(1);
        memory.retain(&candidates(&Container { started_at, ..proxy.clone() }));
        assert_eq!(memory.last(&target(), &proxy.incarnation()), None);
    }

    #[test]
    fn only_answers_of_receivers_are_shown() {
        let proxy = container("proxy");
        let receiver = |container: &Container| Receiver {
            incarnation: container.incarnation(),
            name: container.name.clone(),
            refused: None,
        };
        let memory = memory(&proxy);
        assert_eq!(memory.of(&target(), &[receiver(&proxy), receiver(&container("web"))]).len(), 1);
        assert_eq!(memory.of(&target(), &[receiver(&container("web"))]), []);
    }
}
