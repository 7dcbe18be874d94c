//! The embedded mode: without etcd, the agent runs within this process on the memory store.
//!
//! One process beside one Docker socket then does what docker-gen does. This file alone knows the agent.

use std::{sync::Arc, time::Duration};

use rollcall_agent::{Life, container::Port, registrar, settings::AddressMode};
use rollcall_shared::{
    health::Health,
    instance::Protocol,
    key::Keys,
    signal::{Selector, Signal},
    store::Store,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Notify, TargetSettings},
    settings::{CITUS_PORT, Plan},
};

/// The agent within this process.
#[derive(Debug)]
pub struct Embedded {
    settings: rollcall_agent::Settings,
    life: Life,
    allowed: Vec<(Selector, Signal)>,
}

impl Embedded {
    /// An agent that serves the plan: it lets out the labels that the targets select by, and delivers the
    /// signals that they ask for. Nobody else can read its store.
    pub fn new(mut settings: rollcall_agent::Settings, life: Life, plan: &Plan) -> Self {
        let labels = plan.targets.iter().flat_map(|target| &target.select.labels);
        settings.choice.export_labels.extend(labels.map(|label| label.name.clone()));
        if plan.citus {
            // As workerlist-gen wrote them: by name, with the port that every worker listens at.
            settings.node.address.get_or_insert(AddressMode::Name);
            if settings.node.ports.is_empty() {
                settings.node.ports.push(Port { number: CITUS_PORT, protocol: Protocol::Tcp });
            }
        }
        let allowed = plan.targets.iter().filter_map(signal).collect();
        Self { settings, life, allowed }
    }

    /// Runs until it is stopped.
    ///
    /// # Errors
    /// The agent's.
    pub async fn run(
        self,
        store: Arc<dyn Store>,
        keys: Keys,
        health: Health,
        stop: CancellationToken,
    ) -> Result<(), rollcall_agent::Error> {
        let Self { settings, life, allowed } = self;
        rollcall_agent::embedded(settings, life, store, keys, allowed, health, stop).await
    }
}

fn signal(target: &TargetSettings) -> Option<(Selector, Signal)> {
    match &target.notify {
        Some(Notify::Signal { to, signal }) => Some((to.clone(), *signal)),
        _ => None,
    }
}

/// Waits until the agent has registered what runs: before that the empty store says nothing.
pub async fn registered(health: &Health) {
    const LOOK: Duration = Duration::from_millis(2);
    while health.report().1["conditions"][registrar::HEALTH_PART] != "ok" {
        tokio::time::sleep(LOOK).await;
    }
}
