//! The agent's program: its command line, and what runs around the agent.

use std::{io, sync::Arc, time::Duration};

use clap::{Parser, Subcommand};
use rollcall_shared::{
    process::{
        cli::Failure,
        health::{self, Explainer, Listen, PrometheusHandle},
        readiness::{Condition, Conditions, Readiness},
        reload::{self, Reloads},
        service::ServiceManager,
        setting::SettingError,
        shutdown,
        telemetry::{self, LogSettings},
        time,
    },
    session::{LeaseSettings, OnExit},
    store::{etcd::EtcdStore, settings::EtcdSettings},
};
use tokio::{net::TcpListener, sync::Notify};
use tokio_util::sync::CancellationToken;

use crate::{Agent, Error, LayoutSettings, Settings, explain, registration::address::Readers};

/// The name under which the readiness report has the claim of this host's name.
const CLAIM: &str = "claim";

/// Registers this Docker host's containers in etcd and delivers signals to them
///
/// SIGHUP has Docker listed anew at once. SIGTERM and SIGINT end it in order, a second one at once.
#[derive(Debug, Parser)]
#[command(name = "rollcall-agent", version, max_term_width = 110, subcommand_negates_reqs = true)]
pub struct Cli {
    /// What to do instead of registering.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The settings.
    #[command(flatten)]
    pub settings: ProgramSettings,
}

/// What to do instead of registering.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Show what is registered of a running container and why, or why not
    Explain {
        /// Its name or ID
        container: String,
    },
    /// Ask the agent that runs at --listen whether it is alive
    Healthcheck,
    /// Show the status of the agent at --listen, one line per part; ends with 1 if none answers
    Status,
}

/// Everything that the program is told.
#[derive(Debug, Clone, clap::Args)]
pub struct ProgramSettings {
    /// How to reach etcd.
    #[command(flatten)]
    pub etcd: EtcdSettings,
    /// The agent.
    #[command(flatten)]
    pub agent: Settings,
    /// Register ports that are bound to the loopback interface too: everyone who reads etcd is on this host
    #[arg(long, env = "ROLLCALL_LOOPBACK", global = true, help_heading = "Node")]
    #[arg(value_parser = clap::builder::FalseyValueParser::new())]
    pub loopback: bool,
    /// What is written beside Rollcall's own keys.
    #[command(flatten)]
    pub layouts: LayoutSettings,
    /// The lease.
    #[command(flatten)]
    pub lease: LeaseSettings,
    /// The process.
    #[command(flatten)]
    pub process: ProcessSettings,
    /// The logs.
    #[command(flatten)]
    pub logs: LogSettings,
}

/// How the process begins and ends.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Process")]
pub struct ProcessSettings {
    /// What becomes of the registrations on SIGTERM and SIGINT
    #[arg(long, env = "ROLLCALL_ON_EXIT", value_name = "WHAT", default_value = "revoke", global = true)]
    pub on_exit: OnExit,
    /// Address of /healthz, /readyz and /metrics, or off
    #[arg(
        long,
        env = "ROLLCALL_LISTEN",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:9180",
        global = true
    )]
    pub listen: Listen,
    /// How long to wait for Docker and etcd at the start before giving up
    #[arg(long, env = "ROLLCALL_WAIT", value_name = "TIME", default_value = "10s", global = true)]
    #[arg(value_parser = time::parse)]
    pub wait: Duration,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// A setting that cannot work, Docker or etcd out of reach at the start, and a node name that is another agent's.
pub async fn run(settings: ProgramSettings) -> Result<(), Failure> {
    let ProgramSettings { etcd, mut agent, loopback, layouts, lease, process, logs: _ } = settings;
    let ProcessSettings { on_exit, listen, wait } = process;
    if etcd.endpoints.is_empty() {
        let expected = "etcd's client URLs, such as http://10.0.0.1:2379";
        return Err(SettingError::missing("--etcd (ETCDCTL_ENDPOINTS)", expected).into());
    }
    etcd.check()?;
    lease.check()?;
    let (keys, readers) = (etcd.prefix.clone(), readers(&etcd, loopback));
    agent.node.check(&readers)?;
    agent.node.node = Some(agent.node.name_beside(&agent.filter.containers)?);
    layouts.check(&keys)?;
    let store = Arc::new(EtcdStore::new(etcd).map_err(Failure::usage)?);
    let stop = shutdown::on_signal().map_err(Failure::failed)?;
    let reloads = reload::on_signal().map_err(Failure::failed)?;
    let metrics = telemetry::start_metrics().map_err(Failure::failed)?;
    let (readiness, relist) = (Readiness::default(), Arc::<Notify>::default());
    let listener = health::bind(listen).await.map_err(Failure::failed)?;
    let attending = attend(readiness.clone(), relist.clone(), reloads, stop.clone());
    let explainer = explain::explainer(agent.clone(), layouts.clone(), keys.clone(), readers.clone());
    let serving = serve(listener, readiness.clone(), metrics, explainer);
    let is_confined = !agent.filter.containers.is_empty();
    let agent = Agent {
        settings: agent,
        lease,
        wait,
        on_exit,
        store,
        keys,
        readers,
        readiness,
        layouts,
        is_confined,
        relist,
    };
    tokio::select! {
        // The others are dropped with the agent; if the server ends by itself, so does the process.
        ended = agent.run(stop) => Ok(ended?),
        served = serving => {
            served.map_err(Failure::failed)?;
            Err(Error::Ended("health server").into())
        }
        () = attending => Err(Error::Ended("service manager's watch").into()),
    }
}

/// Answers until it is dropped, so until the agent has ended.
async fn serve(
    listener: Option<TcpListener>,
    readiness: Readiness,
    metrics: PrometheusHandle,
    explainer: Explainer,
) -> io::Result<()> {
    match listener {
        Some(listener) => {
            health::serve(
                listener,
                readiness,
                metrics,
                health::explaining(explainer),
                CancellationToken::new(),
            )
            .await
        }
        None => std::future::pending().await,
    }
}

/// Tells the service manager how the agent fares. On SIGHUP, lists Docker anew: flags and environment cannot change
/// while a process runs, and certificates are read at each connection anyway.
async fn attend(readiness: Readiness, relist: Arc<Notify>, mut reloads: Reloads, stop: CancellationToken) {
    let service = ServiceManager::from_env();
    let mut conditions = readiness.subscribe();
    let reloading = async {
        // What is wrong after that is in its status and in /readyz, and no reason to be started for ever.
        let is_claimed = |conditions: &Conditions| conditions.get(CLAIM).is_some_and(Condition::is_ready);
        // The readiness lives as long as its subscriber.
        let _ = conditions.wait_for(is_claimed).await;
        service.ready();
        loop {
            reloads.next().await;
            tracing::info!("asked to list Docker anew");
            service.reloading();
            relist.notify_one();
            service.ready();
        }
    };
    tokio::select! {
        // Neither ends by itself.
        () = service.run(readiness, stop) => {}
        () = reloading => {}
    }
}

/// Explains a running container, by name or ID, with the settings of the agent that runs at `--listen`; or with those that
/// are given here, where there are some or no agent runs. That needs no store.
///
/// # Errors
/// As of [`explain::explain`].
pub async fn explain(
    settings: &ProgramSettings,
    container: &str,
    has_own_settings: bool,
) -> Result<String, Failure> {
    let listen = settings.process.listen;
    if !has_own_settings {
        if let Some(text) = health::explain(listen, container).map_err(Failure::failed)? {
            return Ok(text);
        }
        tracing::warn!(%listen, "no agent answers: explaining by the settings that are given here");
    }
    let ProgramSettings { etcd, agent, loopback, layouts, lease: _, process: _, logs: _ } = settings;
    let readers = readers(etcd, *loopback);
    agent.node.check(&readers)?;
    layouts.check(&etcd.prefix)?;
    let mut agent = agent.clone();
    agent.node.node = Some(agent.node.name_beside(&agent.filter.containers)?);
    Ok(explain::explain(&agent, layouts, &etcd.prefix, &readers, container).await?)
}

/// Who reads etcd: any host, unless the operator says otherwise. Where etcd listens does not tell, as it may be reached
/// through a tunnel, a proxy or a published port.
fn readers(etcd: &EtcdSettings, loopback: bool) -> Readers {
    if loopback { Readers::ThisHost } else { Readers::AnyHost { etcd: etcd.first_host().map(str::to_owned) } }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    #[test]
    fn the_flags_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_unknown_flag_is_a_usage_error() {
        for flag in ["--nonsense", "--gather=1s"] {
            let error = Cli::try_parse_from(["rollcall-agent", flag]).expect_err("it is unknown");
            assert_eq!(error.kind(), ErrorKind::UnknownArgument);
        }
    }

    #[test]
    fn etcd_is_read_by_any_host_unless_the_operator_says_otherwise() {
        let read_by = |flags: &[&str]| {
            let settings = Cli::parse_from([&["rollcall-agent"], flags].concat()).settings;
            readers(&settings.etcd, settings.loopback)
        };
        for etcd in ["127.0.0.1:2379", "10.0.0.1:2379"] {
            assert_eq!(read_by(&["--etcd", etcd]), Readers::AnyHost { etcd: Some(etcd.to_owned()) });
            assert_eq!(read_by(&["--etcd", etcd, "--loopback"]), Readers::ThisHost);
        }
    }
}
