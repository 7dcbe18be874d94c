//! The agent on a host that changes under it: its addresses, its engine, and its containers that take their time.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rollcall_tests::{
    Bridge, Container, DockerHost, Etcd, Program, http, image, leftovers, port, tool, until,
};
use rustix::process::{Pid, Signal, kill_process};

const TIMEOUT: Duration = Duration::from_secs(20);
const INSTANCES: &str = "/rollcall/instances/h1/";
/// Of the agents here; a list of Docker's containers is due within a third of it, but no sooner than after 5 s.
const REFRESH: Duration = Duration::from_secs(6);

/// An agent of this engine that registers only the containers of this test, named `<test>-...`.
fn agent(etcd: &Etcd, host: &DockerHost, test: &str, flags: &[&str]) -> Result<Command> {
    let mut command = Program::agent()?;
    command.args(["--etcd", &etcd.endpoint(), "--node", "h1", "--docker-host", &host.docker_host()]);
    command.args(["--only-name", &format!("^{test}-"), "--refresh", "6s", "--ttl", "60s"]).args(flags);
    Ok(command)
}

fn start(command: Command) -> Result<Program> {
    let mut program = Program::start("agent", command)?;
    program.wait_log("claimed the name", TIMEOUT)?;
    Ok(program)
}

fn worker(host: &DockerHost, name: &str, flags: &[&str]) -> Result<Container> {
    host.run(&[&["--name", name], flags, &[image::worker()?]].concat())
}

/// A field of the only instance of a container; `None` where it has none.
fn field(etcd: &Etcd, container: &Container, field: &str) -> Result<Option<String>> {
    let keys = etcd.ctl().keys(&format!("{INSTANCES}{}/", container.short_id()))?;
    let Some(key) = keys.first() else { return Ok(None) };
    let value = etcd.ctl().get(key)?.context("the key is there")?;
    let value = &serde_json::from_str::<serde_json::Value>(&value)?[field];
    Ok(Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
}

#[test]
fn an_address_that_is_not_there_yet_is_waited_for_and_followed_and_loopback_never_registered() -> Result<()> {
    let (etcd, host, bridge) = (Etcd::start()?, DockerHost::local()?, Bridge::start()?);
    let address = |verb: &str, n: u8| {
        tool::run_line(&format!("ip addr {verb} {}/24 dev {}", bridge.address(n), bridge.name()))
    };
    address("del", 254)?;
    let everywhere = worker(&host, "host-waits-1", &["--publish", "80"])?;
    let bound = worker(&host, "host-waits-2", &["--publish", "127.0.0.1::80"])?;
    let labels = ["--network", "host", "--label", "rollcall.port=4799", "--env", "PORT=4799"];
    let on_host = worker(&host, "host-waits-3", &labels)?;
    let listen = format!("127.0.0.1:{}", port::free([127, 0, 0, 1].into())?);
    let flags = ["--advertise", bridge.name(), "--listen", &listen];
    let mut agent = start(agent(&etcd, &host, "host-waits", &flags)?)?;
    agent.wait_log("this host has no address yet", TIMEOUT)?;
    let ready = http::get(&format!("http://{listen}/readyz"));
    assert!(format!("{ready:?}").contains("this host has no address yet"), "{ready:?}");
    assert_eq!(etcd.ctl().keys(INSTANCES)?, [""; 0]);
    for n in [254, 253] {
        address("add", n)?;
        let expected = Some(bridge.address(n).to_string());
        for container in [&everywhere, &on_host] {
            until("it is registered at the new address", REFRESH + Duration::from_secs(2), || {
                Ok(field(&etcd, container, "address")? == expected)
            })?;
        }
        address("del", n)?;
    }
    assert_eq!(field(&etcd, &bound, "address")?, None);
    Ok(())
}

#[test]
fn a_host_without_a_route_has_no_address_unless_its_readers_are_on_it() -> Result<()> {
    let host = DockerHost::local()?;
    let _everywhere = worker(&host, "host-alone-1", &["--publish", "80"])?;
    let _bound = worker(&host, "host-alone-2", &["--publish", "127.0.0.1::80"])?;
    let explain = |container: &str, flags: &[&str]| -> Result<String> {
        let agent = Program::agent()?;
        let mut command = Command::new("unshare");
        command.args(["--net", "--"]).arg(agent.get_program()).args(["explain", container]);
        command.args(["--etcd", "http://127.0.0.1:1", "--docker-host", &host.docker_host()]).args(flags);
        tool::run(&mut command)
    };
    let (everywhere, bound) = (explain("host-alone-1", &[])?, explain("host-alone-2", &[])?);
    assert!(everywhere.contains("80/tcp not registered: this host has no address yet"), "{everywhere}");
    assert!(bound.contains("which only this host reaches: expected --loopback"), "{bound}");
    for container in ["host-alone-1", "host-alone-2"] {
        let explained = explain(container, &["--loopback"])?;
        assert!(explained.contains("80/tcp registered as 127.0.0.1:"), "{explained}");
    }
    Ok(())
}

#[test]
fn a_container_that_takes_minutes_to_stop_drains_over_an_ordinary_restart_of_the_agent() -> Result<()> {
    let (etcd, host) = (Etcd::start()?, DockerHost::local()?);
    let worker = worker(&host, "host-drains-1", &["--publish", "80", "--env", "DRAIN_MS=300000"])?;
    let flags = ["--advertise", "10.9.8.7", "--listen", "off"];
    let mut first = start(agent(&etcd, &host, "host-drains", &flags)?)?;
    let status = || field(&etcd, &worker, "status");
    until("it is registered", TIMEOUT, || Ok(status()?.as_deref() == Some("passing")))?;
    let mut stopping =
        host.docker_command()?.args(["stop", "--time", "300", worker.id()]).spawn().context("docker stop")?;
    until("it drains", TIMEOUT, || Ok(status()?.as_deref() == Some("draining")))?;
    first.terminate(TIMEOUT)?;
    assert_eq!(status()?, None, "the store remembers nothing");
    let watch = etcd.ctl().watch(INSTANCES)?;
    let _second = start(agent(&etcd, &host, "host-drains", &flags)?)?;
    // A second one is told of by its own event, which comes after what the first list led to.
    let other = self::worker(&host, "host-drains-2", &["--publish", "80"])?;
    until("the successor registers", TIMEOUT, || Ok(field(&etcd, &other, "status")?.is_some()))?;
    assert_eq!(status()?.as_deref(), Some("draining"));
    assert_eq!(watch.events()?.len(), 2, "the other's, and that of the one that drains");
    worker.kill("KILL")?;
    until("it is withdrawn", TIMEOUT, || Ok(status()?.is_none()))?;
    stopping.wait()?;
    Ok(())
}

#[test]
fn an_engine_that_hangs_is_named_and_its_containers_are_withdrawn_after_the_grace_time() -> Result<()> {
    let (etcd, bridge) = (Etcd::start()?, Bridge::start()?);
    let host = DockerHost::start(1, &bridge)?;
    host.load_image(image::worker()?)?;
    let worker = worker(&host, "host-hangs-1", &["--publish", "80"])?;
    let flags = ["--advertise", "10.9.8.7", "--listen", "off", "--docker-grace", "3s"];
    let mut agent = start(agent(&etcd, &host, "host-hangs", &flags)?)?;
    let is_registered = || Ok(field(&etcd, &worker, "status")?.is_some());
    until("it is registered", TIMEOUT, is_registered)?;
    let engine = Pid::from_raw(i32::try_from(host.engine_pid()?)?).context("a PID")?;
    let hung = Instant::now();
    kill_process(engine, Signal::STOP)?;
    let named = agent.wait_log("Docker has answered nothing for 5s", TIMEOUT);
    let is_withdrawn = until("it is withdrawn", TIMEOUT, || Ok(!is_registered()?));
    let took = hung.elapsed();
    kill_process(engine, Signal::CONT)?;
    named?;
    is_withdrawn?;
    // Two thirds of a refresh, the silence and the grace time, and as much again for a slow machine.
    assert!(took < Duration::from_secs(2 * (4 + 5 + 3)), "it took {took:?}");
    until("it is registered again", TIMEOUT, is_registered)
}

#[test]
fn whatever_an_engine_does_when_it_restarts_is_registered_within_a_refresh() -> Result<()> {
    for flags in [vec![], vec!["--live-restore".to_owned()]] {
        let (etcd, bridge) = (Etcd::start()?, Bridge::start()?);
        let mut host = DockerHost::start_with(1, &bridge, &flags)?;
        host.load_image(image::worker()?)?;
        let always = worker(&host, "host-restarts-1", &["--publish", "80", "--restart", "always"])?;
        let once = worker(&host, "host-restarts-2", &["--publish", "80"])?;
        let more = ["--advertise", "10.9.8.7", "--listen", "off"];
        let _agent = start(agent(&etcd, &host, "host-restarts", &more)?)?;
        let registered = || etcd.ctl().keys(INSTANCES).map(|keys| keys.len());
        until("they are registered", TIMEOUT, || Ok(registered()? == 2))?;
        host.stop_engine()?;
        host.start_engine()?;
        let new = worker(&host, "host-restarts-3", &["--publish", "80"])?;
        let is_right = |container: &Container| -> Result<bool> {
            let runs = container.inspect("{{.State.Running}}")? == "true";
            let expected = if runs { Some(container.published(80)?.port().to_string()) } else { None };
            Ok(field(&etcd, container, "port")? == expected)
        };
        // A refresh, and as much again for a slow machine.
        until("what runs is registered as it runs", 2 * REFRESH, || {
            Ok(is_right(&always)? && is_right(&once)? && is_right(&new)? && registered()? >= 2)
        })?;
        assert_eq!(registered()?, if flags.is_empty() { 2 } else { 3 }, "{flags:?}");
    }
    Ok(())
}

/// A container with a label of 2 MiB and one of 5,000 ports, removed when dropped. The docker CLI takes no such label.
struct Greedy<'h> {
    host: &'h DockerHost,
    id: String,
}

impl<'h> Greedy<'h> {
    fn start(host: &'h DockerHost, name: &str) -> Result<Self> {
        let ports: Vec<String> = (1..=5000).map(|port| port.to_string()).collect();
        let label = leftovers::label();
        let (mark, owner) = label.split_once('=').context("a label")?;
        let body = serde_json::json!({ "Image": image::worker()?, "Env": ["PORT=4798"],
            "HostConfig": { "NetworkMode": "host" },
            "Labels": { mark: owner, "rollcall.note": "x".repeat(2 << 20), "rollcall.port": ports.join(",") } });
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(&file, body.to_string())?;
        let mut curl = tool::command("curl")?;
        curl.args(["--silent", "--fail-with-body", "--unix-socket"]).arg(host.socket());
        curl.args(["--header", "Content-Type: application/json", "--data-binary"]);
        curl.arg(format!("@{}", file.path().display()));
        let created = tool::run(curl.arg(format!("http://docker/containers/create?name={name}")))?;
        let created: serde_json::Value = serde_json::from_str(&created)?;
        let greedy = Self { host, id: created["Id"].as_str().context("an ID")?.to_owned() };
        host.docker(&["start", &greedy.id])?;
        Ok(greedy)
    }
}

impl Drop for Greedy<'_> {
    fn drop(&mut self) {
        // Whatever stays is cleared by the next run.
        let _ = self.host.docker(&["rm", "--force", &self.id]);
    }
}

#[test]
fn a_greedy_container_is_named_everywhere_and_every_other_one_goes_on() -> Result<()> {
    let (etcd, host) = (Etcd::start()?, DockerHost::local()?);
    let greedy = Greedy::start(&host, "host-greedy-1")?;
    let listen = format!("127.0.0.1:{}", port::free([127, 0, 0, 1].into())?);
    let flags = ["--advertise", "10.9.8.7", "--listen", &listen];
    let mut agent = start(agent(&etcd, &host, "host-greedy", &flags)?)?;
    let other = worker(&host, "host-greedy-2", &["--publish", "80"])?;
    until("the other is registered", TIMEOUT, || Ok(field(&etcd, &other, "status")?.is_some()))?;
    agent.wait_log("4872 ports from 129/tcp on: expected 128 or fewer", TIMEOUT)?;
    agent.wait_log("label rollcall.note has 2097152 bytes", TIMEOUT)?;
    let ready = until("it is ready", TIMEOUT, || {
        let ready = http::get(&format!("http://{listen}/readyz"))?;
        Ok((ready.status == 200).then_some(ready.body))
    })?;
    assert!(ready.contains("ok; container host-greedy-1: "), "{ready}");
    let metrics = http::get(&format!("http://{listen}/metrics"))?.body;
    assert!(metrics.contains("rollcall_agent_omissions{reason=\"too_large\"} 3"), "{metrics}");
    let keys = etcd.ctl().keys(&format!("{INSTANCES}{}/", &greedy.id[..12]))?;
    assert_eq!(keys.len(), 128);
    let log = agent.log();
    assert_eq!(log.lines().filter(|line| line.contains("4872 ports")).count(), 1 + 1, "and in its condition");
    assert!(log.len() < 1 << 20, "{} bytes of log", log.len());
    Ok(())
}

/// Signals the worker through the store, as a consumer would, and waits for the ack.
fn signal(etcd: &Etcd, worker: &Container, name: &str) -> Result<()> {
    let delivery = serde_json::json!({ "signal": "HUP", "to": { "container": name } });
    let consumer = serde_json::json!({ "v": 1, "owner": "x", "holder": "y", "host": "z", "version": "0",
        "started_at": "2026-01-02T03:04:05Z", "ttl_seconds": 60, "targets": { "web": { "delivery": delivery } } });
    etcd.ctl().put("/rollcall/consumers/c1", &consumer.to_string())?;
    let started_at = field(etcd, worker, "started_at")?.context("it is registered")?;
    let request = serde_json::json!({ "v": 1, "generation": 7, "signal": "HUP",
        "receivers": [{ "container": worker.short_id(), "started_at": started_at, "attempt": 1 }] });
    etcd.ctl().put("/rollcall/signals/h1/c1/web", &request.to_string())?;
    let acks = until("it is answered", TIMEOUT, || etcd.ctl().get("/rollcall/acks/h1/c1/web"))?;
    assert!(!acks.contains("failure"), "{acks}");
    Ok(())
}

#[test]
fn docker_still_restarts_what_is_signalled_in_the_hosts_namespace_and_otherwise_it_is_warned_of() -> Result<()>
{
    const WARNING: &str = "Docker forgets to restart it after a signal through its API";
    for is_apart in [false, true] {
        let (etcd, host) = (Etcd::start()?, DockerHost::local()?);
        let flags = ["--publish", "80", "--restart", "unless-stopped", "--label", "rollcall.signal=HUP"];
        let worker = worker(&host, "host-forgets-1", &flags)?;
        let flags = ["--advertise", "10.9.8.7", "--listen", "off"];
        let mut command = agent(&etcd, &host, "host-forgets", &flags)?;
        if is_apart {
            let mut apart = Command::new("unshare");
            apart.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(command.get_program());
            apart.args(command.get_args());
            for (name, _) in command.get_envs() {
                apart.env_remove(name);
            }
            command = apart;
        }
        let mut agent = start(command)?;
        until("it is registered", TIMEOUT, || Ok(field(&etcd, &worker, "status")?.is_some()))?;
        signal(&etcd, &worker, "host-forgets-1")?;
        if is_apart {
            agent.wait_log(WARNING, TIMEOUT)?;
        } else {
            assert!(!agent.log().contains(WARNING));
        }
        let pid = Pid::from_raw(worker.inspect("{{.State.Pid}}")?.parse()?).context("a PID")?;
        kill_process(pid, Signal::KILL)?;
        let ended = if is_apart { "exited 0" } else { "running 1" };
        until("Docker does what it remembers", TIMEOUT, || {
            Ok(worker.inspect("{{.State.Status}} {{.RestartCount}}")? == ended)
        })?;
    }
    Ok(())
}

#[test]
fn no_log_level_shows_the_environment_of_a_container_or_a_label_that_is_not_let_out() -> Result<()> {
    let (etcd, host) = (Etcd::start()?, DockerHost::local()?);
    let secret = "hunter2-8d1f";
    let (env, label) = (format!("POSTGRES_PASSWORD={secret}"), format!("com.example.token={secret}"));
    let flags = ["--publish", "80", "--env", &env, "--label", &label];
    let worker = worker(&host, "host-secret-1", &flags)?;
    for (variable, flag) in [("DEBUG", "--debug"), ("X", "--log=trace"), ("X", "--log=bollard=trace,info")] {
        let mut command =
            agent(&etcd, &host, "host-secret", &["--advertise", "10.9.8.7", "--listen", "off", flag])?;
        command.env(variable, "true");
        let program = Program::start("agent", command)?.silent();
        until("it is registered", TIMEOUT, || Ok(field(&etcd, &worker, "status")?.is_some()))?;
        worker.kill("HUP")?;
        host.docker(&["rename", worker.id(), &format!("host-secret-{}", flag.len())])?;
        until("it is inspected again", TIMEOUT, || {
            Ok(field(&etcd, &worker, "container")? == Some(format!("host-secret-{}", flag.len())))
        })?;
        assert!(!program.log().contains(secret), "{flag}");
    }
    let mut explain = Program::agent()?;
    let name = worker.inspect("{{.Name}}")?;
    explain.args(["explain", name.trim_start_matches('/'), "--log", "trace", "--advertise", "10.9.8.7"]);
    let explained = tool::run(explain.args(["--docker-host", &host.docker_host()]))?;
    assert!(explained.contains("registered as") && !explained.contains(secret), "{explained}");
    Ok(())
}
