//! One real Docker host, etcd, agent, consumer and nginx: what users see of the whole.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rollcall_tests::{Container, DockerHost, Etcd, Program, http, image, port, until};
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(15);

/// A site in front of the rendered upstream. No retry: a request that meets a dead worker is an error that a
/// user sees.
const SITE: &str = "server { listen 80; location / { proxy_pass http://web; proxy_next_upstream off; \
                    proxy_connect_timeout 1s; } }\n";

/// nginx with its site, and the folder into which its upstream is rendered.
struct Proxy {
    container: Container,
    url: String,
}

/// A whole Rollcall on this machine's engine, for containers named `<test>-...`.
struct Host {
    consumer: Program,
    /// Where the consumer serves its metrics.
    metrics: String,
    agent: Program,
    etcd: Etcd,
    proxy: Proxy,
    docker: DockerHost,
    dir: TempDir,
    test: &'static str,
}

impl Host {
    fn start(test: &'static str) -> Result<Self> {
        let (docker, etcd, dir) = (DockerHost::local()?, Etcd::start()?, tempfile::tempdir()?);
        let conf = dir.path().join("conf.d");
        fs::create_dir(&conf)?;
        fs::write(conf.join("site.conf"), SITE)?;
        // The first file is rendered before nginx starts: no worker is there yet.
        let config = dir.path().join("targets.toml");
        fs::write(&config, targets(&conf.join("upstream.conf"), &format!("{test}-proxy")))?;
        let agent = agent(&etcd, test)?;
        let listen = format!("127.0.0.1:{}", port::free(Ipv4Addr::LOCALHOST.into())?);
        let consumer = consumer(&etcd, &config, dir.path(), &listen)?;
        let upstream = conf.join("upstream.conf");
        until("an empty upstream is rendered", TIMEOUT, || Ok(upstream.exists()))?;
        let container = docker.run(&[
            "--name",
            &format!("{test}-proxy"),
            "--label",
            "rollcall.signal=HUP",
            "--label",
            "rollcall.ignore=true",
            "--publish",
            "80",
            "--volume",
            &format!("{}:/etc/nginx/conf.d", conf.display()),
            image::nginx()?,
            "nginx",
            "-g",
            image::NGINX_NOTICES,
        ])?;
        let url = format!("http://{}/", container.published(80)?);
        let proxy = Proxy { container, url };
        until("nginx answers", TIMEOUT, || http::get(&proxy.url).map(|_| true))?;
        Ok(Self {
            consumer,
            metrics: format!("http://{listen}/metrics"),
            agent,
            etcd,
            proxy,
            docker,
            dir,
            test,
        })
    }

    fn worker(&self, number: u32) -> Result<Container> {
        let name = format!("{}-{number}", self.test);
        let args =
            ["--name", &name, "--hostname", &name, "--label", "rollcall.service=web", "--publish", "80"];
        self.docker.run(&[&args[..], &[image::worker()?]].concat())
    }

    fn upstream(&self) -> PathBuf {
        self.dir.path().join("conf.d/upstream.conf")
    }

    /// Which worker answers a request through nginx; an error where the user would see one.
    fn ask(&self) -> Result<String> {
        ask(&self.proxy.url)
    }
}

fn ask(url: &str) -> Result<String> {
    let answer = http::get(url)?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
    Ok(answer.body.trim().to_owned())
}

fn agent(etcd: &Etcd, test: &str) -> Result<Program> {
    let mut command = Program::agent()?;
    command.args(["--etcd", &etcd.endpoint(), "--node", "h1", "--listen", "off"]);
    command.args(["--only-name", &format!("^{test}-")]);
    let mut program = Program::start("agent", command)?;
    program.wait_log("claimed the name", TIMEOUT)?;
    Ok(program)
}

fn consumer(etcd: &Etcd, config: &Path, state: &Path, listen: &str) -> Result<Program> {
    let mut command = Program::consumer()?;
    command.args(["--etcd", &etcd.endpoint(), "--name", "c1", "--listen", listen]);
    command.arg("--config").arg(config).arg("--state-dir").arg(state);
    Program::start("consumer", command)
}

fn targets(dest: &Path, container: &str) -> String {
    format!(
        r#"
[[target]]
name = "proxy"
dest = "{}"
format = "nginx-upstream"
[target.select]
service = "web"
[target.notify]
container = "{container}"
signal = "HUP"
"#,
        dest.display()
    )
}

#[test]
fn nginx_serves_from_the_workers_that_are_there() -> Result<()> {
    let host = Host::start("one-serves")?;
    assert!(host.ask().is_err(), "nobody is there");
    let first = host.worker(1)?;
    until("the first worker serves", TIMEOUT, || Ok(host.ask()? == "one-serves-1"))?;
    let _second = host.worker(2)?;
    until("the second one serves too", TIMEOUT, || Ok(host.ask()? == "one-serves-2"))?;
    first.kill("KILL")?;
    until("the killed one is forgotten", TIMEOUT, || {
        let servers = fs::read_to_string(host.upstream())?.matches("server ").count();
        Ok(servers == 1)
    })?;
    until("only the second one serves", TIMEOUT, || {
        Ok((0..10).all(|_| host.ask().is_ok_and(|name| name == "one-serves-2")))
    })?;
    // The first file, which was there before nginx, may have been told of as well.
    let reloads = host.proxy.container.logs()?.matches("SIGHUP").count();
    assert!((3..=4).contains(&reloads), "{reloads} reloads for three changes");
    // From a start to its ack, for both that have started.
    let metrics = http::get(&host.metrics)?.body;
    assert!(metrics.contains("rollcall_start_to_ack_seconds_count{target=\"proxy\"} 2"), "{metrics}");
    Ok(())
}

#[test]
fn no_request_fails_while_a_worker_is_stopped_gracefully() -> Result<()> {
    let host = Host::start("one-stops")?;
    let workers = [host.worker(1)?, host.worker(2)?];
    until("both serve", TIMEOUT, || {
        let names: Vec<String> = (0..4).map(|_| host.ask()).collect::<Result<_>>()?;
        Ok(names.contains(&"one-stops-1".to_owned()) && names.contains(&"one-stops-2".to_owned()))
    })?;
    let (over, url) = (AtomicBool::new(false), host.proxy.url.clone());
    thread::scope(|scope| {
        let asking = scope.spawn(|| -> Result<u32> {
            let mut answered = 0;
            while !over.load(Ordering::Relaxed) {
                ask(&url).with_context(|| format!("request {}", answered + 1))?;
                answered += 1;
            }
            Ok(answered)
        });
        let stopped = workers[0].stop(10).and_then(|()| {
            until("only the other one serves", TIMEOUT, || {
                Ok((0..10).all(|_| host.ask().is_ok_and(|name| name == "one-stops-2")))
            })
        });
        over.store(true, Ordering::Relaxed);
        let answered = asking.join().expect("asking does not panic")?;
        assert!(answered > 50, "only {answered} requests were made");
        stopped
    })
}

#[test]
fn the_last_good_file_stays_while_etcd_is_away() -> Result<()> {
    let mut host = Host::start("one-holds")?;
    let _worker = host.worker(1)?;
    until("it serves", TIMEOUT, || Ok(host.ask()? == "one-holds-1"))?;
    let file = fs::read_to_string(host.upstream())?;
    host.etcd.kill();
    host.consumer.wait_log(r#"will try again part="roll""#, TIMEOUT)?;
    let second = host.worker(2)?;
    assert_eq!(fs::read_to_string(host.upstream())?, file);
    host.etcd.start_again()?;
    until("what came meanwhile serves", TIMEOUT, || Ok(host.ask()? == "one-holds-2"))?;
    drop(second);
    Ok(())
}

#[test]
fn a_reload_is_not_lost_when_the_target_or_the_consumer_is_away() -> Result<()> {
    let mut host = Host::start("one-owes")?;
    let _first = host.worker(1)?;
    until("it serves", TIMEOUT, || Ok(host.ask()? == "one-owes-1"))?;
    // The request cannot be delivered: the agent is dead. The consumer dies, too, before it is.
    host.agent.kill();
    let foreign = r#"{"v":1,"service":"web","container":"x","id":"aaaaaaaaaaaa","image":"x","address":"127.0.0.2","port":9,"protocol":"tcp","container_port":9,"status":"passing","started_at":"2026-01-01T00:00:00Z"}"#;
    host.etcd.ctl().put("/rollcall/instances/h9/aaaaaaaaaaaa/9-tcp", foreign)?;
    until("the file has it", TIMEOUT, || Ok(fs::read_to_string(host.upstream())?.contains("127.0.0.2:9")))?;
    host.consumer.kill();
    let reloads = || Ok::<_, anyhow::Error>(host.proxy.container.logs()?.matches("reconfiguring").count());
    let before = reloads()?;
    let _agent = agent(&host.etcd, "one-owes")?;
    let _consumer = consumer(&host.etcd, &host.dir.path().join("targets.toml"), host.dir.path(), "off")?;
    until("nginx was signalled for the file that did not change", TIMEOUT, || Ok(reloads()? > before))
}

#[test]
fn a_signal_that_the_container_does_not_allow_is_refused_and_said_so() -> Result<()> {
    let (docker, etcd, dir) = (DockerHost::local()?, Etcd::start()?, tempfile::tempdir()?);
    let target = docker.run(&["--name", "one-refuses-target", image::worker()?])?;
    let config = dir.path().join("targets.toml");
    fs::write(&config, targets(&dir.path().join("upstream.conf"), "one-refuses-target"))?;
    let _agent = agent(&etcd, "one-refuses")?;
    let mut consumer = consumer(&etcd, &config, dir.path(), "off")?;
    let line = consumer.wait_log("allows no HUP", TIMEOUT)?;
    assert!(line.contains("rollcall.signal=HUP"), "{line}");
    drop(target);
    Ok(())
}

#[test]
fn once_and_dry_run_do_what_they_say() -> Result<()> {
    let (etcd, dir) = (Etcd::start()?, tempfile::tempdir()?);
    let value = r#"{"v":1,"service":"web","container":"w1","id":"aaaaaaaaaaaa","image":"x","address":"10.0.0.1","port":8080,"protocol":"tcp","container_port":80,"status":"passing","started_at":"2026-01-01T00:00:00Z"}"#;
    etcd.ctl().put("/rollcall/instances/h1/aaaaaaaaaaaa/80-tcp", value)?;
    let dest = dir.path().join("upstream.conf");
    let run = |flags: &[&str]| -> Result<(Option<i32>, String)> {
        let mut command = Program::consumer()?;
        command.args(["--etcd", &etcd.endpoint(), "--format", "nginx-upstream", "--dest"]).arg(&dest);
        command.arg("--state-dir").arg(dir.path()).args(flags);
        let mut program = Program::start("consumer", command)?;
        let code = program.wait(TIMEOUT)?.code();
        Ok((code, program.log()))
    };
    let (code, diff) = run(&["--dry-run"])?;
    assert_eq!(code, Some(2), "something would change: {diff}");
    assert!(diff.contains("+") && diff.contains("10.0.0.1:8080"), "{diff}");
    assert!(!dest.exists());
    assert_eq!(run(&["--once"])?.0, Some(0));
    assert!(fs::read_to_string(&dest)?.contains("server 10.0.0.1:8080"));
    let (code, diff) = run(&["--dry-run"])?;
    assert_eq!((code, diff.contains("10.0.0.1:8080")), (Some(0), false), "{diff}");
    Ok(())
}
