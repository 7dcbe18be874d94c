//! Says what is left out of the registration: in the log once, in a metric by reason, and in the readiness report where a
//! container asks for what it does not get. A thin shell around [`describe`], beside the registrar, which never waits for
//! it.

use std::collections::{BTreeMap, BTreeSet};

use rollcall_shared::{
    model::name::ContainerName,
    process::readiness::{Part, Readiness},
};

use super::{
    desired::{Policy, describe},
    omission::{Omission, Reason},
};
use crate::inventory::{
    Running, RunningContainers,
    container::{FullId, Port},
    watcher::InventoryReceiver,
};

/// The name under which the readiness report has the containers.
pub const PART: &str = "containers";

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
            self.say(id, &now.container.name, &left_out);
            self.described.insert(id.clone(), (now.clone(), left_out));
        }
        if self.said.len() > running.len() + MAX_ENDED {
            self.said.retain(|id, _| running.contains_key(id));
        }
        self.count();
        self.note();
    }

    /// Logs what was not said before.
    fn say(&mut self, id: &FullId, container: &ContainerName, left_out: &[LeftOut]) {
        let said = self.said.entry(id.clone()).or_default();
        for left_out in left_out {
            if said.contains(left_out) {
                continue;
            }
            let (port, Omission { reason, .. }) = left_out;
            let (port, why) = (port.map(tracing::field::display), left_out.1.to_string());
            match reason {
                Reason::NoPort => tracing::debug!(%container, port, why, "left out"),
                reason if reason.is_refusal() => tracing::warn!(%container, port, why, "left out"),
                _ => tracing::info!(%container, port, why, "left out"),
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
        let of_container = |(running, left_out): &'_ (Running, Vec<LeftOut>)| {
            let name = running.container.name.clone();
            let refused: Vec<_> =
                left_out.iter().filter(|(_, omission)| omission.reason.is_refusal()).collect();
            refused
                .into_iter()
                .map(|(_, omission)| format!("container {name}: {omission}"))
                .collect::<Vec<_>>()
        };
        let refused: Vec<String> = self.described.values().flat_map(of_container).collect();
        match &refused[..] {
            [] => self.part.ready(),
            [only] => self.part.noted(only),
            [first, rest @ ..] => self.part.noted(format!("{first}; and {} more", rest.len())),
        }
    }
}
