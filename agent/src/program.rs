//! The agent's program: its command line, and what runs around the agent.

use std::{sync::Arc, time::Duration};

use clap::{Parser, Subcommand};
use rollcall_shared::{
    process::{
        cli::Failure,
        health::{self, Listen},
        readiness::Readiness,
        setting::SettingError,
        shutdown,
        telemetry::{self, LogSettings},
        time,
    },
    session::{LeaseSettings, OnExit},
    store::{etcd::EtcdStore, settings::EtcdSettings},
};
use tokio_util::sync::CancellationToken;

use crate::{Agent, Error, Settings, explain, registration::address::Readers};

/// Registers this Docker host's containers in etcd and delivers signals to them
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
    /// Say what would be registered of a running container and why, or why not
    Explain {
        /// Its name or ID
        container: String,
    },
    /// Ask the agent that runs at --listen whether it is alive
    Healthcheck,
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
    let ProgramSettings { etcd, agent, lease, process, logs: _ } = settings;
    let ProcessSettings { on_exit, listen, wait } = process;
    if etcd.endpoints.is_empty() {
        let expected = "etcd's client URLs, such as http://10.0.0.1:2379";
        return Err(SettingError::missing("--etcd (ETCDCTL_ENDPOINTS)", expected).into());
    }
    etcd.check()?;
    lease.check()?;
    let (keys, readers) = (etcd.prefix.clone(), readers(&etcd));
    let store = Arc::new(EtcdStore::new(etcd).map_err(Failure::usage)?);
    let stop = shutdown::on_signal().map_err(Failure::failed)?;
    let metrics = telemetry::start_metrics().map_err(Failure::failed)?;
    let readiness = Readiness::default();
    let listener = health::bind(listen).await.map_err(Failure::failed)?;
    let agent =
        Agent { settings: agent, lease, wait, on_exit, store, keys, readers, readiness: readiness.clone() };
    let Some(listener) = listener else { return Ok(agent.run(stop).await?) };
    // It answers until the agent has ended.
    let never = CancellationToken::new();
    tokio::select! {
        // The server is dropped with the agent; if it ends by itself, so does the process.
        ended = agent.run(stop) => Ok(ended?),
        served = health::serve(listener, readiness, metrics, never) => {
            served.map_err(Failure::failed)?;
            Err(Error::Ended("health server").into())
        }
    }
}

/// Explains a running container, by name or ID. That needs no store.
///
/// # Errors
/// As of [`explain::explain`].
pub async fn explain(settings: &ProgramSettings, container: &str) -> Result<String, Failure> {
    let ProgramSettings { etcd, agent, lease: _, process: _, logs: _ } = settings;
    Ok(explain::explain(agent, &etcd.prefix, &readers(etcd), container).await?)
}

/// Who reads etcd: this host alone, where it listens there alone.
fn readers(etcd: &EtcdSettings) -> Readers {
    match etcd.first_host() {
        Some(host) if !etcd.is_local() => Readers::AnyHost { etcd: host.to_owned() },
        Some(_) | None => Readers::ThisHost,
    }
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
    fn an_etcd_on_the_loopback_interface_is_read_by_this_host_alone() {
        for (etcd, expected) in [
            ("http://127.0.0.1:2379", Readers::ThisHost),
            ("http://10.0.0.1:2379", Readers::AnyHost { etcd: "10.0.0.1:2379".to_owned() }),
        ] {
            let cli = Cli::parse_from(["rollcall-agent", "--etcd", etcd]);
            assert_eq!(readers(&cli.settings.etcd), expected);
        }
    }
}
