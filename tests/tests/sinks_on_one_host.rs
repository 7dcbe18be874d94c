//! The sinks that keep no file, on one host: HAProxy and the answers of an embedded agent's consumer, Prometheus by http_sd,
//! and Citus with its operator's commands.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rollcall_tests::{
    Container, DockerHost, Etcd, Postgres, Process, Program, Prometheus, citus, haproxy,
    haproxy::Version,
    http, image, port,
    targets::{targets, until_target},
    tool, until,
};
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(20);

/// A folder with a configuration, and where a consumer with it listens.
struct Home {
    dir: TempDir,
    listen: String,
    /// Options that say where the instances come from.
    source: Vec<String>,
}

impl Home {
    fn new(etcd: Option<&Etcd>) -> Result<Self> {
        let listen = format!("127.0.0.1:{}", port::free(Ipv4Addr::LOCALHOST.into())?);
        let source = etcd.map(|etcd| vec!["--etcd".to_owned(), etcd.endpoint()]).unwrap_or_default();
        Ok(Self { dir: tempfile::tempdir()?, listen, source })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Takes an example as the configuration, with some of it replaced by what is so here.
    fn configure(&self, example: &str, replaced: &[(&str, &str)]) -> Result<()> {
        let mut text = fs::read_to_string(tool::workspace().join("deploy/examples").join(example))?;
        for (from, to) in replaced {
            ensure!(text.contains(from), "{example} has no {from}");
            text = text.replace(from, to);
        }
        fs::write(self.path("config.toml"), text)?;
        Ok(())
    }

    fn command(&self, options: &[&str]) -> Result<Command> {
        let mut command = Program::consumer()?;
        command.args(&self.source).args(["--listen", &self.listen, "--config"]).arg(self.path("config.toml"));
        command.arg("--state-dir").arg(self.path("state")).args(options);
        Ok(command)
    }

    fn start(&self) -> Result<Program> {
        Program::start("consumer", self.command(&[])?)
    }

    fn until_target(&self, name: &str, state: &str, reason: &str) -> Result<String> {
        until_target(&self.listen, name, state, reason, TIMEOUT)
    }

    fn answer(&self, target: &str) -> Result<http::Response> {
        http::get(&format!("http://{}/v1/targets/{target}", self.listen))
    }
}

/// An instance of a container of this number on node h1.
fn put(etcd: &Etcd, number: u8, service: &str, address: SocketAddr, container_port: u16) -> Result<()> {
    let id = format!("{number:012x}");
    let value = serde_json::json!({
        "v": 1, "service": service, "container": format!("{service}-{number}"), "id": id, "image": "x",
        "address": address.ip(), "port": address.port(), "protocol": "tcp", "container_port": container_port,
        "status": "passing", "started_at": "2026-01-01T00:00:00Z",
        "labels": {"com.citusdata.role": "Worker"},
    });
    etcd.ctl().put(&key(number, container_port), &value.to_string())
}

fn delete(etcd: &Etcd, number: u8, container_port: u16) -> Result<()> {
    etcd.etcdctl(&["del", &key(number, container_port)]).map(drop)
}

fn key(number: u8, container_port: u16) -> String {
    format!("/rollcall/instances/h1/{number:012x}/{container_port}-tcp")
}

/// What it printed, both streams.
fn said(output: &Output) -> String {
    let text = [&*output.stdout, &*output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn without_etcd_a_container_that_starts_and_stops_reaches_haproxy_without_a_reload() -> Result<()> {
    let (host, home) = (DockerHost::local()?, Home::new(None)?);
    let web = port::free(Ipv4Addr::LOCALHOST.into())?;
    let (socket, file, script) = (home.path("sock"), home.path("haproxy.cfg"), home.path("haproxy"));
    Version::V2_8.write_script(&script)?;
    home.configure(
        "haproxy-runtime.toml",
        &[
            ("/etc/haproxy/haproxy.cfg", &file.display().to_string()),
            ("/run/haproxy/rollcall.sock", &socket.display().to_string()),
            ("haproxy -c -f", &format!("{} -c -f", script.display())),
            ("port = 8080", &format!("port = {web}")),
            ("systemctl reload haproxy", &format!("echo >>{}", home.path("reloads").display())),
            ("\"web\", \"api\"", "\"embedded\""),
            ("drain_timeout = \"30s\"", "drain_timeout = \"2s\""),
        ],
    )?;
    let mut text = fs::read_to_string(home.path("config.toml"))?;
    text += "\n[[target]]\nname = \"page\"\nsink = \"http\"\nformat = \"json\"\n[target.select]\nservice = \"embedded\"\n";
    fs::write(home.path("config.toml"), text)?;
    let mut consumer = home.start()?;
    until("the file is there for HAProxy", TIMEOUT, || Ok(file.exists()))?;
    let mut command = Version::V2_8.command()?;
    command.args(["-W", "-f"]).arg(&file);
    let _haproxy = Process::start("haproxy", command, &home.path("haproxy.log"))?;
    home.until_target("haproxy", "SYNCED", "")?;
    home.until_target("page", "HELD", "nothing has matched yet")?;
    assert_eq!(home.answer("page")?.status, 503, "the label may be mistyped");
    let pid = || -> Result<String> {
        let info = haproxy::ask(&socket, "show info")?;
        Ok(info.lines().find(|line| line.starts_with("Pid: ")).context("it has a process")?.to_owned())
    };
    let (before, url) = (pid()?, format!("http://127.0.0.1:{web}/"));
    let answers = || -> Result<BTreeSet<String>> {
        let one = |_| {
            let answer = http::get_as(&url, "embedded.example.com")?;
            Ok(if answer.status == 200 { answer.body.trim().to_owned() } else { answer.status.to_string() })
        };
        (0..10).map(one).collect()
    };
    let until_answered = |by: &[&str], listed: usize| -> Result<Duration> {
        let begun = Instant::now();
        let expected: BTreeSet<String> = by.iter().map(|name| (*name).to_owned()).collect();
        let what = format!("{expected:?} answer");
        let mut last = BTreeSet::new();
        until(&what, TIMEOUT, || {
            last = answers()?;
            Ok(last == expected)
        })
        .with_context(|| format!("last: {last:?}"))?;
        let took = begun.elapsed();
        until("the page has them", TIMEOUT, || {
            let page = home.answer("page")?.body;
            let all: Vec<serde_json::Value> = serde_json::from_str(&page).with_context(|| page.clone())?;
            ensure!(all.len() == listed, "{page}");
            Ok(true)
        })?;
        Ok(took)
    };
    let worker = |name: &str| -> Result<Container> {
        let options = ["--hostname", name, "--label", "rollcall.service=embedded", "--publish", "80"];
        host.run(&[&options[..], &[image::worker()?]].concat())
    };
    assert_eq!(answers()?, BTreeSet::from(["503".to_owned()]), "nobody is there");
    let one = worker("one")?;
    println!("started -> answered: {:?}", until_answered(&["one"], 1)?);
    let two = worker("two")?;
    println!("another started -> answered: {:?}", until_answered(&["one", "two"], 2)?);
    one.stop(5)?;
    println!("stopped -> not asked: {:?}", until_answered(&["two"], 1)?);
    one.start()?;
    until_answered(&["one", "two"], 2)?;

    // The consumer is killed, and a container goes meanwhile.
    consumer.kill();
    drop(two);
    let _consumer = home.start()?;
    until_answered(&["one"], 1)?;
    home.until_target("haproxy", "SYNCED", "")?;
    home.until_target("page", "SYNCED", "")?;
    assert_eq!(pid()?, before, "HAProxy was not reloaded");
    assert!(!home.path("reloads").exists(), "nor was it asked for");
    Ok(())
}

#[test]
fn prometheus_keeps_what_it_has_while_nothing_is_known_and_drops_all_when_nothing_runs() -> Result<()> {
    let mut etcd = Etcd::start()?;
    let home = Home::new(Some(&etcd))?;
    home.configure("http.toml", &[])?;
    let config = home.path("prometheus.yml");
    fs::write(
        &config,
        format!(
            "scrape_configs:\n- job_name: containers\n  http_sd_configs:\n  - url: http://{}/v1/targets/prometheus\n    \
             refresh_interval: 200ms\n",
            home.listen
        ),
    )?;
    let mut consumer = home.start()?;
    let (one, two) = ("127.0.0.1:1001".parse()?, "127.0.0.1:1002".parse()?);
    put(&etcd, 1, "web", one, 80)?;
    put(&etcd, 2, "api", two, 80)?;
    let prometheus = Prometheus::start(&config)?;
    let active = || -> Result<BTreeSet<String>> {
        let body = http::get(&format!("{}/api/v1/targets?state=active", prometheus.url()))?.body;
        let targets: serde_json::Value = serde_json::from_str(&body)?;
        let all = targets["data"]["activeTargets"].as_array().context("it has a list")?.iter();
        Ok(all.filter_map(|target| target["labels"]["instance"].as_str()).map(str::to_owned).collect())
    };
    let until_active = |expected: &[SocketAddr]| -> Result<Duration> {
        let begun = Instant::now();
        let expected: BTreeSet<String> = expected.iter().map(ToString::to_string).collect();
        let mut last = None;
        until(&format!("Prometheus has {expected:?}"), TIMEOUT, || {
            last = Some(active()?);
            Ok(last.as_ref() == Some(&expected))
        })
        .with_context(|| format!("last: {last:?}"))?;
        Ok(begun.elapsed())
    };
    println!("registered -> a target of Prometheus: {:?}", until_active(&[one, two])?);
    assert!(home.answer("web")?.body.contains("1001"), "the other target of the example");

    // Nothing is known: etcd is away, and the consumer has just begun.
    etcd.stop()?;
    consumer.kill();
    let mut consumer = Program::start("consumer without etcd", home.command(&["--wait", "60s"])?)?;
    let first = until("it answers", TIMEOUT, || home.answer("prometheus").map(Some))?;
    assert_eq!(first.status, 503, "from the first answer on: {first:?}");
    println!("503: {}", home.answer("prometheus")?.body.trim());
    let failures = || -> Result<f64> {
        let metrics = http::get(&format!("{}/metrics", prometheus.url()))?.body;
        let value = |line: &str| {
            line.strip_prefix("prometheus_sd_http_failures_total")?.rsplit(' ').next()?.parse::<f64>().ok()
        };
        metrics.lines().filter_map(value).reduce(|sum, next| sum + next).context("it counts them")
    };
    let before = failures()?;
    until("Prometheus was answered so five times", TIMEOUT, || {
        assert_eq!(home.answer("prometheus")?.status, 503);
        Ok(failures()? >= before + 5.0)
    })?;
    assert_eq!(active()?, [one, two].map(|address: SocketAddr| address.to_string()).into());

    etcd.start_again()?;
    until("the answer is known", TIMEOUT, || Ok(home.answer("prometheus")?.status == 200))?;
    delete(&etcd, 1, 80)?;
    until_active(&[two])?;
    // A running consumer keeps its answer while etcd is away.
    etcd.stop()?;
    assert_eq!(home.answer("prometheus")?.status, 200);
    etcd.start_again()?;
    delete(&etcd, 2, 80)?;
    println!("the last one gone -> no target: {:?}", until_active(&[])?);
    let answer = home.answer("prometheus")?;
    assert_eq!((answer.status, answer.body.trim()), (200, "[]"));
    home.until_target("prometheus", "SYNCED", "")?;
    assert_eq!(consumer.terminate(TIMEOUT)?.code(), Some(0));
    Ok(())
}

/// A coordinator whose host is set and workers, each registered as a container, and a consumer's home with the example.
struct Cluster {
    etcd: Etcd,
    coordinator: Postgres,
    workers: Vec<Postgres>,
    home: Home,
}

impl Cluster {
    fn new(workers: usize) -> Result<Self> {
        let etcd = Etcd::start()?;
        let mut workers = Postgres::several(workers + 1)?;
        let coordinator = workers.remove(0);
        coordinator.sql(&format!("SELECT citus_set_coordinator_host('{}')", citus::HOST))?;
        coordinator.sql("CREATE ROLE rollcall SUPERUSER LOGIN PASSWORD 'right'")?;
        coordinator
            .set_access("host all postgres all trust\nhost all rollcall 127.0.0.1/32 scram-sha-256\n")?;
        // The coordinator adds a worker as who it is told by.
        for worker in &workers {
            worker.sql("CREATE ROLE rollcall SUPERUSER LOGIN")?;
        }
        let home = Home::new(Some(&etcd))?;
        let port = format!("port={}", coordinator.port());
        let replaced = [
            ("host=10.0.0.1", &*format!("host={}", citus::HOST)),
            ("port=5432", &*port),
            ("dbname=app", &*format!("dbname={}", citus::DATABASE)),
            ("sink = \"citus\"", "sink = \"citus\"\nreconcile = \"1s\""),
        ];
        home.configure("citus-sql.toml", &replaced)?;
        Ok(Self { etcd, coordinator, workers, home })
    }

    fn register(&self, number: u8) -> Result<()> {
        let worker = (citus::HOST, self.workers[usize::from(number)].port()).into();
        put(&self.etcd, number, "worker", worker, 5432)
    }

    /// The consumer, with this password in its environment.
    fn command(&self, options: &[&str], password: &str) -> Result<Command> {
        let mut command = self.home.command(options)?;
        command.env("PGPASSWORD", password).env("HOME", self.home.dir.path());
        Ok(command)
    }

    /// An operator's command, which has no home and no etcd.
    fn operator(&self, words: &[&str], password: &str) -> Result<Output> {
        let mut command = Program::consumer()?;
        command.arg("citus").args(words).env("PGPASSWORD", password).env("HOME", self.home.dir.path());
        let database = format!(
            "host={} port={} dbname={} user=rollcall",
            citus::HOST,
            self.coordinator.port(),
            citus::DATABASE
        );
        Ok(command.args(["--database", &database]).output()?)
    }

    /// The ports of the nodes that are workers.
    fn nodes(&self) -> Result<Vec<u16>> {
        let nodes = "SELECT nodeport FROM pg_dist_node WHERE groupid <> 0 AND isactive ORDER BY nodeid";
        self.coordinator.sql(nodes)?.lines().map(|port| Ok(port.parse()?)).collect()
    }

    fn ports(&self) -> Vec<u16> {
        self.workers.iter().map(Postgres::port).collect()
    }

    fn until_nodes(&self, expected: &[u16]) -> Result<()> {
        let expected: BTreeSet<u16> = expected.iter().copied().collect();
        let mut last = BTreeSet::new();
        until(&format!("the workers are at {expected:?}"), TIMEOUT, || {
            last = self.nodes()?.into_iter().collect();
            Ok(last == expected)
        })
        .with_context(|| format!("last: {last:?}"))
    }
}

#[test]
fn a_citus_coordinator_follows_the_workers_and_its_operator() -> Result<()> {
    let mut cluster = Cluster::new(2)?;
    cluster.register(0)?;
    // It says what it would do, and does nothing.
    let output = cluster.command(&["--dry-run"], "right")?.output()?;
    let text = said(&output);
    println!("--dry-run: {}", text.trim());
    assert_eq!(output.status.code(), Some(2), "{text}");
    let step = format!("worker h1/worker-0 at 127.0.0.1:{}", cluster.workers[0].port());
    assert!(String::from_utf8_lossy(&output.stdout).contains(&step), "{text}");
    assert_eq!(cluster.nodes()?, [0_u16; 0]);
    let has_schema = "SELECT count(*) FROM pg_namespace WHERE nspname = 'rollcall'";
    assert_eq!(cluster.coordinator.sql(has_schema)?, "0", "nothing is made either");

    // The password is wrong: one line, and 1.
    let output = cluster.command(&["--once"], "wrong")?.output()?;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("the password is wrong"), "{}", said(&output));
    assert_eq!(cluster.nodes()?, [0_u16; 0]);

    // It ends only once it is read back.
    let output = cluster.command(&["--once"], "right")?.output()?;
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(cluster.nodes()?, cluster.ports()[..1]);
    let output = cluster.command(&["--dry-run"], "right")?.output()?;
    assert!(output.status.success(), "nothing is left to do: {}", said(&output));

    // A consumer with the wrong password says so in one line, whoever asks.
    {
        let mut consumer = Program::start("consumer with a wrong password", cluster.command(&[], "wrong")?)?;
        let reason = cluster.home.until_target("citus", "FAILED", "the password is wrong")?;
        println!("wrong password: {reason}");
        assert!(!reason.contains('\n'), "{reason}");
        let output = Program::consumer()?.args(["status", "--listen", &cluster.home.listen]).output()?;
        let text = said(&output);
        println!("status: {}", text.trim());
        let lines: Vec<_> = text.lines().filter(|line| line.contains("the password is wrong")).collect();
        assert_eq!(lines.len(), 1, "{text}");
        assert!(lines[0].contains("citus"), "{text}");
        assert!(!text.contains("wrong\""), "the password itself is said nowhere: {text}");
        consumer.terminate(TIMEOUT)?;
    }

    let mut consumer = Program::start("consumer", cluster.command(&[], "right")?)?;
    cluster.home.until_target("citus", "SYNCED", "")?;
    let begun = Instant::now();
    cluster.register(1)?;
    cluster.until_nodes(&cluster.ports())?;
    println!("registered -> active: {:?}", begun.elapsed());

    // By hand: moved to nowhere, and put right.
    let (first, before) = (cluster.workers[0].port(), Instant::now());
    cluster.coordinator.sql(&format!(
        "SELECT citus_update_node(nodeid, '127.0.0.1', 1) FROM pg_dist_node WHERE nodeport = {first}"
    ))?;
    cluster.until_nodes(&cluster.ports())?;
    println!("moved by hand -> put right: {:?}", before.elapsed());
    cluster.coordinator.sql("SELECT start_metadata_sync_to_all_nodes()")?;

    // The operator's word.
    let output = cluster.operator(&["drain", "h1/worker-7"], "right")?;
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("no node is called \"h1/worker-7\""), "{}", said(&output));
    let output = cluster.operator(&["drain", "h1/worker-0"], "wrong")?;
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("the password is wrong"), "{}", said(&output));
    let output = cluster.operator(&["drain", "h1/worker-0"], "right")?;
    println!("drain: {}", said(&output).trim());
    assert!(output.status.success() && said(&output).contains("is drained and removed"), "{}", said(&output));
    let last = &cluster.ports()[1..];
    cluster.until_nodes(last)?;
    cluster.home.until_target("citus", "SYNCED", "was drained by the operator")?;
    assert_eq!(cluster.nodes()?, last, "it stays out though its container runs");
    let output = cluster.operator(&["undrain", "h1/worker-0"], "right")?;
    println!("undrain: {}", said(&output).trim());
    assert!(output.status.success(), "{}", said(&output));
    cluster.until_nodes(&cluster.ports())?;

    // Both are killed and come back, and what happened meanwhile is caught up with.
    consumer.kill();
    let (port, moved) = (cluster.coordinator.port(), port::free(citus::HOST)?);
    cluster.workers[1].stop()?;
    cluster.workers[1].start_again(moved)?;
    cluster.register(1)?;
    cluster.coordinator.stop()?;
    let mut consumer = Program::start("consumer", cluster.command(&[], "right")?)?;
    cluster.home.until_target("citus", "FAILED", "Connection refused")?;
    cluster.coordinator.start_again(port)?;
    let begun = Instant::now();
    cluster.until_nodes(&cluster.ports())?;
    println!("the coordinator back -> the moved worker moved: {:?}", begun.elapsed());
    cluster.home.until_target("citus", "SYNCED", "")?;
    // A worker that is gone stays in the coordinator.
    delete(&cluster.etcd, 1, 5432)?;
    cluster.home.until_target("citus", "SYNCED", "worker h1/worker-1 is gone; the node stays as it is")?;
    assert_eq!(cluster.nodes()?.len(), 2);
    assert_eq!(targets(&cluster.home.listen)?.len(), 1);
    consumer.terminate(TIMEOUT).map(drop)
}
