//! The embedded mode: without etcd, the agent runs within this process on the memory store.
//!
//! One process beside one Docker socket then does what docker-gen does. This file and the settings alone know the agent.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use rollcall_agent::{
    AddressMode, Agent, LayoutSettings, Port,
    exec::AllowedCommand,
    explain::explainer,
    registration::{self, address::Readers},
    signals::Allowed,
};
use rollcall_shared::{
    keys::Keys,
    model::{check::CheckRule, instance::Protocol, signal::Delivery},
    process::{
        cli::Failure,
        health::{self, Explainer},
        readiness::{Condition, Readiness},
        setting::SettingError,
    },
    session::{LeaseSettings, OnExit},
    store::Store,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{CITUS_PORT, Plan, Settings, TargetConfig},
    sink::file::{Check, notify::Notify, render::Format},
};

/// The agent within this process.
#[derive(Debug)]
pub struct Embedded {
    settings: rollcall_agent::Settings,
    lease: LeaseSettings,
    wait: Duration,
}

impl Embedded {
    /// An agent for the plan: it lets out the labels that the targets select by, and allows the signals that they send and the
    /// checks that they have run.
    /// Nobody else can read its store.
    pub fn new(
        mut settings: rollcall_agent::Settings,
        lease: LeaseSettings,
        wait: Duration,
        plan: &Plan,
    ) -> Self {
        let labels = plan.targets.iter().flat_map(|target| &target.select.labels);
        settings.filter.export_labels.extend(labels.map(|label| label.name.clone()));
        if plan.citus {
            // As workerlist-gen wrote them: by name, with the port that every worker listens at.
            settings.node.address.get_or_insert(AddressMode::Name);
            if settings.node.ports.is_empty() {
                settings.node.ports.push(Port { number: CITUS_PORT, protocol: Protocol::Tcp });
            }
        }
        if plan.targets.iter().all(|target| target.sink.format() == Some(Format::NginxProxy)) {
            // As nginx-proxy reaches them: on a network that it shares with them, at ports that are not published.
            settings.node.address.get_or_insert(AddressMode::Network(None));
        }
        let deliveries = plan.targets.iter().filter_map(delivery).cloned();
        settings.signals.allow.extend(deliveries.map(Allowed::from));
        settings.exec.commands.extend(plan.targets.iter().filter_map(check).map(AllowedCommand::from));
        Self { settings, lease, wait }
    }

    /// Explains containers as this agent registers them.
    pub fn explainer(&self, keys: Keys) -> Explainer {
        explainer(self.settings.clone(), LayoutSettings::default(), keys, Readers::ThisHost)
    }

    /// Runs until it is stopped.
    ///
    /// # Errors
    /// The agent's.
    pub async fn run(
        self,
        store: Arc<dyn Store>,
        keys: Keys,
        readiness: Readiness,
        stop: CancellationToken,
    ) -> Result<(), rollcall_agent::Error> {
        let Self { settings, lease, wait } = self;
        // The memory store ends with this process, and its one reader is on this host.
        let agent = Agent {
            settings,
            lease,
            wait,
            on_exit: OnExit::Revoke,
            store,
            keys,
            readers: Readers::ThisHost,
            readiness,
            layouts: LayoutSettings::default(),
            is_confined: false,
            relist: Arc::default(),
        };
        agent.run(stop).await
    }
}

/// Checks that the agent that was started for one plan serves another as well.
///
/// # Errors
/// A target that selects by a label which that agent keeps to itself, or sends a signal or has a check run which it does not
/// allow.
pub fn check_reload(first: &Plan, plan: &Plan) -> Result<(), SettingError> {
    let labels = |plan: &Plan| -> BTreeSet<String> {
        let all = plan.targets.iter().flat_map(|target| &target.select.labels);
        all.map(|label| label.name.clone()).collect()
    };
    let expected = "a restart: without etcd, the agent within this process was started without it";
    if let Some(label) = labels(plan).difference(&labels(first)).next() {
        return Err(SettingError::new("select.labels", label, expected));
    }
    let checks: Vec<CheckRule> = first.targets.iter().filter_map(check).collect();
    if let Some(check) = plan.targets.iter().filter_map(check).find(|check| !checks.contains(check)) {
        return Err(SettingError::new("check", AllowedCommand::from(check), expected));
    }
    let known: Vec<&Delivery> = first.targets.iter().filter_map(delivery).collect();
    match plan.targets.iter().filter_map(delivery).find(|delivery| !known.contains(delivery)) {
        Some(delivery) => Err(SettingError::new("notify", delivery, expected)),
        None => Ok(()),
    }
}

/// The containers that a target signals, if it does.
pub fn delivery(target: &TargetConfig) -> Option<&Delivery> {
    match target.sink.notify() {
        Some(Notify::Signal(delivery)) => Some(delivery),
        Some(Notify::PidFile { .. } | Notify::Command { .. }) | None => None,
    }
}

/// The containers in which a target has its files checked, if it has.
fn check(target: &TargetConfig) -> Option<CheckRule> {
    target.sink.file()?.check.as_ref().and_then(Check::rule)
}

/// Explains a container of this host, with the settings of the consumer that runs at `--listen`, or with these where none
/// runs.
///
/// # Errors
/// No such container, or no agent within this process that could explain it.
pub async fn explain(settings: Settings, container: &str) -> Result<String, Failure> {
    let listen = settings.consumer.listen;
    if let Some(text) = health::explain(listen, container).map_err(Failure::failed)? {
        return Ok(text);
    }
    let plan = settings.plan()?;
    if !plan.embedded {
        let expected = "none: beside etcd it is the agent that explains a container";
        return Err(SettingError::new("--etcd", "given", expected).into());
    }
    tracing::warn!(%listen, "no consumer answers: explaining by the settings that are given here");
    let Settings { consumer, agent, lease, etcd, .. } = settings;
    let explainer = Embedded::new(agent, lease, consumer.wait, &plan).explainer(etcd.prefix);
    explainer(container.to_owned()).await.map_err(Failure::failed)
}

/// The failure of an agent that was started because there is no etcd.
pub fn failure(failure: Failure) -> Failure {
    match failure {
        Failure::Failed(_) => Failure::failed(format!("without --etcd, Docker is asked here: {failure}")),
        usage => usage,
    }
}

/// Waits until the agent has registered what runs: before that the empty store says nothing.
pub async fn registered(readiness: &Readiness) {
    let mut conditions = readiness.subscribe();
    let is_registered = conditions
        .wait_for(|conditions| conditions.get(registration::PART).is_some_and(Condition::is_ready))
        .await
        .is_ok();
    debug_assert!(is_registered, "the readiness lives as long as its subscriber");
}
