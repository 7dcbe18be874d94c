//! `explain` speaks with the settings of the process that runs, by `docker exec` too.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use rollcall_tests::{DockerHost, Etcd, Program, image, port, tool, until};

const TIMEOUT: Duration = Duration::from_secs(20);

fn listen() -> Result<String> {
    Ok(format!("127.0.0.1:{}", port::free(Ipv4Addr::LOCALHOST.into())?))
}

#[test]
fn an_agent_explains_a_container_by_the_flags_that_it_was_started_with() -> Result<()> {
    let (etcd, host, listen) = (Etcd::start()?, DockerHost::local()?, listen()?);
    let (agent, _) = image::rollcall()?;
    let worker = host.run(&["--name", "explain-worker", image::worker()?])?;
    let socket = format!("{}:/var/run/docker.sock", host.socket().display());
    let variable = format!("ROLLCALL_LISTEN={listen}");
    let etcd = etcd.endpoint();
    let options = ["--network=host", "-v", &socket, "-e", &variable, agent];
    let flags =
        ["--etcd", &etcd, "--node", "h1", "--only-name", "^explain-", "--address", "name", "--port", "4711"];
    let running = host.run(&[&options[..], &flags].concat())?;
    let explain = || running.exec(&["/rollcall-agent", "explain", "explain-worker"]);
    until("it explains", TIMEOUT, || Ok(explain()?.contains("4711/tcp registered as explain-worker:4711")))?;
    // Flags of its own count instead.
    let own = running.exec(&["/rollcall-agent", "explain", "explain-worker", "--address=name"])?;
    assert!(own.contains("80/tcp registered as explain-worker:80"), "{own}");
    let none =
        running.exec(&["/rollcall-agent", "explain", "nobody"]).expect_err("there is none").to_string();
    assert!(none.contains("expected the name or ID of a container that runs on this host"), "{none}");
    drop(running);
    let mut alone = Program::agent()?;
    alone.args(["explain", "explain-worker", "--listen", &listen]);
    let output = alone.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no agent answers"), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("it publishes no port"), "{output:?}");
    drop(worker);
    Ok(())
}

#[test]
fn a_consumer_without_etcd_explains_a_container_as_its_target_needs_it() -> Result<()> {
    let (host, listen, dir) = (DockerHost::local()?, listen()?, tempfile::tempdir()?);
    let worker = host.run(&["--name", "explain-citus", image::worker()?])?;
    let mut command = Program::consumer()?;
    command.env("CITUS_CONFDIR", dir.path()).args(["--listen", &listen, "--state-dir"]).arg(dir.path());
    let _running = Program::start("consumer", command)?;
    let mut explain = Program::consumer()?;
    explain.args(["explain", "explain-citus", "--listen", &listen]);
    until("it explains", TIMEOUT, || {
        Ok(tool::run(&mut explain)?.contains("5432/tcp registered as explain-citus:5432"))
    })?;
    drop(worker);
    Ok(())
}
