//! SIGTERM and SIGINT: the first asks everything to end, the second ends the process at once.

use std::io;

use futures_util::StreamExt;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;
use tokio_util::sync::CancellationToken;

/// Gives a token that the first SIGTERM or SIGINT cancels. The second one ends the process with the
/// exit code 1.
///
/// # Errors
/// The operating system's, where the signals cannot be taken.
pub fn on_signal() -> io::Result<CancellationToken> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let token = CancellationToken::new();
    let first = token.clone();
    tokio::spawn(async move {
        while let Some(signal) = signals.next().await {
            let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
            if first.is_cancelled() {
                tracing::warn!(signal = name, "asked to stop again: ending at once");
                std::process::exit(1);
            }
            tracing::info!(signal = name, "asked to stop");
            first.cancel();
        }
    });
    Ok(token)
}
