//! Times in settings and messages, and waiting for one.

use std::time::Duration;

use tokio::time::Instant;

/// Parses a time such as `20ms`, `30s` or `1m`.
///
/// # Errors
/// What was expected.
pub fn parse(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| format!("{text:?} is not a time: expected one such as 20ms, 30s or 1m"))
}

/// Shows a time as [`parse`] takes it.
pub fn show(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

/// Sleeps until then, or for ever where there is no such time.
///
/// Tokio's timers step by a millisecond: whatever is due already must not wait for one.
pub async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
