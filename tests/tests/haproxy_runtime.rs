//! A real HAProxy behind the consumer: told at run time, reloaded for what is new only, killed, restarted and edited by
//! hand meanwhile.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use rollcall_tests::{Etcd, Process, Program, haproxy::Version, http, port, tool, until};
use rustix::process::Signal;
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(20);

/// An etcd, a HAProxy in master-worker mode as its unit starts it, and a consumer with the example's target.
struct Scene {
    etcd: Etcd,
    dir: TempDir,
    version: Version,
    port: u16,
    listen: u16,
    haproxy: Option<Process>,
    consumer: Option<Program>,
}

impl Scene {
    fn new(version: Version) -> Result<Self> {
        let (etcd, dir) = (Etcd::start()?, tempfile::tempdir()?);
        let (port, listen) =
            (port::free(Ipv4Addr::LOCALHOST.into())?, port::free(Ipv4Addr::LOCALHOST.into())?);
        let scene = Self { etcd, dir, version, port, listen, haproxy: None, consumer: None };
        let example = fs::read_to_string(tool::workspace().join("deploy/examples/haproxy-runtime.toml"))?;
        let notify = format!("pid_file = {:?}\nsignal = \"USR2\"\nprocess = \"haproxy\"", scene.path("pid"));
        let program = format!("{} -c -f {{file}}", scene.path("haproxy").display());
        let text = example
            .replace("/etc/haproxy/haproxy.cfg", &scene.path("haproxy.cfg").display().to_string())
            .replace("/run/haproxy/rollcall.sock", &scene.path("sock").display().to_string())
            .replace("haproxy -c -f {file}", &program)
            .replace("8080", &port.to_string())
            .replace("command = \"systemctl reload haproxy\"", &notify)
            .replace("format =", "reconcile = \"1s\"\nformat =");
        anyhow::ensure!(text.matches(&*scene.dir.path().display().to_string()).count() == 4, "{text}");
        fs::write(scene.path("config.toml"), text)?;
        // A check is run by the consumer, whose environment has no libraries of HAProxy's.
        version.write_script(&scene.path("haproxy"))?;
        Ok(scene)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, options: &[&str]) -> Result<std::process::Command> {
        let mut command = Program::consumer()?;
        command.args(["--etcd", &self.etcd.endpoint(), "--listen", &format!("127.0.0.1:{}", self.listen)]);
        command.arg("--config").arg(self.path("config.toml")).arg("--state-dir").arg(self.path("state"));
        command.args(options);
        Ok(command)
    }

    fn start_consumer(&mut self) -> Result<()> {
        self.consumer = Some(Program::start("consumer", self.command(&[])?)?);
        Ok(())
    }

    fn spawn_haproxy(&mut self) -> Result<()> {
        let mut command = self.version.command()?;
        command.args(["-W", "-f"]).arg(self.path("haproxy.cfg")).arg("-p").arg(self.path("pid"));
        self.haproxy = Some(Process::start("haproxy", command, &self.path("haproxy.log"))?);
        until("HAProxy has written its ID", TIMEOUT, || Ok(self.path("pid").exists()))
    }

    fn start_haproxy(&mut self) -> Result<()> {
        self.spawn_haproxy()?;
        until("HAProxy answers", TIMEOUT, || Ok(self.ask("show info").is_ok()))
    }

    /// Kills the master, and waits for its workers, which end with it.
    fn kill_haproxy(&mut self) -> Result<()> {
        self.haproxy = None;
        until("HAProxy is gone", TIMEOUT, || Ok(self.ask("show info").is_err()))
    }

    fn ask(&self, command: &str) -> Result<String> {
        rollcall_tests::haproxy::ask(&self.path("sock"), command)
    }

    fn pid(&self) -> Result<String> {
        let info = self.ask("show info")?;
        Ok(info.lines().find(|line| line.starts_with("Pid: ")).context("it has a process")?.to_owned())
    }

    fn put(&self, number: u8, service: &str, port: u16) -> Result<()> {
        let id = format!("{number:012x}");
        let value = serde_json::json!({
            "v": 1, "service": service, "container": format!("{service}-{number}"), "id": id, "image": "x",
            "address": "127.0.0.1", "port": port, "protocol": "tcp", "container_port": 80, "status": "passing",
            "started_at": "2026-01-01T00:00:00Z",
        });
        self.etcd.ctl().put(&format!("/rollcall/instances/h1/{id}/80-tcp"), &value.to_string())
    }

    fn delete(&self, number: u8) -> Result<()> {
        self.etcd.etcdctl(&["del", &format!("/rollcall/instances/h1/{number:012x}/80-tcp")]).map(drop)
    }

    fn status(&self) -> Result<serde_json::Value> {
        let body = http::get(&format!("http://127.0.0.1:{}/v1/targets", self.listen))?.body;
        Ok(serde_json::from_str::<serde_json::Value>(&body)?[0].clone())
    }

    /// Waits until the target fares like that, for a reason that has this in it.
    fn until_status(&self, state: &str, reason: &str) -> Result<()> {
        let mut last = serde_json::Value::Null;
        until(&format!("it is {state}"), TIMEOUT, || {
            last = self.status().unwrap_or_default();
            Ok(last["state"] == state && last["reason"].as_str().unwrap_or_default().contains(reason))
        })
        .with_context(|| format!("last: {last}"))
    }

    /// Waits until twenty requests are answered by all of these and nobody else.
    fn until_answered(&self, host: &str, by: &[&str]) -> Result<()> {
        let expected: BTreeSet<String> = by.iter().map(|name| (*name).to_owned()).collect();
        let mut last = None;
        until(&format!("{host} is answered by {by:?}"), TIMEOUT, || {
            let one = |_| {
                let answer = http::get_as(&format!("http://127.0.0.1:{}/", self.port), host)?;
                Ok(if answer.status == 200 { answer.body } else { answer.status.to_string() })
            };
            last = Some((0..20).map(one).collect::<Result<BTreeSet<_>>>()?);
            Ok(last.as_ref() == Some(&expected))
        })
        .with_context(|| format!("last: {last:?}"))
    }
}

/// A server that answers with its name; its port.
fn worker(name: &'static str) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || rollcall_test_worker::serve(&listener, name));
    Ok(port)
}

fn survives(version: Version) -> Result<()> {
    let mut scene = Scene::new(version)?;
    let (one, two, three, api) = (worker("one")?, worker("two")?, worker("three")?, worker("api")?);
    scene.put(1, "web", one)?;
    // Before HAProxy runs, its file is there for it, and what is missing is said.
    let output = scene.command(&["--once"])?.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("sock"), "{said}");
    // One that runs without the socket has it from the consumer's file, by a reload.
    let rendered = fs::read_to_string(scene.path("haproxy.cfg"))?;
    let bare = rendered.lines().filter(|line| !line.contains("stats socket")).collect::<Vec<_>>().join("\n");
    fs::write(scene.path("haproxy.cfg"), bare + "\n")?;
    scene.spawn_haproxy()?;
    scene.until_answered("web", &["one"])?;
    scene.start_consumer()?;
    scene.until_status("SYNCED", "")?;
    scene.until_answered("web", &["one"])?;
    let pid = scene.pid()?;

    // At run time: no reload.
    scene.put(2, "web", two)?;
    scene.until_answered("web", &["one", "two"])?;
    scene.delete(1)?;
    scene.until_answered("web", &["two"])?;
    scene.put(1, "web", one)?;
    scene.until_answered("web", &["one", "two"])?;
    scene.until_status("SYNCED", "")?;
    assert_eq!(scene.pid()?, pid, "it is not reloaded");

    // By hand: ours is put right, his is left alone and named.
    let server = |number: u8| -> Result<String> {
        let states = scene.ask("show servers state web")?;
        let id = format!("{number:012x}");
        let found = states.lines().filter_map(|line| line.split(' ').nth(3)).find(|name| name.contains(&id));
        found.map(str::to_owned).context(states.clone())
    };
    scene.ask(&format!("add server web/by-hand 127.0.0.1:{three}"))?;
    scene.ask("enable server web/by-hand")?;
    scene.ask(&format!("set server web/{} state maint", server(2)?))?;
    scene.until_answered("web", &["one", "two", "three"])?;
    scene.until_status("SYNCED", "by-hand")?;

    // A service that the configuration has needs no reload either.
    scene.put(4, "api", api)?;
    scene.until_answered("api.example.com", &["api"])?;
    assert_eq!(scene.pid()?, pid, "it is not reloaded");

    // One that is new does: one reload, by which what was made by hand goes.
    let config = fs::read_to_string(scene.path("config.toml"))?;
    fs::write(scene.path("config.toml"), config.replace("\"api\"]", "\"api\", \"new\"]"))?;
    scene.consumer.as_mut().context("it runs")?.signal(Signal::HUP)?;
    scene.put(5, "new", three)?;
    scene.until_answered("new", &["three"])?;
    scene.until_status("SYNCED", "")?;
    assert_ne!(scene.pid()?, pid, "it is reloaded");
    scene.until_answered("web", &["one", "two"])?;
    let reloads = fs::read_to_string(scene.path("haproxy.log"))?.matches("Reloading HAProxy").count();
    assert_eq!(reloads, 2, "one for the socket, one for the service");

    // Killed, and back: it has read its file.
    scene.kill_haproxy()?;
    scene.until_status("FAILED", "sock")?;
    scene.delete(2)?;
    scene.start_haproxy()?;
    scene.until_answered("web", &["one"])?;
    scene.until_status("SYNCED", "")?;

    // The consumer is killed, and the roll goes on meanwhile.
    let pid = scene.pid()?;
    scene.consumer.as_mut().context("it runs")?.kill();
    scene.put(2, "web", two)?;
    scene.start_consumer()?;
    scene.until_answered("web", &["one", "two"])?;
    scene.until_status("SYNCED", "")?;
    let output = scene.command(&["--dry-run"])?.output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    scene.delete(2)?;
    scene.until_answered("web", &["one"])?;
    assert_eq!(scene.pid()?, pid, "it is not reloaded");
    Ok(())
}

#[test]
fn haproxy_2_6_is_told_at_run_time_and_put_right_whatever_happens_to_it() -> Result<()> {
    survives(Version::V2_6)
}

#[test]
fn haproxy_2_8_is_told_at_run_time_and_put_right_whatever_happens_to_it() -> Result<()> {
    survives(Version::V2_8)
}
