//! The roles that deploy/etcd-roles makes: enough for an agent and a consumer, and for nothing else.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rollcall_tests::{DockerHost, Etcd, Program, image, tool, until};

const SOON: Duration = Duration::from_secs(15);
const PASSWORD: &str = "secret";

/// Runs deploy/etcd-roles as an operator would, with the etcdctl of the tests on its path.
fn make(etcd: &Etcd, kind: &str, name: &str) -> Result<()> {
    let etcdctl = tool::find("etcdctl")?;
    let path = format!(
        "{}:{}",
        etcdctl.parent().context("a folder")?.display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let mut roles = Command::new(tool::workspace().join("deploy/etcd-roles"))
        .args([kind, name])
        .env("PATH", path)
        .env("ETCDCTL_ENDPOINTS", etcd.endpoint())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    writeln!(roles.stdin.take().context("its input")?, "{PASSWORD}")?;
    let ended = roles.wait_with_output()?;
    ensure!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    Ok(())
}

#[test]
fn an_agent_and_a_consumer_work_under_their_roles_and_foreign_writes_are_refused() -> Result<()> {
    let (mut etcd, docker, dir) = (Etcd::start()?, DockerHost::local()?, tempfile::tempdir()?);
    make(&etcd, "agent", "h1")?;
    make(&etcd, "consumer", "c1")?;
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
    consumer.wait_log("acked", SOON)?;
    let ready = || rollcall_tests::http::get(&format!("http://{listen}/readyz"));
    until("every part of the agent is well", SOON, || Ok(ready()?.status == 200))?;
    until("the worker is rendered", SOON, || Ok(std::fs::read_to_string(&dest)?.contains("server ")))?;

    let refused = |kind: &str, name: &str, key: &str| {
        let ctl = etcd.ctl().as_user(&format!("rollcall-{kind}-{name}"), PASSWORD);
        let error = ctl.put(key, "x").expect_err(key);
        assert!(format!("{error:#}").contains("permission denied"), "{key}: {error:#}");
    };
    for key in ["instances/h2/x", "nodes/h2", "nodes/h1x", "signals/c1/t", "acks/h2/c1/t", "instances/h1"] {
        refused("agent", "h1", &format!("/rollcall/{key}"));
    }
    for key in ["instances/h1/x", "signals/c2/t", "consumers/c2", "acks/h1/c1/t"] {
        refused("consumer", "c1", &format!("/rollcall/{key}"));
    }
    assert_eq!(agent.terminate(SOON)?.code(), Some(0));
    assert_eq!(consumer.terminate(SOON)?.code(), Some(0));
    drop(target);
    Ok(())
}
