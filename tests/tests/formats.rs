//! Whatever is registered, each format's own program takes what is rendered of it.

use std::{
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Parser;
use proptest::{
    prelude::{Just, Strategy, any, prop_oneof},
    sample::select,
    strategy::ValueTree,
    test_runner::TestRunner,
};
use rcgen::{CertificateParams, KeyPair};
use rollcall_consumer::sink::file::read_back::{ReadBack, read_back, settings::Program as Asked};
use rollcall_shared::{
    codec,
    keys::{Key, Keys},
    model::instance::{Address, Instance, InstanceId, Protocol},
    store::{Op, Store, etcd::EtcdStore, settings::EtcdSettings},
};
use rollcall_tests::{
    Container, DockerHost, Envoy, Etcd, Program, Prometheus, Traefik, image, port, tool, until,
};

/// How many rolls each program is given.
const ROLLS: usize = 25;
const INSTANCES: usize = 16;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    etcd: EtcdSettings,
}

/// Puts instances into etcd, as agents would.
async fn register(etcd: &Etcd, instances: &[(InstanceId, Instance)]) -> Result<()> {
    let Cli { etcd: settings } = Cli::try_parse_from(["test", &format!("--etcd={}", etcd.endpoint())])?;
    let keys: Keys = settings.prefix.clone();
    let store = Arc::new(EtcdStore::new(settings)?);
    let put = |(id, instance): &(InstanceId, Instance)| Op::Put {
        key: keys.format(&Key::Instance(id.clone())),
        value: codec::encode(instance),
    };
    for chunk in instances.chunks(100) {
        store.commit(&chunk.iter().map(put).collect::<Vec<_>>(), None, None).await?;
    }
    Ok(())
}

/// A text that someone may have chosen to break a file with.
fn hostile() -> impl Strategy<Value = String> {
    let known = [
        "a.example",
        "*.a.example",
        "a.example.*",
        ".b.example",
        "www.a.example",
        "A.EXAMPLE",
        "localhost",
        "_",
        "~^(?<host>.+)\\.x$",
        "~^(?!www)[a-z.]+$",
        "~[.a.]",
        "~^a{2,3}$",
        "~(?i)a",
        "~\\<a",
        "~a\\\\.b",
        "a; } server { listen 81; }",
        "$host",
        "${a}",
        "\"",
        "'",
        "\\",
        "#",
        "/",
        "/api/",
        "^~ /api/",
        "= /api/",
        "/../x",
        "~* \\.(php|x)$",
        "~^/[.a.]",
        "/.well-known/acme-challenge/",
        "https",
        "grpc",
        "uwsgi",
        "fastcgi",
        "internal",
        "nohttps",
        "noredirect",
        "nohttp",
        "off",
        "max-age=1; includeSubDomains",
        "80",
        "0",
        "65536",
        "8080",
        "default",
        "../default",
        r#"{"a.example": {"/": {"port": 8080, "dest": "/x"}, "/../x": null}, "b.example": null}"#,
        r#"{"x\"; }": {}, "~^(": {"/": {}}, "c.example": {"/ {": {}, "/}": {"proto": "\n"}}}"#,
        "{{ 1 }}",
        "{% raw %}",
        "\u{202e}ab",
    ];
    let long = (0..5000usize).prop_map(|length| format!("~{}", "a".repeat(length)));
    prop_oneof![
        8 => select(known.map(str::to_owned).to_vec()),
        2 => r#"~[]\[(){}.*+?|^$\\a-c:=<>!&~-]{1,16}"#,
        2 => r#"[a-c.*~/;{}"'#$\\ ,:=_-]{0,12}"#,
        1 => "\\PC{0,8}",
        1 => long,
    ]
}

fn any_address() -> impl Strategy<Value = Address> {
    prop_oneof![
        4 => any::<[u8; 4]>().prop_map(|ip| Address::Ip(ip.into())),
        1 => any::<[u8; 16]>().prop_map(|ip| Address::Ip(ip.into())),
        1 => Just("localhost".to_owned().try_into().expect("an address")),
    ]
}

/// What a container may be, as far as readers take it in.
fn any_instance() -> impl Strategy<Value = Instance> {
    let name = || {
        let known = ["web", "Web", "http", "localhost", "default", "global", "x"].map(str::to_owned).to_vec();
        prop_oneof![select(known), "[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,20}"]
    };
    let names = [
        "VIRTUAL_HOST",
        "VIRTUAL_HOST_MULTIPORTS",
        "VIRTUAL_PORT",
        "VIRTUAL_PATH",
        "VIRTUAL_DEST",
        "VIRTUAL_PROTO",
        "VIRTUAL_ROOT",
        "CERT_NAME",
        "HTTPS_METHOD",
        "HSTS",
        "NETWORK_ACCESS",
    ];
    let variables =
        proptest::collection::btree_map(select(names.map(str::to_owned).to_vec()), hostile(), 0..4);
    let hosts = proptest::collection::vec(hostile(), 1..4);
    (name(), name(), any_address(), 1u16.., 1u16.., hosts, variables, hostile()).prop_map(
        |(service, container, address, port, weight, hosts, mut environment, evil)| {
            environment.insert("VIRTUAL_HOST".to_owned(), hosts.join(","));
            let value = serde_json::json!({
                "v": 1, "service": service, "container": container, "id": "0".repeat(12), "image": evil,
                "address": address, "port": port, "protocol": "tcp", "container_port": 80, "weight": weight,
                "status": "passing", "started_at": "2026-01-01T00:00:00Z",
                "labels": {"evil": evil, (evil.as_str()): "evil"}, "environment": environment,
            });
            serde_json::from_value(value).expect("an instance")
        },
    )
}

/// Rolls, told apart by their tags. Texts that a reader does not take in are not in them.
fn rolls() -> Vec<(InstanceId, Instance)> {
    let mut runner = TestRunner::default();
    let mut instance = || loop {
        let tree = any_instance().new_tree(&mut runner).expect("a value").current();
        if codec::decode::<Instance>(&codec::encode(&tree)).is_ok() {
            return tree;
        }
    };
    let number = |number: usize| {
        let instance = Instance {
            id: format!("{number:012x}").parse().expect("an ID"),
            tags: vec![format!("roll-{}", number / INSTANCES)],
            container_port: if number.is_multiple_of(2) { 80 } else { 8080 },
            ..instance()
        };
        let port = instance.container_port;
        let node = "h1".parse().expect("a name");
        (InstanceId { node, container: instance.id, port, protocol: Protocol::Tcp }, instance)
    };
    (0..ROLLS * INSTANCES).map(number).collect()
}

/// A certificate of this name and its key.
fn certificate(dir: &Path, name: &str) -> Result<()> {
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec![name.to_owned()])?.self_signed(&key)?;
    fs::write(dir.join(format!("{name}.crt")), certificate.pem())?;
    Ok(fs::write(dir.join(format!("{name}.key")), key.serialize_pem())?)
}

/// A target of each roll. Its content is by these lines of TOML.
fn targets(dir: &Path, name: &str, content: &str) -> Result<()> {
    targets_at(dir, name, "", content)
}

/// The same with names of the files that go on like this.
fn targets_at(dir: &Path, name: &str, rest: &str, content: &str) -> Result<()> {
    fs::create_dir(dir.join(name))?;
    let mut text = fs::read_to_string(dir.join("config.toml")).unwrap_or_default();
    for roll in 0..ROLLS {
        let dest = dir.join(name).join(format!("roll-{roll}{rest}"));
        writeln!(
            text,
            "[[target]]\nname = \"{name}-{roll}\"\ndest = {dest:?}\nselect = {{ tags = [\"roll-{roll}\"] }}\n{content}"
        )?;
    }
    Ok(fs::write(dir.join("config.toml"), text)?)
}

/// Templates that quote what they find.
const QUOTES: [(&str, &str); 2] = [
    (
        "nginx",
        "{% for instance in instances %}\n\
         map $host $evil{{ loop.index }} { default {{ instance.labels.evil|nginx('none') }}; }\n{% endfor %}\n",
    ),
    (
        "haproxy",
        "frontend http\n    mode http\n    timeout client 1s\n    bind :80\n{% for instance in instances %}\n    \
         acl evil{{ loop.index }} path -m str -- {{ instance.labels.evil|haproxy('none') }}\n{% endfor %}\n",
    ),
];

fn render(etcd: &Etcd, dir: &Path) -> Result<String> {
    let mut command = Program::consumer()?;
    command.args(["--etcd", &etcd.endpoint(), "--listen", "off", "--once", "--wait", "30s", "--config"]);
    command.arg(dir.join("config.toml")).arg("--state-dir").arg(dir.join("state"));
    tool::run(&mut command)
}

/// What the program says of what is installed: it has exactly that.
async fn is_read_back(program: Asked, url: &str, installed: &[u8]) -> Result<()> {
    let config = ReadBack { program, url: url.parse().map_err(anyhow::Error::msg)? };
    let begun = Instant::now();
    loop {
        match read_back(&config, installed).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_not_yet() && begun.elapsed() < Duration::from_secs(30) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[tokio::test]
async fn envoy_takes_whatever_is_registered() -> Result<()> {
    let (etcd, dir) = (Etcd::start()?, tempfile::tempdir()?);
    register(&etcd, &rolls()).await?;
    // The names of services have no colon.
    targets_at(dir.path(), "envoy", ":{service}.json", "format = \"envoy-eds\"")?;
    render(&etcd, dir.path())?;
    let mut clusters = vec![];
    for (number, entry) in fs::read_dir(dir.path().join("envoy"))?.enumerate() {
        let path = entry?.path();
        let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
        let service = name.strip_suffix(".json").and_then(|name| name.split_once(':')).context("ours")?.1;
        let source = serde_json::json!({"resource_api_version": "V3", "path_config_source": {"path": path}});
        clusters.push(serde_json::json!({
            "name": format!("cluster-{number}"), "type": "EDS",
            "eds_cluster_config": {"service_name": service, "eds_config": source},
        }));
    }
    assert!(clusters.len() > ROLLS, "{}", clusters.len());
    // Envoy has an inotify instance for each cluster, of which a user has 128.
    let members: u64 = clusters.chunks(20).map(|some| members(dir.path(), some)).sum::<Result<u64>>()?;
    assert!(members > (ROLLS * INSTANCES / 2) as u64, "{members}");
    Ok(())
}

/// How many hosts Envoy has in these clusters, all of whose files it has taken.
fn members(dir: &Path, clusters: &[serde_json::Value]) -> Result<u64> {
    let admin = port::free(Ipv4Addr::LOCALHOST.into())?;
    let address = serde_json::json!({"socket_address": {"address": "127.0.0.1", "port_value": admin}});
    let bootstrap = serde_json::json!({
        "admin": {"address": address}, "node": {"id": "test", "cluster": "test"},
        "static_resources": {"clusters": clusters},
    });
    let config = dir.join("envoy.json");
    fs::write(&config, bootstrap.to_string())?;
    let envoy = Envoy::start(&config, admin)?;
    let of = |filter: &str| -> Result<Vec<u64>> {
        Ok(envoy.stats(filter)?.into_iter().map(|(_, value)| value).collect())
    };
    assert_eq!(of("cluster-.*update_rejected")?, vec![0; clusters.len()]);
    assert!(of("cluster-.*update_success")?.iter().all(|count| *count > 0));
    Ok(of("cluster-.*membership_total$")?.iter().sum())
}

#[tokio::test]
async fn traefik_takes_whatever_is_registered() -> Result<()> {
    let (etcd, dir) = (Etcd::start()?, tempfile::tempdir()?);
    register(&etcd, &rolls()).await?;
    let settings = "format = \"traefik\"\ntraefik = { domain = \"example.com\" }";
    targets_at(dir.path(), "traefik", ".yml", settings)?;
    render(&etcd, dir.path())?;
    let file = dir.path().join("current.yml");
    fs::write(&file, "{}")?;
    let traefik = Traefik::start(&file)?;
    for roll in 0..ROLLS {
        let rendered = dir.path().join("traefik").join(format!("roll-{roll}.yml"));
        let bytes = fs::read(&rendered)?;
        fs::rename(rendered, &file)?;
        is_read_back(Asked::Traefik { others: false }, &traefik.api(), &bytes).await?;
    }
    Ok(())
}

#[tokio::test]
async fn prometheus_takes_whatever_is_registered() -> Result<()> {
    let (etcd, dir) = (Etcd::start()?, tempfile::tempdir()?);
    register(&etcd, &rolls()).await?;
    targets_at(dir.path(), "prometheus", ".json", "format = \"prometheus\"")?;
    render(&etcd, dir.path())?;
    let file = |roll: usize| dir.path().join("prometheus").join(format!("roll-{roll}.json"));
    // Nobody is asked for metrics: their addresses are random.
    let job = |roll: usize| {
        serde_json::json!({
            "job_name": format!("roll-{roll}"), "file_sd_configs": [{"files": [file(roll)]}],
            "relabel_configs": [{"action": "drop", "source_labels": ["job"], "regex": ".*"}],
        })
    };
    let config = dir.path().join("prometheus.yml");
    let jobs: Vec<_> = (0..ROLLS).map(job).collect();
    fs::write(&config, serde_json::json!({"scrape_configs": jobs}).to_string())?;
    let prometheus = Prometheus::start(&config)?;
    for roll in 0..ROLLS {
        let program = Asked::Prometheus { job: Some(format!("roll-{roll}")) };
        is_read_back(program, &prometheus.url(), &fs::read(file(roll))?).await?;
    }
    Ok(())
}

/// A container with nginx and HAProxy as Debian has them.
fn proxies(dir: &Path, options: &[&str]) -> Result<Container> {
    let volumes = [
        format!("--volume={}:/rolls:ro", dir.display()),
        format!("--volume={}:/etc/nginx/certs:ro", dir.join("certs").display()),
    ];
    let rest = [image::proxies()?, "sleep", "600"];
    DockerHost::local()?.run(&[&volumes.each_ref().map(String::as_str)[..], options, &rest[..]].concat())
}

/// Has the program check every roll. Gives what it said of those that it refuses.
fn check(host: &Container, format: &str, command: &str) -> Result<String> {
    let script = format!(
        "for f in /rolls/{format}/*; do out=$({command} 2>&1) || {{ echo \"--- $f: $out\"; cat $f; }}; done; \
         ls /rolls/{format} | wc -l"
    );
    let said = host.exec(&["sh", "-c", &script])?;
    said.strip_suffix(&ROLLS.to_string()).map(str::to_owned).context("every roll is there")
}

#[tokio::test]
async fn nginx_and_haproxy_take_whatever_is_registered() -> Result<()> {
    let (etcd, dir) = (Etcd::start()?, tempfile::tempdir()?);
    register(&etcd, &rolls()).await?;
    let certs = dir.path().join("certs");
    fs::create_dir(&certs)?;
    ["a.example", "default"].iter().try_for_each(|name| certificate(&certs, name))?;
    let settings = format!("nginx_proxy = {{ certs_dir = {certs:?}, www_redirect = true, ipv6 = true }}");
    targets(dir.path(), "nginx-proxy", &format!("format = \"nginx-proxy\"\n{settings}"))?;
    targets(dir.path(), "nginx-upstream", "format = \"nginx-upstream\"")?;
    targets(dir.path(), "haproxy", "format = \"haproxy\"\nhaproxy = { domain = \"example.com\" }")?;
    for (program, source) in QUOTES {
        let template = dir.path().join(format!("{program}.jinja"));
        fs::write(&template, source)?;
        targets(dir.path(), &format!("{program}-quotes"), &format!("template = {template:?}"))?;
    }
    render(&etcd, dir.path())?;
    let host = proxies(dir.path(), &[])?;
    let conf = "cp $f /etc/nginx/conf.d/rollcall.conf; nginx -t -q";
    let haproxy = "haproxy -c -q -f $f";
    for (name, command) in [
        ("nginx-proxy", conf),
        ("nginx-upstream", conf),
        ("nginx-quotes", conf),
        ("haproxy", haproxy),
        ("haproxy-quotes", haproxy),
    ] {
        assert_eq!(check(&host, name, command)?, "");
    }
    // The rolls are no formality: many hosts are served in spite of the others.
    let served = host.exec(&["sh", "-c", "cat /rolls/nginx-proxy/* | grep -c proxy_pass"])?;
    assert!(served.parse::<usize>()? > ROLLS, "{served}");
    Ok(())
}

fn instance(
    number: u8,
    service: &str,
    address: &str,
    rest: serde_json::Value,
) -> Result<(InstanceId, Instance)> {
    let id = format!("{number:012x}");
    let mut value = serde_json::json!({
        "v": 1, "service": service, "container": format!("{service}-{number}"), "id": id, "image": "x",
        "address": address, "port": 80, "protocol": "tcp", "container_port": 80, "status": "passing",
        "started_at": "2026-01-01T00:00:00Z",
    });
    if let (Some(value), serde_json::Value::Object(rest)) = (value.as_object_mut(), rest) {
        value.extend(rest);
    }
    let instance: Instance = serde_json::from_value(value)?;
    let id = InstanceId { node: "h1".parse()?, container: id.parse()?, port: 80, protocol: Protocol::Tcp };
    Ok((id, instance))
}

/// What a client is answered: the status and the body, or where it is sent.
fn curl(host: &Container, url: &str, name: &str) -> Result<String> {
    // Debian's minimal images have no curl, but they have Perl.
    let script = format!(
        "use IO::Socket::INET; my $s = IO::Socket::INET->new('127.0.0.1:80') or die; \
         print $s \"GET {url} HTTP/1.0\\r\\nHost: {name}\\r\\n\\r\\n\"; \
         my @lines = <$s>; print grep {{ /^HTTP|^Location/ }} @lines; print $lines[-1];"
    );
    Ok(host.exec(&["perl", "-e", &script])?.replace('\r', ""))
}

#[tokio::test]
async fn nginx_serves_the_virtual_hosts_of_all_nodes_as_nginx_proxy_does() -> Result<()> {
    let (etcd, dir) = (Etcd::start()?, tempfile::tempdir()?);
    let worker = DockerHost::local()?.run(&["--hostname", "one", image::worker()?])?;
    let ip = worker.inspect("{{.NetworkSettings.IPAddress}}")?;
    let declaring = |number, variables: serde_json::Value| {
        instance(number, "web", &ip, serde_json::json!({"environment": variables}))
    };
    let instances = [
        declaring(1, serde_json::json!({"VIRTUAL_HOST": "a.example, b.example"}))?,
        declaring(
            2,
            serde_json::json!({"VIRTUAL_HOST": "~^w\\d+\\.example$", "VIRTUAL_PATH": "/sub/", "VIRTUAL_DEST": "/"}),
        )?,
        declaring(3, serde_json::json!({"VIRTUAL_HOST": "a.example; } bad {"}))?,
        declaring(4, serde_json::json!({"VIRTUAL_HOST": "in.example", "NETWORK_ACCESS": "internal"}))?,
        declaring(5, serde_json::json!({"VIRTUAL_HOST": "secure.example"}))?,
        instance(6, "none", &ip, serde_json::Value::Null)?,
    ];
    register(&etcd, &instances).await?;
    let (certs, dest) = (dir.path().join("certs"), dir.path().join("default.conf"));
    fs::create_dir(&certs)?;
    certificate(&certs, "secure.example")?;
    fs::write(
        dir.path().join("config.toml"),
        format!(
            "[[target]]\nname = \"proxy\"\ndest = {dest:?}\nformat = \"nginx-proxy\"\n\
             nginx_proxy = {{ certs_dir = {certs:?}, www_redirect = true }}\n"
        ),
    )?;
    let said = render(&etcd, dir.path())?;
    let host = proxies(dir.path(), &[])?;
    host.exec(&[
        "sh",
        "-c",
        "rm -f /etc/nginx/sites-enabled/default; cp /rolls/default.conf /etc/nginx/conf.d/; nginx",
    ])?;
    until("nginx answers", Duration::from_secs(10), || Ok(curl(&host, "/", "a.example").is_ok()))?;
    for (url, name, expected) in [
        ("/", "a.example", "HTTP/1.1 200 OK\none"),
        ("/", "B.example", "HTTP/1.1 200 OK\none"),
        ("/sub/x", "w12.example", "HTTP/1.1 200 OK\none"),
        ("/", "w12.example", "HTTP/1.1 404 Not Found\n"),
        ("/", "unknown.example", "HTTP/1.1 503 Service Temporarily Unavailable\n"),
        ("/", "in.example", "HTTP/1.1 200 OK\none"),
        ("/x?y", "www.a.example", "HTTP/1.1 301 Moved Permanently\nLocation: http://a.example/x?y\n"),
        ("/x", "secure.example", "HTTP/1.1 301 Moved Permanently\nLocation: https://secure.example/x\n"),
    ] {
        let answer = curl(&host, url, name)?;
        assert!(answer.starts_with(expected), "{name}{url}: {answer}\n{said}");
    }
    Ok(())
}

#[tokio::test]
async fn the_lines_of_hosts_resolve_each_container_and_service() -> Result<()> {
    let (etcd, dir) = (Etcd::start()?, tempfile::tempdir()?);
    let none = || serde_json::Value::Null;
    let instances = [
        instance(1, "web", "10.0.0.1", none())?,
        instance(2, "web", "fd00::2", none())?,
        instance(3, "localhost", "10.0.0.3", none())?,
        instance(4, "api", "by-name", none())?,
    ];
    register(&etcd, &instances).await?;
    let dest = dir.path().join("hosts");
    fs::write(
        dir.path().join("config.toml"),
        format!("[[target]]\nname = \"hosts\"\ndest = {dest:?}\nformat = \"hosts\"\n"),
    )?;
    fs::create_dir(dir.path().join("certs"))?;
    render(&etcd, dir.path())?;
    assert_eq!(
        fs::read_to_string(&dest)?,
        "# Rendered by Rollcall; do not edit.\n10.0.0.3 localhost-3\n10.0.0.1 web-1 web\nfd00::2 web-2 web\n"
    );
    let host = proxies(dir.path(), &[])?;
    host.exec(&["sh", "-c", "cat /rolls/hosts >>/etc/hosts"])?;
    for (name, expected) in [("web-1", "10.0.0.1"), ("web-2", "fd00::2")] {
        let found = host.exec(&["getent", "hosts", name])?;
        assert!(found.contains(expected), "{name}: {found}");
    }
    Ok(())
}
