//! The consumer's binary: flags in, exit code out.

use std::{process::ExitCode, time::Duration};

use rollcall_consumer::{
    run,
    settings::{Cli, Command},
};
use rollcall_shared::{
    cli::{self, Failure},
    health, telemetry,
};

fn main() -> ExitCode {
    cli::end("rollcall-consumer", work(cli::parse()))
}

fn work(Cli { command, settings }: Cli) -> Result<(), Failure> {
    if let Some(Command::Healthcheck) = command {
        return health::check(settings.consumer.listen).map_err(Failure::Failed);
    }
    telemetry::start_logs(&settings.logs).map_err(Failure::Usage)?;
    // One thread: what a change causes is many small steps in a row, and waking another thread for each
    // takes longer than the step. What blocks has threads of its own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Failed(format!("cannot start: {error}")))?;
    let result = runtime.block_on(run(settings));
    // A file that is just being written may be finished; a command that hangs may not hold us up.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}
