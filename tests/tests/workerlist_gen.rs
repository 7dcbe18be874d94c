//! citusdata/workerlist-gen, by the lines of its page, with our image's name in place of its own.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rollcall_tests::{Container, DockerHost, docs, image, tool, until};

const TIMEOUT: Duration = Duration::from_secs(30);

/// A worker as Citus labels it. It is given a time to stop that a test does not wait for.
fn worker(host: &DockerHost, name: &str, options: &[&str]) -> Result<Container> {
    let fixed = ["--name", name, "--label", "com.citusdata.role=Worker", "--env", "DRAIN_MS=0"];
    host.run(&[&fixed[..], options, &[image::worker()?]].concat())
}

/// The master: a PostgreSQL, which tells each time it reads its configuration again.
fn master(host: &DockerHost) -> Result<Container> {
    let master = host.run(&["--name", "citus_master", "--volume", "/etc/citusconf", image::postgres()?])?;
    until("the master is up", TIMEOUT, || Ok(master.inspect("{{.State.Health.Status}}")? == "healthy"))?;
    Ok(master)
}

fn reloads(master: &Container) -> Result<usize> {
    Ok(master.logs()?.matches("reloading configuration files").count())
}

/// What a file in a container has.
fn file_in(host: &DockerHost, container: &Container, path: &str) -> Result<String> {
    let copy = tempfile::tempdir()?;
    let to = copy.path().join("copy");
    tool::run(host.docker_command()?.args(["cp", &format!("{}:{path}", container.id())]).arg(&to))?;
    Ok(fs::read_to_string(to)?)
}

fn lists(host: &DockerHost, config: &Container, path: &str, expected: &str) -> Result<()> {
    until(&format!("{path} is {expected:?}"), TIMEOUT, || {
        let found = file_in(host, config, path)?;
        ensure!(found == expected, "it is {found:?}");
        Ok(true)
    })
    .with_context(|| format!("it said:\n{}", config.logs().unwrap_or_default()))
}

#[test]
fn both_lines_of_its_page_do_what_they_did() -> Result<()> {
    let (host, (_, consumer)) = (DockerHost::local()?, image::rollcall()?);
    let socket = format!("{}:", host.socket().display());
    let lines = docs::now("workerlist-gen")?;
    // "docker run" and what follows.
    let start = |line: &str| -> Result<Container> {
        let words =
            docs::words(line, &[("rollcall/consumer", consumer), ("/var/run/docker.sock:", &socket)])?;
        assert_eq!(words[..2], ["docker", "run"]);
        host.run(&words[2..].iter().map(String::as_str).collect::<Vec<_>>())
    };
    let master = master(&host)?;
    let before = reloads(&master)?;

    let config = start(&lines[0])?;
    let list = "/etc/citus/pg_worker_list.conf";
    let first = worker(&host, "citus_worker_1", &[])?;
    lists(&host, &config, list, "citus_worker_1 5432\n")?;
    until("the master was sent SIGHUP", TIMEOUT, || Ok(reloads(&master)? > before))?;
    // One that is unhealthy or paused runs, and holds data.
    let unhealthy = ["--health-cmd", "/none", "--health-interval", "1s", "--health-retries", "1"];
    let _second = worker(&host, "citus_worker_2", &unhealthy)?;
    lists(&host, &config, list, "citus_worker_1 5432\ncitus_worker_2 5432\n")?;
    host.docker(&["pause", first.id()])?;
    let third = worker(&host, "citus_worker_3", &[])?;
    let all = "citus_worker_1 5432\ncitus_worker_2 5432\ncitus_worker_3 5432\n";
    lists(&host, &config, list, all)?;
    host.docker(&["unpause", first.id()])?;
    drop(third);
    lists(&host, &config, list, "citus_worker_1 5432\ncitus_worker_2 5432\n")?;
    config.stop(10)?;
    drop(config);

    let before = reloads(&master)?;
    let config = start(&lines[1])?;
    let list = "/etc/citusconf/pg_worker_list.conf";
    lists(&host, &config, list, "citus_worker_1 5432\ncitus_worker_2 5432\n")?;
    assert_eq!(master.exec(&["cat", list])?, "citus_worker_1 5432\ncitus_worker_2 5432");
    until("the master was sent SIGHUP", TIMEOUT, || Ok(reloads(&master)? > before))
}

#[test]
fn a_master_that_is_not_there_and_a_start_that_cannot_work_are_told_in_one_line() -> Result<()> {
    let (host, (_, consumer)) = (DockerHost::local()?, image::rollcall()?);
    let socket = host.socket().display();
    let away =
        ["-v", &format!("{socket}:/tmp/docker.sock"), "-e", "CITUS_CONTAINER=nobody"].map(str::to_owned);
    let away: Vec<&str> = away.iter().map(String::as_str).collect();
    let config = host.run(&[&away[..], &[consumer, "workerlist-gen"]].concat())?;
    until("it is warned", TIMEOUT, || {
        let said = config.logs()?;
        let warned =
            |line: &str| line.contains("WARN") && line.contains("a container to signal: container nobody");
        Ok(said.lines().any(warned))
    })?;
    // The image by itself, with neither a socket nor etcd; and the socket as it may be: closed to this user.
    let group = tool::run(tool::command("stat")?.args(["-c", "%g"]).arg(Path::new(&host.socket())))?;
    let volume = format!("{socket}:/tmp/docker.sock");
    let opens = format!("--group-add {group} in a container), or to be root (--user 0)");
    for (options, expected) in [
        (vec![], "there is no socket /var/run/docker.sock or /run/docker.sock or /tmp/docker.sock"),
        (vec!["--user", "65532:65532", "-v", &volume, "-e", "CITUS_CONFDIR=/tmp"], opens.as_str()),
    ] {
        let config = host.run(&[&options[..], &["-e", "ROLLCALL_WAIT=1s", consumer]].concat())?;
        let code = host.docker(&["wait", config.id()])?;
        let said = config.logs()?;
        let errors: Vec<&str> = said.lines().filter(|line| line.contains("error: ")).collect();
        assert!(matches!(errors[..], [error] if error.contains(expected)), "{said}");
        assert!(errors[0].contains("without --etcd"), "{said}");
        assert_eq!(code, "1");
    }
    Ok(())
}
