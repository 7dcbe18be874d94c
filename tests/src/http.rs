//! HTTP as a test's client speaks it: one GET on a connection of its own, no proxy, a status is never an
//! error.

use std::time::Duration;

use anyhow::{Context, Result};
use ureq::Agent;

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body, as text.
    pub body: String,
}

/// GETs a URL within two seconds.
///
/// # Errors
/// No whole response came: refused, reset, cut short, timed out.
pub fn get(url: &str) -> Result<Response> {
    get_within(url, Duration::from_secs(2))
}

/// GETs a URL within the given time.
///
/// # Errors
/// As [`get`].
pub fn get_within(url: &str, time: Duration) -> Result<Response> {
    ask(url, None, time)
}

/// GETs a URL within two seconds, asking for the host of this name.
///
/// # Errors
/// As [`get`].
pub fn get_as(url: &str, host: &str) -> Result<Response> {
    ask(url, Some(host), Duration::from_secs(2))
}

fn ask(url: &str, host: Option<&str>, time: Duration) -> Result<Response> {
    let agent: Agent = Agent::config_builder()
        .timeout_global(Some(time))
        .proxy(None)
        .http_status_as_error(false)
        .max_redirects(0)
        .build()
        .into();
    let mut request = agent.get(url);
    if let Some(host) = host {
        request = request.header("Host", host);
    }
    let mut response = request.call().with_context(|| format!("GET {url}"))?;
    let body = response.body_mut().read_to_string().with_context(|| format!("body of GET {url}"))?;
    Ok(Response { status: response.status().as_u16(), body })
}
