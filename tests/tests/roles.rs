//! The roles that deploy/etcd-roles makes: enough for an agent and a consumer, and for nothing else.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rollcall_tests::{DockerHost, Etcd, Program, image, tool, until};

const TIMEOUT: Duration = Duration::from_secs(15);
const PASSWORD: &str = "secret";

/// Runs deploy/etcd-roles as an operator would, with the etcdctl of the tests on its path.
fn make_role(etcd: &Etcd, args: &[&str]) -> Result<()> {
    let etcdctl = tool::find("etcdctl")?;
    let path = format!(
        "{}:{}",
        etcdctl.parent().context("a folder")?.display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let mut roles = Command::new(tool::workspace().join("deploy/etcd-roles"))
        .args(args)
        .env("PATH", path)
        .env("ETCDCTL_ENDPOINTS", etcd.endpoint())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // What it refuses, it refuses before it reads.
    let _ = writeln!(roles.stdin.take().context("its input")?, "{PASSWORD}");
    let ended = roles.wait_with_output()?;
    ensure!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    Ok(())
}

/// Checks that a user can neither put nor delete a key.
fn refuses_writes(etcd: &Etcd, user: &str, key: &str) {
    refuses_writes_of(etcd, user, &format!("/rollcall/{key}"));
}

/// The same of a key that is not one of Rollcall's own.
fn refuses_writes_of(etcd: &Etcd, user: &str, key: &str) {
    let ctl = etcd.ctl().as_user(user, PASSWORD);
    for written in [ctl.put(key, "x"), ctl.del(key)] {
        let error = written.expect_err(key);
        assert!(format!("{error:#}").contains("permission denied"), "{user}, {key}: {error:#}");
    }
}

#[test]
fn a_second_run_of_the_script_adds_a_node_and_a_star_gives_all_nodes() -> Result<()> {
    let mut etcd = Etcd::start()?;
    make_role(&etcd, &["consumer", "c1", "--signal", "h1"])?;
    make_role(&etcd, &["consumer", "c1", "--signal=h2,h3"])?;
    make_role(&etcd, &["consumer", "c2", "--signal", "*"])?;
    make_role(&etcd, &["consumer", "c3"])?;
    etcd.enable_auth("root")?;
    let ctl = |name: &str| etcd.ctl().as_user(&format!("rollcall-consumer-{name}"), PASSWORD);
    for node in ["h1", "h2", "h3"] {
        for kind in ["signals", "checks"] {
            ctl("c1").put(&format!("/rollcall/{kind}/{node}/c1/default"), "x")?;
            refuses_writes(&etcd, "rollcall-consumer-c3", &format!("{kind}/{node}/c3/default"));
        }
    }
    for kind in ["signals", "checks"] {
        refuses_writes(&etcd, "rollcall-consumer-c1", &format!("{kind}/h4/c1/default"));
        ctl("c2").put(&format!("/rollcall/{kind}/h4/c2/default"), "x")?;
    }
    Ok(())
}

#[test]
fn an_agent_with_a_layout_writes_there_and_in_no_other_folder() -> Result<()> {
    let (mut etcd, docker) = (Etcd::start()?, DockerHost::local()?);
    make_role(&etcd, &["agent", "h1", "--layout", "/containers/"])?;
    for bad in ["containers", "/", "/a b", "/a,,/b", "/rollcall", "/containers,/rollcall/instances"] {
        let refused = make_role(&etcd, &["agent", "h1", "--layout", bad]).expect_err(bad);
        assert!(refused.to_string().contains("--layout is '"), "{refused}");
    }
    assert!(make_role(&etcd, &["consumer", "c1", "--layout", "/containers"]).is_err());
    etcd.enable_auth("root")?;
    let _worker = docker.run(&["--name", "roles-layout", "--publish", "80", image::worker()?])?;
    let mut agent = Program::agent()?;
    let user = format!("rollcall-agent-h1:{PASSWORD}");
    agent.args(["--etcd", &etcd.endpoint(), "--etcd-user", &user, "--node", "h1", "--listen", "off"]);
    agent.args(["--only-name", "^roles-layout$", "--layout", "containers,registrator"]);
    let mut agent = Program::start("agent", agent)?;
    until("the layout is there", TIMEOUT, || Ok(etcd.ctl().keys("/containers/")?.len() == 2))?;
    // What it may not read there holds nothing else up.
    agent.wait_log("layout registrator", TIMEOUT)?;
    assert_eq!(etcd.ctl().keys("/rollcall/instances/h1/")?.len(), 1);
    refuses_writes_of(&etcd, "rollcall-agent-h1", "/services/web/x");
    refuses_writes_of(&etcd, "rollcall-agent-h1", "/containersx");
    assert_eq!(agent.terminate(TIMEOUT)?.code(), Some(0));
    Ok(())
}

#[test]
fn an_agent_and_a_consumer_work_under_their_roles_and_foreign_writes_are_refused() -> Result<()> {
    let (mut etcd, docker, dir) = (Etcd::start()?, DockerHost::local()?, tempfile::tempdir()?);
    make_role(&etcd, &["agent", "h1"])?;
    make_role(&etcd, &["consumer", "c1", "--signal", "h1"])?;
    etcd.enable_auth("root")?;

    let _worker = docker.run(&["--name", "roles-1", "--publish", "80", image::worker()?])?;
    let target = docker.run(&["--name", "roles-target", "--label", "rollcall.signal=HUP", image::WORKER])?;
    let user = |kind: &str, name: &str| format!("rollcall-{kind}-{name}:{PASSWORD}");
    let port = rollcall_tests::port::free(std::net::Ipv4Addr::LOCALHOST.into())?;
    let listen = format!("127.0.0.1:{port}");
    let mut agent = Program::agent()?;
    agent.args(["--etcd", &etcd.endpoint(), "--etcd-user", &user("agent", "h1"), "--node", "h1"]);
    agent.args(["--only-name", "^roles-1$", "--listen", &listen]);
    let mut agent = Program::start("agent", agent)?;
    let dest = dir.path().join("upstream.conf");
    let mut consumer = Program::consumer()?;
    consumer.args(["--etcd", &etcd.endpoint(), "--etcd-user", &user("consumer", "c1"), "--name", "c1"]);
    consumer.args(["--format", "nginx-upstream", "--notify-container", "roles-target", "--listen", "off"]);
    consumer.arg("--dest").arg(&dest).arg("--state-dir").arg(dir.path());
    let mut consumer = Program::start("consumer", consumer)?;
    consumer.wait_log("acked", TIMEOUT)?;
    let ready = || rollcall_tests::http::get(&format!("http://{listen}/readyz"));
    until("the agent is ready", TIMEOUT, || Ok(ready()?.status == 200))?;
    until("the worker is rendered", TIMEOUT, || Ok(std::fs::read_to_string(&dest)?.contains("server ")))?;

    let foreign_to_agent = [
        "nodes/h2",
        "nodes/h1x",
        "instances/h1",
        "instances/h2/0123456789ab/80-tcp",
        "receivers/h2/c1/default",
        "acks/h2/c1/default",
        "verdicts/h2/c1/default",
        "signals/h1/c1/default",
        "signals/h2/c1/default",
        "checks/h1/c1/default",
        "consumers/c1",
    ];
    let foreign_to_consumer = [
        "consumers/c2",
        "consumers/c1x",
        "signals/h1/c2/default",
        "signals/h2/c1/default",
        "checks/h1/c2/default",
        "checks/h2/c1/default",
        "nodes/h1",
        "instances/h1/0123456789ab/80-tcp",
        "receivers/h1/c1/default",
        "acks/h1/c1/default",
        "verdicts/h1/c1/default",
    ];
    for key in foreign_to_agent {
        refuses_writes(&etcd, "rollcall-agent-h1", key);
    }
    for key in foreign_to_consumer {
        refuses_writes(&etcd, "rollcall-consumer-c1", key);
    }
    assert_eq!(agent.terminate(TIMEOUT)?.code(), Some(0));
    assert_eq!(consumer.terminate(TIMEOUT)?.code(), Some(0));
    drop(target);
    Ok(())
}
