//! The consumer's binary: arguments in, exit code out.

use std::{process::ExitCode, time::Duration};

use rollcall_consumer::{
    config::{Cli, Command, backends_updater},
    explain, run,
};
use rollcall_shared::process::{
    cli::{self, Failure},
    error::one_line,
    health, telemetry,
};

/// A file that is just being written may be finished; a command that hangs may not keep the process.
const BLOCKING_TIMEOUT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    cli::end("rollcall-consumer", start())
}

fn start() -> Result<(), Failure> {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let understood = backends_updater::understand(std::env::args_os().collect(), is_set)?;
    let Cli { command, mut settings } = cli::parse_from(understood.args);
    let listen = settings.consumer.listen;
    match &command {
        Some(Command::Healthcheck) => return health::check(listen).map_err(Failure::failed),
        Some(Command::Status) => {
            return cli::print(&health::status(listen).map_err(Failure::failed)?).map_err(Failure::failed);
        }
        Some(other) => settings.citus.tool = other.tool(),
        None => {}
    }
    telemetry::start_logs(&settings.logs)?;
    understood.notes.iter().for_each(|note| tracing::warn!("{note}"));
    // One thread: what a change causes is many small steps in a row, and waking another thread for each takes longer
    // than the step. What blocks has threads of its own.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    let result = runtime.block_on(async {
        match command {
            Some(Command::Explain { container }) => {
                cli::print(&explain(settings, &container).await?).map_err(Failure::failed)
            }
            Some(Command::Citus(command)) => {
                let done = command.run().await.map_err(|error| Failure::failed(one_line(&error)))?;
                cli::print(&(done + "\n")).map_err(Failure::failed)
            }
            _ => run(settings).await,
        }
    });
    runtime.shutdown_timeout(BLOCKING_TIMEOUT);
    result
}
