//! BackendsUpdater, by the line of its page: on a host whose engine listens on TCP, beside an nginx, both as that host
//! runs them.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rollcall_tests::{Bridge, Container, DockerHost, docs, image, program, tool, until};

const TIMEOUT: Duration = Duration::from_secs(30);
const SITE: &str = "/etc/nginx/sites-enabled/loadbalancer.conf";
const TEMPLATE: &str = "upstream dailyreport {\n\
    {% for i in instances %}    server {{ i.address }}:{{ i.port }};\n{% endfor %}\
    {% if not instances %}    server 127.0.0.1:9 down;\n{% endif %}}\n\
    server { listen 8099; location / { proxy_pass http://dailyreport; } }\n";
/// The line of the page on moving over, but for the heartbeat: a test does not wait for half a minute. Its other options are
/// added.
fn line() -> Result<String> {
    let line = docs::now("BackendsUpdater")?.remove(0);
    ensure!(line.contains("-heartbeat 30s"), "{line}");
    Ok(line.replace("-heartbeat 30s", "-heartbeat 3s") + " -bkp_dir /var/backups -since=1412355983")
}

/// A machine as its page has it: nginx and the updater beside each other, in a container that stands for the host.
struct Machine {
    docker: DockerHost,
    host: Container,
    _dir: tempfile::TempDir,
}

impl Machine {
    fn start(bridge: &Bridge) -> Result<Self> {
        let listen = ["-H", "tcp://127.0.0.1:4243"].map(str::to_owned);
        let (docker, dir) = (DockerHost::start_with(1, bridge, &listen)?, tempfile::tempdir()?);
        fs::write(dir.path().join("loadbalancer.conf"), TEMPLATE)?;
        fs::write(dir.path().join("go.conf"), "upstream x {\n{{ range .Containers }}{{ end }}\n}\n")?;
        [image::proxies()?, image::worker()?].iter().try_for_each(|image| docker.load_image(image))?;
        let binaries = format!("{}:/usr/local/bin:ro", program::built()?.display());
        let templates = format!("{}:/opt/apps", dir.path().display());
        let options = ["--network=host", "--init", "--workdir=/opt/apps", "-v", &binaries, "-v", &templates];
        let host = docker.run(&[&options[..], &[image::proxies()?, "sleep", "600"]].concat())?;
        let machine = Self { docker, host, _dir: dir };
        machine.shell("rm -f /etc/nginx/sites-enabled/default; nginx")?;
        Ok(machine)
    }

    fn shell(&self, command: &str) -> Result<String> {
        self.host.exec(&["sh", "-c", command])
    }

    /// A line of a shell, and how it ends.
    fn ends(&self, command: &str) -> Result<(String, String)> {
        let said = self.shell(&format!("({command}) 2>&1; code=$?; echo; echo $code"))?;
        let (said, code) = said.rsplit_once('\n').context("it ends")?;
        Ok((said.trim_end().to_owned(), code.to_owned()))
    }

    fn worker(&self, name: &str, options: &[&str]) -> Result<Container> {
        let name = format!("{name}.stackexpress.com");
        let fixed = ["--name", &name, "--hostname", &name, "--publish", "80", "--env", "DRAIN_MS=0"];
        self.docker.run(&[&fixed[..], options, &[image::worker()?]].concat())
    }

    /// Waits until nginx answers from exactly these containers.
    fn serves(&self, names: &[&str]) -> Result<()> {
        until(&format!("nginx serves {names:?}"), TIMEOUT, || {
            let mut found: Vec<String> = (0..names.len() * 4).map(|_| self.ask()).collect::<Result<_>>()?;
            found.sort();
            found.dedup();
            ensure!(found == names, "it serves {found:?}");
            Ok(true)
        })
        .with_context(|| self.shell("cat /tmp/log").unwrap_or_default())
    }

    fn ask(&self) -> Result<String> {
        let mut curl = tool::command("curl")?;
        curl.args(["--silent", "--fail", "--max-time", "2", "http://127.0.0.1:8099/"]);
        let name = tool::run(&mut self.docker.run_in_netns(curl)?)?;
        Ok(name.trim().trim_end_matches(".stackexpress.com").to_owned())
    }

    /// How often nginx has started workers anew.
    fn installs(&self) -> Result<usize> {
        Ok(self.shell("grep -c ' installed' /tmp/log || true")?.trim().parse()?)
    }

    fn backups(&self) -> Result<Vec<String>> {
        Ok(self.shell("ls /var/backups | grep loadbalancer || true")?.lines().map(str::to_owned).collect())
    }
}

#[test]
fn the_line_of_its_page_keeps_nginx_up_to_date() -> Result<()> {
    let bridge = Bridge::start()?;
    let machine = Machine::start(&bridge)?;
    assert_eq!(machine.ends("rollcall-consumer status")?.1, "1", "nothing runs");
    let _first = machine.worker("dailyreport1", &[])?;
    let line = line()?;
    machine.shell(&format!("{line} >/tmp/log 2>&1 & echo $! >/tmp/pid"))?;
    machine.serves(&["dailyreport1"])?;
    let status = || machine.ends("rollcall-consumer status");
    until("it is ready", TIMEOUT, || Ok(status()?.0.starts_with("ready\n")))?;
    let (said, code) = status()?;
    assert!(said.contains("  target default: ok") && said.contains("  docker: ok"), "{said}");
    assert_eq!(code, "0");
    let log = machine.shell("cat /tmp/log")?;
    assert!(
        log.contains("-since is ignored") && log.contains("nginx is reloaded by /run/nginx.pid"),
        "{log}"
    );
    assert!(machine.shell(&format!("cat {SITE}"))?.contains("server 127.0.0.1:"), "its own default of -host");

    // Many events in one heartbeat.
    let installs = machine.installs()?;
    let many: Vec<Container> =
        (2..=6).map(|number| machine.worker(&format!("dailyreport{number}"), &[])).collect::<Result<_>>()?;
    machine.serves(&[
        "dailyreport1",
        "dailyreport2",
        "dailyreport3",
        "dailyreport4",
        "dailyreport5",
        "dailyreport6",
    ])?;
    assert!(machine.installs()? - installs <= 2, "{} updates for five", machine.installs()? - installs);
    // What is none of its business changes nothing.
    let (installs, backups) = (machine.installs()?, machine.backups()?);
    let other = machine.worker("weekly", &[])?;
    drop(other);
    drop(many);
    machine.serves(&["dailyreport1"])?;
    assert!(machine.installs()? - installs <= 2);
    assert!(!backups.is_empty() && backups.len() <= 10, "{backups:?}");
    assert!(backups.iter().all(|name| name.contains("20")), "a time is in the name: {backups:?}");
    // Its road map: one that is unhealthy leaves.
    let unhealthy = ["--health-cmd", "/none", "--health-interval", "1s", "--health-retries", "1"];
    let _sick = machine.worker("dailyreport7", &unhealthy)?;
    let _second = machine.worker("dailyreport8", &[])?;
    machine.serves(&["dailyreport1", "dailyreport8"])?;

    machine.shell("kill $(cat /tmp/pid)")?;
    until("it has ended", TIMEOUT, || Ok(status()?.1 == "1"))?;
    let (said, code) = machine.ends(&format!("{line} -template go.conf"))?;
    assert!(code == "2" && said.contains("line 2") && said.contains("Jinja"), "{said}");
    Ok(())
}
