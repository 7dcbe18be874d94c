//! Whether the process lives, is ready, and why not: `/healthz`, `/readyz` and `/metrics`.

use std::{
    collections::BTreeMap,
    fmt, io,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, http::StatusCode, http::header::CONTENT_TYPE, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Where the health server listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    Off,
    /// At this address.
    At(SocketAddr),
}

impl FromStr for Listen {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Listen::Off);
        }
        text.parse()
            .map(Listen::At)
            .map_err(|_| "expected ip:port, such as 127.0.0.1:9180, or off".to_owned())
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Off => f.write_str("off"),
            Listen::At(address) => address.fmt(f),
        }
    }
}

/// The conditions of readiness: each named part is well, or has a reason not to be. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Health {
    conditions: Arc<Mutex<BTreeMap<String, Option<String>>>>,
}

impl Health {
    /// The part works.
    pub fn well(&self, part: &str) {
        self.set(part, None);
    }

    /// The part does not work, and why; in a few words on one line.
    pub fn ill(&self, part: &str, reason: impl Into<String>) {
        self.set(part, Some(reason.into()));
    }

    fn set(&self, part: &str, reason: Option<String>) {
        let mut conditions = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        match conditions.get_mut(part) {
            Some(condition) => *condition = reason,
            None => drop(conditions.insert(part.to_owned(), reason)),
        }
    }

    /// Whether every part is well, and a line for each: `ok` or the reason.
    pub fn report(&self) -> (bool, serde_json::Value) {
        let conditions = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = conditions.values().all(Option::is_none);
        let lines: BTreeMap<&str, &str> = conditions
            .iter()
            .map(|(part, reason)| (part.as_str(), reason.as_deref().unwrap_or("ok")))
            .collect();
        (ready, serde_json::json!({ "ready": ready, "conditions": lines }))
    }
}

/// Takes the address to listen at, so that a busy port is known before anything else starts.
///
/// # Errors
/// A sentence naming the setting, its value and the reason.
pub async fn bind(listen: Listen) -> Result<Option<TcpListener>, String> {
    let Listen::At(address) = listen else { return Ok(None) };
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) => Err(format!("--listen is {address}: {error}; expected a free address, or off")),
    }
}

/// Answers until the token is cancelled.
///
/// # Errors
/// The listener's.
pub async fn serve(
    listener: TcpListener,
    health: Health,
    metrics: PrometheusHandle,
    stop: CancellationToken,
) -> io::Result<()> {
    let ready = move || {
        let (ready, report) = health.report();
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        async move { (status, [(CONTENT_TYPE, "application/json")], format!("{report:#}\n")) }
    };
    let metrics = move || {
        let text = metrics.render();
        async move { ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text) }
    };
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics));
    tracing::debug!(address = %listener.local_addr()?, "serving health and metrics");
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// Asks a running process at `listen` whether it lives: what an image's HEALTHCHECK runs.
///
/// # Errors
/// A sentence, where nothing answers or the answer is not 200.
pub fn check(listen: Listen) -> Result<(), String> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let Listen::At(mut address) = listen else {
        return Err("--listen is off: expected the address of the running process".to_owned());
    };
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    let ask = || -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(4096).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| format!("{address} does not answer: {error}"))?;
    match answer.split_ascii_whitespace().nth(1) {
        Some("200") => Ok(()),
        _ => Err(format!("{address} answers {:?}", answer.lines().next().unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_ill_part_is_enough_not_to_be_ready() {
        let health = Health::default();
        health.well("docker");
        health.ill("etcd", "unreachable");
        let (ready, report) = health.report();
        assert!(!ready);
        assert_eq!(report["conditions"]["etcd"], "unreachable");
        health.well("etcd");
        assert!(health.report().0);
    }
}
