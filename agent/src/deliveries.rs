//! Which signals to deliver, and which requests are answered already. Pure.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use rollcall_shared::{
    name::ContainerId,
    signal::{Outcome, Selector, Signal, SignalAck, SignalRequest},
    wire::V1,
};

use crate::{
    container::{Container, FullId},
    containers::Running,
    settings::Allowed,
};

/// The label by which a container says which signals it may be sent.
pub const SIGNAL_LABEL: &str = "rollcall.signal";

/// A container to signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    /// The full ID.
    pub id: FullId,
    /// The ID as acks have it.
    pub short_id: ContainerId,
    /// Its first process, in Docker's PID namespace.
    pub pid: Option<i32>,
}

/// What to do about a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: no container of this host is meant, or it is answered.
    Nothing,
    /// Look again after this time: a container that is meant is too young.
    Wait(Duration),
    /// Answer without delivering.
    Answer(SignalAck),
    /// Send the signal, then answer.
    Deliver(Vec<Recipient>),
}

/// What may be delivered, and when.
#[derive(Debug, Clone)]
pub struct Rules {
    /// What the operator allows.
    pub allowed: Vec<Allowed>,
    /// How old a container must be.
    pub settle: Duration,
}

/// Decides what to do about a request, given this host's last answer to that target.
pub fn decide(
    request: &SignalRequest,
    answered: Option<&SignalAck>,
    running: &BTreeMap<FullId, Running>,
    rules: &Rules,
    now: Timestamp,
) -> Decision {
    let done = |ack: &SignalAck| {
        ack.generation == request.generation
            && (ack.outcome == Outcome::Delivered || ack.attempt >= request.attempt)
    };
    if answered.is_some_and(done) {
        return Decision::Nothing;
    }
    let meant: Vec<&Container> = running
        .values()
        .map(|running| &*running.container)
        .filter(|container| request.to.matches(&container.id, &container.name, &container.labels))
        .collect();
    if meant.is_empty() {
        return Decision::Nothing;
    }
    if let Some(container) =
        meant.iter().find(|container| !is_allowed(container, request.signal, &rules.allowed))
    {
        let (name, signal) = (&container.name, request.signal);
        let detail = format!(
            "container {name} allows no {signal}: expected its label {SIGNAL_LABEL}={signal}, or --allow-signal {signal}:{name} at the agent"
        );
        let containers = meant.iter().map(|container| container.short_id).collect();
        return Decision::Answer(answer(request, Outcome::Refused, containers, detail, now));
    }
    // A process that has not set its handler up yet would lose the signal, or die of it.
    let age = |container: &&Container| now.duration_since(container.started_at).max(SignedDuration::ZERO);
    let settle = SignedDuration::try_from(rules.settle).unwrap_or(SignedDuration::MAX);
    if let Some(youngest) = meant.iter().map(age).min().filter(|age| *age < settle) {
        return Decision::Wait((settle - youngest).unsigned_abs());
    }
    let recipient = |container: &Container| Recipient {
        id: container.id.clone(),
        short_id: container.short_id,
        pid: container.pid,
    };
    Decision::Deliver(meant.into_iter().map(recipient).collect())
}

fn is_allowed(container: &Container, signal: Signal, allowed: &[Allowed]) -> bool {
    let by_operator = |rule: &Allowed| {
        let meant = |to: &Selector| to.matches(&container.id, &container.name, &container.labels);
        rule.signal == signal && rule.to.as_ref().is_none_or(meant)
    };
    let by_itself = |label: &String| label.split(',').any(|text| text.trim().parse() == Ok(signal));
    allowed.iter().any(by_operator) || container.labels.get(SIGNAL_LABEL).is_some_and(by_itself)
}

/// The ack of a request.
pub fn answer(
    request: &SignalRequest,
    outcome: Outcome,
    containers: Vec<ContainerId>,
    detail: String,
    at: Timestamp,
) -> SignalAck {
    let &SignalRequest { generation, attempt, .. } = request;
    SignalAck { v: V1, generation, attempt, outcome, containers, detail, at }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::container::testing::container;

    fn request() -> SignalRequest {
        SignalRequest {
            v: V1,
            generation: 5,
            attempt: 1,
            signal: Signal::HUP,
            to: Selector::Container("proxy".parse().expect("a name")),
            asked_at: now(),
        }
    }

    fn now() -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_secs(100)
    }

    fn running(containers: &[Container]) -> BTreeMap<FullId, Running> {
        let running = |container: &Container| {
            (container.id.clone(), Running { container: Arc::new(container.clone()), draining: false })
        };
        containers.iter().map(running).collect()
    }

    fn proxy(label: &str) -> Container {
        let mut proxy = container("proxy");
        proxy.labels.insert(SIGNAL_LABEL.to_owned(), label.to_owned());
        proxy
    }

    fn decided(answered: Option<&SignalAck>, containers: &[Container], allowed: &[&str]) -> Decision {
        let allowed = allowed.iter().map(|rule| rule.parse().expect("a rule")).collect();
        let rules = Rules { allowed, settle: Duration::from_secs(1) };
        decide(&request(), answered, &running(containers), &rules, now())
    }

    fn ack(generation: u64, attempt: u32, outcome: Outcome) -> SignalAck {
        let request = SignalRequest { generation, attempt, ..request() };
        answer(&request, outcome, vec![], String::new(), now())
    }

    #[test]
    fn only_containers_that_are_meant_get_the_signal() {
        let others = [container("web"), proxy("HUP")];
        let Decision::Deliver(recipients) = decided(None, &others, &[]) else { panic!("it is delivered") };
        assert_eq!(recipients.len(), 1);
        assert_eq!(recipients[0].id, proxy("HUP").id);
        assert_eq!(decided(None, &others[..1], &["HUP"]), Decision::Nothing);
    }

    #[test]
    fn only_allowed_signals_are_delivered() {
        for (label, allowed, delivered) in [
            ("HUP", vec![], true),
            ("USR1, SIGHUP", vec![], true),
            ("USR1", vec![], false),
            ("", vec![], false),
            ("", vec!["HUP"], true),
            ("", vec!["USR1", "HUP:proxy"], true),
            ("", vec!["USR1", "HUP:other"], false),
        ] {
            match decided(None, &[proxy(label)], &allowed) {
                Decision::Deliver(_) => assert!(delivered, "{label} {allowed:?}"),
                Decision::Answer(ack) => {
                    assert_eq!(ack.outcome, Outcome::Refused);
                    assert!(!delivered, "{label} {allowed:?}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn each_generation_is_delivered_once_and_a_failed_one_is_tried_again_when_asked() {
        let proxy = [proxy("HUP")];
        for (ack, again) in [
            (ack(5, 1, Outcome::Delivered), false),
            (ack(5, 0, Outcome::Delivered), false),
            (ack(5, 1, Outcome::Failed), false),
            (ack(5, 0, Outcome::Failed), true),
            (ack(5, 0, Outcome::Refused), true),
            (ack(4, 9, Outcome::Delivered), true),
            (ack(6, 9, Outcome::Delivered), true),
        ] {
            let decision = decided(Some(&ack), &proxy, &[]);
            assert_eq!(matches!(decision, Decision::Deliver(_)), again, "{ack:?}");
        }
    }

    #[test]
    fn a_container_that_has_just_started_is_signalled_when_it_has_settled() {
        let young = Container { started_at: now() - SignedDuration::from_millis(300), ..proxy("HUP") };
        assert_eq!(decided(None, &[young], &[]), Decision::Wait(Duration::from_millis(700)));
    }
}
