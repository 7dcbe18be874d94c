//! The consumer's binary: arguments in, exit code out.

use std::{process::ExitCode, time::Duration};

use rollcall_consumer::{
    config::{Cli, Command},
    run,
};
use rollcall_shared::process::{
    cli::{self, Failure},
    health, telemetry,
};

/// A file that is just being written may be finished; a command that hangs may not keep the process.
const BLOCKING_TIMEOUT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    cli::end("rollcall-consumer", start(cli::parse()))
}

fn start(Cli { command, settings }: Cli) -> Result<(), Failure> {
    if let Some(Command::Healthcheck) = command {
        return health::check(settings.consumer.listen).map_err(Failure::failed);
    }
    telemetry::start_logs(&settings.logs)?;
    // One thread: what a change causes is many small steps in a row, and waking another thread for each takes longer
    // than the step. What blocks has threads of its own.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    let result = runtime.block_on(run(settings));
    runtime.shutdown_timeout(BLOCKING_TIMEOUT);
    result
}
