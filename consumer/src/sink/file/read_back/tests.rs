//! Answers that programs give, and some that they should not.

use std::{io::ErrorKind, slice::from_ref};

use rollcall_shared::process::error::one_line;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;

/// Answers each request with these bytes, and then again and again with the rest, until the client goes.
async fn server(first: &'static str, rest: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await;
                assert!(read.is_ok_and(|bytes| request[..bytes].starts_with(b"GET /")), "it asks");
                let mut next = stream.write_all(first.as_bytes()).await;
                while next.is_ok() && !rest.is_empty() {
                    next = stream.write_all(rest.as_bytes()).await;
                }
                if let Err(error) = next {
                    assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset));
                }
            });
        }
    });
    format!("http://{address}")
}

fn config(program: Program, url: &str) -> ReadBack {
    ReadBack { program, url: url.parse().expect("an address") }
}

/// What becomes of such answers. The address of the server stands as URL.
async fn asked(first: &'static str, rest: &'static str) -> Result<(), String> {
    let url = server(first, rest).await;
    let answer = read_back(&config(Program::Envoy, &url), &envoy(&[("web", &[])])).await;
    answer.map_err(|error| {
        assert!(!error.is_not_yet());
        one_line(&error).replace(&url, "URL")
    })
}

/// Address, port, weight and health.
type Host<'h> = (&'h str, u16, u64, Option<&'h str>);

fn envoy(services: &[(&str, &[Host])]) -> Vec<u8> {
    let file = |(service, hosts): &(&str, &[Host])| {
        let host = |(address, port, weight, health): &Host| {
            json!({
                "endpoint": {"address": {"socket_address": {"address": address, "port_value": port}}},
                "load_balancing_weight": weight, "health_status": health,
            })
        };
        let hosts: Vec<_> = hosts.iter().map(host).collect();
        let assignment = json!({"cluster_name": service, "endpoints": [{"lb_endpoints": hosts}]});
        json!({"version_info": "1", "resources": [assignment]}).to_string()
    };
    services.iter().map(file).collect::<String>().into_bytes()
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_is_told_as_such() {
    let cannot = |why: &str| Err(format!("Envoy cannot be asked at URL/: {why}"));
    for (first, expected) in [
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 23\r\n\r\n{\"cluster_statuses\": []}",
            cannot("the answer makes no sense: EOF while parsing an object at line 1 column 23"),
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: 24\r\n\r\n{\"cluster_statuses\": []}", Ok(())),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", Ok(())),
        ("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", cannot("the answer has status 503")),
        ("HTTP/1.1 302 No\r\nlocation: /\r\ncontent-length: 0\r\n\r\n", cannot("the answer has status 302")),
    ] {
        assert_eq!(asked(first, "").await, expected, "{first}");
    }
    for first in ["", "SSH-2.0-OpenSSH\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"] {
        let error = asked(first, "").await.expect_err("it is no answer");
        assert!(error.starts_with("Envoy cannot be asked at URL/: "), "{error}");
    }
}

#[tokio::test]
async fn an_answer_without_end_is_left_once_it_is_too_long() {
    let zeros: &'static str = Box::leak("0".repeat(1 << 20).into_boxed_str());
    let error = asked("HTTP/1.1 200 OK\r\n\r\n", zeros).await.expect_err("it does not end");
    assert_eq!(error, "Envoy cannot be asked at URL/: the answer cannot be read: length limit exceeded");
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_not_waited_for() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", silent.local_addr().expect("an address"));
    // Connecting is done by the kernel; from then on, only the clock goes on.
    let config = config(Program::Envoy, &url);
    let asking = tokio::spawn(async move { read_back(&config, b"").await });
    let _stream = silent.accept().await.expect("it connects");
    tokio::time::pause();
    let error = one_line(&asking.await.expect("no panic").expect_err("nobody answers"));
    assert_eq!(error, format!("Envoy cannot be asked at {url}/: it takes more than 5s"));
    drop(silent);
    let error = read_back(&config_of(&url), b"").await.expect_err("nobody is there");
    assert!(one_line(&error).starts_with(&format!("Envoy cannot be asked at {url}/: no answer")), "{error}");
}

fn config_of(url: &str) -> ReadBack {
    config(Program::Envoy, url)
}

fn compared(program: &Program, installed: &[u8], answer: &serde_json::Value) -> Result<(), String> {
    program.compare(installed, answer.to_string().as_bytes()).map_err(|mismatch| match mismatch {
        Mismatch::Differs(difference) => difference,
        Mismatch::Installed(error) => format!("installed: {error}"),
        Mismatch::Answer(error) => format!("answer: {error}"),
    })
}

/// A cluster as Envoy 1.40 shows it.
fn cluster(name: &str, follows: Option<&str>, hosts: &[(&str, u16, u64, &str)]) -> serde_json::Value {
    let host = |(address, port, weight, health): &(&str, u16, u64, &str)| {
        json!({
            "address": {"socket_address": {"address": address, "port_value": port}},
            "stats": [{"name": "cx_total"}], "health_status": {"eds_health_status": health},
            "weight": weight, "locality": {},
        })
    };
    let mut cluster = json!({"name": name, "observability_name": name});
    if !hosts.is_empty() {
        cluster["host_statuses"] = hosts.iter().map(host).collect();
    }
    if let Some(service) = follows {
        cluster["eds_service_name"] = service.into();
    }
    cluster
}

#[test]
fn envoy_has_what_each_cluster_has_of_the_service_that_it_follows() {
    let installed = envoy(&[
        ("web", &[("10.0.0.1", 80, 1, None), ("fd00:0::2", 80, 3, Some("DRAINING"))]),
        ("api", &[]),
        ("zoo", &[("10.0.0.9", 80, 1, None)]),
    ]);
    let web = [("10.0.0.1", 80, 1, "HEALTHY"), ("fd00::2", 80, 3, "DRAINING")];
    let web_less = [("10.0.0.1", 80, 2, "HEALTHY"), ("fd00::2", 80, 3, "HEALTHY")];
    for (clusters, expected) in [
        (vec![cluster("web", None, &web), cluster("api", None, &[]), cluster("own", None, &[])], Ok(())),
        (vec![cluster("front", Some("web"), &web)], Ok(())),
        (vec![cluster("own", None, &[])], Err("has no cluster that follows web, zoo")),
        (
            vec![cluster("front", Some("web"), &web[..1]), cluster("web", None, &web_less)],
            Err("lacks [fd00::2]:80 in cluster front, has 10.0.0.1:80 (weight 2 instead of weight 1), \
                 [fd00::2]:80 (weight 3 instead of weight 3, DRAINING) in cluster web"),
        ),
        (
            vec![cluster("api", None, &[("10.0.0.7", 1, 1, "HEALTHY")])],
            Err("has 10.0.0.7:1 besides in cluster api"),
        ),
    ] {
        let answer = json!({"cluster_statuses": clusters});
        assert_eq!(compared(&Program::Envoy, &installed, &answer), expected.map_err(str::to_owned));
    }
    assert_eq!(compared(&Program::Envoy, &envoy(&[("api", &[])]), &json!({})), Ok(()));
    let error = compared(&Program::Envoy, b"resources: []", &json!({})).expect_err("it is YAML");
    assert!(error.starts_with("installed: "), "{error}");
    let error = compared(&Program::Envoy, b"", &json!({"cluster_statuses": 1})).expect_err("it is a number");
    assert!(error.starts_with("answer: "), "{error}");
}

#[test]
fn envoy_says_whose_files_it_has_refused() {
    let stat = |name: &str, value: u64| json!({"name": name, "value": value});
    let stats = [
        stat("cluster.a.b.update_rejected", 2),
        stat("cluster.c.update_rejected", 0),
        json!({"histograms": {}}),
    ];
    let said = envoy::refusals(json!({"stats": stats}).to_string().as_bytes());
    assert_eq!(said.as_deref(), Some("it has refused files of a.b since it started, and logs why"));
    assert_eq!(envoy::refusals(b"no JSON"), None);
}

#[test]
fn traefik_has_what_its_file_provider_has() {
    let installed = b"# Rendered by Rollcall; do not edit.\n{\"http\":{\"services\":{\n\
        \"web\":{\"loadBalancer\":{\"servers\":[{\"url\":\"http://10.0.0.1:80\"}]}}\n},\"routers\":{\n\
        \"web\":{\"rule\":\"Host(`web.x`)\",\"service\":\"web\"}}}}\n";
    let answer = || {
        json!({
            "routers": {
                "web@file": {"entryPoints": ["web"], "service": "web", "rule": "Host(`web.x`)", "status": "enabled"},
                "api@internal": {"service": "api@internal", "rule": "PathPrefix(`/api`)", "status": "enabled"},
            },
            "middlewares": {},
            "services": {
                "web@file": {"loadBalancer": {"servers": [{"url": "http://10.0.0.1:80"}]}, "status": "enabled"},
                "api@internal": {"status": "enabled"},
            },
        })
    };
    let strict = Program::Traefik { others: false };
    assert_eq!(compared(&strict, installed, &answer()), Ok(()));
    let differs = |change: &dyn Fn(&mut serde_json::Value), program: &Program| {
        let mut answer = answer();
        change(&mut answer);
        compared(program, installed, &answer)
    };
    let lacks = differs(&|answer| answer["services"] = json!({}), &strict);
    assert_eq!(lacks, Err("lacks http://10.0.0.1:80 of web, service web".to_owned()));
    let refuses = differs(
        &|answer| {
            let error = "EntryPoint doesn't exist";
            answer["routers"]["web@file"]["error"] = json!([error]);
            answer["routers"]["web@file"]["status"] = json!("disabled");
        },
        &strict,
    );
    let expected = "has router web (refused (EntryPoint doesn't exist) Host(`web.x`) -> web instead of Host(`web.x`) -> web)";
    assert_eq!(refuses, Err(expected.to_owned()));
    let own = |answer: &mut serde_json::Value| {
        answer["services"]["own@file"] = json!({"loadBalancer": {"servers": []}, "status": "enabled"});
    };
    assert_eq!(differs(&own, &strict), Err("has service own besides".to_owned()));
    assert_eq!(differs(&own, &Program::Traefik { others: true }), Ok(()));
}

#[test]
fn prometheus_has_the_targets_that_it_scrapes_and_those_that_it_drops() {
    let labels = |address: &str, container: &str, job: &str| {
        json!({"discoveredLabels": {
            "__address__": address, "__meta_docker_container_name": container, "__meta_filepath": "/x",
            "__meta_rollcall_service": "web", "__scheme__": "http", "job": job,
        }})
    };
    let group = |address: &str, container: &str| {
        let labels = json!({
            "__meta_docker_container_name": container, "__meta_rollcall_service": "web",
            "__meta_rollcall_image": "",
        });
        json!({"targets": [address], "labels": labels})
    };
    let installed = json!([group("a:1", "/a"), group("b:1", "/b"), group("b:1", "/c")]).to_string();
    let any = Program::Prometheus { job: None };
    let job = Program::Prometheus { job: Some("one".to_owned()) };
    let answer = |active: &[serde_json::Value], dropped: &[serde_json::Value]| json!({"status": "success", "data": {"activeTargets": active, "droppedTargets": dropped}});
    let (a, b) = (labels("a:1", "/a", "one"), labels("b:1", "/b", "one"));
    let compared = |program, answer| compared(program, installed.as_bytes(), &answer);
    // Relabelling may make one of two that have one address.
    assert_eq!(compared(&any, answer(from_ref(&a), from_ref(&b))), Ok(()));
    assert_eq!(compared(&any, answer(from_ref(&a), &[])), Err("lacks b:1".to_owned()));
    // keep_dropped_targets bounds what is shown of those that are dropped.
    let hidden = |counts: serde_json::Value| {
        let mut answer = answer(from_ref(&a), &[]);
        answer["data"]["droppedTargetCounts"] = counts;
        answer
    };
    assert_eq!(compared(&any, hidden(json!({"one": 1}))), Ok(()));
    assert_eq!(compared(&job, hidden(json!({"one": 1, "two": 0}))), Ok(()));
    assert_eq!(compared(&job, hidden(json!({"one": 0, "two": 9}))), Err("lacks b:1".to_owned()));
    assert_eq!(compared(&any, hidden(json!(null))), Err("lacks b:1".to_owned()));
    let other = labels("c:1", "/c", "two");
    let all = answer(&[a, b, other], &[]);
    assert_eq!(compared(&any, all.clone()), Err("has c:1 besides".to_owned()));
    assert_eq!(compared(&job, all), Ok(()));
    let none = json!({"data": {"activeTargets": [], "droppedTargets": null}});
    assert_eq!(compared(&job, none), Err("lacks a:1, b:1".to_owned()));
    // As 2.42 shows what was relabelled.
    let relabelled = |pool: &str| {
        let labels = json!({
            "__address__": "other:9", "__meta_rollcall_endpoint": "a:1", "__meta_rollcall_service": "web",
            "container": "a",
        });
        json!({"data": {"activeTargets": [{"discoveredLabels": labels, "scrapePool": pool}]}})
    };
    let labels = json!({"__meta_rollcall_endpoint": "a:1", "__meta_rollcall_service": "web"});
    let one = json!([{"targets": ["a:1"], "labels": labels}]).to_string();
    for (pool, expected) in [("one", Ok(())), ("two", Err("lacks a:1".to_owned()))] {
        assert_eq!(super::tests::compared(&job, one.as_bytes(), &relabelled(pool)), expected);
    }
    let error = compared(&job, json!({"status": "error"})).expect_err("it has no data");
    assert!(error.starts_with("answer: missing field `data`"), "{error}");
}
