//! Every sink at once, on three Docker hosts: HAProxy, Envoy, Traefik, Prometheus by a file and by HTTP, and Citus, beside
//! one consumer on the first host, while containers, hosts, agents, the consumer, etcd and the programs come and go.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rollcall_tests::{
    Bridge, Container, DockerHost, Envoy, Etcd, EtcdConfig, Postgres, Process, Program, Prometheus, Traefik,
    citus,
    haproxy::{self, Version},
    http, image,
    targets::targets,
    tool, until,
};
use serde_json::Value;
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(30);
/// How often each program is compared, whatever changes.
const RECONCILE: Duration = Duration::from_secs(2);

// Ports of the first host, where nothing else listens.
const CONSUMER: u16 = 9181;
const HAPROXY: u16 = 8080;
const ENVOY: (u16, u16) = (9901, 8082);
const TRAEFIK: (u16, u16) = (8081, 8083);
const PROMETHEUS: u16 = 9090;
const COORDINATOR: u16 = 15432;

type Addresses = BTreeSet<SocketAddr>;

/// What a container is to the programs: the name that it answers with, and its address.
type Workers<'a> = [&'a Container];

/// Where the programs are asked what they have, without the consumer.
#[derive(Clone)]
struct Programs {
    ip: IpAddr,
    socket: PathBuf,
}

impl Programs {
    /// What each has of the service `web`, by its own interface; an error where it does not answer. `http-sd` has whatever
    /// runs.
    fn have(&self) -> [(&'static str, Result<Addresses>); 5] {
        [
            ("haproxy", self.haproxy()),
            ("envoy", self.envoy()),
            ("traefik", self.traefik()),
            ("file-sd", self.prometheus("file-sd")),
            ("http-sd", self.prometheus("http-sd")),
        ]
    }

    fn url(&self, port: u16) -> String {
        format!("http://{}", SocketAddr::new(self.ip, port))
    }

    fn json(&self, port: u16, path: &str) -> Result<Value> {
        let answer = http::get(&format!("{}{path}", self.url(port)))?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
        Ok(serde_json::from_str(&answer.body)?)
    }

    /// The servers that take new connections.
    fn haproxy(&self) -> Result<Addresses> {
        let states = haproxy::ask(&self.socket, "show servers state web")?;
        ensure!(states.starts_with('1'), "{states}");
        let mut found = Addresses::new();
        for line in states.lines().skip(2).filter(|line| !line.is_empty()) {
            let fields: Vec<_> = line.split(' ').collect();
            // srv_admin_state, which has no bit of maintenance or draining.
            if fields[6] == "0" {
                found.insert(format!("{}:{}", fields[4], fields[18]).parse()?);
            }
        }
        Ok(found)
    }

    fn envoy(&self) -> Result<Addresses> {
        let clusters = self.json(ENVOY.0, "/clusters?format=json")?;
        let all = clusters["cluster_statuses"].as_array().context("clusters")?;
        let web = all.iter().find(|cluster| cluster["name"] == "web").context("the cluster web")?;
        let hosts = web["host_statuses"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_draining = |host: &&Value| host["health_status"]["eds_health_status"] == "DRAINING";
        let address = |host: &Value| {
            let address = &host["address"]["socket_address"];
            let ip = address["address"].as_str().context("an address")?;
            Ok(format!("{ip}:{}", address["port_value"]).parse()?)
        };
        hosts.iter().filter(|host| !is_draining(host)).map(address).collect()
    }

    fn traefik(&self) -> Result<Addresses> {
        let service = self.json(TRAEFIK.0, "/api/http/services/web@file")?;
        let servers = service["loadBalancer"]["servers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let address = |server: &Value| {
            let url = server["url"].as_str().context("a URL")?;
            Ok(url.trim_start_matches("http://").parse()?)
        };
        servers.iter().map(address).collect()
    }

    fn prometheus(&self, job: &str) -> Result<Addresses> {
        let targets = self.json(PROMETHEUS, "/api/v1/targets?state=active")?;
        let active = targets["data"]["activeTargets"].as_array().context("targets")?.iter();
        let address = |target: &Value| Ok(target["labels"]["instance"].as_str().context("one")?.parse()?);
        active.filter(|target| target["scrapePool"] == job).map(address).collect()
    }

    fn sql(&self, sql: &str) -> Result<String> {
        citus::sql(SocketAddr::new(self.ip, COORDINATOR), sql)
    }

    /// The active nodes that are workers.
    fn citus(&self) -> Result<Addresses> {
        let nodes = "SELECT nodename, nodeport FROM pg_dist_node WHERE groupid <> 0 AND isactive";
        self.sql(nodes)?.lines().map(|line| Ok(line.replace('|', ":").parse()?)).collect()
    }

    /// Who answers requests through each of the proxies; a status where it is not 200.
    fn answers(&self) -> Result<[BTreeSet<String>; 3]> {
        let mut all = [HAPROXY, ENVOY.1, TRAEFIK.1].map(|_| BTreeSet::new());
        for (port, answers) in [HAPROXY, ENVOY.1, TRAEFIK.1].into_iter().zip(&mut all) {
            for _ in 0..12 {
                let answer = http::get_as(&self.url(port), "web.example.com")?;
                let ok = answer.status == 200;
                answers.insert(if ok { answer.body.trim().to_owned() } else { answer.status.to_string() });
            }
        }
        Ok(all)
    }
}

/// Three hosts, an etcd, agents, a consumer and the programs that it keeps.
///
/// What depends on another goes first.
struct Scene {
    consumer: Option<Program>,
    haproxy: Option<Process>,
    envoy: Option<Envoy>,
    traefik: Option<Traefik>,
    prometheus: Option<Prometheus>,
    agents: Vec<Option<Program>>,
    coordinator: Container,
    etcd: Etcd,
    programs: Programs,
    dir: TempDir,
    hosts: Vec<DockerHost>,
    // The data of the coordinator and of workers that are still to come.
    _coordinator: Postgres,
    begun: Instant,
}

impl Scene {
    fn start(mut coordinator: Postgres, begun: Instant) -> Result<Self> {
        let bridge = Bridge::start()?;
        let hosts = DockerHost::start_several(3, &bridge)?;
        println!("at {:?}: the hosts run", begun.elapsed());
        let worker = image::worker()?;
        thread::scope(|scope| {
            let loads: Vec<_> =
                hosts.iter().map(|host| scope.spawn(move || host.load_image(worker))).collect();
            loads.into_iter().try_for_each(|load| load.join().expect("it does not panic"))
        })?;
        println!("at {:?}: they have the image", begun.elapsed());
        let etcd = Etcd::start_with(EtcdConfig {
            listen_ip: hosts[0].ip(),
            netns: hosts[0].netns().map(Path::to_owned),
            ..EtcdConfig::default()
        })?;
        let publish = format!("{COORDINATOR}:5432");
        let options = ["--label", "rollcall.ignore=true", "--publish", &publish];
        let container = coordinator.run_on(&hosts[0], &options)?;
        let dir = tempfile::tempdir()?;
        let programs = Programs { ip: hosts[0].ip(), socket: dir.path().join("haproxy.sock") };
        until("the coordinator answers", TIMEOUT, || programs.sql("SELECT 1").map(|_| true))
            .with_context(|| container.logs().unwrap_or_default())?;
        programs.sql(&format!("SELECT citus_set_coordinator_host('{}', {COORDINATOR})", hosts[0].ip()))?;
        let mut scene = Self {
            consumer: None,
            haproxy: None,
            envoy: None,
            traefik: None,
            prometheus: None,
            agents: vec![None, None, None],
            coordinator: container,
            etcd,
            programs,
            dir,
            hosts,
            _coordinator: coordinator,
            begun,
        };
        scene.configure()?;
        println!("at {:?}: the coordinator runs", begun.elapsed());
        for number in 0..3 {
            scene.start_agent(number)?;
        }
        Ok(scene)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The targets of all examples in one configuration, with the programs where they are here.
    fn configure(&self) -> Result<()> {
        Version::V2_8.write_script(&self.path("haproxy"))?;
        ["eds", "traefik", "prometheus"].iter().try_for_each(|name| fs::create_dir(self.path(name)))?;
        let notify = format!("pid_file = {:?}\nsignal = \"USR2\"\nprocess = \"haproxy\"", self.path("pid"));
        let of = |port| self.programs.url(port);
        let examples: [(&str, &[(&str, String)]); 6] = [
            (
                "haproxy-runtime.toml",
                &[
                    ("/etc/haproxy/haproxy.cfg", self.shown("haproxy.cfg")),
                    ("/run/haproxy/rollcall.sock", self.shown("haproxy.sock")),
                    ("haproxy -c -f", format!("{} -c -f", self.shown("haproxy"))),
                    ("command = \"systemctl reload haproxy\"", notify),
                    ("drain_timeout = \"30s\"", "drain_timeout = \"2s\"".to_owned()),
                ],
            ),
            (
                "citus-sql.toml",
                &[(
                    "host=10.0.0.1 port=5432 dbname=app user=rollcall",
                    format!(
                        "host={} port={COORDINATOR} dbname={} user=postgres",
                        self.programs.ip,
                        citus::DATABASE
                    ),
                )],
            ),
            ("envoy.toml", &[("/etc/envoy/eds", self.shown("eds")), ("http://127.0.0.1:9901", of(ENVOY.0))]),
            (
                "traefik.toml",
                &[("/etc/traefik/dynamic", self.shown("traefik")), ("http://127.0.0.1:8081", of(TRAEFIK.0))],
            ),
            (
                "prometheus.toml",
                &[
                    ("/etc/prometheus/rollcall", self.shown("prometheus")),
                    (
                        "http://127.0.0.1:9090\", job = \"containers\"",
                        of(PROMETHEUS) + "\", job = \"file-sd\"",
                    ),
                    ("name = \"prometheus\"", "name = \"file-sd\"".to_owned()),
                ],
            ),
            ("http.toml", &[("name = \"prometheus\"", "name = \"http-sd\"".to_owned())]),
        ];
        let mut config = String::new();
        for (example, replaced) in examples {
            let mut text = fs::read_to_string(tool::workspace().join("deploy/examples").join(example))?;
            for (from, to) in replaced {
                ensure!(text.contains(from), "{example} has no {from}");
                text = text.replace(from, to);
            }
            config += &text;
        }
        let every = format!("[[target]]\nreconcile = \"{}s\"", RECONCILE.as_secs());
        fs::write(self.path("config.toml"), config.replace("[[target]]", &every))?;
        Ok(())
    }

    fn ask_haproxy(&self, command: &str) -> Result<String> {
        haproxy::ask(&self.programs.socket, command)
    }

    fn haproxy_pid(&self) -> Result<String> {
        let info = self.ask_haproxy("show info")?;
        Ok(info.lines().find(|line| line.starts_with("Pid: ")).context("it has a process")?.to_owned())
    }

    /// The name of the server that is this container.
    fn haproxy_server(&self, worker: &Container) -> Result<String> {
        let states = self.ask_haproxy("show servers state web")?;
        let mut names = states.lines().filter_map(|line| line.split(' ').nth(3));
        let name = names.find(|name| name.contains(worker.short_id())).with_context(|| states.clone())?;
        Ok(name.to_owned())
    }

    fn start_agent(&mut self, number: usize) -> Result<()> {
        let host = &self.hosts[number];
        let (node, mut command) = (format!("h{}", number + 1), Program::agent()?);
        command.args([
            "--etcd",
            &self.etcd.endpoint(),
            "--node",
            &node,
            "--docker-host",
            &host.docker_host(),
        ]);
        command.args(["--ttl", "5s", "--refresh", "1s", "--listen", "off"]);
        let mut agent = Program::start(&node, host.run_in_netns(command)?)?;
        agent.wait_log("claimed the name", TIMEOUT)?;
        self.agents[number] = Some(agent);
        Ok(())
    }

    fn kill_agent(&mut self, number: usize) -> Result<()> {
        self.agents[number].as_mut().context("it runs")?.kill();
        Ok(())
    }

    fn listen(&self) -> String {
        SocketAddr::new(self.programs.ip, CONSUMER).to_string()
    }

    fn start_consumer(&mut self) -> Result<()> {
        let mut command = Program::consumer()?;
        command.args(["--etcd", &self.etcd.endpoint(), "--name", "c1", "--listen", &self.listen()]);
        command.args(["--ttl", "5s", "--refresh", "1s", "--config"]).arg(self.path("config.toml"));
        command.arg("--state-dir").arg(self.path("state"));
        self.consumer = Some(Program::start("consumer", self.hosts[0].run_in_netns(command)?)?);
        Ok(())
    }

    fn kill_consumer(&mut self) -> Result<()> {
        self.consumer.as_mut().context("it runs")?.kill();
        Ok(())
    }

    /// Starts the programs with the files that the consumer has written for them.
    fn start_programs(&mut self) -> Result<()> {
        let files = ["haproxy.cfg", "eds/web.json", "eds/api.json", "traefik/rollcall.yml"];
        until("the files are there", TIMEOUT, || Ok(files.iter().all(|name| self.path(name).exists())))?;
        let host = &self.hosts[0];
        let mut command = Version::V2_8.command()?;
        command.args(["-W", "-f"]).arg(self.path("haproxy.cfg")).arg("-p").arg(self.path("pid"));
        self.haproxy =
            Some(Process::start("haproxy", host.run_in_netns(command)?, &self.path("haproxy.log"))?);
        let example = |name: &str| fs::read_to_string(tool::workspace().join("deploy/examples").join(name));
        let envoy = example("envoy.yaml")?
            .replace("/etc/envoy/eds", &self.shown("eds"))
            .replace(
                "address: 127.0.0.1, port_value: 9901",
                &format!("address: {}, port_value: 9901", host.ip()),
            )
            .replace("port_value: 8080", &format!("port_value: {}", ENVOY.1));
        fs::write(self.path("envoy.yaml"), envoy)?;
        let http_sd = format!("http://{}/v1/targets/http-sd", self.listen());
        let prometheus = format!(
            "scrape_configs:\n- job_name: file-sd\n  file_sd_configs:\n  - files: [{}]\n- job_name: http-sd\n  \
             http_sd_configs:\n  - {{url: \"{http_sd}\", refresh_interval: 200ms}}\n",
            self.shown("prometheus/containers.json")
        );
        fs::write(self.path("prometheus.yml"), prometheus)?;
        self.envoy = Some(Envoy::start_on(host, &self.path("envoy.yaml"), ENVOY.0)?);
        self.traefik =
            Some(Traefik::start_on(host, &self.path("traefik/rollcall.yml"), TRAEFIK.0, TRAEFIK.1)?);
        self.prometheus = Some(Prometheus::start_on(host, &self.path("prometheus.yml"), PROMETHEUS)?);
        Ok(())
    }

    /// Kills them all.
    fn kill_programs(&mut self) -> Result<()> {
        (self.haproxy, self.envoy, self.traefik, self.prometheus) = (None, None, None, None);
        self.coordinator.kill("KILL")?;
        // Workers of HAProxy end when they see that their master has.
        until("HAProxy is gone", TIMEOUT, || Ok(haproxy::ask(&self.programs.socket, "show info").is_err()))
    }

    /// A container of the service `web`, which answers with its name.
    fn web(&self, host: usize, name: &str) -> Result<Container> {
        let options = [
            "--hostname",
            name,
            "--label",
            "rollcall.service=web",
            "--label",
            "rollcall.tags=web",
            "--publish",
            "80",
        ];
        self.hosts[host].run(&[&options[..], &[image::worker()?]].concat())
    }

    /// A container of a worker of Citus's.
    fn citus_worker(&self, host: usize, name: &str, data: &mut Postgres) -> Result<Container> {
        let labels = ["--label", "com.citusdata.role=Worker", "--label", "rollcall.service=worker"];
        data.run_on(&self.hosts[host], &[&labels[..], &["--name", name, "--publish", "5432"]].concat())
    }

    /// The same for all but Prometheus, which takes what it discovers every five seconds only.
    fn until_prompt(&self, what: &str, web: &Workers<'_>, citus: &Workers<'_>) -> Result<()> {
        let nodes = citus.iter().map(|worker| worker.published(5432)).collect::<Result<_>>()?;
        self.until_has(what, web, citus, &nodes, false)
    }

    /// Waits until every program has exactly these, whoever asks: themselves, clients and the consumer.
    fn until_exact(&self, what: &str, web: &Workers<'_>, citus: &Workers<'_>) -> Result<()> {
        let nodes = citus.iter().map(|worker| worker.published(5432)).collect::<Result<_>>()?;
        self.until_has(what, web, citus, &nodes, true)
    }

    /// The same, where the coordinator may have other nodes than those of workers that run.
    fn until_has(
        &self,
        what: &str,
        web: &Workers<'_>,
        citus: &Workers<'_>,
        nodes: &Addresses,
        with_prometheus: bool,
    ) -> Result<()> {
        let expected: Addresses = web.iter().map(|worker| worker.published(80)).collect::<Result<_>>()?;
        let workers: Addresses = citus.iter().map(|worker| worker.published(5432)).collect::<Result<_>>()?;
        let names: BTreeSet<String> =
            web.iter().map(|worker| worker.inspect("{{.Config.Hostname}}")).collect::<Result<_>>()?;
        let all = &expected | &workers;
        let begun = Instant::now();
        let mut took = BTreeMap::new();
        until(&format!("every program has what runs: {what}"), TIMEOUT, || {
            if nodes.len() == citus.len() {
                // What Citus's maintenance daemon does by itself. It would wait for one that is cut off.
                let _ = self.programs.sql("SELECT start_metadata_sync_to_all_nodes()");
            }
            let mut wrong = Vec::new();
            for (name, found) in self.programs.have() {
                if name.ends_with("-sd") && !with_prometheus {
                    continue;
                }
                let expected = if name == "http-sd" { &all } else { &expected };
                match found {
                    Ok(found) if found == *expected => drop(took.entry(name).or_insert(begun.elapsed())),
                    found => wrong.push(format!("{name} has {found:?} instead of {expected:?}")),
                }
            }
            match self.programs.citus() {
                Ok(found) if found == *nodes => drop(took.entry("citus").or_insert(begun.elapsed())),
                found => wrong.push(format!("citus has {found:?} instead of {nodes:?}")),
            }
            for (number, found) in self.programs.answers()?.into_iter().enumerate() {
                if found != names {
                    wrong.push(format!("proxy {number} is answered by {found:?} instead of {names:?}"));
                }
            }
            let fare = targets(&self.listen())?;
            ensure!(fare.len() == 7, "{fare:?}");
            for (name, status) in fare {
                if status.state == "SYNCED" || (name == "file-sd" && !with_prometheus) {
                    continue;
                }
                wrong.push(format!("target {name} is {} ({})", status.state, status.reason()));
            }
            if !wrong.is_empty() {
                bail!("{}", wrong.join("\n"));
            }
            Ok(true)
        })?;
        println!("{what}: {:?} ({took:?}), at {:?}", begun.elapsed(), self.begun.elapsed());
        Ok(())
    }
}

/// Looks at the programs again and again, and sees that none of them ever lacks what never goes.
struct Watcher {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Watched>,
}

/// What was seen: who lacked something, and how clients fared meanwhile.
#[derive(Debug, Default)]
struct Watched {
    looks: usize,
    faults: Vec<String>,
    requests: usize,
    failed: Vec<String>,
}

impl Watcher {
    fn start(programs: Programs, web: SocketAddr, node: SocketAddr, begun: Instant) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let thread = thread::spawn(move || {
            let mut watched = Watched::default();
            while !seen.load(Ordering::Relaxed) {
                watched.look(&programs, web, node, begun);
                thread::sleep(Duration::from_millis(50));
            }
            watched
        });
        Self { stop, thread }
    }

    fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let Watched { looks, faults, requests, failed } = self.thread.join().expect("it does not panic");
        println!("{looks} looks; of {requests} requests failed {failed:?}");
        ensure!(looks > 100 && faults.is_empty(), "{looks} looks; {faults:#?}");
        Ok(())
    }
}

impl Watched {
    fn look(&mut self, programs: &Programs, web: SocketAddr, node: SocketAddr, begun: Instant) {
        self.looks += 1;
        for (name, found) in programs.have() {
            self.check(name, found, web);
        }
        self.check("citus", programs.citus(), node);
        for port in [HAPROXY, ENVOY.1, TRAEFIK.1] {
            self.requests += 1;
            let answer = http::get_as(&programs.url(port), "web.example.com");
            let status = answer.map_or_else(|error| format!("{error:#}"), |answer| answer.status.to_string());
            if status != "200" {
                self.failed.push(format!("{status} from {port} after {:?}", begun.elapsed()));
            }
        }
    }

    /// One that does not answer is no fault of its contents.
    fn check(&mut self, name: &str, found: Result<Addresses>, kept: SocketAddr) {
        if let Some(found) = found.ok().filter(|found| !found.contains(&kept)) {
            self.faults.push(format!("{name} had {found:?}, without {kept}"));
        }
    }
}

/// The file with one address of it replaced by another, moved into place as an operator's tool would.
fn edit(file: &Path, from: &str, to: &str) -> Result<()> {
    let text = fs::read_to_string(file)?;
    ensure!(text.contains(from), "{} has no {from}: {text}", file.display());
    let edited = file.with_file_name(".edited");
    fs::write(&edited, text.replace(from, to))?;
    fs::rename(edited, file).map_err(Into::into)
}

#[test]
fn every_sink_has_what_runs_whatever_comes_goes_is_cut_off_killed_restarted_or_edited() -> Result<()> {
    let begun = Instant::now();
    let step = |what: &str| println!("at {:?}: {what}", begun.elapsed());
    let mut data = Postgres::several(3)?;
    step("three PostgreSQL were made");
    let mut scene = Scene::start(data.remove(0), begun)?;
    step("hosts, etcd, agents and the coordinator run");
    let (w1, w2) = (scene.web(0, "w1")?, scene.web(1, "w2")?);
    let c2 = scene.citus_worker(1, "c2", &mut data[0])?;
    scene.start_consumer()?;
    scene.start_programs()?;
    step("the programs run");
    scene.until_exact("begun", &[&w1, &w2], &[&c2])?;
    let watcher = Watcher::start(scene.programs.clone(), w1.published(80)?, c2.published(5432)?, begun);
    let pid = scene.haproxy_pid()?;

    // Containers come and go.
    let (w3, w4) = (scene.web(2, "w3")?, scene.web(1, "w4")?);
    let c3 = scene.citus_worker(2, "c3", &mut data[1])?;
    scene.until_prompt("two and a worker of Citus's came", &[&w1, &w2, &w3, &w4], &[&c2, &c3])?;
    w4.stop(5)?;
    scene.until_prompt("one was stopped", &[&w1, &w2, &w3], &[&c2, &c3])?;
    w4.start()?;
    let moved = c3.published(5432)?;
    c3.stop(5)?;
    c3.start()?;
    ensure!(c3.published(5432)? != moved, "it has the same port");
    let web = [&w1, &w2, &w3, &w4];
    scene.until_exact("it is back, and Citus's worker has moved", &web, &[&c2, &c3])?;

    // By hand.
    let (server, second) = (scene.haproxy_server(&w2)?, w2.published(80)?);
    let edited = Instant::now();
    scene.ask_haproxy(&format!("set server web/{server} state maint"))?;
    let nobody = SocketAddr::new(scene.hosts[1].ip(), 1);
    let files = ["eds/web.json", "traefik/rollcall.yml", "prometheus/containers.json", "haproxy.cfg"];
    let read =
        || files.iter().map(|name| fs::read_to_string(scene.path(name))).collect::<Result<Vec<_>, _>>();
    let before = read()?;
    for name in files {
        // Each engine picks its ports by itself, so that two hosts may have the same.
        let in_eds = |at: SocketAddr| format!("{:?},\"port_value\":{}", at.ip().to_string(), at.port());
        let (from, to) = match name {
            "eds/web.json" => (in_eds(second), in_eds(nobody)),
            _ => (second.to_string(), nobody.to_string()),
        };
        edit(&scene.path(name), &from, &to)?;
    }
    let third = c3.published(5432)?.port();
    let moving = "SELECT citus_update_node(nodeid, nodename, 1) FROM pg_dist_node WHERE nodeport";
    scene.programs.sql(&format!("{moving} = {third}"))?;
    ensure!(
        scene.programs.haproxy().is_ok_and(|found| !found.contains(&second)),
        "it was not in maintenance"
    );
    scene.until_exact("each was edited by hand", &web, &[&c2, &c3])?;
    until("the files are put right", TIMEOUT, || Ok(read()? == before))?;
    println!("put right after {:?}", edited.elapsed());
    ensure!(edited.elapsed() < RECONCILE * 2, "it took longer than the interval and the time to look");

    // A host is cut off, and comes back.
    let nodes = [c2.published(5432)?, c3.published(5432)?].into();
    scene.hosts[2].cut_off()?;
    scene.until_has("host 3 is cut off", &[&w1, &w2, &w4], &[&c2], &nodes, false)?;
    scene.hosts[2].heal()?;
    scene.until_exact("host 3 is back", &web, &[&c2, &c3])?;

    // An agent is killed, then the consumer, then etcd is away; each time something happens meanwhile.
    scene.kill_agent(1)?;
    let w5 = scene.web(1, "w5")?;
    scene.start_agent(1)?;
    scene.until_prompt("an agent was killed", &[&w1, &w2, &w3, &w4, &w5], &[&c2, &c3])?;
    scene.kill_consumer()?;
    w5.stop(5)?;
    scene.start_consumer()?;
    scene.until_prompt("the consumer was killed", &web, &[&c2, &c3])?;
    scene.etcd.stop()?;
    w5.start()?;
    scene.etcd.start_again()?;
    scene.until_exact("etcd was away", &[&w1, &w2, &w3, &w4, &w5], &[&c2, &c3])?;
    ensure!(scene.haproxy_pid()? == pid, "HAProxy was reloaded");
    watcher.end()?;

    // The programs themselves.
    scene.kill_programs()?;
    drop(w5);
    let w6 = scene.web(2, "w6")?;
    scene.start_programs()?;
    scene.coordinator.start()?;
    scene.until_exact("the programs were killed", &[&w1, &w2, &w3, &w4, &w6], &[&c2, &c3])?;
    step("done");
    Ok(())
}
