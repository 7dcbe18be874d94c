//! What the consumer refuses, and in which words.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use rollcall_tests::{Etcd, Program, until};

const TIMEOUT: Duration = Duration::from_secs(15);

/// Runs the consumer until it ends by itself; gives its exit code and what it said.
fn run(state: &std::path::Path, args: &[&str]) -> Result<(Option<i32>, String)> {
    let mut command = Program::consumer()?;
    command.arg("--state-dir").arg(state).args(["--listen", "off"]).args(args);
    let mut program = Program::start("consumer", command)?;
    let code = program.wait(TIMEOUT)?.code();
    Ok((code, program.log()))
}

#[test]
fn bad_settings_are_refused_in_one_line_before_anything_is_touched() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let state = dir.path().join("state");
    let file = |name: &str, text: &str| -> Result<String> {
        let path = dir.path().join(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let target = |more: &str| {
        let dest = dir.path().join("out").display().to_string();
        format!("[[target]]\nname = \"t\"\ndest = \"{dest}\"\n{more}")
    };
    let unknown = file("unknown.toml", &target("format = \"json\"\ncolour = \"red\"\n"))?;
    let regex = file("regex.toml", &target("format = \"json\"\n[target.select]\nservice_regex = \"(\"\n"))?;
    let both = file("both.toml", &target("format = \"json\"\ntemplate = \"x\"\n"))?;
    let broken = file("broken.j2", "{% for %}")?;
    let missing = dir.path().join("none/out").display().to_string();
    let out = dir.path().join("out").display().to_string();
    let etcd = "http://127.0.0.1:1";
    for (args, code, expected) in [
        (vec!["--etcd", etcd, "--config", &unknown], 2, "colour"),
        (vec!["--etcd", etcd, "--config", &regex], 2, "service_regex"),
        (vec!["--etcd", etcd, "--config", &both], 2, "template is x: expected it or format, not both"),
        (vec!["--etcd", etcd, "--config", "/none.toml"], 2, "--config is /none.toml"),
        (vec!["--etcd", etcd, "--dest", &out, "--format", "nonsense"], 2, "nonsense"),
        (
            vec!["--etcd", etcd, "--dest", &out, "--format", "json", "--ttl", "5s", "--refresh", "9s"],
            2,
            "--refresh is 9s",
        ),
        (vec!["--etcd", etcd, "--dest", &missing, "--format", "json"], 2, "none"),
        (vec!["--etcd", etcd, "--dest", &out, "--template", &broken], 2, "broken.j2"),
        (
            vec!["--etcd", etcd, "--dest", &out, "--format", "json", "--wait", "100ms"],
            1,
            "etcd at http://127.0.0.1:1",
        ),
        (
            vec!["--dest", &out, "--format", "json", "--docker-host", "unix:///none.sock", "--wait", "0s"],
            1,
            "/none.sock",
        ),
    ] {
        let (status, log) = run(&state, &args)?;
        assert_eq!(status, Some(code), "{args:?}: {log}");
        assert!(log.contains(expected), "{args:?}: {log}");
        let errors = log.lines().filter(|line| line.contains("error: ")).count();
        assert_eq!(errors, 1, "{args:?}: {log}");
        assert!(!dir.path().join("out").exists(), "{args:?}: something was touched");
    }
    Ok(())
}

#[test]
fn a_template_that_fails_later_keeps_the_last_good_file_and_says_so() -> Result<()> {
    let (etcd, dir) = (Etcd::start()?, tempfile::tempdir()?);
    let (dest, template) = (dir.path().join("out"), dir.path().join("list.j2"));
    fs::write(&template, "{% for i in instances %}{{ i.address }}:{{ i.port }}\n{% endfor %}")?;
    let put = |id: &str, port: u16| {
        let value = format!(
            r#"{{"v":1,"service":"web","container":"w","id":"{id}","image":"x","address":"10.0.0.1","port":{port},"protocol":"tcp","container_port":80,"status":"passing","started_at":"2026-01-01T00:00:00Z"}}"#
        );
        etcd.ctl().put(&format!("/rollcall/instances/h1/{id}/80-tcp"), &value)
    };
    put("aaaaaaaaaaaa", 8080)?;
    // A value that nobody of ours writes is left out, and the rest goes on.
    etcd.ctl().put("/rollcall/instances/h1/bbbbbbbbbbbb/80-tcp", "{\"v\":7}")?;
    let port = rollcall_tests::port::free(std::net::Ipv4Addr::LOCALHOST.into())?;
    let listen = format!("127.0.0.1:{port}");
    let mut command = Program::consumer()?;
    command.args(["--etcd", &etcd.endpoint(), "--listen", &listen, "--template"]).arg(&template);
    command.arg("--dest").arg(&dest).arg("--state-dir").arg(dir.path());
    let _consumer = Program::start("consumer", command)?;
    until("it is rendered", TIMEOUT, || Ok(fs::read_to_string(&dest)? == "10.0.0.1:8080\n"))?;
    let ready = || rollcall_tests::http::get(&format!("http://{listen}/readyz"));
    until("it is ready", TIMEOUT, || Ok(ready()?.status == 200))?;
    fs::write(&template, "{{ nobody.there }}")?;
    put("cccccccccccc", 8081)?;
    until("it is not ready", TIMEOUT, || {
        let answer = ready()?;
        Ok(answer.status == 503 && answer.body.contains("list.j2"))
    })?;
    assert_eq!(fs::read_to_string(&dest)?, "10.0.0.1:8080\n");
    fs::write(&template, "{{ instances | length }}\n")?;
    until("it is mended", TIMEOUT, || Ok(fs::read_to_string(&dest)? == "2\n"))?;
    let metrics = rollcall_tests::http::get(&format!("http://{listen}/metrics"))?.body;
    assert!(metrics.contains("bad_values_total"), "{metrics}");
    Ok(())
}

#[test]
fn a_template_of_a_thousand_million_steps_stops_neither_health_nor_the_lease_nor_the_end() -> Result<()> {
    let (etcd, dir) = (Etcd::start()?, tempfile::tempdir()?);
    let template = dir.path().join("list.j2");
    let endless = "{% for a in range(1000) %}{% for b in range(1000) %}{% for c in range(1000) %}\
                   {% endfor %}{% endfor %}{% endfor %}";
    fs::write(&template, endless)?;
    let port = rollcall_tests::port::free(std::net::Ipv4Addr::LOCALHOST.into())?;
    let listen = format!("127.0.0.1:{port}");
    let mut command = Program::consumer()?;
    command.args(["--etcd", &etcd.endpoint(), "--listen", &listen, "--name", "c1", "--template"]);
    command.arg(&template).arg("--dest").arg(dir.path().join("out")).arg("--state-dir").arg(dir.path());
    command.args(["--ttl", "3s", "--refresh", "1s"]);
    let mut consumer = Program::start("consumer", command)?;
    let answer = |path: &str| rollcall_tests::http::get(&format!("http://{listen}/{path}"));
    let claim = || etcd.ctl().get("/rollcall/consumers/c1");
    until("the name is claimed while the template is rendered", TIMEOUT, || Ok(claim()?.is_some()))?;
    assert_eq!(answer("healthz")?.status, 200);
    until("the template is given up", TIMEOUT * 2, || {
        let answer = answer("readyz")?;
        Ok(answer.status == 503 && answer.body.contains("takes more than 50000000 steps"))
    })?;
    assert!(claim()?.is_some(), "its lease was refreshed");
    consumer.terminate(TIMEOUT)?;
    assert_eq!(claim()?, None, "it said goodbye");
    Ok(())
}

#[test]
fn a_dry_run_ends_with_2_where_something_would_change_and_bears_a_reader_that_has_seen_enough() -> Result<()>
{
    let (etcd, dir) = (Etcd::start()?, tempfile::tempdir()?);
    let dest = dir.path().join("out");
    let dry_run = || -> Result<std::process::Command> {
        let mut command = Program::consumer()?;
        command.args(["--etcd", &etcd.endpoint(), "--format", "json", "--dry-run", "--dest"]).arg(&dest);
        command.arg("--state-dir").arg(dir.path().join("state"));
        Ok(command)
    };
    let output = dry_run()?.output()?;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("+[]"), "{output:?}");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("error: "), "{output:?}");
    let mut child = dry_run()?.stdout(std::process::Stdio::piped()).spawn()?;
    drop(child.stdout.take());
    assert_eq!(child.wait()?.code(), Some(2), "nobody reads it");
    assert!(!dest.exists() && !dir.path().join("state").exists());
    fs::write(&dest, "[]\n")?;
    assert_eq!(dry_run()?.output()?.status.code(), Some(0));
    let refused = dry_run()?.args(["--mode", "0600", "--check", "false {file}"]).output()?;
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    Ok(())
}

#[test]
fn a_command_is_told_no_setting_of_ours() -> Result<()> {
    let (etcd, dir) = (Etcd::start()?, tempfile::tempdir()?);
    let seen = dir.path().join("seen");
    let mut command = Program::consumer()?;
    command.args(["--format", "json", "--dry-run", "--dest"]).arg(dir.path().join("out"));
    command.arg("--check").arg(format!("sh -c 'env > {}; test -e {{file}}'", seen.display()));
    command.env("ETCDCTL_ENDPOINTS", etcd.endpoint()).env("ROLLCALL_WAIT", "9s").env("OF_ITS_OWN", "1");
    assert_eq!(command.output()?.status.code(), Some(2));
    let seen = fs::read_to_string(&seen)?;
    assert!(seen.contains("OF_ITS_OWN=1") && seen.contains("PATH="), "{seen}");
    assert!(!seen.contains("ETCDCTL_") && !seen.contains("ROLLCALL_"), "{seen}");
    Ok(())
}
