//! A current nginx on this host, which is reloaded by its pid file: what it did not take is taken back, and what reloads
//! cost is bounded and told.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::Write as _,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rollcall_tests::{DockerHost, Etcd, Process, Program, http, image, port, tool, until};
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(20);

/// An instance whose port is this one.
fn put(etcd: &Etcd, number: usize, service: &str, address: &str, port: u16, tag: &str) -> Result<()> {
    let id = format!("{number:012x}");
    let value = format!(
        r#"{{"v":1,"service":"{service}","container":"c{number}","id":"{id}","image":"x","address":"{address}","port":{port},"protocol":"tcp","container_port":80,"status":"passing","started_at":"2026-01-01T00:00:00Z","tags":["{tag}"]}}"#
    );
    etcd.ctl().put(&key(number), &value)
}

fn key(number: usize) -> String {
    format!("/rollcall/instances/h1/{number:012x}/80-tcp")
}

fn free() -> Result<u16> {
    port::free(Ipv4Addr::LOCALHOST.into())
}

/// A folder with nginx's main configuration, which includes one file.
struct Prefix(TempDir);

impl Prefix {
    /// One whose own server answers on this port.
    fn new(port: u16) -> Result<Self> {
        let prefix = Self(tempfile::tempdir()?);
        let main = format!(
            "daemon off; user root; worker_processes 1; pid nginx.pid; error_log error.log notice;\n\
             events {{}}\nhttp {{\n  access_log off;\n  include INCLUDED;\n  \
             server {{ listen 127.0.0.1:{port}; return 200 own; }}\n}}\n"
        );
        fs::write(prefix.path("main.conf"), &main)?;
        fs::write(prefix.path("nginx.conf"), main.replace("INCLUDED", "rollcall.conf"))?;
        // As `nginx -t` sees a staged file in its place.
        let check = "#!/bin/sh\nset -e\ncd \"$(dirname \"$0\")\"\n\
                     sed -e \"s,INCLUDED,$1,\" -e s,nginx.pid,check.pid, main.conf >check.conf\n\
                     exec \"$2\" -t -q -p . -c check.conf\n";
        fs::write(prefix.path("check"), check)?;
        fs::write(prefix.dest(), "")?;
        Ok(prefix)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn dest(&self) -> PathBuf {
        self.path("rollcall.conf")
    }

    fn nginx(&self) -> Result<Command> {
        let mut command = Command::new(tool::part("nginx-1.31/nginx")?);
        command.arg("-p").arg(self.0.path()).args(["-c", "nginx.conf"]);
        Ok(command)
    }

    fn start(&self) -> Result<Nginx> {
        let nginx = Process::start("nginx", self.nginx()?, &self.path("log"))?;
        until("nginx runs", TIMEOUT, || Ok(fs::read_to_string(self.path("nginx.pid"))?.trim().len() > 1))?;
        Ok(Nginx(nginx))
    }

    /// How many reloads nginx has begun.
    fn reloads(&self) -> Result<usize> {
        Ok(fs::read_to_string(self.path("error.log"))?.matches("signal 1 (SIGHUP) received").count())
    }

    /// A consumer of one target with this content, that is told by nginx's pid file.
    fn consumer(&self, etcd: &Etcd, listen: &str, content: &str) -> Result<Program> {
        let (dest, pid_file) = (self.dest(), self.path("nginx.pid"));
        let text = format!(
            "[[target]]\nname = \"web\"\ndest = {dest:?}\n{content}\n\
             [target.notify]\npid_file = {pid_file:?}\nsignal = \"HUP\"\nprocess = \"nginx\"\n"
        );
        fs::write(self.path("targets.toml"), text)?;
        let mut command = Program::consumer()?;
        command.args(["--etcd", &etcd.endpoint(), "--listen", listen, "--config"]);
        command.arg(self.path("targets.toml")).arg("--state-dir").arg(self.path("state"));
        Program::start("consumer", command)
    }
}

/// A running nginx. Killed, it would leave its workers behind.
struct Nginx(Process);

impl Nginx {
    fn pid(&self) -> u32 {
        self.0.pid()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.terminate(TIMEOUT);
    }
}

/// The titles of a process's children.
fn children(pid: u32) -> Result<Vec<(u32, String)>> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let titled = |child: &str| {
        let title = fs::read_to_string(format!("/proc/{child}/cmdline")).ok()?;
        Some((child.parse().ok()?, title.trim_end_matches(['\0', ' ']).to_owned()))
    };
    Ok(children.split_whitespace().filter_map(titled).collect())
}

/// The workers that take connections.
fn serving(pid: u32) -> Result<BTreeSet<u32>> {
    let workers = children(pid)?.into_iter().filter(|(_, title)| title == "nginx: worker process");
    Ok(workers.map(|(pid, _)| pid).collect())
}

/// Servers that listen where the instances are: a port that is taken passes `nginx -t`, and no reload.
const LISTENING: &str = "{% for instance in instances %}server { listen 127.0.0.1:{{ instance.port }}; \
                         return 200 {{ instance.container }}; }\n{% endfor %}";

#[test]
fn what_nginx_does_not_take_at_a_reload_is_taken_back_and_reloaded_again() -> Result<()> {
    let (etcd, prefix) = (Etcd::start()?, Prefix::new(free()?)?);
    let [one, three] = [free()?, free()?];
    let taken = TcpListener::bind("127.0.0.1:0")?;
    put(&etcd, 1, "web", "10.0.0.1", one, "x")?;
    let nginx = prefix.start()?;
    fs::write(prefix.path("list.jinja"), LISTENING)?;
    let [template, pid_file, check] = ["list.jinja", "nginx.pid", "check"].map(|name| prefix.path(name));
    let binary = tool::part("nginx-1.31/nginx")?;
    let content = format!(
        "template = {template:?}\ncheck = [\"sh\", {check:?}, \"{{file}}\", {binary:?}]\n\
         verify = {{ nginx_pid_file = {pid_file:?}, delay = \"0s\", timeout = \"4s\" }}\nreconcile = \"1s\""
    );
    let mut consumer = prefix.consumer(&etcd, "off", &content)?;
    let serves = |port: u16, name: &str| {
        until(&format!("{name} is served"), TIMEOUT, || {
            Ok(http::get(&format!("http://127.0.0.1:{port}/"))?.body == name)
        })
    };
    serves(one, "c1")?;
    // Before that, what nginx ran with at first is the good file.
    until("it is verified", TIMEOUT, || {
        Ok(fs::read(prefix.path("state/web.good"))? == fs::read(prefix.dest())?)
    })?;
    let (good, workers) = (fs::read_to_string(prefix.dest())?, serving(nginx.pid())?);
    put(&etcd, 2, "web", "10.0.0.2", taken.local_addr()?.port(), "x")?;
    let said = consumer.wait_log("what was installed does not work", TIMEOUT)?;
    assert!(said.contains("nginx has no new workers, so it did not take the file"), "{said}");
    until("the good file is back", TIMEOUT, || Ok(fs::read_to_string(prefix.dest())? == good))?;
    until("nginx has taken it", TIMEOUT, || Ok(serving(nginx.pid())?.is_disjoint(&workers)))?;
    serves(one, "c1")?;
    let errors = fs::read_to_string(prefix.path("error.log"))?;
    assert!(errors.contains("[emerg]") && errors.contains("bind() to"), "{errors}");
    // Another file than the one that failed is tried.
    etcd.ctl().del(&key(2))?;
    put(&etcd, 3, "web", "10.0.0.3", three, "x")?;
    serves(three, "c3")?;
    consumer.wait_log("works again", TIMEOUT)?;
    Ok(())
}

#[test]
fn workers_that_shut_down_are_counted_and_told_once_they_pile_up() -> Result<()> {
    let port = free()?;
    let (etcd, prefix) = (Etcd::start()?, Prefix::new(port)?);
    put(&etcd, 1, "web", "10.0.0.1", 8080, "x")?;
    let (nginx, listen) = (prefix.start()?, format!("127.0.0.1:{}", free()?));
    let content = "format = \"nginx-upstream\"\nreconcile = \"1s\"\npace = { burst = 1, interval = \"0s\" }";
    let mut consumer = prefix.consumer(&etcd, &listen, content)?;
    until("it is rendered", TIMEOUT, || Ok(fs::read_to_string(prefix.dest())?.contains("10.0.0.1:8080")))?;
    let mut held = vec![];
    for number in 2..12 {
        let before = serving(nginx.pid())?;
        // Its head is not at its end: the worker waits for the rest.
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(b"GET / HTTP/1.1\r\n")?;
        thread::sleep(Duration::from_millis(50));
        held.push(stream);
        put(&etcd, number, "web", &format!("10.0.0.{number}"), 8080, "x")?;
        until("nginx has reloaded", TIMEOUT, || {
            let now = serving(nginx.pid())?;
            Ok(!now.is_empty() && now.is_disjoint(&before))
        })?;
    }
    let readyz = || http::get(&format!("http://{listen}/readyz"));
    let note = "more than 8 generations of nginx's workers are still shutting down";
    until("it is noted", TIMEOUT, || Ok(readyz()?.body.contains(note)))?;
    assert_eq!(readyz()?.status, 200, "it works");
    consumer.wait_log(note, TIMEOUT)?;
    let metric = || -> Result<f64> {
        let metrics = http::get(&format!("http://{listen}/metrics"))?.body;
        let line = metrics.lines().find(|line| line.starts_with("rollcall_consumer_draining_workers{"));
        let value = line.and_then(|line| line.rsplit(' ').next()).context("no such metric")?;
        Ok(value.parse::<f64>()?)
    };
    assert!(metric()? >= 9.0, "{}", metric()?);
    drop(held);
    until("they have ended", TIMEOUT, || Ok(metric()? == 0.0 && !readyz()?.body.contains(note)))?;
    Ok(())
}

#[test]
fn two_hundred_changes_in_ten_seconds_cost_few_reloads_and_few_workers() -> Result<()> {
    let (etcd, prefix) = (Etcd::start()?, Prefix::new(free()?)?);
    put(&etcd, 0, "web", "10.0.1.1", 8080, "x")?;
    let nginx = prefix.start()?;
    let _consumer = prefix.consumer(&etcd, "off", "format = \"nginx-upstream\"")?;
    let has = |text: &str| Ok(fs::read_to_string(prefix.dest())?.contains(text));
    until("it is rendered", TIMEOUT, || has("10.0.1.1:8080"))?;
    until("nginx has reloaded", TIMEOUT, || Ok(prefix.reloads()? == 1))?;
    let (begun, mut most) = (Instant::now(), 0);
    for number in 1..=200 {
        put(&etcd, number, "web", "10.0.0.1", 8000 + u16::try_from(number)?, "x")?;
        most = most.max(children(nginx.pid())?.len());
        let due = Duration::from_millis(50) * u32::try_from(number)?;
        thread::sleep(due.saturating_sub(begun.elapsed()));
    }
    let took = begun.elapsed();
    until("the last change is there", TIMEOUT, || has("10.0.0.1:8200"))?;
    thread::sleep(Duration::from_secs(1));
    let reloads = prefix.reloads()? - 1;
    println!("200 changes in {took:.1?}: {reloads} reloads, at most {most} workers");
    assert!((3..=12).contains(&reloads), "{reloads} reloads in {took:?}");
    assert!(most <= 3, "{most} workers");
    Ok(())
}

#[test]
fn both_nginx_of_debian_and_a_current_one_take_what_the_table_says() -> Result<()> {
    let (etcd, prefix) = (Etcd::start()?, Prefix::new(free()?)?);
    for number in 1..=300 {
        let tag = if number % 2 == 0 { "standby" } else { "x" };
        put(&etcd, number, "web", &format!("10.0.{}.{}", number / 250, number % 250), 8080, tag)?;
    }
    put(&etcd, 301, "spare", "10.0.2.1", 8080, "standby")?;
    put(&etcd, 302, "named", "no-such-name.invalid", 8080, "x")?;
    let table = "zone = \"64k\"\nbalance = \"least_conn\"\nkeepalive = 16\nmax_fails = 2\n\
                 fail_timeout = \"5s\"\nbackup = \"standby\"\n";
    let render = |name: &str, table: &str| -> Result<String> {
        let (dest, config) = (prefix.path(name), prefix.path("targets.toml"));
        let mut text = format!("[[target]]\nname = \"web\"\ndest = {dest:?}\nformat = \"nginx-upstream\"\n");
        writeln!(text, "[target.nginx]\n{table}")?;
        fs::write(&config, text)?;
        let mut command = Program::consumer()?;
        command.args(["--etcd", &etcd.endpoint(), "--listen", "off", "--once", "--wait", "30s", "--config"]);
        command.arg(config).arg("--state-dir").arg(prefix.path("state"));
        tool::run(&mut command)?;
        Ok(fs::read_to_string(dest)?)
    };
    let plain = render("plain.conf", table)?;
    assert!(!plain.contains("no-such-name") && plain.contains("zone rollcall_web 632k;"), "{plain}");
    let resolving = render("rollcall.conf", &format!("{table}resolve = true\nresolver = \"127.0.0.1\""))?;
    assert!(resolving.contains("server no-such-name.invalid:8080 max_fails=2 fail_timeout=5s resolve;"));
    tool::run(prefix.nginx()?.args(["-t", "-q"]))?;
    fs::create_dir(prefix.path("conf.d"))?;
    fs::write(prefix.path("conf.d/rollcall.conf"), &plain)?;
    let volume = format!("{}:/etc/nginx/conf.d:ro", prefix.path("conf.d").display());
    let debian = DockerHost::local()?.run(&["--volume", &volume, image::nginx()?, "sleep", "600"])?;
    debian.exec(&["nginx", "-t", "-q"])?;
    // Services have other names than an operator's zones.
    let main = fs::read_to_string(prefix.path("nginx.conf"))?;
    let limits = "http { limit_req_zone $binary_remote_addr zone=web:1m rate=1r/s;";
    fs::write(prefix.path("nginx.conf"), main.replace("http {", limits))?;
    tool::run(prefix.nginx()?.args(["-t", "-q"]))?;
    // What either would say if the zone did not grow.
    let small = plain.replace("zone rollcall_web 632k;", "zone rollcall_web 64k;");
    fs::write(prefix.dest(), &small)?;
    let error = format!("{:#}", tool::run(prefix.nginx()?.args(["-t", "-q"])).expect_err("it is too small"));
    assert!(error.contains("no memory in upstream zone"), "{error}");
    Ok(())
}
