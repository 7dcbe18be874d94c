//! The consumer's binary: flags in, exit code out.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use rollcall_consumer::{
    Failure, run,
    settings::{Cli, Command},
    usage,
};
use rollcall_shared::{health, telemetry};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(help) if !help.use_stderr() => {
            print!("{}", help.render());
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&Failure::Usage(usage(&error))),
    };
    match work(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure),
    }
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

fn fail(failure: &Failure) -> ExitCode {
    eprintln!("rollcall-consumer: error: {failure}");
    match failure {
        Failure::Usage(_) => ExitCode::from(2),
        Failure::Failed(_) => ExitCode::FAILURE,
    }
}
