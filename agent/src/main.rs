//! The agent's binary: arguments in, exit code out.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use rollcall_agent::program::{self, Cli, Command};
use rollcall_shared::process::{
    cli::{self, Failure},
    health, telemetry,
};

fn main() -> ExitCode {
    cli::end("rollcall-agent", start(cli::parse()))
}

fn start(Cli { command, settings }: Cli) -> Result<(), Failure> {
    telemetry::start_logs(&settings.logs)?;
    // One thread: what an event causes is many small steps in a row, and waking another thread for each takes longer
    // than the step.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    let result = match command {
        Some(Command::Healthcheck) => health::check(settings.process.listen).map_err(Failure::failed),
        Some(Command::Explain { container }) => {
            runtime.block_on(program::explain(&settings, &container)).and_then(|text| print(&text))
        }
        None => runtime.block_on(program::run(settings)),
    };
    // A lookup of a name that hangs may not keep the process, and there is nothing to finish.
    runtime.shutdown_background();
    result
}

/// A reader that has read enough is no failure.
fn print(text: &str) -> Result<(), Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::failed(error)),
        _ => Ok(()),
    }
}
