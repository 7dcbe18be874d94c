//! The agent's binary: arguments in, exit code out.

use std::process::ExitCode;

use rollcall_agent::program::{self, Cli, Command};
use rollcall_shared::process::{
    cli::{self, Failure},
    health, telemetry,
};

fn main() -> ExitCode {
    cli::end("rollcall-agent", start(cli::parse()))
}

fn start(Cli { command, settings }: Cli) -> Result<(), Failure> {
    let has_own_settings =
        cli::has_flags(std::env::args_os().skip(1), &["--listen", "--log", "--log-format"]);
    telemetry::start_logs(&settings.logs)?;
    // One thread: what an event causes is many small steps in a row, and waking another thread for each takes longer
    // than the step.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    let result = match command {
        Some(Command::Healthcheck) => health::check(settings.process.listen).map_err(Failure::failed),
        Some(Command::Status) => health::status(settings.process.listen)
            .map_err(Failure::failed)
            .and_then(|text| cli::print(&text).map_err(Failure::failed)),
        Some(Command::Explain { container }) => {
            let explained = runtime.block_on(program::explain(&settings, &container, has_own_settings));
            explained.and_then(|text| cli::print(&text).map_err(Failure::failed))
        }
        None => runtime.block_on(program::run(settings)),
    };
    // A lookup of a name that hangs may not keep the process, and there is nothing to finish.
    runtime.shutdown_background();
    result
}
