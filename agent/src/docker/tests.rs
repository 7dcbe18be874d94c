use std::net::Ipv4Addr;

use axum::{
    Router,
    http::{StatusCode, Uri},
};
use clap::Parser;
use tokio::net::TcpListener;

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
    assert_eq!(kill, Some(Event { id: "c1".to_owned(), action: Action::Kill(Signal::TERM) }));
    let health =
        serde_json::json!({ "Type": "container", "Action": "health_status: healthy", "Actor": actor });
    assert_eq!(read(health), Some(Event { id: "c1".to_owned(), action: Action::Change }));
    let actor = serde_json::json!({ "ID": "n1", "Attributes": { "container": "c2" } });
    let connect = read(serde_json::json!({ "Type": "network", "Action": "connect", "Actor": actor }));
    assert_eq!(connect, Some(Event { id: "c2".to_owned(), action: Action::Connect }));
    assert_eq!(read(serde_json::json!({ "Type": "image", "Action": "pull", "Actor": actor })), None);
}

/// An engine on the wire that takes these API versions, and refuses others in Docker's words.
async fn engine(oldest: &'static str, newest: &'static str) -> String {
    let answer = move |uri: Uri| async move {
        let number = |version: &str| super::version(version).expect("a version");
        let asked =
            uri.path().strip_prefix("/v").and_then(|path| path.split_once('/')).map(|(version, _)| version);
        let refusal = match asked {
            Some(asked) if number(asked) > number(newest) => {
                format!("client version {asked} is too new. Maximum supported API version is {newest}")
            }
            Some(asked) if number(asked) < number(oldest) => {
                format!("client version {asked} is too old. Minimum supported API version is {oldest}")
            }
            _ => {
                let version =
                    serde_json::json!({ "ApiVersion": newest, "MinAPIVersion": oldest, "ID": asked });
                return (StatusCode::OK, version.to_string());
            }
        };
        (StatusCode::BAD_REQUEST, serde_json::json!({ "message": refusal }).to_string())
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    format!("tcp://{address}")
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    docker: DockerSettings,
}

/// The version that is spoken with an engine at last.
async fn agreed(host: &str, flags: &[&str]) -> Result<String, DockerError> {
    let args = [&["agent", "--docker-host", host], flags].concat();
    let docker = Docker::connect(&Cli::parse_from(args).docker).await?;
    docker.engine_id().await
}

#[tokio::test]
async fn a_version_is_agreed_on_with_engines_old_and_new() {
    let own = format!("{}.{}", API_DEFAULT_VERSION.major_version, API_DEFAULT_VERSION.minor_version);
    for (engine_is, oldest, newest, spoken) in [
        ("Docker 20.10", "1.12", "1.41", "1.41"),
        ("Docker 24", "1.12", "1.43", "1.43"),
        ("Docker 27", "1.24", "1.47", "1.47"),
        ("Docker 29", "1.44", "1.52", "1.52"),
        ("one to come", "1.44", "1.99", &own),
    ] {
        let host = engine(oldest, newest).await;
        assert_eq!(agreed(&host, &[]).await.expect(engine_is), spoken, "{engine_is}");
    }
}

#[tokio::test]
async fn a_version_that_the_user_wants_is_spoken_or_refused_in_the_engines_words() {
    let host = engine("1.44", "1.52").await;
    assert_eq!(agreed(&host, &["--docker-api-version", "1.45"]).await.expect("it is taken"), "1.45");
    let refused = agreed(&host, &["--docker-api-version", "1.41"]).await.expect_err("it is too old");
    let words = "--docker-api-version is 1.41: client version 1.41 is too old";
    assert!(refused.to_string().starts_with(words), "{refused}");
}
