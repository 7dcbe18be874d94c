//! Real traffic through a real proxy while the instances behind it come and go: what fails, what is cut, what reloads
//! cost, and how soon a new instance serves.

mod fleet;
mod load;
mod proxy;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rollcall_tests::{Etcd, http, until};

pub use proxy::ProxyKind;

use crate::clock::now;
use crate::consumer::ConsumerDir;
use crate::event::{Action, EventStream};
use crate::figures::{Figures, heading};
use crate::file_watch::FileWatch;
use crate::setup::start_agent;
use fleet::Come;
use load::{Load, Outcome};
use proxy::{Proxy, Sample};

/// How long to wait until a proxy serves, and how long after the last change is still measured.
const SERVE_TIMEOUT: Duration = Duration::from_secs(60);
const SETTLE_TIME: Duration = Duration::from_secs(3);
/// How often processes are counted and versions of the file are read.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);

/// What was seen of the proxy and of its file meanwhile.
#[derive(Debug, Default)]
struct Seen {
    most: Sample,
    /// When each port was in the file for the first time.
    in_file: BTreeMap<u16, Duration>,
}

/// Measures and prints one run.
pub fn run(kind: ProxyKind, changes: usize) -> Result<()> {
    let etcd = Etcd::start()?;
    let _agent = start_agent(&etcd)?;
    let _staying = fleet::staying()?;
    let dir = ConsumerDir::empty()?;
    let proxy = Proxy::start(kind, &dir.dest())?;
    dir.configure(&proxy.target())?;
    let file = FileWatch::start(&dir.dest())?;
    let _consumer = dir.start("bench-traffic", &["--etcd", &etcd.endpoint()])?;
    until("the proxy serves", SERVE_TIMEOUT, || {
        Ok(http::get(&format!("http://127.0.0.1:{}/", proxy.port))?.status == 200)
    })?;
    let events = EventStream::open()?;
    let load = Load::start(proxy.port);
    thread::sleep(SETTLE_TIME);
    let (memory, reloads, begun) = (proxy.memory(), proxy.reloads(), now());
    let (come, seen) = watched(&proxy, file, || fleet::change(changes))?;
    let took = now() - begun;
    let (memory_after, reloads) = (proxy.memory(), proxy.reloads() - reloads);
    let outcome = load.stop();
    println!(
        "\n=== {kind:?}: {changes} changes in {:.0} s, {} requests a second",
        took.as_secs_f64(),
        load::RATE
    );
    print_requests(&outcome);
    println!(
        "  {reloads} reloads; at most {} worker processes, {} of them shutting down; {memory:.1} MB, in the end \
         {memory_after:.1} MB",
        seen.most.workers, seen.most.draining
    );
    print_times(&come, &seen, &outcome, &events)
}

/// Does something while the proxy and its file are watched, and for a while after.
fn watched<T>(proxy: &Proxy, file: FileWatch, act: impl FnOnce() -> Result<T>) -> Result<(T, Seen)> {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let is_over = &is_over;
        let watching = scope.spawn(move || -> Result<Seen> {
            let mut seen = Seen::default();
            while !is_over.load(Ordering::Relaxed) {
                let Sample { workers, draining } = proxy.sample();
                seen.most.workers = seen.most.workers.max(workers);
                seen.most.draining = seen.most.draining.max(draining);
                for version in file.take() {
                    for port in version.ports()? {
                        seen.in_file.entry(port).or_insert(version.at);
                    }
                }
                thread::sleep(SAMPLE_INTERVAL);
            }
            Ok(seen)
        });
        let done = act();
        thread::sleep(SETTLE_TIME);
        is_over.store(true, Ordering::Relaxed);
        let seen = watching.join().expect("watching does not panic")?;
        Ok((done?, seen))
    })
}

fn print_requests(outcome: &Outcome) {
    println!("  {} requests, {} failed", outcome.requests(), outcome.failed());
    for (reason, count) in &outcome.failures {
        println!("    {count} x {reason}");
    }
    println!(
        "  connections: {} cut while a request was on its way, {} cut while idle, {} ended as announced",
        outcome.cut_busy, outcome.cut_idle, outcome.ended
    );
}

fn print_times(come: &[Come], seen: &Seen, outcome: &Outcome, events: &EventStream) -> Result<()> {
    let started = events.take();
    let (mut to_file, mut to_served) = (Figures::default(), Figures::default());
    for Come { id, port } in come {
        let start = started.iter().find(|event| event.id == *id && event.action == Action::Start);
        let start = start.with_context(|| format!("no start of {id} was told"))?.at;
        if let Some(at) = seen.in_file.get(port) {
            to_file.add(at.saturating_sub(start));
        }
        if let Some(at) = outcome.first_served.get(&id[..12]) {
            to_served.add(at.saturating_sub(start));
        }
    }
    let unserved = load::unserved(outcome, come.iter().map(|come| &come.id[..12])).len();
    heading(&format!("{} workers that came, {unserved} of which never served", come.len()));
    to_file.print("start -> file", None);
    to_served.print("start -> first request served", Some(to_file.median()));
    outcome.latencies.iter().copied().collect::<Figures>().print("a request", None);
    Ok(())
}
