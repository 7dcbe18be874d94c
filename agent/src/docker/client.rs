//! The connection to a Docker engine: where it is, how it is secured, and which API version is spoken.

use std::{
    error::Error,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bollard::{API_DEFAULT_VERSION, BollardRequest, ClientVersion, Docker as Api, errors::Error as ApiError};
use futures_util::TryFutureExt;
use hyper::Uri;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use hyperlocal::UnixConnector;
use rollcall_shared::process::setting::SettingError;
use rustix::fs::Access;

use super::{
    engine::{DockerError, Engine},
    settings::{ApiVersion, DockerSettings},
};

/// A Docker engine that is connected to.
#[derive(Debug, Clone)]
pub struct Docker {
    pub(super) api: Api,
    host: String,
    /// The API version that the user wants.
    wanted: Option<ApiVersion>,
    /// The one that was agreed on.
    spoken: Arc<Mutex<ApiVersion>>,
}

/// The newest version that bollard knows.
pub(super) const NEWEST_KNOWN: ApiVersion =
    ApiVersion { major: API_DEFAULT_VERSION.major_version, minor: API_DEFAULT_VERSION.minor_version };

/// How long a call may take: an engine under a burst of starts answers late.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long agreeing on a version may take when connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Where Docker's socket is looked for, in order: the engine's own default, by both of its names, as an image need not
/// have the link between them, and where images that run docker-gen or registrator have it mounted.
const SOCKETS: [&str; 3] = ["/var/run/docker.sock", "/run/docker.sock", "/tmp/docker.sock"];
/// What is being done when versions do not meet.
const AGREEING: &str = "agreeing on a version";

impl Docker {
    /// Connects to the engine of the settings and agrees on an API version.
    ///
    /// # Errors
    /// A setting that cannot work, or an engine that does not answer.
    pub async fn connect(settings: &DockerSettings) -> Result<Self, DockerError> {
        let host = settings.docker_host.clone().unwrap_or_else(default_host);
        check_socket(&host, settings)?;
        let spoken = Arc::new(Mutex::new(NEWEST_KNOWN));
        let api = versioned(client(&host, settings)?, spoken.clone());
        let docker = Self { api, host, wanted: settings.docker_api_version, spoken };
        match tokio::time::timeout(CONNECT_TIMEOUT, docker.agree()).await {
            Ok(agreed) => agreed.map(|()| docker),
            Err(_) => Err(docker.failed(AGREEING, format!("no answer within {CONNECT_TIMEOUT:?}"))),
        }
    }

    /// The error of a call that failed.
    pub(super) fn failed(
        &self,
        doing: &'static str,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> DockerError {
        DockerError::Call { host: self.host.clone(), doing, source: source.into() }
    }

    /// The error of a call of bollard's, which quotes an answer that it cannot read. Answers hold secrets.
    pub(super) fn call_failed(&self, doing: &'static str, error: ApiError) -> DockerError {
        match error {
            ApiError::JsonDataError { .. } | ApiError::JsonSerdeError { .. } => {
                self.failed(doing, "its answer cannot be read")
            }
            error => self.failed(doing, error),
        }
    }

    /// Asks the engine for its versions and chooses the one to speak.
    pub(super) async fn choose_version(&self) -> Result<(), DockerError> {
        let answer = self.api.version().await.map_err(|error| self.call_failed(AGREEING, error))?;
        let read = |text: Option<String>| text?.parse().ok();
        let newest = read(answer.api_version);
        let newest: ApiVersion = newest.ok_or_else(|| self.failed(AGREEING, "it names no version"))?;
        let oldest = read(answer.min_api_version).unwrap_or_default();
        let chosen = self.wanted.unwrap_or(newest.min(NEWEST_KNOWN));
        if !(oldest..=newest).contains(&chosen) {
            return Err(self.no_common_version(oldest, newest));
        }
        *self.spoken.lock().unwrap_or_else(PoisonError::into_inner) = chosen;
        Ok(())
    }

    fn no_common_version(&self, oldest: ApiVersion, newest: ApiVersion) -> DockerError {
        let spoken = format!("{oldest} to {newest}, which Docker at {} speaks", self.host);
        match self.wanted {
            Some(wanted) => SettingError::new("--docker-api-version", wanted, spoken).into(),
            None => {
                let reason = format!("this agent speaks {NEWEST_KNOWN} at most: expected {spoken}");
                self.failed(AGREEING, reason)
            }
        }
    }
}

fn default_host() -> String {
    let found = SOCKETS.iter().find(|path| Path::new(path).exists()).unwrap_or(&SOCKETS[0]);
    format!("unix://{found}")
}

/// Has every request name the API version, but the one that asks for the engine's. bollard 0.21 itself names none,
/// whatever it is told (fussybeaver/bollard#736).
fn versioned(api: Api, spoken: Arc<Mutex<ApiVersion>>) -> Api {
    api.with_request_modifier(move |mut request| {
        let uri = request.uri();
        if uri.path() != "/version" {
            let version = *spoken.lock().unwrap_or_else(PoisonError::into_inner);
            let (scheme, host) =
                (uri.scheme_str().unwrap_or_default(), uri.authority().map_or("", |host| host.as_str()));
            let path = uri.path_and_query().map_or("/", |path| path.as_str());
            let named = format!("{scheme}://{host}/v{version}{path}");
            *request.uri_mut() = named.parse().expect("a longer path makes no bad address");
        }
        request
    })
}

fn client(host: &str, settings: &DockerSettings) -> Result<Api, DockerError> {
    let bad = |expected: &str| SettingError::new("--docker-host", format!("{host:?}"), expected);
    // bollard wants whole seconds, and a version that it does not use.
    let (timeout, version) = (CALL_TIMEOUT.as_secs(), API_DEFAULT_VERSION);
    let connected = match host.split_once("://") {
        Some(("unix", path)) if path.starts_with('/') => connect_with_unix(path, timeout, version),
        Some(("tcp" | "http" | "https", _)) if settings.docker_tls_verify => {
            let Certificates { ca, cert, key } = Certificates::of(settings)?;
            Api::connect_with_ssl(host, &key, &cert, &ca, timeout, version)
        }
        Some(("tcp" | "http", _)) => Api::connect_with_http(host, timeout, version),
        Some(("https", _)) => return Err(bad("--docker-tls-verify beside https://").into()),
        _ => return Err(bad("unix:///path or tcp://host:port").into()),
    };
    connected.map_err(|error| SettingError::caused("--docker-host", format!("{host:?}"), error).into())
}

/// Says what to do about a socket that is not there or closed to us. Either may be otherwise in a moment, when a host
/// boots.
fn check_socket(host: &str, settings: &DockerSettings) -> Result<(), DockerError> {
    let Some(path) = host.strip_prefix("unix://") else { return Ok(()) };
    let failed = |problem: SocketProblem| {
        Err(DockerError::Call { host: host.to_owned(), doing: "connecting", source: problem.into() })
    };
    match fs::metadata(path) {
        Err(_) if settings.docker_host.is_some() => failed(SocketProblem::Missing(path.to_owned())),
        Err(_) => failed(SocketProblem::Missing(SOCKETS.join(" or "))),
        Ok(found) if rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK).is_err() => {
            failed(SocketProblem::Closed { group: found.gid() })
        }
        Ok(_) => Ok(()),
    }
}

/// What is wrong with Docker's socket, and what to do about it.
#[derive(Debug, thiserror::Error)]
enum SocketProblem {
    #[error(
        "there is no socket {0}: expected Docker to run here, or in a container its socket to be mounted \
         (-v /var/run/docker.sock:/var/run/docker.sock), or --docker-host"
    )]
    Missing(String),
    #[error(
        "permission denied, as the socket belongs to group {group}: expected this process to have that group \
         (--group-add {group} in a container), or to be root (--user 0)"
    )]
    Closed { group: u32 },
}

/// As bollard's own, but keeps the connection: it makes one for each request, and Docker takes some 0.2 ms longer to
/// answer on a new one.
fn connect_with_unix(path: &str, timeout: u64, version: &ClientVersion) -> Result<Api, ApiError> {
    let address = Uri::from(hyperlocal::Uri::new(path, "/")).to_string();
    let mut client = Client::builder(TokioExecutor::new());
    let client = client.pool_max_idle_per_host(1).build(UnixConnector);
    let transport = move |request: BollardRequest| client.request(request).map_err(ApiError::from);
    Api::connect_with_custom_transport(transport, Some(address.trim_end_matches('/')), timeout, version)
}

/// The files by which the engine and the agent know each other.
struct Certificates {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

impl Certificates {
    fn of(settings: &DockerSettings) -> Result<Self, SettingError> {
        const FLAG: &str = "--docker-cert-path";
        let home = || std::env::home_dir().map(|home| home.join(".docker"));
        let folder = settings.docker_cert_path.clone().or_else(home);
        let folder =
            folder.ok_or_else(|| SettingError::missing(FLAG, "a folder of ca.pem, cert.pem and key.pem"))?;
        let file = |name: &str| {
            let file = folder.join(name);
            // Opened now, so that what cannot be read is named.
            match std::fs::File::open(&file) {
                Ok(_) => Ok(file),
                Err(error) => Err(SettingError::caused(FLAG, file.display(), error)),
            }
        };
        Ok(Self { ca: file("ca.pem")?, cert: file("cert.pem")?, key: file("key.pem")? })
    }
}
