//! Checks on real parts: an application that listens late, one that fails and recovers, and what that costs etcd.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rollcall_tests::{Container, DockerHost, Etcd, Program, http, image, port, until};
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(15);
const INTERVAL: Duration = Duration::from_secs(1);

/// An application that is well for as long as the file of its health is there.
const APPLICATION: &str = "server { listen 80; location / { return 200 $hostname; } \
                           location = /health { root /etc/nginx/conf.d; } }\n";

/// A site in front of the rendered upstream. No retry: a request that meets a server that does not listen yet is an
/// error that a user sees.
const SITE: &str = "server { listen 80; location / { proxy_pass http://web; proxy_next_upstream off; \
                    proxy_connect_timeout 1s; } }\n";

/// Agent, etcd and a consumer that keeps an upstream, for containers named `<test>-...`.
struct Host {
    etcd: Etcd,
    _agent: Program,
    _consumer: Program,
    /// Where the consumer serves /readyz and its metrics.
    consumer_url: String,
    docker: DockerHost,
    dir: TempDir,
    test: &'static str,
}

/// A container with an application, and the folder of its health.
struct Application {
    container: Container,
    health: PathBuf,
}

impl Host {
    fn start(test: &'static str, agent_flags: &[&str]) -> Result<Self> {
        let (docker, etcd, dir) = (DockerHost::local()?, Etcd::start()?, tempfile::tempdir()?);
        let listen = format!("127.0.0.1:{}", port::free(Ipv4Addr::LOCALHOST.into())?);
        let mut command = Program::agent()?;
        command.args(["--etcd", &etcd.endpoint(), "--node", "h1", "--listen", "off"]);
        command.args(["--only-name", &format!("^{test}-")]).args(agent_flags);
        let mut agent = Program::start("agent", command)?;
        agent.wait_log("claimed the name", TIMEOUT)?;
        let (conf, config) = (dir.path().join("conf.d"), dir.path().join("targets.toml"));
        fs::create_dir(&conf)?;
        fs::write(conf.join("site.conf"), SITE)?;
        fs::write(&config, target(&conf.join("upstream.conf"), &format!("{test}-proxy")))?;
        let mut command = Program::consumer()?;
        command.args(["--etcd", &etcd.endpoint(), "--name", "c1", "--listen", &listen]);
        command.arg("--config").arg(&config).arg("--state-dir").arg(dir.path());
        let consumer = Program::start("consumer", command)?;
        let consumer_url = format!("http://{listen}");
        let host = Self { etcd, _agent: agent, _consumer: consumer, consumer_url, docker, dir, test };
        until("an upstream is rendered", TIMEOUT, || {
            Ok(host.dir.path().join("conf.d/upstream.conf").exists())
        })?;
        Ok(host)
    }

    /// Starts an application with these labels, which listens so many seconds after its start.
    fn application(&self, number: u32, labels: &[&str], delay: &str) -> Result<Application> {
        let (name, health) =
            (format!("{}-{number}", self.test), self.dir.path().join(format!("app-{number}")));
        fs::create_dir(&health)?;
        fs::write(health.join("site.conf"), APPLICATION)?;
        fs::write(health.join("health"), "well")?;
        let volume = format!("{}:/etc/nginx/conf.d", health.display());
        let mut args = vec!["--name", &name, "--hostname", &name, "--publish", "80", "--volume", &volume];
        args.extend(["--label", "rollcall.service=web"]);
        labels.iter().for_each(|label| args.extend(["--label", label]));
        let script = format!("sleep {delay}; exec nginx -g 'daemon off;'");
        args.extend([image::nginx()?, "sh", "-c", &script]);
        Ok(Application { container: self.docker.run(&args)?, health: health.join("health") })
    }

    /// nginx in front of the upstream; gives where it is asked.
    fn proxy(&self) -> Result<(Container, String)> {
        let volume = format!("{}:/etc/nginx/conf.d", self.dir.path().join("conf.d").display());
        let name = format!("{}-proxy", self.test);
        let labels = ["--label", "rollcall.signal=HUP", "--label", "rollcall.ignore=true"];
        let args = ["--name", &name, "--publish", "80", "--volume", &volume];
        let container = self.docker.run(&[&args[..], &labels, &[image::nginx()?]].concat())?;
        let url = format!("http://{}/", container.published(80)?);
        until("nginx answers", TIMEOUT, || http::get(&url).map(|_| true))?;
        Ok((container, url))
    }

    /// The ports of the upstream's servers, without the one that stands for none.
    fn servers(&self) -> Result<Vec<u16>> {
        let text = fs::read_to_string(self.dir.path().join("conf.d/upstream.conf"))?;
        let servers = text.lines().filter_map(|line| line.trim().strip_prefix("server "));
        let port = |server: &str| server.split([' ', ';']).next()?.rsplit(':').next()?.parse().ok();
        Ok(servers.filter(|server| !server.contains(" down")).filter_map(port).collect())
    }

    fn has(&self, applications: &[&Application]) -> Result<bool> {
        let expected = applications.iter().map(|app| Ok(app.container.published(80)?.port()));
        let (mut expected, mut found) = (expected.collect::<Result<Vec<_>>>()?, self.servers()?);
        expected.sort_unstable();
        found.sort_unstable();
        Ok(found == expected)
    }
}

fn target(dest: &Path, container: &str) -> String {
    format!(
        "[[target]]\nname = \"proxy\"\ndest = \"{}\"\nformat = \"nginx-upstream\"\n[target.select]\nservice = \"web\"\n\
         [target.notify]\ncontainer = \"{container}\"\nsignal = \"HUP\"\n",
        dest.display()
    )
}

fn ask(url: &str) -> Result<String> {
    let answer = http::get(url)?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
    Ok(answer.body.trim().to_owned())
}

/// Waits until the condition holds, without a pause that would count; gives when.
fn moment(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<Instant> {
    let deadline = Instant::now() + TIMEOUT;
    while !condition()? {
        ensure!(Instant::now() < deadline, "waited {TIMEOUT:?} in vain until {what}");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(Instant::now())
}

/// No request fails while an application comes that listens half a second after its start.
fn comes_without_an_error(test: &'static str, agent_flags: &[&str], labels: &[&str]) -> Result<()> {
    let host = Host::start(test, agent_flags)?;
    let _first = host.application(1, labels, "0")?;
    let (_proxy, url) = host.proxy()?;
    until("the first one serves", TIMEOUT, || ask(&url).map(|_| true))?;
    let (over, second_name) = (AtomicBool::new(false), format!("{test}-2"));
    thread::scope(|scope| {
        let asking = scope.spawn(|| -> Result<Vec<String>> {
            let mut answers = Vec::new();
            while !over.load(Ordering::Relaxed) {
                answers.push(ask(&url).with_context(|| format!("request {}", answers.len() + 1))?);
            }
            Ok(answers)
        });
        let second = host.application(2, labels, "0.5");
        let served = until("the second one serves too", TIMEOUT, || {
            Ok((0..4).any(|_| ask(&url).is_ok_and(|name| name == second_name)))
        });
        // For a while with both.
        thread::sleep(Duration::from_millis(500));
        over.store(true, Ordering::Relaxed);
        let answers = asking.join().expect("asking does not panic")?;
        drop((second?, served?));
        let second = answers.iter().filter(|name| **name == second_name).count();
        assert!(second > 20 && answers.len() > second, "{second} of {} answers", answers.len());
        Ok(())
    })
}

#[test]
fn an_application_that_is_checked_costs_no_request_though_it_listens_half_a_second_late() -> Result<()> {
    comes_without_an_error("health-late", &[], &["rollcall.check=tcp"])
}

#[test]
fn with_ready_tcp_one_that_has_no_check_costs_none_either() -> Result<()> {
    comes_without_an_error("health-ready", &["--ready", "tcp"], &[])
}

#[test]
fn an_application_is_in_the_file_a_tenth_of_a_second_after_its_port_is_open() -> Result<()> {
    let host = Host::start("health-soon", &[])?;
    let mut delays = Vec::new();
    for number in 1..=3 {
        let app = host.application(number, &["rollcall.check=tcp"], "0.5")?;
        let ip = app.container.inspect("{{.NetworkSettings.IPAddress}}")?;
        let address = SocketAddr::new(ip.parse()?, 80);
        let is_open = || Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok());
        let open_at = moment("its port is open", is_open)?;
        let shown_at = moment("it is in the file", || host.has(&[&app]))?;
        delays.push(shown_at - open_at);
        app.container.kill("KILL")?;
        moment("it is out of the file", || host.has(&[]))?;
    }
    // The machine may be busy with something else once.
    let fastest = delays.iter().min().copied().unwrap_or(TIMEOUT);
    assert!(fastest < Duration::from_millis(100), "{delays:?}");
    eprintln!("from the open port to the file: {delays:?}");
    Ok(())
}

#[test]
fn one_that_fails_leaves_and_comes_back_and_where_all_fail_all_stay() -> Result<()> {
    let host = Host::start("health-fails", &[])?;
    let labels = [
        "rollcall.check=http",
        "rollcall.check.path=/health",
        "rollcall.check.interval=1s",
        "rollcall.check.fall=2",
        "rollcall.check.rise=1",
    ];
    let (first, second) = (host.application(1, &labels, "0")?, host.application(2, &labels, "0")?);
    until("both are there", TIMEOUT, || host.has(&[&first, &second]))?;
    // A check that passes writes nothing.
    let revision = host.etcd.ctl().revision()?;
    thread::sleep(INTERVAL * 3);
    assert_eq!(host.etcd.ctl().revision()?, revision, "something was written while nothing changed");
    let fails = |app: &Application| fs::remove_file(&app.health);
    let recovers = |app: &Application| fs::write(&app.health, "well");
    let began = Instant::now();
    fails(&first)?;
    let left = moment("the first one has left", || host.has(&[&second]))? - began;
    assert!(left < INTERVAL * 2 + Duration::from_millis(500), "it left after {left:?}");
    recovers(&first)?;
    until("it is back", TIMEOUT, || host.has(&[&first, &second]))?;
    fails(&first)?;
    until("it has left again", TIMEOUT, || host.has(&[&second]))?;
    fails(&second)?;
    until("both are kept", TIMEOUT, || host.has(&[&first, &second]))?;
    let expected = "service web: none of its instances passes: all 2 failing ones are kept";
    let readyz = format!("{}/readyz", host.consumer_url);
    until("it says so", TIMEOUT, || {
        let answer = http::get(&readyz)?;
        ensure!(answer.body.contains(expected), "{}", answer.body);
        Ok(true)
    })?;
    let metrics = http::get(&format!("{}/metrics", host.consumer_url))?.body;
    assert!(metrics.contains("rollcall_consumer_kept_services{target=\"proxy\"} 1"), "{metrics}");
    recovers(&second)?;
    until("only the one that passes is there", TIMEOUT, || host.has(&[&second]))?;
    second.container.kill("KILL")?;
    until("the one that fails is better than none", TIMEOUT, || host.has(&[&first]))?;
    first.container.kill("KILL")?;
    until("all have ended, and none is kept", TIMEOUT, || host.has(&[]))
}
