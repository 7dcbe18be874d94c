//! The agent: registers the running containers of one Docker host in the store, and delivers signals to
//! them.
//!
//! ```text
//! docker events, inspect, list -> watcher(containers) -> registrar(desired -> plan) -> store
//! store signals -> deliverer(deliveries) -> kill -> acks -> registrar -> store
//! ```

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use rollcall_shared::{
    cli::Failure,
    health::Health,
    key::Keys,
    record::{self, LeaseSettings, NodeRecord},
    reflector::Reflector,
    retry::Retry,
    session::SessionError,
    signal::{Selector, Signal},
    store::{Store, StoreError},
    wire::V1,
};
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

pub mod settings;

pub mod container;
pub mod containers;
pub mod docker;
pub mod watcher;

pub mod address;
pub mod advertise;
pub mod desired;
pub mod explain;
pub mod filter;
pub mod metadata;

pub mod gather;
pub mod plan;
pub mod registered;
pub mod registrar;

pub mod deliverer;
pub mod deliveries;
pub mod kill;

pub use registrar::OnExit;
pub use settings::Settings;

use address::AddressPolicy;
use deliverer::Deliverer;
use deliveries::Rules;
use desired::Policy;
use docker::{Docker, DockerError};
use kill::Killer;
use registrar::Registrar;
use settings::{AddressMode, Allowed};
use watcher::Watcher;

/// Why an agent could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting cannot work.
    #[error("{0}")]
    Setting(String),
    /// Docker cannot be reached.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// The store cannot be reached.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The node's claim is another's.
    #[error(transparent)]
    Claim(#[from] SessionError),
    /// A part that runs for ever has ended.
    #[error("the agent's {0} has ended unasked")]
    Ended(&'static str),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Setting(_)
            | Error::Docker(DockerError::Setting(_))
            | Error::Store(StoreError::Invalid(_)) => Failure::Usage(error.to_string()),
            error => Failure::Failed(error.to_string()),
        }
    }
}

/// Where an agent registers, and for whom.
#[derive(Debug, Clone)]
pub struct Place {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Its keys.
    pub keys: Keys,
    /// etcd's host and port, towards which the advertised address is found.
    pub towards: Option<String>,
    /// Whether those who read the store are on this host, so that loopback addresses are of use.
    pub local: bool,
}

/// How an agent begins, goes on and ends.
#[derive(Debug, Clone, Copy)]
pub struct Life {
    /// How long to wait for Docker and the store at the start.
    pub wait: Duration,
    /// Its lease.
    pub lease: LeaseSettings,
    /// What becomes of the registrations at the end.
    pub on_exit: OnExit,
}

/// Runs an agent until it is asked to stop.
///
/// # Errors
/// Settings that cannot work, and Docker or the store out of reach at the start. Later it retries and
/// says so in `health`; only a claim that is lost to another ends it.
pub async fn run(
    settings: Settings,
    life: Life,
    place: Place,
    health: Health,
    stop: CancellationToken,
) -> Result<(), Error> {
    let policy = policy(&settings, &place)?;
    let Settings { docker: docker_settings, node: _, choice, signals } = settings;
    let Place { store, keys, towards: _, local: _ } = place;
    let Life { wait, lease, on_exit } = life;
    let (docker, engine) = patiently(wait, || async {
        let docker = Docker::connect(&docker_settings).await?;
        let engine = docker.engine_id().await?;
        Ok((docker, engine))
    })
    .await?;
    let standing = patiently(wait, || async { Ok(store.list(&keys.acks_of(&policy.node)).await?) }).await?;
    let acks = Deliverer::read_acks(&keys, &standing.entries);
    let record = NodeRecord {
        v: V1,
        engine,
        holder: record::new_holder(),
        advertise: Some(policy.address.advertised.to_string()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: Timestamp::now(),
        ttl_seconds: lease.ttl.as_secs(),
    };
    let rules = Rules { allowed: signals.allow, settle: signals.signal_settle };
    let (ack_sender, ack_receiver) = watch::channel(plan::Values::new());

    let (watcher, seen) = Watcher::new(
        docker.clone(),
        lease.refresh,
        docker_settings.docker_grace,
        choice.gather,
        health.clone(),
    );
    let (reflector, requests) = Reflector::new(store.clone(), keys.signals(), health.clone(), "signals");
    let node = policy.node.clone();
    let killer = Killer::new(docker);
    let deliverer = Deliverer { killer, node, keys: keys.clone(), rules, acks, published: ack_sender };
    let registrar = Registrar {
        store,
        keys,
        record,
        refresh: lease.refresh,
        policy,
        on_exit,
        health,
        seen: seen.clone(),
        acks: ack_receiver,
    };

    let mut background = JoinSet::new();
    background.spawn(async move {
        watcher.run().await;
        "watcher"
    });
    background.spawn(async move {
        // In one task, so that a request is handed on without another one being woken.
        tokio::join!(biased; reflector.run(), deliverer.run(requests, seen));
        "deliverer"
    });
    tokio::select! {
        // The registrar ends by the token; the others are dropped with the set.
        registered = registrar.run(stop) => Ok(registered?),
        Some(ended) = background.join_next() => Err(Error::Ended(ended.unwrap_or("task"))),
    }
}

/// Runs an agent inside a consumer, on its memory store. `allowed` are the signals of the consumer's own
/// targets.
///
/// # Errors
/// As of [`run`].
pub async fn embedded(
    mut settings: Settings,
    life: Life,
    store: Arc<dyn Store>,
    keys: Keys,
    allowed: Vec<(Selector, Signal)>,
    health: Health,
    stop: CancellationToken,
) -> Result<(), Error> {
    let rule = |(to, signal)| Allowed { signal, to: Some(to) };
    settings.signals.allow.extend(allowed.into_iter().map(rule));
    let place = Place { store, keys, towards: None, local: true };
    run(settings, life, place, health, stop).await
}

/// What the settings say about how containers are registered.
///
/// # Errors
/// A setting that cannot work.
pub fn policy(settings: &Settings, place: &Place) -> Result<Policy, Error> {
    let node = settings.node_name().map_err(Error::Setting)?;
    let advertised =
        advertise::resolve(&settings.node.advertise, place.towards.as_deref()).map_err(Error::Setting)?;
    let mode = settings.node.address.clone().unwrap_or(AddressMode::Host);
    let ports = settings.node.ports.clone();
    let address = AddressPolicy { mode, advertised, loopback: place.local, ports };
    Ok(Policy { node, choice: settings.choice.clone(), address })
}

/// Explains one running container, by name or ID.
///
/// # Errors
/// Settings that cannot work, Docker out of reach, or no such running container.
pub async fn explain(settings: &Settings, place: &Place, container: &str) -> Result<String, Error> {
    let policy = policy(settings, place)?;
    let docker = Docker::connect(&settings.docker).await?;
    let Some(found) = docker.inspect(container).await? else {
        return Err(Error::Setting(format!("{container:?} is not a running container of this host")));
    };
    let running = containers::Running { container: Arc::new(found), draining: false };
    let allow = |rule: &Allowed| match &rule.to {
        Some(to) => format!("{} to {to}", rule.signal),
        None => rule.signal.to_string(),
    };
    let allowed: Vec<String> = settings.signals.allow.iter().map(allow).collect();
    Ok(explain::explain(&running, &policy, &place.keys, &allowed))
}

/// Tries until it works, for at most `patience`: what is not there when a host boots may be a moment later.
async fn patiently<T, F>(patience: Duration, mut attempt: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut retry = Retry::new(Duration::from_millis(100), Duration::from_secs(1));
    let deadline = Instant::now() + patience;
    loop {
        match attempt().await {
            Err(Error::Docker(DockerError::Call { .. }) | Error::Store(StoreError::Unavailable(_)))
                if Instant::now() < deadline =>
            {
                tokio::time::sleep_until(deadline.min(Instant::now() + retry.next_delay())).await;
            }
            tried => return tried,
        }
    }
}
