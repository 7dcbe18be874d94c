//! What one change costs a runtime sink: a new instance of HAProxy's among few and among many, with the file beside.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rollcall_shared::store::Op;
use rollcall_tests::haproxy::{Haproxy, Version};
use rollcall_tests::{Etcd, port, until};

use crate::client::Client;
use crate::clock::now;
use crate::consumer::ConsumerDir;
use crate::figures::{Figures, heading};
use crate::file_watch::FileWatch;
use crate::idle::cpu;
use crate::scale::instance_of;

/// The time between two changes: longer than the file takes.
const CHANGE_INTERVAL: Duration = Duration::from_millis(400);
/// How long HAProxy may take until it has all servers, and then one more.
const FILL_TIMEOUT: Duration = Duration::from_secs(120);
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause between two looks: HAProxy has two threads, and so has the machine.
const LOOK_PAUSE: Duration = Duration::from_micros(100);
/// What was asked: one change among many costs at most so many times what it costs among few.
const MOST_RATIO: f64 = 1.2;

/// So many instances of so many services.
#[derive(Debug, Clone, Copy)]
struct Scale {
    services: usize,
    instances: usize,
}

/// What changes cost.
#[derive(Debug, Default)]
struct Costs {
    to_haproxy: Figures,
    to_file: Figures,
    /// The consumer's processor time of each.
    cpu: Figures,
    /// What HAProxy takes to tell of the one backend.
    telling: Figures,
}

/// Measures and prints 10 instances, 10,000 of 1,000 services, and 10,000 of one.
pub fn run(changes: usize) -> Result<()> {
    let few = Scale { services: 1, instances: 10 }.measure(changes)?;
    few.print("10 instances of a service", None);
    for (scale, title) in [
        (Scale { services: 1_000, instances: 10_000 }, "10,000 instances of 1,000 services"),
        (Scale { services: 1, instances: 10_000 }, "10,000 instances of a service"),
    ] {
        let many = scale.measure(changes)?;
        many.print(title, Some(&few));
        println!(
            "  beside what was asked for: {:.2}x of what it costs among 10 ({MOST_RATIO}x at most)",
            many.to_haproxy.median() / few.to_haproxy.median()
        );
    }
    Ok(())
}

impl Costs {
    fn print(&self, title: &str, few: Option<&Costs>) {
        let floor = |of: fn(&Costs) -> &Figures| few.map(|few| of(few).median());
        heading(title);
        self.to_haproxy.print("put -> server in HAProxy", floor(|costs| &costs.to_haproxy));
        self.to_file.print("put -> file beside", floor(|costs| &costs.to_file));
        self.cpu.print("the consumer's CPU time, file and all", floor(|costs| &costs.cpu));
        self.telling.print("HAProxy: show servers state of the backend", floor(|costs| &costs.telling));
    }
}

impl Scale {
    fn service(self, number: usize) -> String {
        format!("service-{}", number % self.services)
    }

    fn instance(self, number: usize) -> Op {
        instance_of(&self.service(number), number, 8080)
    }

    fn measure(self, changes: usize) -> Result<Costs> {
        let (etcd, root) = (Etcd::start()?, tempfile::tempdir()?);
        let client = Client::new(&etcd)?;
        client.commit(&(0..self.instances).map(|number| self.instance(number)).collect::<Vec<_>>())?;
        let haproxy = Haproxy::start(Version::V2_8, root.path(), &self.config()?)?;
        let dir = ConsumerDir::empty()?;
        // Nobody is at the addresses, so that nobody is to be checked.
        dir.configure(&format!(
            "sink = \"haproxy\"\nformat = \"haproxy-backend\"\nruntime = {{ socket = {:?}, server_options = \"\" }}\n",
            haproxy.socket()
        ))?;
        let mut consumer = dir.start("bench", &["--etcd", &etcd.endpoint()])?;
        consumer.wait_file()?;
        let begun = Instant::now();
        until("HAProxy has all servers", FILL_TIMEOUT, || {
            let servers = haproxy.ask("show servers state")?;
            Ok(servers.lines().filter(|line| line.contains(":80:")).count() == self.instances)
        })?;
        println!("\n{self:?}: HAProxy was told of all within {:.1} s", begun.elapsed().as_secs_f64());
        thread::sleep(Duration::from_secs(2));
        let (file, mut costs) = (FileWatch::start(&consumer.dest())?, Costs::default());
        for change in 0..changes {
            thread::sleep(CHANGE_INTERVAL);
            let number = self.instances + change * 7;
            let mut eye = Eye::open(&haproxy.socket())?;
            let server = format!("h{}:container-{number}:80:{number:012x}", number / 50);
            let (place, cpu_before) = (format!("{}/{server}", self.service(number)), cpu(consumer.pid())?);
            let began = now();
            client.commit(&[self.instance(number)])?;
            costs.to_haproxy.add(eye.wait(&place)?.saturating_sub(began));
            let version = file.wait(|version| Ok(version.text()?.contains(&server)))?;
            costs.to_file.add(version.at.saturating_sub(began));
            thread::sleep(CHANGE_INTERVAL / 4);
            costs.cpu.add(Duration::from_secs_f64(cpu(consumer.pid())? - cpu_before));
            let begun = Instant::now();
            haproxy.ask(&format!("show servers state {}", self.service(number)))?;
            costs.telling.add(begun.elapsed());
        }
        Ok(costs)
    }

    fn config(self) -> Result<String> {
        let port = port::free(rollcall_tests::citus::HOST)?;
        let backend = |number| format!("backend {}\n    balance roundrobin\n", self.service(number));
        let backends: String = (0..self.services).map(backend).collect();
        Ok(format!("frontend all\n    bind 127.0.0.1:{port}\n    default_backend service-0\n{backends}"))
    }
}

/// A look at HAProxy that costs it little: one connection, and one server asked for.
struct Eye(BufReader<UnixStream>);

impl Eye {
    fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(CHANGE_TIMEOUT))?;
        let mut eye = Self(BufReader::new(stream));
        eye.ask("prompt")?;
        Ok(eye)
    }

    /// Waits until HAProxy has a server, and gives when, since 1970.
    fn wait(&mut self, place: &str) -> Result<Duration> {
        let begun = Instant::now();
        while !self.ask(&format!("get weight {place}"))?.contains("(initial ") {
            ensure!(begun.elapsed() < CHANGE_TIMEOUT, "{place} did not come");
            thread::sleep(LOOK_PAUSE);
        }
        Ok(now())
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        self.0.get_mut().write_all(format!("{command}\n").as_bytes())?;
        let mut answer = vec![];
        while !answer.ends_with(b"\n> ") {
            ensure!(self.0.read_until(b' ', &mut answer)? > 0, "HAProxy has hung up");
        }
        String::from_utf8(answer).context("its answers are text")
    }
}
