//! SIGHUP: asks to read anew what can be read anew.

use std::io;

use futures_util::StreamExt;
use signal_hook::consts::SIGHUP;
use signal_hook_tokio::Signals;

/// The times that it was asked. Those that come while one is being seen to are one.
pub struct Reloads(Signals);

/// Takes SIGHUP from now on; without it the signal would end the process.
///
/// # Errors
/// The operating system's, where the signal cannot be taken.
pub fn on_signal() -> io::Result<Reloads> {
    Ok(Reloads(Signals::new([SIGHUP])?))
}

impl Reloads {
    /// Waits until it is asked again. Cancel safe.
    pub async fn next(&mut self) {
        if self.0.next().await.is_none() {
            // The stream ends when it is closed, which nobody does.
            std::future::pending().await
        }
    }
}
