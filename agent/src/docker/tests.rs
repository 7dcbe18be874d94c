use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicUsize, Ordering},
};

use axum::{
    Router,
    http::{StatusCode, Uri},
    serve::ListenerExt,
};
use clap::Parser;
use tokio::net::{TcpListener, UnixListener};

use super::*;

fn inspected(json: serde_json::Value) -> Result<Option<Container>, String> {
    container(serde_json::from_value(json).expect("an inspection"))
}

fn web() -> serde_json::Value {
    serde_json::json!({
        "Id": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "Name": "/web-1",
        "State": { "Running": true, "Pid": 77, "StartedAt": "2026-01-02T03:04:05.678901234Z",
                   "Health": { "Status": "starting" } },
        "HostConfig": { "NetworkMode": "front" },
        "Config": { "Image": "team/web:1", "Labels": { "a": "b" }, "StopSignal": "SIGQUIT",
                    "Env": ["PATH=/bin", "SERVICE_NAME=web", "SECRET=x"],
                    "ExposedPorts": { "80/tcp": {}, "53/udp": {}, "9/sctp": {} } },
        "NetworkSettings": {
            "Ports": { "80/tcp": [{ "HostIp": "0.0.0.0", "HostPort": "8080" },
                                  { "HostIp": "::", "HostPort": "8080" }],
                       "53/udp": null },
            "Networks": { "front": { "IPAddress": "10.5.0.2", "GlobalIPv6Address": "" } } }
    })
}

#[test]
fn an_inspection_is_read_as_far_as_it_matters() {
    let web = inspected(web()).expect("readable").expect("it runs");
    assert_eq!((web.name.as_str(), web.short_id.as_str(), web.pid), ("web-1", "0123456789ab", Some(77)));
    assert_eq!(web.stop_signal.to_string(), "QUIT");
    assert_eq!(web.check, Check::Starting);
    assert_eq!(web.service_env.keys().collect::<Vec<_>>(), ["SERVICE_NAME"]);
    assert_eq!(web.exposed.iter().map(Port::to_string).collect::<Vec<_>>(), ["53/udp", "80/tcp"]);
    assert_eq!(web.bindings.len(), 2);
    assert_eq!(web.networks["front"].v6, None);
}

#[test]
fn what_does_not_run_is_no_container_and_what_cannot_be_read_is_an_error() {
    let mut stopped = web();
    stopped["State"]["Running"] = false.into();
    assert_eq!(inspected(stopped), Ok(None));
    let mut nameless = web();
    nameless["Name"] = "/a/b".into();
    assert!(inspected(nameless).is_err());
}

#[test]
fn events_are_read_and_the_others_are_not() {
    let read = |json: serde_json::Value| event(serde_json::from_value(json).expect("a message"));
    let actor = serde_json::json!({ "ID": "c1", "Attributes": { "signal": "15" } });
    let kill = read(serde_json::json!({ "Type": "container", "Action": "kill", "Actor": actor }));
    assert_eq!(kill, Some(Event { id: "c1".into(), action: Action::Kill(Signal::TERM) }));
    let health =
        serde_json::json!({ "Type": "container", "Action": "health_status: healthy", "Actor": actor });
    assert_eq!(read(health), Some(Event { id: "c1".into(), action: Action::Change }));
    let actor = serde_json::json!({ "ID": "n1", "Attributes": { "container": "c2" } });
    let connect = read(serde_json::json!({ "Type": "network", "Action": "connect", "Actor": actor }));
    assert_eq!(connect, Some(Event { id: "c2".into(), action: Action::Connect }));
    assert_eq!(read(serde_json::json!({ "Type": "image", "Action": "pull", "Actor": actor })), None);
}

#[tokio::test]
async fn a_connection_to_a_socket_serves_one_request_after_the_other() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("docker.sock");
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let listener = UnixListener::bind(&path).expect("a socket").tap_io(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let answer = serde_json::json!({ "ApiVersion": "1.41", "MinAPIVersion": "1.12", "ID": "e" }).to_string();
    let answer = Router::new().fallback(async move || answer.clone());
    tokio::spawn(async move { axum::serve(listener, answer).await });
    let host = format!("unix://{}", path.display());
    let docker = Docker::connect(&Cli::parse_from(["agent", "--docker-host", &host]).docker).await;
    let docker = docker.expect("an engine");
    for _ in 0..3 {
        assert_eq!(docker.engine_id().await.expect("an ID"), "e");
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

/// An engine on the wire. It takes the API versions from the first to the second, and refuses others in
/// Docker's words; its ID is the version that it was asked in.
#[derive(Clone)]
struct Engine {
    host: String,
    versions: Arc<Mutex<[&'static str; 2]>>,
}

impl Engine {
    async fn start(versions: [&'static str; 2]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let host = format!("tcp://{}", listener.local_addr().expect("an address"));
        let engine = Self { host, versions: Arc::new(Mutex::new(versions)) };
        let answering = engine.clone();
        let answer = Router::new().fallback(async move |uri: Uri| answering.answer(uri.path()));
        tokio::spawn(async move { axum::serve(listener, answer).await });
        engine
    }

    fn answer(&self, path: &str) -> (StatusCode, String) {
        let [oldest, newest] = *self.versions.lock().expect("nobody panics with it");
        let number = |text: &str| version(text).expect("a version");
        let asked = path.strip_prefix("/v").and_then(|path| path.split_once('/')).map(|(version, _)| version);
        let refusal = match asked.filter(|_| path != "/version") {
            Some(asked) if number(asked) > number(newest) => {
                format!("client version {asked} is too new. Maximum supported API version is {newest}")
            }
            Some(asked) if number(asked) < number(oldest) => {
                format!("client version {asked} is too old. Minimum supported API version is {oldest}")
            }
            asked => {
                let answer =
                    serde_json::json!({ "ApiVersion": newest, "MinAPIVersion": oldest, "ID": asked });
                return (StatusCode::OK, answer.to_string());
            }
        };
        (StatusCode::BAD_REQUEST, serde_json::json!({ "message": refusal }).to_string())
    }

    async fn connect(&self, flags: &[&str]) -> Result<Docker, DockerError> {
        let args = [&["agent", "--docker-host", &self.host], flags].concat();
        Docker::connect(&Cli::parse_from(args).docker).await
    }
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    docker: DockerSettings,
}

#[tokio::test]
async fn a_version_is_agreed_on_with_engines_old_and_new() {
    let ours = format!("{}.{}", OURS.0, OURS.1);
    for (engine_is, versions, spoken) in [
        ("Docker 20.10", ["1.12", "1.41"], "1.41"),
        ("Docker 24", ["1.12", "1.43"], "1.43"),
        ("Docker 27", ["1.24", "1.47"], "1.47"),
        ("Docker 29", ["1.44", "1.52"], "1.52"),
        ("one to come", ["1.44", "1.99"], &ours),
    ] {
        let docker = Engine::start(versions).await.connect(&[]).await.expect(engine_is);
        assert_eq!(docker.engine_id().await.expect("an ID"), spoken, "{engine_is}");
    }
}

#[tokio::test]
async fn versions_that_do_not_meet_are_named() {
    let engine = Engine::start(["1.44", "1.52"]).await;
    let docker = engine.connect(&["--docker-api-version", "1.45"]).await.expect("it is taken");
    assert_eq!(docker.engine_id().await.expect("an ID"), "1.45");
    let refused = engine.connect(&["--docker-api-version", "1.41"]).await.expect_err("it is too old");
    assert!(matches!(refused, DockerError::Setting(_)));
    let words = format!(
        "--docker-api-version is 1.41: expected 1.44 to 1.52, which Docker at {} speaks",
        engine.host
    );
    assert_eq!(refused.to_string(), words);
    let far_ahead = Engine::start(["1.98", "1.99"]).await;
    let refused = far_ahead.connect(&[]).await.expect_err("it has left us behind").to_string();
    assert!(refused.contains("at most: expected 1.98 to 1.99"), "{refused}");
}

#[tokio::test]
async fn with_an_engine_that_was_upgraded_another_version_is_agreed_on() {
    let engine = Engine::start(["1.12", "1.41"]).await;
    let docker = engine.connect(&[]).await.expect("an engine");
    *engine.versions.lock().expect("nobody panics with it") = ["1.44", "1.52"];
    assert!(docker.engine_id().await.is_err(), "1.41 is too old now");
    docker.agree().await.expect("versions that meet");
    assert_eq!(docker.engine_id().await.expect("an ID"), "1.52");
}
