//! How a consumer's targets fare, as it says by HTTP (`/v1/targets`).

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{http, until};

/// How a target fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// SYNCED, HELD, STALE or FAILED.
    pub state: String,
    /// Why, or what is worth a look.
    pub reason: Option<String>,
}

/// How the targets of the consumer at this address fare, by their names.
///
/// # Errors
/// It does not answer.
pub fn targets(listen: &str) -> Result<BTreeMap<String, Status>> {
    let body = http::get(&format!("http://{listen}/v1/targets"))?.body;
    let all: Vec<Value> = serde_json::from_str(&body).with_context(|| body.clone())?;
    let text = |target: &Value, key: &str| target[key].as_str().map(str::to_owned);
    let one = |target: &Value| {
        let state = text(target, "state").with_context(|| format!("it has a state: {target}"))?;
        let name = text(target, "name").with_context(|| format!("it has a name: {target}"))?;
        Ok((name, Status { state, reason: text(target, "reason") }))
    };
    all.iter().map(one).collect()
}

/// Waits until a target fares like that, for a reason that has this in it; gives the reason.
///
/// # Errors
/// It does not within the time; the message has how it fares.
pub fn until_target(
    listen: &str,
    name: &str,
    state: &str,
    reason: &str,
    timeout: Duration,
) -> Result<String> {
    let mut last = None;
    until(&format!("target {name} is {state} ({reason})"), timeout, || {
        last = targets(listen)?.remove(name);
        let reached = |last: &Status| last.state == state && last.reason().contains(reason);
        Ok(last.as_ref().filter(|last| reached(last)).map(|last| last.reason().to_owned()))
    })
    .with_context(|| format!("last: {last:?}"))
}

impl Status {
    /// The reason, or nothing.
    pub fn reason(&self) -> &str {
        self.reason.as_deref().unwrap_or_default()
    }
}
