//! Programs that follow their files by themselves do, and say so when they are asked: real ones, through the consumer.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rollcall_consumer::sink::file::read_back::{
    ReadBack, ReadBackError, read_back, settings::Program as Asked,
};
use rollcall_tests::{Envoy, Etcd, Program, Prometheus, Traefik, http, port, tool, until};
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(20);

/// An etcd with what a test registers, and a consumer with a target of the examples in a folder of its own.
struct Bench {
    etcd: Etcd,
    dir: TempDir,
    _consumer: Option<Program>,
}

impl Bench {
    /// The example's target, with its folder in ours.
    fn start(example: &str, folder: &str) -> Result<Self> {
        let (etcd, dir) = (Etcd::start()?, tempfile::tempdir()?);
        let mut bench = Self { etcd, dir, _consumer: None };
        fs::create_dir(bench.dir.path().join("files"))?;
        let text = bench.example(example, folder)?.replace("format =", "reconcile = \"1s\"\nformat =");
        fs::write(bench.dir.path().join("config.toml"), text)?;
        let mut command = Program::consumer()?;
        command.args(["--etcd", &bench.etcd.endpoint(), "--listen", "off", "--config"]);
        command
            .arg(bench.dir.path().join("config.toml"))
            .arg("--state-dir")
            .arg(bench.dir.path().join("state"));
        bench._consumer = Some(Program::start("consumer", command)?);
        Ok(bench)
    }

    /// An example's text, with its folder in ours.
    fn example(&self, name: &str, folder: &str) -> Result<String> {
        let text = fs::read_to_string(tool::workspace().join("deploy/examples").join(name))?;
        anyhow::ensure!(text.contains(folder), "{name} is about another folder");
        Ok(text.replace(folder, &self.dir.path().join("files").display().to_string()))
    }

    fn write(&self, name: &str, text: &str) -> Result<std::path::PathBuf> {
        let path = self.dir.path().join(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("files").join(name)
    }

    fn put(&self, number: u8, service: &str, port: u16, status: &str) -> Result<()> {
        let id = format!("{number:012x}");
        let value = serde_json::json!({
            "v": 1, "service": service, "container": format!("{service}-{number}"), "id": id, "image": "x",
            "address": "127.0.0.1", "port": port, "protocol": "tcp", "container_port": 80, "status": status,
            "started_at": "2026-01-01T00:00:00Z", "tags": ["web"], "labels": {"com.example/a": "b"},
        });
        self.etcd.ctl().put(&format!("/rollcall/instances/h1/{id}/80-tcp"), &value.to_string())
    }

    fn delete(&self, number: u8) -> Result<()> {
        self.etcd.etcdctl(&["del", &format!("/rollcall/instances/h1/{number:012x}/80-tcp")]).map(drop)
    }
}

/// A server that answers with its name, until the test ends; its port.
fn worker(name: &'static str) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port::free(Ipv4Addr::LOCALHOST.into())?))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || rollcall_test_worker::serve(&listener, name));
    Ok(port)
}

/// Who answers requests for a host, of twenty; a status instead of a body where it is not 200.
fn answers(url: &str, host: &str) -> Result<BTreeSet<String>> {
    let one = |_| {
        let answer = http::get_as(url, host)?;
        Ok(if answer.status == 200 { answer.body } else { answer.status.to_string() })
    };
    (0..20).map(one).collect()
}

fn until_answers(url: &str, host: &str, expected: &[&str]) -> Result<Duration> {
    let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
    let (begun, mut last) = (Instant::now(), None);
    until(&format!("{host} is answered by {expected:?}"), TIMEOUT, || {
        last = Some(answers(url, host)?);
        Ok(last.as_ref() == Some(&expected))
    })
    .with_context(|| format!("last: {last:?}"))?;
    Ok(begun.elapsed())
}

/// The installed files, one after another.
fn installed(files: &[&Path]) -> Result<Vec<u8>> {
    let read = files.iter().map(fs::read).collect::<std::io::Result<Vec<_>>>()?;
    Ok(read.concat())
}

/// What the program says of these bytes.
fn asked(program: &Asked, url: &str, installed: &[u8]) -> Result<Result<(), ReadBackError>> {
    let config = ReadBack { program: program.clone(), url: url.parse().map_err(anyhow::Error::msg)? };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(read_back(&config, installed)))
}

fn until_read_back(program: &Asked, url: &str, files: &[&Path]) -> Result<()> {
    until("it is read back", TIMEOUT, || {
        asked(program, url, &installed(files)?)?.map_err(anyhow::Error::from)?;
        Ok(true)
    })
}

/// Why the program does not count as having these bytes, though it was asked.
fn difference(program: &Asked, url: &str, installed: &[u8]) -> Result<String> {
    match asked(program, url, installed)? {
        Err(error) if error.is_not_yet() => Ok(error.to_string()),
        other => anyhow::bail!("it is no difference: {other:?}"),
    }
}

#[test]
fn envoy_serves_what_comes_changes_drains_and_goes_without_a_signal() -> Result<()> {
    let bench = Bench::start("envoy.toml", "/etc/envoy/eds")?;
    let (web, api) = (bench.file("web.json"), bench.file("api.json"));
    until("the named services have their files", TIMEOUT, || Ok(web.exists() && api.exists()))?;
    let (admin, listen) = (port::free(Ipv4Addr::LOCALHOST.into())?, port::free(Ipv4Addr::LOCALHOST.into())?);
    let text = bench.example("envoy.yaml", "/etc/envoy/eds")?;
    let text = text.replace("port_value: 9901", &format!("port_value: {admin}"));
    let text = text.replace("0.0.0.0, port_value: 8080", &format!("127.0.0.1, port_value: {listen}"));
    let config = bench.write("envoy.yaml", &text)?;
    let envoy = Envoy::start(&config, admin)?;
    let url = format!("http://127.0.0.1:{listen}/");
    let (host, files) = ("web.example.com", [web.as_path(), api.as_path()]);
    until_answers(&url, host, &["503"])?;
    until_read_back(&Asked::Envoy, &envoy.admin(), &files)?;

    let (one, two) = (worker("one")?, worker("two")?);
    bench.put(1, "web", one, "passing")?;
    println!("start -> 20 requests served: {:?}", until_answers(&url, host, &["one"])?);
    bench.put(2, "web", two, "passing")?;
    until_answers(&url, host, &["one", "two"])?;
    let before = installed(&files)?;
    bench.put(1, "web", one, "draining")?;
    until_answers(&url, host, &["two"])?;
    assert!(fs::read_to_string(&web)?.contains("\"health_status\":\"DRAINING\""));
    until_read_back(&Asked::Envoy, &envoy.admin(), &files)?;
    let said = difference(&Asked::Envoy, &envoy.admin(), &before)?;
    let expected =
        format!("Envoy has 127.0.0.1:{one} (weight 1, DRAINING instead of weight 1) in cluster web");
    assert_eq!(said, expected);
    bench.delete(1)?;
    until("it has gone", TIMEOUT, || Ok(!fs::read_to_string(&web)?.contains("DRAINING")))?;
    until_read_back(&Asked::Envoy, &envoy.admin(), &files)?;

    // A service moves while Envoy is away.
    drop(envoy);
    bench.put(2, "web", worker("three")?, "passing")?;
    let envoy = Envoy::start(&config, admin)?;
    until_answers(&url, host, &["three"])?;

    // Somebody edits the file, and Envoy refuses it until it is put back.
    let rejected = |envoy: &Envoy| -> Result<u64> {
        let stats = envoy.stats("cluster.web.update_rejected")?;
        Ok(stats.first().context("the counter is there")?.1)
    };
    fs::write(bench.file(".edited"), fs::read_to_string(&web)?.replace("127.0.0.1", "no-address"))?;
    fs::rename(bench.file(".edited"), &web)?;
    until("Envoy refuses it", TIMEOUT, || Ok(rejected(&envoy)? > 0))?;
    until("it is put back", TIMEOUT, || Ok(!fs::read_to_string(&web)?.contains("no-address")))?;
    until_read_back(&Asked::Envoy, &envoy.admin(), &files)?;
    let bad = fs::read_to_string(&web)?.replace("127.0.0.1", "no-address");
    let said = difference(&Asked::Envoy, &envoy.admin(), bad.as_bytes())?;
    assert!(said.ends_with("(it has refused files of web since it started, and logs why)"), "{said}");

    bench.delete(2)?;
    until_answers(&url, host, &["503"])?;
    assert!(fs::read_to_string(&web)?.contains("\"endpoints\":[]"), "it is empty, and there");
    until_read_back(&Asked::Envoy, &envoy.admin(), &files)
}

#[test]
fn envoy_refuses_a_file_of_several_services_as_the_format_assumes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let admin = port::free(Ipv4Addr::LOCALHOST.into())?;
    let assignment = |name: &str| {
        let kind = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
        serde_json::json!({"@type": kind, "cluster_name": name, "endpoints": []})
    };
    let file = dir.path().join("both.json");
    let both = [assignment("web"), assignment("api")];
    fs::write(&file, serde_json::json!({"version_info": "1", "resources": both}).to_string())?;
    let config = dir.path().join("envoy.json");
    fs::write(&config, bootstrap(admin, &[("web".to_owned(), "web".to_owned(), file)]).to_string())?;
    let envoy = Envoy::start(&config, admin)?;
    assert_eq!(envoy.stats("cluster.web.update_rejected")?, [("cluster.web.update_rejected".to_owned(), 1)]);
    Ok(())
}

/// An Envoy without listeners, with clusters of these names that follow services in files.
fn bootstrap(admin: u16, clusters: &[(String, String, std::path::PathBuf)]) -> serde_json::Value {
    let cluster = |(name, service, path): &(String, String, std::path::PathBuf)| {
        let source = serde_json::json!({"resource_api_version": "V3", "path_config_source": {"path": path}});
        let eds = serde_json::json!({"service_name": service, "eds_config": source});
        serde_json::json!({"name": name, "type": "EDS", "eds_cluster_config": eds})
    };
    let address = serde_json::json!({"socket_address": {"address": "127.0.0.1", "port_value": admin}});
    serde_json::json!({
        "admin": {"address": address}, "node": {"id": "test", "cluster": "test"},
        "static_resources": {"clusters": clusters.iter().map(cluster).collect::<Vec<_>>()},
    })
}

#[test]
fn traefik_serves_what_comes_changes_and_goes_without_a_signal() -> Result<()> {
    let bench = Bench::start("traefik.toml", "/etc/traefik/dynamic")?;
    let file = bench.file("rollcall.yml");
    until("it is rendered", TIMEOUT, || Ok(file.exists()))?;
    let strict = Asked::Traefik { others: false };
    let traefik = Traefik::start(&file)?;
    let (url, host) = (traefik.web(), "web.example.com");
    until_answers(&url, host, &["503"])?;
    until_answers(&url, "other.example.com", &["404"])?;
    let (one, two) = (worker("one")?, worker("two")?);
    bench.put(1, "web", one, "passing")?;
    println!("start -> 20 requests served: {:?}", until_answers(&url, host, &["one"])?);
    bench.put(2, "web", two, "passing")?;
    until_answers(&url, host, &["one", "two"])?;
    until_read_back(&strict, &traefik.api(), &[&file])?;
    let before = fs::read(&file)?;
    bench.put(1, "web", one, "draining")?;
    until_answers(&url, host, &["two"])?;
    until_read_back(&strict, &traefik.api(), &[&file])?;
    let said = difference(&strict, &traefik.api(), &before)?;
    assert_eq!(said, format!("Traefik lacks http://127.0.0.1:{one} of web"));

    drop(traefik);
    bench.put(2, "web", worker("three")?, "passing")?;
    let traefik = Traefik::start(&file)?;
    until_answers(&traefik.web(), host, &["three"])?;

    fs::write(bench.file(".edited"), "http: {services: {}}")?;
    fs::rename(bench.file(".edited"), &file)?;
    until("it is put back", TIMEOUT, || Ok(fs::read_to_string(&file)?.contains("web.example.com")))?;
    until_read_back(&strict, &traefik.api(), &[&file])?;
    // An entry point that it does not have.
    let bad = fs::read_to_string(&file)?.replace("[\"web\"]", "[\"websecure\"]");
    let said = difference(&strict, &traefik.api(), bad.as_bytes())?;
    assert!(said.starts_with("Traefik has router api ("), "{said}");

    bench.delete(1)?;
    bench.delete(2)?;
    until_answers(&traefik.web(), host, &["503"])?;
    until_read_back(&strict, &traefik.api(), &[&file])
}

#[test]
fn prometheus_scrapes_what_comes_and_drops_what_goes() -> Result<()> {
    let bench = Bench::start("prometheus.toml", "/etc/prometheus/rollcall")?;
    let file = bench.file("containers.json");
    until("it is rendered", TIMEOUT, || Ok(file.exists()))?;
    assert_eq!(fs::read_to_string(&file)?, "[]\n");
    let text = bench.example("prometheus.yml", "/etc/prometheus/rollcall")?;
    let config = bench.write("prometheus.yml", &format!("global: {{scrape_interval: 1s}}\n{text}"))?;
    let prometheus = Prometheus::start(&config)?;
    let program = Asked::Prometheus { job: Some("containers".to_owned()) };
    until_read_back(&program, &prometheus.url(), &[&file])?;
    bench.put(1, "web", worker("x 1\n")?, "passing")?;
    bench.put(2, "web", worker("x 2\n")?, "failing")?;
    until("both are there", TIMEOUT, || Ok(fs::read_to_string(&file)?.matches("targets").count() == 2))?;
    let said = difference(&program, &prometheus.url(), &fs::read(&file)?)?;
    assert!(said.starts_with("Prometheus lacks 127.0.0.1:"), "{said}");
    until_read_back(&program, &prometheus.url(), &[&file])?;
    let scraped =
        format!("{}/api/v1/query?query=count(up%7Bcontainer%3D~%22web-.%22%7D%3D%3D1)", prometheus.url());
    until("both are scraped", TIMEOUT, || Ok(http::get(&scraped)?.body.contains(",\"2\"]")))?;

    // A status that changes is a label that changes.
    let before = fs::read(&file)?;
    bench.put(2, "web", worker("x 3\n")?, "passing")?;
    until("it has changed", TIMEOUT, || Ok(fs::read(&file)? != before))?;
    until_read_back(&program, &prometheus.url(), &[&file])?;
    fs::write(&file, "[{\"targets\": [\"127.0.0.1:1\"]}]")?;
    until("it is put back", TIMEOUT, || Ok(fs::read_to_string(&file)?.contains("web-1")))?;
    drop(prometheus);
    bench.delete(1)?;
    bench.delete(2)?;
    until("it is empty", TIMEOUT, || Ok(fs::read_to_string(&file)? == "[]\n"))?;
    let prometheus = Prometheus::start(&config)?;
    until_read_back(&program, &prometheus.url(), &[&file])
}
