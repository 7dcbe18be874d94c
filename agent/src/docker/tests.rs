//! The client against engines on the wire.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    http::{StatusCode, Uri},
    serve::ListenerExt,
};
use clap::Parser;
use rollcall_shared::process::error::one_line;
use tokio::net::{TcpListener, UnixListener};

use super::{client::NEWEST_KNOWN, settings::ApiVersion, *};

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
        assert_eq!(docker.id().await.expect("an ID"), "e");
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

/// An engine on the wire. It takes the API versions from the first to the second, and refuses others in Docker's
/// words; its ID is the version that it was asked in.
#[derive(Clone)]
struct WireEngine {
    host: String,
    versions: Arc<Mutex<[&'static str; 2]>>,
}

impl WireEngine {
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
        let version = |text: &str| text.parse::<ApiVersion>().expect("a version");
        let asked = path.strip_prefix("/v").and_then(|path| path.split_once('/')).map(|(version, _)| version);
        let refusal = match asked.filter(|_| path != "/version") {
            Some(asked) if version(asked) > version(newest) => {
                format!("client version {asked} is too new. Maximum supported API version is {newest}")
            }
            Some(asked) if version(asked) < version(oldest) => {
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
    let newest_known = NEWEST_KNOWN.to_string();
    for (engine_is, versions, spoken) in [
        ("Docker 20.10", ["1.12", "1.41"], "1.41"),
        ("Docker 24", ["1.12", "1.43"], "1.43"),
        ("Docker 27", ["1.24", "1.47"], "1.47"),
        ("Docker 29", ["1.44", "1.52"], "1.52"),
        ("one to come", ["1.44", "1.99"], &newest_known),
    ] {
        let docker = WireEngine::start(versions).await.connect(&[]).await.expect(engine_is);
        assert_eq!(docker.id().await.expect("an ID"), spoken, "{engine_is}");
    }
}

#[tokio::test]
async fn versions_that_do_not_meet_are_named() {
    let engine = WireEngine::start(["1.44", "1.52"]).await;
    let docker = engine.connect(&["--docker-api-version", "1.45"]).await.expect("it is taken");
    assert_eq!(docker.id().await.expect("an ID"), "1.45");
    let refused = engine.connect(&["--docker-api-version", "1.41"]).await.expect_err("it is too old");
    assert!(matches!(refused, DockerError::Setting(_)));
    let words = format!(
        "--docker-api-version is 1.41: expected 1.44 to 1.52, which Docker at {} speaks",
        engine.host
    );
    assert_eq!(one_line(&refused), words);
    let far_ahead = WireEngine::start(["1.98", "1.99"]).await;
    let refused = one_line(&far_ahead.connect(&[]).await.expect_err("it speaks nothing that we know"));
    assert!(refused.contains("at most: expected 1.98 to 1.99"), "{refused}");
}

#[tokio::test]
async fn with_an_engine_that_was_upgraded_another_version_is_agreed_on() {
    let engine = WireEngine::start(["1.12", "1.41"]).await;
    let docker = engine.connect(&[]).await.expect("an engine");
    *engine.versions.lock().expect("nobody panics with it") = ["1.44", "1.52"];
    assert!(docker.id().await.is_err(), "1.41 is too old now");
    docker.agree().await.expect("versions that meet");
    assert_eq!(docker.id().await.expect("an ID"), "1.52");
}

#[tokio::test]
async fn an_address_that_cannot_work_is_a_setting_and_a_socket_that_is_not_there_is_worth_a_retry() {
    for (host, expected) in [
        ("nonsense", "--docker-host is \"nonsense\": expected unix:///path or tcp://host:port"),
        ("https://h:1", "--docker-host is \"https://h:1\": expected --docker-tls-verify beside https://"),
    ] {
        let error = Docker::connect(&Cli::parse_from(["agent", "--docker-host", host]).docker).await;
        let error = error.expect_err("it cannot work");
        assert!(matches!(error, DockerError::Setting(_)), "{host}");
        assert_eq!(one_line(&error), expected);
    }
    let settings = Cli::parse_from(["agent", "--docker-host", "unix:///none.sock"]).docker;
    let error = Docker::connect(&settings).await.expect_err("there is none");
    assert!(matches!(error, DockerError::Call { .. }));
    assert!(one_line(&error).contains("there is no socket /none.sock: expected Docker to run"), "{error}");
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_is_not_quoted() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let host = format!("tcp://{}", listener.local_addr().expect("an address"));
    let answer = Router::new().fallback(async |uri: Uri| match uri.path() {
        "/version" => r#"{ "ApiVersion": "1.41", "MinAPIVersion": "1.12" }"#,
        _ => r#"{ "Id": "a", "Config": { "Env": "PASSWORD=secret" } }"#,
    });
    tokio::spawn(async move { axum::serve(listener, answer).await });
    let docker = Docker::connect(&Cli::parse_from(["agent", "--docker-host", &host]).docker).await;
    let error = docker.expect("an engine").inspect("a").await.expect_err("it cannot be read");
    let shown = format!("{} {error:?}", one_line(&error));
    assert!(shown.contains("its answer cannot be read") && !shown.contains("secret"), "{shown}");
}

#[tokio::test]
async fn an_engine_that_names_another_id_at_each_call_is_known_by_where_its_data_is() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let host = format!("tcp://{}", listener.local_addr().expect("an address"));
    let calls = Arc::new(AtomicUsize::new(0));
    let answer = Router::new().fallback(async move |uri: Uri| {
        let id = calls.fetch_add(1, Ordering::Relaxed).to_string();
        let answer = match uri.path() {
            "/version" => serde_json::json!({ "ApiVersion": "1.41", "MinAPIVersion": "1.12" }),
            _ => serde_json::json!({ "ID": id, "Name": "h1", "DockerRootDir": "/var/lib/containers" }),
        };
        answer.to_string()
    });
    tokio::spawn(async move { axum::serve(listener, answer).await });
    let docker = Docker::connect(&Cli::parse_from(["agent", "--docker-host", &host]).docker).await;
    let docker = docker.expect("an engine");
    for _ in 0..2 {
        assert_eq!(docker.id().await.expect("an ID"), "h1:/var/lib/containers");
    }
}
