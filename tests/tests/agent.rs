//! The agent alone: one real Docker host and a real etcd.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rollcall_tests::etcdctl::Event;
use rollcall_tests::{Bridge, Container, DockerHost, Etcd, Program, Tls, image, until};
use rustix::process::{Pid, Signal, kill_process};

const TIMEOUT: Duration = Duration::from_secs(10);
const INSTANCES: &str = "/rollcall/instances/";

/// An agent of the machine's own engine that registers only containers of this test, named `<test>-...`.
struct Agent {
    program: Program,
}

impl Agent {
    fn command(etcd: &Etcd, test: &str) -> Result<Command> {
        let mut command = Program::agent()?;
        command.args(["--etcd", &etcd.endpoint(), "--node", "h1", "--listen", "off"]);
        command.args(["--only-name", &format!("^{test}-"), "--advertise", "10.9.8.7"]);
        Ok(command)
    }

    fn start(etcd: &Etcd, test: &str, flags: &[&str]) -> Result<Self> {
        let mut command = Self::command(etcd, test)?;
        command.args(flags);
        let mut program = Program::start("agent", command)?;
        program.wait_log("claimed the name", TIMEOUT)?;
        Ok(Self { program })
    }
}

fn worker(host: &DockerHost, test: &str, number: u32, flags: &[&str]) -> Result<Container> {
    let name = format!("{test}-{number}");
    let args = [&["--name", &name, "--publish", "80"], flags, &[image::worker()?]].concat();
    host.run(&args)
}

fn keys(etcd: &Etcd) -> Result<Vec<String>> {
    etcd.ctl().keys(INSTANCES)
}

fn key_of(worker: &Container) -> String {
    format!("{INSTANCES}h1/{}/80-tcp", worker.short_id())
}

fn field(etcd: &Etcd, key: &str, field: &str) -> Result<serde_json::Value> {
    let value = etcd.ctl().get(key)?.context("the key is there")?;
    Ok(serde_json::from_str::<serde_json::Value>(&value)?[field].clone())
}

#[test]
fn containers_are_registered_while_they_run() -> Result<()> {
    let (etcd, host) = (Etcd::start()?, DockerHost::local()?);
    let before = worker(&host, "agent-runs", 1, &[])?;
    let _agent = Agent::start(&etcd, "agent-runs", &[])?;
    until("what ran before is registered", TIMEOUT, || Ok(keys(&etcd)? == [key_of(&before)]))?;
    let after = worker(&host, "agent-runs", 2, &["--label", "rollcall.service=web"])?;
    until("what started after is registered", TIMEOUT, || Ok(keys(&etcd)?.contains(&key_of(&after))))?;
    assert_eq!(field(&etcd, &key_of(&after), "service")?, "web");
    assert_eq!(field(&etcd, &key_of(&after), "address")?, "10.9.8.7");
    assert_eq!(field(&etcd, &key_of(&after), "port")?, after.published(80)?.port());
    before.kill("KILL")?;
    until("what was killed is withdrawn", TIMEOUT, || Ok(keys(&etcd)? == [key_of(&after)]))?;
    before.start()?;
    until("what was started again is registered", TIMEOUT, || Ok(keys(&etcd)?.contains(&key_of(&before))))?;
    host.docker(&["pause", before.id()])?;
    until("paused is failing", TIMEOUT, || Ok(field(&etcd, &key_of(&before), "status")? == "failing"))?;
    host.docker(&["unpause", before.id()])?;
    until("unpaused is passing", TIMEOUT, || Ok(field(&etcd, &key_of(&before), "status")? == "passing"))?;
    host.docker(&["rename", before.id(), "agent-runs-renamed"])?;
    until("its new name is registered", TIMEOUT, || {
        Ok(field(&etcd, &key_of(&before), "container")? == "agent-runs-renamed")
    })?;
    after.stop(5)?;
    until("what was stopped is withdrawn", TIMEOUT, || Ok(keys(&etcd)? == [key_of(&before)]))
}

#[test]
fn a_container_drains_between_its_stop_signal_and_its_end() -> Result<()> {
    let (etcd, host) = (Etcd::start()?, DockerHost::local()?);
    let worker = worker(&host, "agent-drains", 1, &["--env", "DRAIN_MS=300"])?;
    let _agent = Agent::start(&etcd, "agent-drains", &[])?;
    until("it is registered", TIMEOUT, || Ok(keys(&etcd)? == [key_of(&worker)]))?;
    let watch = etcd.ctl().watch(INSTANCES)?;
    worker.stop(5)?;
    let events = until("it is withdrawn", TIMEOUT, || {
        let events = watch.events()?;
        Ok(events.iter().any(|event| matches!(event, Event::Delete { .. })).then_some(events))
    })?;
    let Some(Event::Put { value, .. }) = events.first() else {
        panic!("it was not marked first: {events:?}")
    };
    assert!(value.contains(r#""status":"draining""#), "{value}");
    Ok(())
}

#[test]
fn sigterm_withdraws_everything_at_once() -> Result<()> {
    let (etcd, host) = (Etcd::start()?, DockerHost::local()?);
    let _workers = [worker(&host, "agent-terms", 1, &[])?, worker(&host, "agent-terms", 2, &[])?];
    let mut agent = Agent::start(&etcd, "agent-terms", &[])?;
    until("they are registered", TIMEOUT, || Ok(keys(&etcd)?.len() == 2))?;
    assert_eq!(agent.program.terminate(TIMEOUT)?.code(), Some(0));
    assert_eq!(etcd.ctl().keys("/rollcall/")?, [""; 0]);
    Ok(())
}

#[test]
fn who_is_asked_to_stop_twice_ends_at_once_though_etcd_hangs() -> Result<()> {
    let (etcd, _host) = (Etcd::start()?, DockerHost::local()?);
    let mut agent = Agent::start(&etcd, "agent-hurries", &["--log-format", "json"])?;
    let pid = Pid::from_raw(i32::try_from(etcd.pid())?).context("a PID")?;
    kill_process(pid, Signal::STOP)?;
    agent.program.signal(Signal::TERM)?;
    agent.program.wait_log("asked to stop", TIMEOUT)?;
    assert!(agent.program.exited()?.is_none(), "it waits for etcd");
    agent.program.signal(Signal::INT)?;
    assert_eq!(agent.program.wait(Duration::from_secs(1))?.code(), Some(1));
    kill_process(pid, Signal::CONT)?;
    let log = agent.program.log();
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        assert!(line["level"].is_string() && line["message"].is_string(), "{line}");
    }
    Ok(())
}

#[test]
fn without_the_hosts_processes_a_signal_goes_through_docker() -> Result<()> {
    let (etcd, host) = (Etcd::start()?, DockerHost::local()?);
    let dir = tempfile::tempdir()?;
    let bind = format!("{}:/out", dir.path().display());
    let flags = ["--label", "rollcall.signal=HUP", "--env", "HUP_LOG=/out/hups", "--volume", &bind];
    let worker = worker(&host, "agent-apart", 1, &flags)?;
    let command = Agent::command(&etcd, "agent-apart")?;
    let mut apart = Command::new("unshare");
    apart.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(command.get_program());
    apart.args(command.get_args());
    // What it is to be without: the caller's own settings.
    for (name, _) in command.get_envs() {
        apart.env_remove(name);
    }
    let mut agent = Program::start("agent apart", apart)?;
    agent.wait_log("claimed the name", TIMEOUT)?;
    let consumer = serde_json::json!({ "v": 1, "owner": "x", "holder": "y", "host": "z", "version": "0",
        "started_at": "2026-01-02T03:04:05Z", "ttl_seconds": 60,
        "targets": { "web": { "delivery": { "signal": "HUP", "to": { "container": "agent-apart-1" } } } } });
    etcd.ctl().put("/rollcall/consumers/c1", &consumer.to_string())?;
    let receivers =
        until("it says who its receivers are", TIMEOUT, || etcd.ctl().get("/rollcall/receivers/h1/c1/web"))?;
    let receivers: serde_json::Value = serde_json::from_str(&receivers)?;
    let receiver = &receivers["receivers"][0];
    assert_eq!(
        (&receiver["container"], &receiver["name"]),
        (&worker.short_id().into(), &"agent-apart-1".into())
    );
    assert!(receiver["refused"].is_null(), "{receiver}");
    let (container, started_at) = (&receiver["container"], &receiver["started_at"]);
    let request = serde_json::json!({ "v": 1, "generation": 7, "signal": "HUP",
        "receivers": [{ "container": container, "started_at": started_at, "attempt": 1 }] });
    etcd.ctl().put("/rollcall/signals/h1/c1/web", &request.to_string())?;
    let acks = until("it is answered", TIMEOUT, || etcd.ctl().get("/rollcall/acks/h1/c1/web"))?;
    let acks: serde_json::Value = serde_json::from_str(&acks)?;
    let ack = &acks["acks"][0];
    assert_eq!((&ack["generation"], &ack["container"]), (&7.into(), container));
    assert!(ack["failure"].is_null(), "{ack}");
    let hups = dir.path().join("hups");
    until("the signal has come", TIMEOUT, || Ok(std::fs::read_to_string(&hups)?.lines().count() == 1))
}

#[test]
fn kept_registrations_stay_and_are_adopted_without_a_watch_event() -> Result<()> {
    let (etcd, host) = (Etcd::start()?, DockerHost::local()?);
    let workers = [worker(&host, "agent-stays", 1, &[])?, worker(&host, "agent-stays", 2, &[])?];
    let mut first = Agent::start(&etcd, "agent-stays", &["--on-exit", "keep"])?;
    until("they are registered", TIMEOUT, || Ok(keys(&etcd)?.len() == 2))?;
    let watch = etcd.ctl().watch(INSTANCES)?;
    assert_eq!(first.program.terminate(TIMEOUT)?.code(), Some(0));
    let mut second = Agent::start(&etcd, "agent-stays", &[])?;
    second.program.wait_log("adopted=true", TIMEOUT)?;
    second.program.kill();
    assert_eq!(keys(&etcd)?.len(), 2, "a crash leaves them to their TTL");
    let _third = Agent::start(&etcd, "agent-stays", &[])?;
    // One that ended while no agent ran is the only difference.
    workers[0].kill("KILL")?;
    let gone = [Event::Delete { key: key_of(&workers[0]) }];
    let events = until("the difference is written", TIMEOUT, || {
        let events = watch.events()?;
        Ok((!events.is_empty()).then_some(events))
    })?;
    assert_eq!(events, gone);
    Ok(())
}

#[test]
fn what_a_crashed_agent_leaves_lives_until_the_ttl() -> Result<()> {
    let (etcd, host) = (Etcd::start()?, DockerHost::local()?);
    let worker = worker(&host, "agent-dies", 1, &[])?;
    let mut agent = Agent::start(&etcd, "agent-dies", &["--ttl", "3s", "--refresh", "1s"])?;
    until("it is registered", TIMEOUT, || Ok(keys(&etcd)? == [key_of(&worker)]))?;
    let crash = Instant::now();
    agent.program.kill();
    assert_eq!(keys(&etcd)?.len(), 1);
    until("the TTL is over", TIMEOUT, || Ok(keys(&etcd)?.is_empty()))?;
    assert!(crash.elapsed() >= Duration::from_secs(1), "it went after {:?}", crash.elapsed());
    Ok(())
}

#[test]
fn what_someone_else_deletes_or_changes_is_put_back() -> Result<()> {
    let (etcd, host) = (Etcd::start()?, DockerHost::local()?);
    let worker = worker(&host, "agent-mends", 1, &[])?;
    let _agent = Agent::start(&etcd, "agent-mends", &[])?;
    let key = key_of(&worker);
    let ours = until("it is registered", TIMEOUT, || etcd.ctl().get(&key))?;
    etcd.ctl().del(&key)?;
    until("it is put back", TIMEOUT, || Ok(etcd.ctl().get(&key)?.as_ref() == Some(&ours)))?;
    etcd.ctl().put(&key, "scribble")?;
    until("it is mended", TIMEOUT, || Ok(etcd.ctl().get(&key)?.as_ref() == Some(&ours)))?;
    let foreign = format!("{INSTANCES}h1/ffffffffffff/80-tcp");
    etcd.ctl().put(&foreign, "scribble")?;
    until("what is not ours under our name goes", TIMEOUT, || Ok(etcd.ctl().get(&foreign)?.is_none()))?;
    etcd.ctl().del("/rollcall/nodes/h1")?;
    until("the claim is put back", TIMEOUT, || Ok(etcd.ctl().get("/rollcall/nodes/h1")?.is_some()))?;
    until("and the instance stands", TIMEOUT, || Ok(etcd.ctl().get(&key)?.as_ref() == Some(&ours)))
}

#[test]
fn everything_is_put_back_after_etcd_lost_its_data() -> Result<()> {
    let (mut etcd, host) = (Etcd::start()?, DockerHost::local()?);
    let worker = worker(&host, "agent-resists", 1, &[])?;
    let _agent = Agent::start(&etcd, "agent-resists", &["--ttl", "5s", "--refresh", "1s"])?;
    until("it is registered", TIMEOUT, || Ok(keys(&etcd)? == [key_of(&worker)]))?;
    etcd.stop()?;
    etcd.wipe()?;
    etcd.start_again()?;
    until("it is registered again", Duration::from_secs(20), || Ok(keys(&etcd)? == [key_of(&worker)]))
}

#[test]
fn a_second_engine_under_the_same_name_is_refused_naming_both() -> Result<()> {
    let etcd = Etcd::start()?;
    let other = serde_json::json!({
        "v": 1, "owner": "THE:OTHER:ENGINE", "holder": "x", "host": "other-host", "version": "0",
        "ttl_seconds": 60, "started_at": "2026-01-01T00:00:00Z",
    });
    let lease = etcd.etcdctl(&["lease", "grant", "60"])?;
    let lease = lease.split_whitespace().nth(1).context("a lease ID")?.to_owned();
    etcd.etcdctl(&["put", "--lease", &lease, "/rollcall/nodes/h1", &other.to_string()])?;
    let mut command = Program::agent()?;
    command.args(["--etcd", &etcd.endpoint(), "--node", "h1", "--listen", "off"]);
    let mut agent = Program::start("agent", command)?;
    assert_eq!(agent.wait(TIMEOUT)?.code(), Some(1));
    let error = agent.wait_log("error: ", TIMEOUT)?;
    let engine = DockerHost::local()?.docker(&["info", "--format", "{{.ID}}"])?;
    assert!(error.contains("THE:OTHER:ENGINE on other-host") && error.contains(&engine), "{error}");
    Ok(())
}

#[test]
fn a_second_agent_of_the_same_engine_is_refused_by_name_and_the_first_goes_on() -> Result<()> {
    let (etcd, host) = (Etcd::start()?, DockerHost::local()?);
    let _worker = worker(&host, "agent-twins", 1, &[])?;
    let mut first = Agent::start(&etcd, "agent-twins", &[])?;
    until("it is registered", TIMEOUT, || Ok(keys(&etcd)?.len() == 1))?;
    let watch = etcd.ctl().watch(INSTANCES)?;
    let mut second = Program::start("second agent", Agent::command(&etcd, "agent-twins")?)?;
    assert_eq!(second.wait(TIMEOUT)?.code(), Some(1));
    let error = second.wait_log("error: ", TIMEOUT)?;
    assert!(error.contains("node name h1 is held by another process"), "{error}");
    let _another = worker(&host, "agent-twins", 2, &[])?;
    until("the first still registers", TIMEOUT, || Ok(keys(&etcd)?.len() == 2))?;
    assert_eq!(watch.events()?.len(), 1, "the new container's, and no other");
    assert!(first.program.exited()?.is_none());
    Ok(())
}

#[test]
fn an_agent_that_hangs_is_succeeded_and_then_stops_and_revokes_nothing() -> Result<()> {
    let (etcd, host) = (Etcd::start()?, DockerHost::local()?);
    let _worker = worker(&host, "agent-yields", 1, &[])?;
    let mut first = Agent::start(&etcd, "agent-yields", &[])?;
    until("it is registered", TIMEOUT, || Ok(keys(&etcd)?.len() == 1))?;
    first.program.signal(Signal::STOP)?;
    let mut second = Agent::start(&etcd, "agent-yields", &[])?;
    second.program.wait_log("adopted=true", TIMEOUT)?;
    first.program.signal(Signal::CONT)?;
    assert_eq!(first.program.wait(TIMEOUT)?.code(), Some(1));
    first.program.wait_log("has taken the node name h1 over", TIMEOUT)?;
    assert_eq!(keys(&etcd)?.len(), 1);
    Ok(())
}

#[test]
fn a_quiet_host_writes_nothing() -> Result<()> {
    let (etcd, host) = (Etcd::start()?, DockerHost::local()?);
    let _workers =
        (0..50).map(|number| worker(&host, "agent-quiet", number, &[])).collect::<Result<Vec<_>>>()?;
    let _agent = Agent::start(&etcd, "agent-quiet", &["--ttl", "3s", "--refresh", "500ms"])?;
    until("they are registered", TIMEOUT, || Ok(keys(&etcd)?.len() == 50))?;
    let watch = etcd.ctl().watch("/")?;
    let revision = etcd.ctl().revision()?;
    let keep_alives = || etcd.metric("grpc_server_msg_received_total{grpc_method=\"LeaseKeepAlive\"");
    let before = keep_alives()?;
    until("ten refreshes are over", Duration::from_secs(30), || Ok(keep_alives()? >= before + 10.0))?;
    assert_eq!(etcd.ctl().revision()?, revision);
    assert_eq!(watch.lines(), [""; 0]);
    Ok(())
}

#[test]
fn bad_settings_are_refused_in_one_line_before_anything_is_touched() -> Result<()> {
    for (flags, code, expected) in [
        (
            vec!["--etcd", "http://127.0.0.1:1", "--ttl", "30s", "--refresh", "30s"],
            2,
            "--refresh is 30s: expected more than 0s and less than --ttl (30s)",
        ),
        (vec!["--etcd", "nonsense"], 2, "expected host:port"),
        (vec![], 2, "--etcd (ETCDCTL_ENDPOINTS) is not given"),
        (vec!["--etcd", "http://127.0.0.1:1", "--only-name", "("], 2, "--only-name"),
        (
            vec!["--etcd", "http://127.0.0.1:1", "--wait", "0s"],
            1,
            "etcd at http://127.0.0.1:1 is not available: ",
        ),
        (
            vec!["--etcd", "http://127.0.0.1:1", "--docker-host", "unix:///none.sock", "--wait", "0s"],
            1,
            "unix:///none.sock: connecting: there is no socket /none.sock",
        ),
        (
            vec!["--etcd", "http://127.0.0.1:1", "--docker-host", "tcp://127.0.0.1:1", "--wait", "0s"],
            1,
            "Docker at tcp://127.0.0.1:1",
        ),
        (
            vec!["--etcd", "http://127.0.0.1:1", "--advertise", "0.0.0.0"],
            2,
            "expected an address, not all of",
        ),
        (
            vec!["--etcd", "http://127.0.0.1:1", "--etcd-cert", "/x"],
            2,
            "--etcd-key is not given: expected it beside --etcd-cert",
        ),
    ] {
        let mut command = Program::agent()?;
        command.args(["--listen", "off"]).args(&flags);
        let mut agent = Program::start("agent", command)?;
        let status = agent.wait(TIMEOUT)?;
        let log = agent.log();
        assert_eq!(status.code(), Some(code), "{flags:?}: {log}");
        assert!(log.contains(expected), "{flags:?}: {log}");
        let errors = log.lines().filter(|line| line.contains("error: ")).count();
        assert_eq!(errors, 1, "{flags:?}: {log}");
    }
    Ok(())
}

#[test]
fn docker_is_reached_over_tcp_with_tls_and_a_wrong_authority_is_named() -> Result<()> {
    let (etcd, bridge) = (Etcd::start()?, Bridge::start()?);
    let tls = Tls::generate(&[bridge.address(1).into()])?;
    let (cert, key) = tls.server();
    let tcp = format!("tcp://{}:2376", bridge.address(1));
    let flags = ["--tlsverify".to_owned(), format!("--host={tcp}")].into_iter();
    let files = [("cacert", tls.ca()), ("cert", cert), ("key", key)];
    let flags = flags.chain(files.map(|(name, file)| format!("--tls{name}={}", file.display())));
    let host = DockerHost::start_with(1, &bridge, &flags.collect::<Vec<_>>())?;
    host.load_image(image::worker()?)?;
    let worker = host.run(&["--name", "agent-tls-1", "--publish", "80", image::WORKER])?;
    let start = |certificates: &Tls, more: &[&str]| -> Result<Program> {
        let mut command = Program::agent()?;
        command.args(["--etcd", &etcd.endpoint(), "--node", "h1", "--listen", "off", "--docker-host", &tcp]);
        command.arg("--docker-tls-verify").arg("--docker-cert-path").arg(certificates.client_dir());
        Program::start("agent", {
            command.args(more);
            command
        })
    };
    let _agent = start(&tls, &[])?;
    until("its container is registered", TIMEOUT, || Ok(keys(&etcd)? == [key_of(&worker)]))?;
    let strangers = Tls::generate(&[])?;
    let mut refused = start(&strangers, &["--wait", "0s"])?;
    assert_eq!(refused.wait(TIMEOUT)?.code(), Some(1));
    refused.wait_log("certificate", TIMEOUT)?;
    Ok(())
}
