//! Embedded mode: one host, no etcd. workerlist-gen's own case, with a PostgreSQL as the master that must read
//! its configuration again.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use rollcall_tests::{DockerHost, Program, image, until};

const TIMEOUT: Duration = Duration::from_secs(20);

#[test]
fn the_worker_list_follows_the_workers_and_the_master_reads_it_again() -> Result<()> {
    let (host, dir) = (DockerHost::local()?, tempfile::tempdir()?);
    let list = dir.path().join("pg_worker_list.conf");
    let master = host.run(&["--name", "citus_master_test", image::postgres()?])?;
    until("the master is healthy", TIMEOUT, || Ok(master.inspect("{{.State.Health.Status}}")? == "healthy"))?;
    // A setting that PostgreSQL shows only once it has read its configuration again.
    let reloads = || Ok::<_, anyhow::Error>(master.logs()?.matches("reloading configuration files").count());

    let mut command = Program::consumer()?;
    command.env("CITUS_CONFDIR", dir.path()).env("CITUS_CONTAINER", "citus_master_test");
    command.args(["--listen", "off", "--state-dir"]).arg(dir.path().join("state"));
    let mut consumer = Program::start("consumer", command)?;
    until("an empty list is written", TIMEOUT, || Ok(list.exists()))?;
    let lines = || -> Result<Vec<String>> {
        let text = fs::read_to_string(&list)?;
        Ok(text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect())
    };
    assert_eq!(lines()?, [""; 0]);
    let mut known =
        until("the master is told of it", TIMEOUT, || Ok(Some(reloads()?).filter(|count| *count > 0)))?;

    let worker = |name: &str, role: &str| {
        let label = format!("com.citusdata.role={role}");
        host.run(&["--name", name, "--label", &label, image::worker()?])
    };
    let first = worker("citus_test_worker_1", "Worker")?;
    let _other = worker("citus_test_other", "Master")?;
    until("the first worker is listed", TIMEOUT, || Ok(lines()? == ["citus_test_worker_1 5432"]))?;
    let _second = worker("citus_test_worker_2", "Worker")?;
    until("the second one, too", TIMEOUT, || {
        Ok(lines()? == ["citus_test_worker_1 5432", "citus_test_worker_2 5432"])
    })?;
    known =
        until("the master read it again", TIMEOUT, || Ok(Some(reloads()?).filter(|count| *count > known)))?;
    drop(first);
    until("the one that is gone is forgotten", TIMEOUT, || Ok(lines()? == ["citus_test_worker_2 5432"]))?;
    until("and the master knows", TIMEOUT, || Ok(reloads()? > known))?;
    assert_eq!(consumer.terminate(TIMEOUT)?.code(), Some(0));
    assert_eq!(lines()?, ["citus_test_worker_2 5432"], "the last good list stays");
    Ok(())
}
