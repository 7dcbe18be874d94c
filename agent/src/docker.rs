//! Docker's API, the only file that names bollard. It turns what the engine says into plain values and
//! decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bollard::{
    API_DEFAULT_VERSION, BollardRequest, ClientVersion, Docker as Api,
    errors::Error,
    models::{
        ContainerInspectResponse, ContainerState, ContainerSummary, ContainerSummaryStateEnum,
        EndpointSettings, EventMessage, EventMessageTypeEnum, HealthStatusEnum,
    },
    query_parameters::{EventsOptionsBuilder, KillContainerOptionsBuilder, ListContainersOptions},
};
use futures_util::{Stream, StreamExt, TryFutureExt};
use hyper::Uri;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use hyperlocal::UnixConnector;
use jiff::Timestamp;
use rollcall_shared::signal::Signal;

use crate::{
    container::{Action, Addresses, Binding, Check, Container, Event, FullId, Port, Summary},
    settings::DockerSettings,
};

/// What went wrong between us and Docker. `Setting` stays so until someone changes it; the others are
/// worth a retry.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// A setting cannot work.
    #[error("{0}")]
    Setting(String),
    /// A call failed.
    #[error("Docker at {host}: {doing}: {reason}")]
    Call {
        /// The engine's address.
        host: String,
        /// What was being done.
        doing: &'static str,
        /// What the engine or the connection said, on one line.
        reason: String,
    },
}

/// A Docker engine.
#[derive(Debug, Clone)]
pub struct Docker {
    api: Api,
    host: String,
    /// The API version that the user wants.
    wished: Option<Version>,
    /// The one that was agreed on.
    spoken: Arc<Mutex<Version>>,
}

/// An API version: major and minor.
type Version = (usize, usize);

/// The newest version that bollard knows.
const OURS: Version = (API_DEFAULT_VERSION.major_version, API_DEFAULT_VERSION.minor_version);
/// What is being done when versions do not meet.
const AGREEING: &str = "agreeing on a version";

/// How long a call may take: an engine under a burst of starts answers late.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the first call may take.
const FIRST_PATIENCE: Duration = Duration::from_secs(5);
/// Where Docker's socket is looked for, in order: the engine's own default, and where images that run
/// docker-gen or registrator have it mounted.
const SOCKETS: [&str; 2] = ["/var/run/docker.sock", "/tmp/docker.sock"];

impl Docker {
    /// Connects to the engine of the settings and agrees on an API version.
    ///
    /// # Errors
    /// A setting that cannot work, or an engine that does not answer.
    pub async fn connect(settings: &DockerSettings) -> Result<Self, DockerError> {
        let host = match &settings.docker_host {
            Some(host) => host.clone(),
            None => {
                let found = SOCKETS.iter().find(|path| Path::new(path).exists()).unwrap_or(&SOCKETS[0]);
                format!("unix://{found}")
            }
        };
        let wished = settings.docker_api_version.as_deref().map(version).transpose()?;
        let spoken = Arc::new(Mutex::new(OURS));
        let api = versioned(client(&host, settings)?, spoken.clone());
        let docker = Self { api, host, wished, spoken };
        match tokio::time::timeout(FIRST_PATIENCE, docker.agree()).await {
            Ok(agreed) => agreed.map(|()| docker),
            Err(_) => Err(docker.call(AGREEING, format!("no answer within {FIRST_PATIENCE:?}"))),
        }
    }

    /// Agrees on the API version to speak from now on. To be called anew after a break: the engine may have
    /// been upgraded meanwhile.
    ///
    /// # Errors
    /// The call's, and versions that do not meet.
    pub async fn agree(&self) -> Result<(), DockerError> {
        let engine = self.api.version().await.map_err(|error| self.failed(AGREEING, &error))?;
        let read = |text: Option<String>| text.as_deref().and_then(|text| version(text).ok());
        let newest =
            read(engine.api_version).ok_or_else(|| self.call(AGREEING, "it names no version".to_owned()))?;
        let oldest = read(engine.min_api_version).unwrap_or_default();
        let wanted = self.wished.unwrap_or(newest.min(OURS));
        if !(oldest..=newest).contains(&wanted) {
            let show = |(major, minor): Version| format!("{major}.{minor}");
            let spoken =
                format!("{} to {}, which Docker at {} speaks", show(oldest), show(newest), self.host);
            return Err(match self.wished {
                Some(wished) => DockerError::Setting(format!(
                    "--docker-api-version is {}: expected {spoken}",
                    show(wished)
                )),
                None => self
                    .call(AGREEING, format!("this agent speaks {} at most: expected {spoken}", show(OURS))),
            });
        }
        *self.spoken.lock().unwrap_or_else(PoisonError::into_inner) = wanted;
        Ok(())
    }

    fn call(&self, doing: &'static str, reason: String) -> DockerError {
        DockerError::Call { host: self.host.clone(), doing, reason }
    }

    fn failed(&self, doing: &'static str, error: &Error) -> DockerError {
        self.call(doing, one_line(error))
    }

    /// The engine's ID, which it keeps for as long as its data folder.
    ///
    /// # Errors
    /// The call's.
    pub async fn engine_id(&self) -> Result<String, DockerError> {
        let info = self.api.info().await.map_err(|error| self.failed("asking for its ID", &error))?;
        let id = info.id.filter(|id| !id.is_empty());
        id.ok_or_else(|| self.call("asking for its ID", "it has none".to_owned()))
    }

    /// What happens to containers from `since` on, by the engine's clock. What happened before the engine
    /// took the subscription comes first, from its memory of 256 events. Ends with an error.
    pub fn events(&self, since: Timestamp) -> impl Stream<Item = Result<Event, DockerError>> + use<> {
        const ACTIONS: [&str; 9] =
            ["start", "die", "kill", "health_status", "rename", "pause", "unpause", "connect", "disconnect"];
        let filters = HashMap::from([("type", vec!["container", "network"]), ("event", ACTIONS.to_vec())]);
        let since = format!("{}.{:09}", since.as_second(), since.subsec_nanosecond());
        let options = EventsOptionsBuilder::default().filters(&filters).since(&since).build();
        let docker = self.clone();
        self.api.events(Some(options)).filter_map(move |message| {
            let event = match message {
                Ok(message) => event(message).map(Ok),
                Err(error) => Some(Err(docker.failed("reading its events", &error))),
            };
            async { event }
        })
    }

    /// The error of a stream of events that ended without one.
    pub fn events_ended(&self) -> DockerError {
        self.call("reading its events", "it ended them".to_owned())
    }

    /// The containers that run.
    ///
    /// # Errors
    /// The call's.
    pub async fn list(&self) -> Result<Vec<Summary>, DockerError> {
        let list = self.api.list_containers(None::<ListContainersOptions>).await;
        let list = list.map_err(|error| self.failed("listing containers", &error))?;
        Ok(list.into_iter().filter_map(summary).collect())
    }

    /// The container of this ID or name, or `None` where it does not run.
    ///
    /// # Errors
    /// The call's.
    pub async fn inspect(&self, id: &str) -> Result<Option<Container>, DockerError> {
        match self.api.inspect_container(id, None).await {
            Ok(answer) => container(answer).map_err(|reason| self.call("inspecting a container", reason)),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(error) => Err(self.failed("inspecting a container", &error)),
        }
    }

    /// Has Docker send a signal to a container's first process.
    ///
    /// # Errors
    /// The call's.
    pub async fn kill(&self, id: &str, signal: Signal) -> Result<(), DockerError> {
        let options = KillContainerOptionsBuilder::default().signal(&signal.number().to_string()).build();
        self.api
            .kill_container(id, Some(options))
            .await
            .map_err(|error| self.failed("sending a signal", &error))
    }
}

/// Has every request name the API version, but the one that asks for the engine's. bollard 0.21 itself names
/// none, whatever it is told (fussybeaver/bollard#736).
fn versioned(api: Api, spoken: Arc<Mutex<Version>>) -> Api {
    api.with_request_modifier(move |mut request| {
        let uri = request.uri();
        if uri.path() != "/version" {
            let (major, minor) = *spoken.lock().unwrap_or_else(PoisonError::into_inner);
            let (scheme, host) =
                (uri.scheme_str().unwrap_or_default(), uri.authority().map_or("", |host| host.as_str()));
            let path = uri.path_and_query().map_or("/", |path| path.as_str());
            let named = format!("{scheme}://{host}/v{major}.{minor}{path}");
            *request.uri_mut() = named.parse().expect("a longer path makes no bad address");
        }
        request
    })
}

fn client(host: &str, settings: &DockerSettings) -> Result<Api, DockerError> {
    let bad = |expected: &str| DockerError::Setting(format!("--docker-host is {host:?}: {expected}"));
    // bollard wants whole seconds, and a version that it does not use.
    let (patience, version) = (PATIENCE.as_secs(), API_DEFAULT_VERSION);
    let connected = match host.split_once("://") {
        Some(("unix", path)) if path.starts_with('/') => connect_with_unix(path, patience, version),
        Some(("tcp" | "http" | "https", _)) if settings.docker_tls_verify => {
            let folder = certificates(settings)?;
            let file = |name: &str| folder.join(name);
            Api::connect_with_ssl(
                host,
                &file("key.pem"),
                &file("cert.pem"),
                &file("ca.pem"),
                patience,
                version,
            )
        }
        Some(("tcp" | "http", _)) => Api::connect_with_http(host, patience, version),
        Some(("https", _)) => return Err(bad("expected --docker-tls-verify beside https://")),
        _ => return Err(bad("expected unix:///path or tcp://host:port")),
    };
    connected.map_err(|error| match error {
        // It may be there in a moment, when a host boots.
        Error::SocketNotFoundError(_) => DockerError::Call {
            host: host.to_owned(),
            doing: "connecting",
            reason: "there is no such socket; is Docker running here?".to_owned(),
        },
        error => bad(&one_line(&error)),
    })
}

/// As bollard's own, but keeps the connection: it makes one for each request, and Docker takes some 0.2 ms
/// longer to answer on a new one.
fn connect_with_unix(path: &str, patience: u64, version: &ClientVersion) -> Result<Api, Error> {
    if !Path::new(path).exists() {
        return Err(Error::SocketNotFoundError(path.to_owned()));
    }
    let address = Uri::from(hyperlocal::Uri::new(path, "/")).to_string();
    let mut client = Client::builder(TokioExecutor::new());
    let client = client.pool_max_idle_per_host(1).build(UnixConnector);
    let transport = move |request: BollardRequest| client.request(request).map_err(Error::from);
    Api::connect_with_custom_transport(transport, Some(address.trim_end_matches('/')), patience, version)
}

fn certificates(settings: &DockerSettings) -> Result<PathBuf, DockerError> {
    let folder = match &settings.docker_cert_path {
        Some(folder) => folder.clone(),
        None => match std::env::home_dir() {
            Some(home) => home.join(".docker"),
            None => {
                let expected =
                    "--docker-cert-path is not given: expected a folder of ca.pem, cert.pem and key.pem";
                return Err(DockerError::Setting(expected.to_owned()));
            }
        },
    };
    for name in ["ca.pem", "cert.pem", "key.pem"] {
        if let Err(error) = std::fs::File::open(folder.join(name)) {
            let folder = folder.display();
            return Err(DockerError::Setting(format!("--docker-cert-path is {folder}: {name}: {error}")));
        }
    }
    Ok(folder)
}

fn version(text: &str) -> Result<Version, DockerError> {
    let parsed =
        text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parsed.ok_or_else(|| {
        DockerError::Setting(format!("--docker-api-version is {text:?}: expected one such as 1.41"))
    })
}

/// An error with its causes, without what they repeat, on one line.
fn one_line(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text = format!("{text}: {next_text}");
        }
        cause = next.source();
    }
    text.replace(['\n', '\r'], " ")
}

fn event(message: EventMessage) -> Option<Event> {
    let actor = message.actor?;
    let mut attributes = actor.attributes.unwrap_or_default();
    let action = message.action?;
    let (id, action) = match (message.typ?, action.as_str()) {
        (EventMessageTypeEnum::NETWORK, "connect") => (attributes.remove("container")?, Action::Connect),
        (EventMessageTypeEnum::NETWORK, _) => (attributes.remove("container")?, Action::Change),
        (EventMessageTypeEnum::CONTAINER, "start") => (actor.id?, Action::Start),
        (EventMessageTypeEnum::CONTAINER, "die") => (actor.id?, Action::Die),
        (EventMessageTypeEnum::CONTAINER, "kill") => {
            let signal = attributes.get("signal")?.parse().ok()?;
            (actor.id?, Action::Kill(signal))
        }
        (EventMessageTypeEnum::CONTAINER, _) => (actor.id?, Action::Change),
        _ => return None,
    };
    Some(Event { id: id.into(), action })
}

fn summary(listed: ContainerSummary) -> Option<Summary> {
    let status = listed.status.unwrap_or_default();
    // The list has the health only in its words for people, such as "Up 3 minutes (healthy)", before
    // API 1.52.
    let check = if status.contains("(healthy)") {
        Check::Healthy
    } else if status.contains("(unhealthy)") {
        Check::Unhealthy
    } else if status.contains("(health: starting)") {
        Check::Starting
    } else {
        Check::None
    };
    let networks = listed.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    // Names of links have more than one slash.
    let own = |name: &String| name.rfind('/') == Some(0);
    let name = listed.names?.into_iter().find(own)?;
    Some(Summary {
        id: listed.id?.into(),
        name: name.trim_start_matches('/').to_owned(),
        paused: listed.state == Some(ContainerSummaryStateEnum::PAUSED),
        check,
        networks: networks.into_keys().collect(),
    })
}

/// The container, `None` where it does not run, or what cannot be read.
fn container(inspected: ContainerInspectResponse) -> Result<Option<Container>, String> {
    let state = inspected.state.ok_or("it has no state")?;
    if state.running != Some(true) || state.restarting == Some(true) {
        return Ok(None);
    }
    let id: FullId = inspected.id.ok_or("it has no ID")?.into();
    let short_id = id.parse().map_err(|error| format!("{error}"))?;
    let name = inspected.name.unwrap_or_default();
    let name = name.trim_start_matches('/').parse().map_err(|error| format!("{error}"))?;
    let config = inspected.config.unwrap_or_default();
    let settings = inspected.network_settings.unwrap_or_default();
    let host_network =
        inspected.host_config.and_then(|config| config.network_mode).is_some_and(|mode| mode == "host");
    let stop_signal =
        config.stop_signal.as_deref().and_then(|text| text.parse().ok()).unwrap_or(Signal::TERM);
    let stop_timeout = config.stop_timeout.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(10);
    Ok(Some(Container {
        id,
        short_id,
        name,
        image: config.image.unwrap_or_default(),
        labels: config.labels.unwrap_or_default().into_iter().collect(),
        service_env: service_env(&config.env.unwrap_or_default()),
        paused: state.paused == Some(true),
        check: check(&state),
        started_at: state
            .started_at
            .as_deref()
            .and_then(|text| text.parse().ok())
            .ok_or("it has no time of start")?,
        pid: state.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0),
        stop_signal,
        stop_timeout: Duration::from_secs(stop_timeout),
        host_network,
        exposed: exposed(&config.exposed_ports.unwrap_or_default()),
        bindings: bindings(settings.ports.unwrap_or_default()),
        networks: networks(settings.networks.unwrap_or_default()),
    }))
}

fn check(state: &ContainerState) -> Check {
    match state.health.as_ref().and_then(|health| health.status) {
        Some(HealthStatusEnum::STARTING) => Check::Starting,
        Some(HealthStatusEnum::HEALTHY) => Check::Healthy,
        Some(HealthStatusEnum::UNHEALTHY) => Check::Unhealthy,
        Some(HealthStatusEnum::NONE | HealthStatusEnum::EMPTY) | None => Check::None,
    }
}

fn service_env(env: &[String]) -> BTreeMap<String, String> {
    let pairs = env.iter().filter_map(|variable| variable.split_once('='));
    let service = pairs.filter(|(name, _)| name.starts_with("SERVICE_"));
    service.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Ports of other protocols, such as SCTP, are left out.
fn exposed(ports: &[String]) -> BTreeSet<Port> {
    ports.iter().filter_map(|port| port.parse().ok()).collect()
}

fn bindings(ports: bollard::models::PortMap) -> Vec<Binding> {
    let mut bindings = Vec::new();
    for (port, bound) in ports {
        let Ok(to) = port.parse::<Port>() else { continue };
        for binding in bound.unwrap_or_default() {
            // Docker writes no address, or an empty one, for every address of IPv4.
            let ip = binding.host_ip.filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned());
            let port = binding.host_port.and_then(|port| port.parse().ok()).filter(|port| *port != 0);
            if let (Ok(ip), Some(port)) = (ip.parse::<IpAddr>(), port) {
                bindings.push(Binding { to, ip, port });
            }
        }
    }
    // Docker gives them in no order; equal containers must be equal values.
    bindings.sort_unstable();
    bindings
}

fn networks(networks: HashMap<String, EndpointSettings>) -> BTreeMap<String, Addresses> {
    let addresses = |endpoint: EndpointSettings| Addresses {
        v4: endpoint.ip_address.and_then(|ip| ip.parse().ok()),
        v6: endpoint.global_ipv6_address.and_then(|ip| ip.parse().ok()),
    };
    networks.into_iter().map(|(name, endpoint)| (name, addresses(endpoint))).collect()
}

#[cfg(test)]
mod tests;
