//! The agent's binary: flags in, exit code out.

use std::{process::ExitCode, sync::Arc, time::Duration};

use clap::{Parser, Subcommand};
use rollcall_agent::{Life, OnExit, Place, Settings};
use rollcall_shared::{
    cli::{self, Failure},
    health::{self, Health, Listen},
    record::LeaseSettings,
    shutdown,
    store::{etcd::EtcdStore, settings::EtcdSettings},
    telemetry::{self, LogSettings},
};

/// Registers this Docker host's containers in etcd and delivers signals to them
#[derive(Debug, Parser)]
#[command(name = "rollcall-agent", version, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    etcd: EtcdSettings,
    #[command(flatten)]
    agent: Settings,
    #[command(flatten)]
    lease: LeaseSettings,
    #[command(flatten)]
    process: ProcessSettings,
    #[command(flatten)]
    logs: LogSettings,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Process")]
struct ProcessSettings {
    /// What becomes of the registrations on SIGTERM and SIGINT
    #[arg(long, env = "ROLLCALL_ON_EXIT", value_name = "WHAT", default_value = "revoke", global = true)]
    on_exit: OnExit,
    /// Address of /healthz, /readyz and /metrics, or off
    #[arg(
        long,
        env = "ROLLCALL_LISTEN",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:9180",
        global = true
    )]
    listen: Listen,
    /// How long to wait for Docker and etcd at the start before giving up
    #[arg(long, env = "ROLLCALL_WAIT", value_name = "TIME", default_value = "10s", global = true)]
    #[arg(value_parser = humantime::parse_duration)]
    wait: Duration,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what would be registered of a running container and why, or why not
    Explain {
        /// Its name or ID
        container: String,
    },
    /// Ask the running agent at --listen whether it lives
    Healthcheck,
}

fn main() -> ExitCode {
    cli::end("rollcall-agent", run(cli::parse()))
}

fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { command, etcd, agent, lease, process, logs } = cli;
    telemetry::start_logs(&logs).map_err(Failure::Usage)?;
    // One thread: what an event causes is many small steps in a row, and waking another thread for each
    // takes longer than the step.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Failed(format!("cannot start: {error}")))?;
    match command {
        Some(Command::Healthcheck) => health::check(process.listen).map_err(Failure::Failed),
        Some(Command::Explain { container }) => {
            let text = runtime.block_on(explain(etcd, agent, &container))?;
            print!("{text}");
            Ok(())
        }
        None => runtime.block_on(serve(etcd, agent, lease, process)),
    }
}

async fn explain(etcd: EtcdSettings, agent: Settings, container: &str) -> Result<String, Failure> {
    // No store is needed to say what would be written to it.
    let store = Arc::new(rollcall_shared::store::memory::MemoryStore::new());
    let place = Place {
        store,
        keys: etcd.prefix.clone(),
        towards: etcd.first_host().map(str::to_owned),
        local: etcd.is_local(),
    };
    rollcall_agent::explain(&agent, &place, container).await.map_err(Failure::from)
}

async fn serve(
    etcd: EtcdSettings,
    agent: Settings,
    lease: LeaseSettings,
    process: ProcessSettings,
) -> Result<(), Failure> {
    if etcd.endpoints.is_empty() {
        let error = "--etcd (ETCDCTL_ENDPOINTS) is not given: expected etcd's client URLs, such as http://10.0.0.1:2379";
        return Err(Failure::Usage(error.to_owned()));
    }
    etcd.check().and_then(|()| lease.check()).map_err(Failure::Usage)?;
    let place = Place {
        keys: etcd.prefix.clone(),
        towards: etcd.first_host().map(str::to_owned),
        local: etcd.is_local(),
        store: Arc::new(EtcdStore::new(etcd).map_err(|error| Failure::Usage(error.to_string()))?),
    };
    let ProcessSettings { on_exit, listen, wait } = process;
    let stop =
        shutdown::on_signal().map_err(|error| Failure::Failed(format!("cannot take signals: {error}")))?;
    let metrics = telemetry::start_metrics().map_err(Failure::Failed)?;
    let health = Health::default();
    if let Some(listener) = health::bind(listen).await.map_err(Failure::Failed)? {
        tokio::spawn(health::serve(listener, health.clone(), metrics, stop.clone()));
    }
    let life = Life { wait, lease, on_exit };
    rollcall_agent::run(agent, life, place, health, stop).await.map_err(Failure::from)
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
        let error = Cli::try_parse_from(["rollcall-agent", "--nonsense"]).expect_err("it is unknown");
        assert_eq!(error.kind(), ErrorKind::UnknownArgument);
    }
}
