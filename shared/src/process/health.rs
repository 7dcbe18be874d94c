//! The HTTP server of `/healthz`, `/readyz` and `/metrics`, and of `/explain/CONTAINER` for this host's own processes.

use std::{
    collections::BTreeMap,
    fmt, io,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::{ConnectInfo, Path},
    http::{
        HeaderMap, StatusCode,
        header::{CONTENT_TYPE, HOST},
        uri::Authority,
    },
    routing::get,
};
use futures_util::future::BoxFuture;
pub use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::model::name::ContainerName;

use super::{
    readiness::{Condition, Conditions, Readiness},
    setting::SettingError,
};

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

/// Takes the address to listen at, so that a busy port is known before anything else starts.
///
/// # Errors
/// An address that cannot be listened at.
pub async fn bind(listen: Listen) -> Result<Option<TcpListener>, SettingError> {
    let Listen::At(address) = listen else { return Ok(None) };
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let taken = format!("{address}, where another process listens");
            Err(SettingError::new("--listen", taken, "another port, or off"))
        }
        Err(error) => Err(SettingError::caused("--listen", address, error)),
    }
}

/// Explains a container by name or ID, with the settings of the process that runs; or says why it cannot.
pub type Explainer = Arc<dyn Fn(String) -> BoxFuture<'static, Result<String, String>> + Send + Sync>;

/// The routes of an explainer. What it tells of a container is for this host: others are refused.
pub fn explaining(explainer: Explainer) -> Router {
    let explain = async move |ConnectInfo(peer): ConnectInfo<SocketAddr>,
                              headers: HeaderMap,
                              Path(container): Path<String>| {
        if !peer.ip().to_canonical().is_loopback() || !is_meant_for_loopback(&headers) {
            return (StatusCode::FORBIDDEN, "only this host is answered\n".to_owned());
        }
        match explainer(container).await {
            Ok(text) => (StatusCode::OK, text),
            Err(reason) => (StatusCode::NOT_FOUND, reason + "\n"),
        }
    };
    Router::new().route("/explain/{container}", get(explain))
}

/// Whether a request is addressed to the loopback interface, as far as it says to whom. A web page that had its own name
/// resolve to this host would read what is told here, in the browser of somebody who works on it.
fn is_meant_for_loopback(headers: &HeaderMap) -> bool {
    let is_loopback = |host: &str| match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    };
    headers.get_all(HOST).iter().all(|value| {
        let authority = value.to_str().ok().and_then(|text| text.parse::<Authority>().ok());
        authority.is_some_and(|authority| is_loopback(authority.host()))
    })
}

/// Answers until the token is cancelled, also what there is `more` than health and metrics.
///
/// # Errors
/// The listener's.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    metrics: PrometheusHandle,
    more: Router,
    stop: CancellationToken,
) -> io::Result<()> {
    let ready = move || {
        let conditions = readiness.conditions();
        let status = if conditions.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let text = serde_json::to_string_pretty(&report(&conditions)).expect("texts can be written") + "\n";
        async move { (status, [(CONTENT_TYPE, "application/json")], text) }
    };
    let metrics = move || {
        let text = metrics.render();
        async move { ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text) }
    };
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .merge(more);
    tracing::debug!(address = %listener.local_addr()?, "serving health and metrics");
    let router = router.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// What `/readyz` says.
#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Report {
    ready: bool,
    conditions: BTreeMap<String, String>,
}

fn report(conditions: &Conditions) -> Report {
    let line = |(part, condition): (&str, &Condition)| (part.to_owned(), condition.to_string());
    Report { ready: conditions.is_ready(), conditions: conditions.iter().map(line).collect() }
}

/// Why a process does not count as healthy.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// It serves no health.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// Nothing answers.
    #[error("{address} does not answer")]
    NoAnswer {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// It cannot explain a container.
    #[error("{address} says: {reason}")]
    Unexplained {
        /// Where.
        address: SocketAddr,
        /// Why not.
        reason: String,
    },
    /// It answers something else than 200.
    #[error("{address} answers {answer:?}")]
    Unhealthy {
        /// Where.
        address: SocketAddr,
        /// The first line of the answer.
        answer: String,
    },
}

/// Asks a running process at `listen` whether it lives: what an image's HEALTHCHECK runs.
///
/// # Errors
/// Nothing answers, or the answer is not 200.
pub fn check(listen: Listen) -> Result<(), CheckError> {
    let (address, answer) = ask(listen, "/healthz")?;
    match answer.split_ascii_whitespace().nth(1) {
        Some("200") => Ok(()),
        _ => Err(unhealthy(address, &answer)),
    }
}

/// How a running process at `listen` fares: a line for the whole, and one for each part.
///
/// # Errors
/// Nothing answers there, or something else than a process of ours.
pub fn status(listen: Listen) -> Result<String, CheckError> {
    let (address, answer) = ask(listen, "/readyz")?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let Ok(Report { ready, conditions }) = serde_json::from_str(body) else {
        return Err(unhealthy(address, &answer));
    };
    let whole = if ready { "ready" } else { "not ready" };
    let lines = conditions.iter().map(|(part, condition)| format!("  {part}: {condition}\n"));
    Ok(format!("{whole}\n{}", lines.collect::<String>()))
}

/// What the process that runs at `listen` explains of a container; `None` where none runs that could.
///
/// # Errors
/// It cannot explain it; why not.
pub fn explain(listen: Listen, container: &str) -> Result<Option<String>, CheckError> {
    // Anything else is no container, and could be another path.
    if container.parse::<ContainerName>().is_err() {
        return Ok(None);
    }
    let Ok((address, answer)) = ask(listen, &format!("/explain/{container}")) else { return Ok(None) };
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    match answer.split_ascii_whitespace().nth(1) {
        Some("200") => Ok(Some(body.to_owned())),
        Some("404") if !body.is_empty() => {
            Err(CheckError::Unexplained { address, reason: body.trim_end().to_owned() })
        }
        _ => Ok(None),
    }
}

fn unhealthy(address: SocketAddr, answer: &str) -> CheckError {
    CheckError::Unhealthy { address, answer: answer.lines().next().unwrap_or_default().to_owned() }
}

/// What a running process answers to a GET, and where it is asked.
fn ask(listen: Listen, path: &str) -> Result<(SocketAddr, String), CheckError> {
    const TIMEOUT: Duration = Duration::from_secs(2);
    /// Reports are shorter by far.
    const MAX_BYTES: u64 = 1 << 20;
    let Listen::At(mut address) = listen else {
        return Err(SettingError::new("--listen", "off", "the address of the running process").into());
    };
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    let ask = || -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.take(MAX_BYTES).read_to_string(&mut answer)?;
        Ok(answer)
    };
    match ask() {
        Ok(answer) => Ok((address, answer)),
        Err(source) => Err(CheckError::NoAnswer { address, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_is_taken_is_named_with_what_to_do() {
        let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = taken.local_addr().expect("an address");
        let refused = bind(Listen::At(address)).await.expect_err("it is taken").to_string();
        let expected =
            format!("--listen is {address}, where another process listens: expected another port, or off");
        assert_eq!(refused, expected);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_process_that_runs_tells_its_status_and_explains_and_one_that_does_not_is_told_from_it() {
        let readiness = Readiness::default();
        let (docker, _etcd) = (readiness.part("docker"), readiness.part("etcd"));
        docker.ready();
        let listener = bind("127.0.0.1:0".parse().expect("an address")).await.expect("it is free");
        let listener = listener.expect("it listens");
        let listen = Listen::At(listener.local_addr().expect("it has one"));
        let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
        let explainer: Explainer = Arc::new(|container| {
            let known =
                if container == "web" { Ok("it is web\n".to_owned()) } else { Err("unknown".to_owned()) };
            Box::pin(async { known })
        });
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, readiness, metrics, explaining(explainer), stop.clone()));
        let asking = tokio::task::spawn_blocking(move || {
            check(listen).expect("it lives");
            assert_eq!(status(listen).expect("it answers"), "not ready\n  docker: ok\n  etcd: starting\n");
            let explained = |container| explain(listen, container).map_err(|error| error.to_string());
            assert_eq!(explained("web"), Ok(Some("it is web\n".to_owned())));
            assert!(explained("api").is_err_and(|error| error.ends_with(" says: unknown")));
            assert_eq!(explained("../readyz"), Ok(None), "it is no container");
            listen
        });
        let listen = asking.await.expect("it is as expected");
        stop.cancel();
        serving.await.expect("no panic").expect("it ends");
        let gone = move || (status(listen).is_err(), explain(listen, "web").expect("nobody says otherwise"));
        assert_eq!(tokio::task::spawn_blocking(gone).await.expect("no panic"), (true, None));
    }

    #[test]
    fn what_is_told_to_this_host_alone_is_not_told_to_a_page_whose_name_leads_here() {
        for (host, expected) in [
            (None, true),
            (Some("127.0.0.1:9180"), true),
            (Some("[::1]:9180"), true),
            (Some("localhost"), true),
            (Some("rebound.example:9180"), false),
            (Some("localhost.rebound.example"), false),
            (Some("10.0.0.5:9180"), false),
            (Some(""), false),
        ] {
            let headers = host.map(|host| (HOST, host.parse().expect("a value")));
            assert_eq!(is_meant_for_loopback(&headers.into_iter().collect()), expected, "{host:?}");
        }
    }

    #[test]
    fn the_report_has_a_line_for_each_part() {
        let readiness = Readiness::default();
        let (docker, etcd) = (readiness.part("docker"), readiness.part("etcd"));
        docker.ready();
        etcd.failed("unreachable");
        let expected =
            serde_json::json!({ "ready": false, "conditions": { "docker": "ok", "etcd": "unreachable" } });
        let report = serde_json::to_value(report(&readiness.conditions())).expect("texts can be written");
        assert_eq!(report, expected);
    }
}
