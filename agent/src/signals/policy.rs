//! Which containers a target signals, which signals are allowed, and what to do about a request. Pure.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use rollcall_shared::{
    codec::{self, V1},
    model::{
        consumer::ConsumerHome,
        name::ContainerId,
        selector::Selector,
        signal::{Ack, Delivery, Incarnation, Receiver, RequestedReceiver, Signal, SignalRequest},
        stack::{self, SWARM_SERVICE},
    },
};
use tokio::time::Instant;

use super::settings::Allowed;
use crate::inventory::container::{Container, Restart};

pub use crate::registration::labels::SIGNAL_LABEL;

/// A running container, and from when on it may be signalled.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The container.
    pub container: Arc<Container>,
    /// Not before then: it may not have set its signal handler up.
    pub ready_at: Instant,
}

/// The running containers by their incarnations.
pub type Candidates = BTreeMap<Incarnation, Candidate>;

/// What to do about one receiver of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: it is answered, or the container does not run any more.
    Nothing,
    /// Look again then: the container has just started.
    WaitUntil(Instant),
    /// Answer that the signal is not allowed.
    Refuse {
        /// The container.
        container: Arc<Container>,
        /// Why, and what would allow it.
        reason: String,
    },
    /// Send the signal, and answer.
    Deliver {
        /// The container.
        container: Arc<Container>,
    },
}

/// How long it takes until a container is old enough to be signalled. `now` is by this host's clock; a container that
/// starts in the future has just started.
pub fn ready_in(started_at: Timestamp, settle: Duration, now: Timestamp) -> Duration {
    let age = now.duration_since(started_at).max(SignedDuration::ZERO).unsigned_abs();
    settle.saturating_sub(age)
}

/// Whether a container may be sent a signal: by its own label, or by the operator.
pub fn is_allowed(container: &Container, signal: Signal, allowed: &[Allowed]) -> bool {
    let is_meant = |rule: &Allowed| rule.to.is_empty() || rule.to.iter().any(|to| is_meant(container, to));
    let by_operator = |rule: &Allowed| rule.signal == signal && is_meant(rule);
    let by_itself = |label: &String| label.split(',').any(|text| text.trim().parse() == Ok(signal));
    allowed.iter().any(by_operator) || container.labels.get(SIGNAL_LABEL).is_some_and(by_itself)
}

/// The restart policy that Docker forgets for this run when it is asked to send the signal: it takes the container for
/// one that someone stops. One that names a stop signal keeps `always` and `on-failure`, unless it is that signal
/// (moby's `daemon/kill.go` and `restartmanager`).
pub fn forgotten_restart(container: &Container, signal: Signal) -> Option<Restart> {
    let is_other = container.names_stop_signal && signal != container.stop_signal;
    match container.restart {
        Restart::Never => None,
        Restart::Always | Restart::OnFailure if is_other => None,
        restart => Some(restart),
    }
}

/// Whether a selector means a container.
pub(crate) fn is_meant(container: &Container, to: &Selector) -> bool {
    to.matches(&container.id, &container.name, &container.labels)
}

/// Why a signal is not allowed, and what would allow it; `None` where it is.
fn refusal(container: &Container, signal: Signal, allowed: &[Allowed]) -> Option<String> {
    (!is_allowed(container, signal, allowed)).then(|| refusal_words(container, signal))
}

fn refusal_words(container: &Container, signal: Signal) -> String {
    let (name, lasting) = (&container.name, lasting_name(container));
    format!(
        "container {name} allows no {signal}: expected its label {SIGNAL_LABEL}={signal}, or --allow-signal \
         {signal}:{lasting} at the agent"
    )
}

/// What a setting names a container by: the name of a Swarm task is another one tomorrow.
pub(crate) fn lasting_name(container: &Container) -> &str {
    container.labels.get(SWARM_SERVICE).map_or(container.name.as_str(), String::as_str)
}

/// The containers that a target signals, in the order of their incarnations.
pub fn receivers(delivery: &Delivery, candidates: &Candidates, allowed: &[Allowed]) -> Vec<Receiver> {
    let receiver = |(incarnation, candidate): (&Incarnation, &Candidate)| {
        let container = &*candidate.container;
        is_meant(container, &delivery.to).then(|| Receiver {
            incarnation: *incarnation,
            name: container.name.clone(),
            refused: refusal(container, delivery.signal, allowed),
        })
    };
    candidates.iter().filter_map(receiver).collect()
}

/// What there is to say of the container that a consumer runs in; `None` where it does not run here. A stack whose name
/// stays in, as its label does, counts as none.
pub fn home(container: ContainerId, candidates: &Candidates) -> Option<ConsumerHome> {
    /// No tool makes longer names.
    const MAX_CHARS: usize = 256;
    // In the order of their incarnations: this is asked for each consumer whenever something happens.
    let first = Incarnation { container, started_at: Timestamp::MIN };
    let found = candidates.range(first..).next().filter(|(found, _)| found.container == container);
    let labels = &found?.1.container.labels;
    let is_plain = |name: &&str| name.len() <= MAX_CHARS && codec::is_one_line(name);
    let stack = stack::stack(labels).filter(is_plain).map(str::to_owned);
    Some(ConsumerHome { v: V1, container, stack })
}

/// Decides what to do about one receiver of a request, given the last answer to that target of that receiver.
pub fn decide(
    request: &SignalRequest,
    requested: &RequestedReceiver,
    last: Option<&Ack>,
    candidates: &Candidates,
    allowed: &[Allowed],
    now: Instant,
) -> Decision {
    let Some(candidate) = candidates.get(&requested.incarnation) else { return Decision::Nothing };
    let container = candidate.container.clone();
    let refusal = refusal(&container, request.signal, allowed);
    // It was refused by an agent that did not allow it yet.
    let is_mended =
        |failure: &String| refusal.is_none() && *failure == refusal_words(&container, request.signal);
    let is_answer = |ack: &Ack| match &ack.failure {
        _ if ack.generation != request.generation => false,
        None => true,
        Some(failure) => ack.attempt >= requested.attempt && !is_mended(failure),
    };
    if last.is_some_and(is_answer) {
        return Decision::Nothing;
    }
    match refusal {
        Some(reason) => Decision::Refuse { container, reason },
        None if candidate.ready_at > now => Decision::WaitUntil(candidate.ready_at),
        None => Decision::Deliver { container },
    }
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;
    use crate::inventory::container::testing::container;

    fn candidates(containers: &[Container], ready_at: Instant) -> Candidates {
        let candidate = |container: &Container| {
            (container.incarnation(), Candidate { container: Arc::new(container.clone()), ready_at })
        };
        containers.iter().map(candidate).collect()
    }

    fn proxy(label: &str) -> Container {
        let mut proxy = container("proxy");
        proxy.labels.insert(SIGNAL_LABEL.to_owned(), label.to_owned());
        proxy
    }

    fn rules(rules: &[&str]) -> Vec<Allowed> {
        rules.iter().map(|rule| rule.parse().expect("a rule")).collect()
    }

    fn delivery(to: &str) -> Delivery {
        let to = match to.strip_prefix("label:") {
            Some(label) => Selector::label(label.parse().expect("a label")),
            None => Selector::container(to.parse().expect("a name")),
        };
        Delivery { signal: Signal::HUP, to }
    }

    fn requested(container: &Container, attempt: u32) -> RequestedReceiver {
        RequestedReceiver { incarnation: container.incarnation(), attempt }
    }

    fn ack(generation: u64, attempt: u32, failure: Option<&str>) -> Ack {
        let (incarnation, failure) = (proxy("HUP").incarnation(), failure.map(str::to_owned));
        Ack { incarnation, generation, attempt, failure, at: Timestamp::UNIX_EPOCH }
    }

    /// What is decided about the first attempt of generation 5 at this container, where these run.
    fn decided(requested: RequestedReceiver, last: Option<&Ack>, running: &[Container]) -> Decision {
        let now = Instant::now();
        let request = SignalRequest { v: V1, generation: 5, signal: Signal::HUP, receivers: vec![requested] };
        decide(&request, &requested, last, &candidates(running, now), &[], now)
    }

    #[test]
    fn a_targets_receivers_are_the_containers_that_it_means() {
        let mut labelled = proxy("HUP");
        labelled.labels.insert("role".to_owned(), "proxy".to_owned());
        let running = candidates(&[container("web"), labelled.clone()], Instant::now());
        for (to, expected) in
            [("proxy", 1), ("web", 1), ("other", 0), ("label:role=proxy", 1), ("label:role=db", 0)]
        {
            assert_eq!(receivers(&delivery(to), &running, &[]).len(), expected, "{to}");
        }
        let receiver = &receivers(&delivery("proxy"), &running, &[])[0];
        assert_eq!((receiver.incarnation, &receiver.refused), (labelled.incarnation(), &None));
    }

    #[test]
    fn receivers_are_in_the_order_of_their_incarnations() {
        let names: Vec<Container> = ["a", "b", "c", "d"]
            .map(|name| {
                let mut container = container(name);
                container.labels.insert("role".to_owned(), "proxy".to_owned());
                container
            })
            .to_vec();
        let receivers = receivers(&delivery("label:role"), &candidates(&names, Instant::now()), &[]);
        assert_eq!(receivers.len(), 4);
        assert!(receivers.is_sorted_by_key(|receiver| receiver.incarnation));
    }

    #[test]
    fn only_allowed_signals_are_delivered_and_a_refusal_says_what_would_allow_it() {
        for (label, allowed, expected) in [
            ("HUP", vec![], true),
            ("USR1, SIGHUP", vec![], true),
            ("USR1", vec![], false),
            ("", vec![], false),
            ("", vec!["HUP"], true),
            ("", vec!["USR1", "HUP:proxy"], true),
            ("", vec!["USR1", "HUP:other"], false),
            ("", vec!["HUP:rollcall.signal="], true),
            ("", vec!["HUP:role=proxy"], false),
        ] {
            let (proxy, allowed) = (proxy(label), rules(&allowed));
            assert_eq!(is_allowed(&proxy, Signal::HUP, &allowed), expected, "{label} {allowed:?}");
            let refusal = refusal(&proxy, Signal::HUP, &allowed);
            assert_eq!(refusal.is_none(), expected);
            for part in ["container proxy allows no HUP", "rollcall.signal=HUP", "--allow-signal HUP:proxy"] {
                assert!(refusal.as_ref().is_none_or(|refusal| refusal.contains(part)), "{refusal:?}");
            }
        }
    }

    #[test]
    fn a_swarm_task_is_allowed_by_its_service_which_a_refusal_names() {
        let mut task = container("shop_proxy.1.k2j4h5g6f7d8");
        task.labels.insert(SWARM_SERVICE.to_owned(), "shop_proxy".to_owned());
        let refused = refusal(&task, Signal::HUP, &[]).expect("nobody allows it");
        assert!(refused.ends_with("or --allow-signal HUP:shop_proxy at the agent"), "{refused}");
        assert!(is_allowed(&task, Signal::HUP, &rules(&["HUP:shop_proxy"])));
    }

    #[test]
    fn a_refused_request_is_answered_with_the_reason_that_the_receivers_show() {
        let proxy = proxy("USR1");
        let shown = receivers(&delivery("proxy"), &candidates(slice::from_ref(&proxy), Instant::now()), &[]);
        let refused = shown[0].refused.clone().expect("it is not allowed");
        let decided = decided(requested(&proxy, 1), None, &[proxy]);
        assert!(matches!(decided, Decision::Refuse { reason, .. } if reason == refused));
    }

    #[test]
    fn each_generation_is_delivered_once_and_a_failed_one_is_tried_again_when_asked() {
        let proxy = proxy("HUP");
        let reason = Some("busy");
        for (last, again) in [
            (ack(5, 1, None), false),
            (ack(5, 0, None), false),
            (ack(5, 1, reason), false),
            (ack(5, 2, reason), false),
            (ack(5, 0, reason), true),
            (ack(4, 9, None), true),
            (ack(6, 9, None), true),
        ] {
            let decision = decided(requested(&proxy, 1), Some(&last), slice::from_ref(&proxy));
            assert_eq!(matches!(decision, Decision::Deliver { .. }), again, "{last:?}");
        }
    }

    #[test]
    fn docker_forgets_to_restart_what_it_takes_for_stopped() {
        use Restart::{Always, Never, OnFailure, UnlessStopped};
        for (stop_signal, forgotten) in [
            (None, vec![Always, OnFailure, UnlessStopped]),
            (Some(Signal::HUP), vec![Always, OnFailure, UnlessStopped]),
            (Some(Signal::TERM), vec![UnlessStopped]),
        ] {
            for restart in [Always, Never, OnFailure, UnlessStopped] {
                let (names_stop_signal, stop_signal) =
                    (stop_signal.is_some(), stop_signal.unwrap_or(Signal::TERM));
                let proxy = Container { restart, names_stop_signal, stop_signal, ..proxy("HUP") };
                let expected = Some(restart).filter(|restart| forgotten.contains(restart));
                assert_eq!(forgotten_restart(&proxy, Signal::HUP), expected, "{restart} {stop_signal}");
            }
        }
    }

    #[test]
    fn another_run_of_the_container_is_not_signalled() {
        let proxy = proxy("HUP");
        let started_at = proxy.started_at + SignedDuration::from_secs(1);
        let restarted = Container { started_at, ..proxy.clone() };
        assert_eq!(decided(requested(&proxy, 1), None, &[restarted]), Decision::Nothing);
        assert_eq!(decided(requested(&proxy, 1), None, &[container("web")]), Decision::Nothing);
    }

    #[test]
    fn a_container_that_has_just_started_is_signalled_when_it_is_old_enough() {
        let proxy = proxy("HUP");
        let now = Instant::now();
        let later = now + Duration::from_millis(700);
        let request = SignalRequest { v: V1, generation: 5, signal: Signal::HUP, receivers: vec![] };
        let running = candidates(slice::from_ref(&proxy), later);
        let decided = |now| decide(&request, &requested(&proxy, 1), None, &running, &[], now);
        assert_eq!(decided(now), Decision::WaitUntil(later));
        assert!(matches!(decided(later), Decision::Deliver { .. }));
    }

    #[test]
    fn the_age_is_by_this_hosts_clock_and_never_negative() {
        let (settle, start) = (Duration::from_secs(1), Timestamp::UNIX_EPOCH);
        for (age_ms, expected) in [(0, 1000), (300, 700), (1000, 0), (5000, 0), (-5000, 1000)] {
            let now = start + SignedDuration::from_millis(age_ms);
            assert_eq!(ready_in(start, settle, now), Duration::from_millis(expected), "{age_ms}");
        }
    }
}
