//! The consumer's image has no nginx: its files are checked by the nginx that will read them, in its own container.

use std::{fs, net::Ipv4Addr, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use rollcall_tests::{Container, DockerHost, Etcd, Program, http, image, port, tool, until};
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(30);

/// A template that pastes a label: whoever starts a container may write anything into the file.
const TEMPLATE: &str = "{% for i in instances %}upstream u{{ loop.index }} { server {{ i.address }}:{{ i.port }}; }\n\
                        {{ i.labels['note'] | default('') }}\n{% endfor %}";

/// An nginx with a folder that it shares with a consumer, and etcd and an agent beside them.
struct Scene {
    etcd: Etcd,
    nginx: Container,
    agent: Program,
    dir: TempDir,
    test: &'static str,
}

impl Scene {
    /// nginx allows the check by its label, if it has one.
    fn start(test: &'static str, label: Option<&str>) -> Result<Self> {
        let (etcd, dir, docker) = (Etcd::start()?, tempfile::tempdir()?, DockerHost::local()?);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let conf = dir.path().join("conf.d");
        fs::create_dir(&conf)?;
        fs::write(dir.path().join("list.j2"), TEMPLATE)?;
        let (name, shared) = (format!("{test}-proxy"), format!("{}:/etc/nginx/conf.d", conf.display()));
        let script = tool::workspace().join("deploy/examples/nginx-check");
        let script = format!("{}:/usr/local/bin/nginx-check:ro", script.display());
        let mut args = vec![
            "--name",
            &name,
            "--label",
            "rollcall.ignore=true",
            "--volume",
            &shared,
            "--volume",
            &script,
        ];
        args.extend(["--label", "rollcall.signal=HUP", "--publish", "80"]);
        let label = label.map(|label| format!("rollcall.exec={label}"));
        if let Some(label) = &label {
            args.extend(["--label", label]);
        }
        args.extend([image::nginx()?, "nginx", "-g", image::NGINX_NOTICES]);
        let nginx = docker.run(&args)?;
        let mut command = Program::agent()?;
        command.args(["--etcd", &etcd.endpoint(), "--node", "h1", "--listen", "off"]);
        command.args(["--only-name", &format!("^{test}-")]);
        let mut agent = Program::start("agent", command)?;
        agent.wait_log("claimed the name", TIMEOUT)?;
        Ok(Self { etcd, nginx, agent, dir, test })
    }

    fn dest(&self) -> PathBuf {
        self.dir.path().join("conf.d/upstream.conf")
    }

    fn file(&self) -> String {
        fs::read_to_string(self.dest()).unwrap_or_default()
    }

    /// Registers an instance with a label, as an agent of another host.
    fn put(&self, number: u8, note: &str) -> Result<()> {
        let id = format!("{number:012x}");
        let value = format!(
            r#"{{"v":1,"service":"web","container":"c{number}","id":"{id}","image":"x","address":"10.0.0.{number}","port":80,"protocol":"tcp","container_port":80,"status":"passing","started_at":"2026-01-01T00:00:00Z","labels":{{"note":"{note}"}}}}"#
        );
        self.etcd.ctl().put(&format!("/rollcall/instances/h9/{id}/80-tcp"), &value)
    }

    /// A consumer with the check, and these settings of the target beside it.
    fn consumer(&self, rest: &str) -> Result<Consumer> {
        self.run(Some(&self.etcd), rest)
    }

    /// The same, with this etcd or with an agent in itself.
    fn run(&self, etcd: Option<&Etcd>, rest: &str) -> Result<Consumer> {
        let (config, template) = (self.dir.path().join("targets.toml"), self.dir.path().join("list.j2"));
        let target = format!(
            r#"[[target]]
name = "proxy"
dest = "{}"
template = "{}"
check = {{ container = "{}-proxy", command = "nginx-check {{file}} {{dest}}", dir = "/etc/nginx/conf.d" }}
{rest}
[target.notify]
container = "{}-proxy"
"#,
            self.dest().display(),
            template.display(),
            self.test,
            self.test
        );
        fs::write(&config, target)?;
        let listen = format!("127.0.0.1:{}", port::free(Ipv4Addr::LOCALHOST.into())?);
        let mut command = Program::consumer()?;
        command.args(["--name", "c1", "--listen", &listen]);
        match etcd {
            Some(etcd) => command.args(["--etcd", &etcd.endpoint()]),
            None => command.args(["--only-name", &format!("^{}-", self.test)]),
        };
        command.arg("--config").arg(&config).arg("--state-dir").arg(self.dir.path().join("state"));
        Ok(Consumer { program: Program::start("consumer", command)?, url: format!("http://{listen}") })
    }
}

struct Consumer {
    program: Program,
    url: String,
}

impl Consumer {
    fn readiness(&self) -> Result<String> {
        Ok(http::get(&format!("{}/readyz", self.url))?.body)
    }

    fn says(&self, what: &str) -> Result<String> {
        until(what, TIMEOUT, || Ok(Some(self.readiness()?).filter(|body| body.contains(what))))
    }

    fn is_ready(&self) -> Result<()> {
        until("the consumer is ready", TIMEOUT, || {
            Ok(http::get(&format!("{}/readyz", self.url))?.status == 200)
        })
    }
}

#[test]
fn what_nginx_refuses_in_its_own_container_is_not_installed_and_its_words_are_told() -> Result<()> {
    let scene = Scene::start("checked", Some("nginx-check"))?;
    scene.put(1, "")?;
    let mut consumer = scene.consumer("")?;
    consumer.is_ready()?;
    let good = scene.file();
    ensure!(good.contains("10.0.0.1:80"), "{good}");
    scene.put(2, "evil { }")?;
    let said = consumer.says("refuses it with exit code 1")?;
    ensure!(said.contains("[emerg]") && said.contains("evil"), "{said}");
    assert_eq!(scene.file(), good);
    let left = fs::read_dir(scene.dir.path().join("conf.d"))?.count();
    assert_eq!(left, 1, "nothing that was staged is left");
    scene.put(2, "")?;
    consumer.is_ready()?;
    until("the mended one is installed", TIMEOUT, || Ok(scene.file().contains("10.0.0.2:80")))?;
    assert_eq!(consumer.program.terminate(TIMEOUT)?.code(), Some(0));
    Ok(())
}

#[test]
fn the_instance_that_nginx_refuses_is_left_out_and_named_and_the_others_are_served() -> Result<()> {
    let scene = Scene::start("isolated", Some("nginx-check"))?;
    for number in 1..=5 {
        scene.put(number, if number == 3 { "evil { }" } else { "" })?;
    }
    let consumer = scene.consumer("check_isolates = true")?;
    let said = consumer.says("leaves out service web, container c3 on node h9 (10.0.0.3:80)")?;
    ensure!(said.contains("[emerg]"), "{said}");
    consumer.is_ready()?;
    let file = scene.file();
    ensure!(file.matches("server ").count() == 4 && !file.contains("10.0.0.3"), "{file}");
    scene.nginx.exec(&["nginx", "-t", "-q"])?;
    let metrics = http::get(&format!("{}/metrics", consumer.url))?.body;
    ensure!(metrics.contains("rollcall_consumer_isolated_instances{target=\"proxy\"} 1"), "{metrics}");
    Ok(())
}

#[test]
fn what_nginx_takes_and_does_not_serve_with_is_taken_back_and_nginx_told_again() -> Result<()> {
    let scene = Scene::start("verified", Some("nginx-check"))?;
    let answer = |status: u16| format!("server {{ listen 80; location = /health {{ return {status}; }} }}");
    let url = format!("http://{}/health", scene.nginx.published(80)?);
    scene.put(1, &answer(200))?;
    let consumer = scene.consumer(&format!("verify = {{ http = \"{url}\", timeout = \"2s\" }}"))?;
    until("nginx answers", TIMEOUT, || Ok(http::get(&url)?.status == 200))?;
    consumer.is_ready()?;
    let good = scene.file();
    until("it was verified", TIMEOUT, || Ok(scene.dir.path().join("state/proxy.good").exists()))?;
    scene.put(1, &answer(503))?;
    let said = consumer.says("the last good file is back")?;
    ensure!(said.contains("the answer has status 503"), "{said}");
    assert_eq!(scene.file(), good);
    until("nginx answers as before", TIMEOUT, || Ok(http::get(&url)?.status == 200))?;
    let reloads = scene.nginx.logs()?.matches("reconfiguring").count();
    ensure!(reloads >= 3, "{reloads} reloads");
    scene.put(1, &answer(200))?;
    consumer.is_ready()?;
    Ok(())
}

#[test]
fn a_container_that_does_not_allow_the_check_is_named_with_what_would() -> Result<()> {
    let mut scene = Scene::start("unallowed", Some("nginx -t"))?;
    scene.put(1, "")?;
    let consumer = scene.consumer("")?;
    let said = consumer.says("does not allow the command")?;
    ensure!(
        said.contains("rollcall.exec=\\\"nginx-check\\\"") || said.contains("rollcall.exec=\"nginx-check\""),
        "{said}"
    );
    ensure!(!scene.dest().exists());
    // The operator allows it.
    scene.agent.terminate(TIMEOUT)?;
    let mut command = Program::agent()?;
    command.args(["--etcd", &scene.etcd.endpoint(), "--node", "h1", "--listen", "off"]);
    command.args(["--only-name", "^unallowed-", "--allow-exec", "nginx-check:unallowed-proxy"]);
    let _agent = Program::start("agent", command)?;
    consumer.is_ready()?;
    ensure!(scene.file().contains("10.0.0.1:80"));
    Ok(())
}

#[test]
fn without_etcd_the_agent_in_the_consumer_checks_and_needs_no_permission() -> Result<()> {
    let scene = Scene::start("embedded-checks", None)?;
    let mut consumer = scene.run(None, "")?;
    let line = consumer.program.wait_log("checked a file", TIMEOUT)?;
    ensure!(line.contains("exit_code=0"), "{line}");
    until("the file is there", TIMEOUT, || Ok(scene.dest().exists()))?;
    consumer.is_ready()
}

#[test]
fn a_stack_whose_proxy_does_not_run_yet_gets_its_file_unchecked() -> Result<()> {
    let scene = Scene::start("unchecked", Some("nginx-check"))?;
    scene.nginx.stop(1)?;
    scene.put(1, "")?;
    let consumer = scene.consumer("")?;
    until("the file is there", TIMEOUT, || Ok(scene.file().contains("10.0.0.1:80")))?;
    consumer.says("installed unchecked, as container unchecked-proxy does not run")?;
    Ok(())
}
