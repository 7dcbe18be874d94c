//! Says what is left out of the registration: in the log once, in a metric by reason, and in the readiness report where a
//! container asks for what it does not get. A thin shell around [`describe`], beside the registrar, which never waits for
//! it.

use std::collections::{BTreeMap, BTreeSet};

use rollcall_shared::process::readiness::{Part, Readiness};

use super::{
    container_address,
    description::{Policy, describe},
    labels,
    omission::{Omission, Reason},
};
use crate::inventory::{
    Running, RunningContainers,
    container::{Container, FullId, Port},
    watcher::InventoryReceiver,
};

/// The name under which the readiness report has the containers.
pub const PART: &str = "containers";

/// The name under which the readiness report says whether the advertised address can be the host's.
pub const ADDRESS_PART: &str = "advertised address";

/// Of how many containers that have ended it is remembered what was said: one that restarts is not told of again.
const MAX_ENDED: usize = 1000;

/// What is left out: the container as a whole or in part, or one of its ports.
type LeftOut = (Option<Port>, Omission);

/// Reports what is left out.
#[derive(Debug)]
pub struct OmissionReporter {
    policy: Policy,
    inventory: InventoryReceiver,
    part: Part,
    address_part: Part,
    /// What is wrong with the advertised address.
    warning: Option<String>,
    /// What was described, which most containers need only once.
    described: BTreeMap<FullId, (Running, Vec<LeftOut>)>,
    said: BTreeMap<FullId, BTreeSet<LeftOut>>,
}

/// Describes the metrics of what is left out.
pub fn describe_metrics() {
    metrics::describe_gauge!(
        "rollcall_agent_omissions",
        "Containers, ports and labels of this host that are not registered, by reason"
    );
}

impl OmissionReporter {
    /// A reporter of what this policy leaves out.
    pub fn new(policy: Policy, inventory: InventoryReceiver, readiness: &Readiness) -> Self {
        Self {
            policy,
            inventory,
            part: readiness.part(PART),
            address_part: readiness.part(ADDRESS_PART),
            warning: None,
            described: BTreeMap::new(),
            said: BTreeMap::new(),
        }
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) {
        while self.inventory.changed().await.is_ok() {
            // Registering comes first.
            tokio::task::yield_now().await;
            let running = self.inventory.borrow_and_update().clone();
            if let Some(running) = running {
                self.on_inventory(&running);
            }
        }
    }

    fn on_inventory(&mut self, running: &RunningContainers) {
        let has_moved = self.policy.follow_addresses();
        let mut before = std::mem::take(&mut self.described);
        for (id, now) in running {
            let known = before
                .remove(id)
                .filter(|(was, _)| !has_moved && was.is_same(now) && now.container.network_of.is_none());
            let left_out = match known {
                Some((_, left_out)) => left_out,
                None => describe(now, running, &self.policy).omissions(),
            };
            self.say(id, &now.container, &left_out);
            self.described.insert(id.clone(), (now.clone(), left_out));
        }
        if self.said.len() > running.len() + MAX_ENDED {
            self.said.retain(|id, _| running.contains_key(id));
        }
        self.count();
        self.note();
        self.look_at_address(running);
    }

    fn look_at_address(&mut self, running: &RunningContainers) {
        let warning = container_address::warning(&self.policy, running);
        match &warning {
            None => self.address_part.ready(),
            Some(warning) => {
                if self.warning.as_ref() != Some(warning) {
                    tracing::warn!("{warning}");
                }
                self.address_part.noted(warning);
            }
        }
        self.warning = warning;
    }

    /// Logs what was not said before.
    fn say(&mut self, id: &FullId, container: &Container, left_out: &[LeftOut]) {
        let (name, is_counted_on) = (&container.name, labels::is_counted_on(container));
        let said = self.said.entry(id.clone()).or_default();
        for left_out in left_out {
            if said.contains(left_out) {
                continue;
            }
            let (port, Omission { reason, .. }) = left_out;
            let (port, why) = (port.map(tracing::field::display), left_out.1.to_string());
            match reason {
                Reason::NoPort if is_counted_on => tracing::warn!(container = %name, port, why, "left out"),
                // As most of most hosts, or as someone wants it.
                Reason::NoPort | Reason::Ignored | Reason::Filtered => {
                    tracing::debug!(container = %name, port, why, "left out");
                }
                reason if reason.is_refusal() => tracing::warn!(container = %name, port, why, "left out"),
                _ => tracing::info!(container = %name, port, why, "left out"),
            }
            said.insert(left_out.clone());
        }
    }

    fn count(&self) {
        let mut counts = BTreeMap::from(Reason::ALL.map(|reason| (reason, 0_u32)));
        for (_, omission) in self.described.values().flat_map(|(_, left_out)| left_out) {
            *counts.entry(omission.reason).or_default() += 1;
        }
        for (reason, count) in counts {
            metrics::gauge!("rollcall_agent_omissions", "reason" => reason.as_str()).set(count);
        }
    }

    fn note(&self) {
        let left_out = self.described.values().flat_map(|(running, left_out)| {
            left_out.iter().map(|(_, omission)| (&running.container.name, omission))
        });
        let mut refused = left_out.filter(|(_, omission)| omission.reason.is_refusal());
        let Some((name, first)) = refused.next() else { return self.part.ready() };
        let first = format!("container {name}: {first}");
        match refused.count() {
            0 => self.part.noted(first),
            more => self.part.noted(format!("{first}; and {more} more")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use rollcall_shared::process::readiness::Condition;
    use tokio::sync::watch;
    use tracing::Level;

    use super::*;
    use crate::{
        inventory::container::{Container, testing::container},
        registration::description::tests::{policy, web},
    };

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panics with it").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged at this level or above while these run one after the other, and the last condition.
    fn reported(level: Level, inventories: &[&[&Container]]) -> (Vec<String>, Condition) {
        let (log, readiness) = (Log::default(), Readiness::default());
        let mut reporter = OmissionReporter::new(policy(), watch::channel(None).1, &readiness);
        let writer = log.clone();
        let writer = move || writer.clone();
        let logs =
            tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(writer).finish();
        tracing::subscriber::with_default(logs, || {
            for containers in inventories {
                let running = |container: &&Container| {
                    let container = Arc::new((*container).clone());
                    (container.id.clone(), Running { container, is_draining: false })
                };
                reporter.on_inventory(&containers.iter().map(running).collect());
            }
        });
        let text = String::from_utf8(log.0.lock().expect("nobody panics with it").clone()).expect("text");
        let lines = text.lines().filter(|line| line.contains("left out")).map(str::to_owned).collect();
        (lines, readiness.conditions().get(PART).cloned().expect("a part"))
    }

    fn labelled(name: &str, value: &str) -> Container {
        let mut container = (*web().container).clone();
        container.labels.insert(name.to_owned(), value.to_owned());
        container
    }

    #[test]
    fn a_label_that_is_refused_is_named_once_though_the_container_restarts_and_others_change() {
        let (bad, other) = (labelled("rollcall.weight", "much"), container("other"));
        let (lines, condition) =
            reported(Level::INFO, &[&[&bad], &[&bad, &other], &[&other], &[&bad, &other]]);
        assert_eq!(lines.len(), 1, "{lines:?}");
        let expected = "rollcall.weight is \"much\": expected 1 to 65535";
        assert!(lines[0].contains("WARN") && lines[0].contains("container=web-1"), "{lines:?}");
        assert!(lines[0].contains("rollcall.weight is"), "{lines:?}");
        assert_eq!(condition, Condition::Noted(format!("container web-1: {expected}")));
    }

    #[test]
    fn a_container_that_publishes_nothing_is_normal_and_one_that_cannot_be_reached_is_not() {
        let plain = container("plain");
        assert_eq!(reported(Level::INFO, &[&[&plain]]), (Vec::new(), Condition::Ready));
        assert_eq!(reported(Level::DEBUG, &[&[&plain]]).0.len(), 1);
        // Unless somebody counts on it.
        let site = Container { env: [("VIRTUAL_HOST".to_owned(), "a.example".to_owned())].into(), ..plain };
        let (lines, _) = reported(Level::INFO, &[&[&site]]);
        assert!(
            lines.len() == 1 && lines[0].contains("WARN") && lines[0].contains("publishes no port"),
            "{lines:?}"
        );
        let mut bound = (*web().container).clone();
        bound.bindings[0].ip = "127.0.0.1".parse().expect("an address");
        let (lines, condition) = reported(Level::INFO, &[&[&bound]]);
        assert!(lines.len() == 1 && lines[0].contains("only this host reaches"), "{lines:?}");
        assert_eq!(condition, Condition::Ready);
    }

    #[test]
    fn an_advertised_address_of_a_container_is_noted_as_long_as_it_is_one() {
        let readiness = Readiness::default();
        let mut policy = policy();
        policy.address.advertised.v4 = Some("172.17.0.2".parse().expect("an address"));
        policy.addresses = watch::channel(policy.address.advertised).1;
        let mut reporter = OmissionReporter::new(policy, watch::channel(None).1, &readiness);
        let condition = || readiness.conditions().get(ADDRESS_PART).cloned().expect("a part");
        reporter.on_inventory(&RunningContainers::from([(web().container.id.clone(), web())]));
        assert!(matches!(condition(), Condition::Noted(note) if note.contains("is that of container web-1")));
        reporter.on_inventory(&RunningContainers::new());
        assert_eq!(condition(), Condition::Ready);
    }

    #[test]
    fn what_was_mended_is_noted_no_more() {
        let (bad, good) = (labelled("rollcall.signal", "NONE"), labelled("rollcall.signal", "HUP"));
        assert!(matches!(reported(Level::INFO, &[&[&bad]]).1, Condition::Noted(_)));
        assert_eq!(reported(Level::INFO, &[&[&bad], &[&good]]).1, Condition::Ready);
    }
}
