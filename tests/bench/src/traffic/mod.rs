//! Real traffic through a real proxy while the instances behind it come and go: what fails, what is cut, what reloads
//! cost, and how soon a new instance serves.

mod arrivals;
mod exchange;
mod fleet;
mod haproxy;
mod load;
mod nginx;
mod proxy;
mod report;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use rollcall_tests::{Etcd, http, until};

pub use proxy::ProxyKind;

use crate::clock::now;
use crate::consumer::ConsumerDir;
use crate::docker::bridge_address;
use crate::event::EventStream;
use crate::figures::Figures;
use crate::file_watch::FileWatch;
use crate::setup::start_agent_at;
use arrivals::Arrivals;
use load::Load;
use proxy::{Proxy, Sample};
use report::Report;

/// How long to wait until a proxy serves, and how long before the first and after the last change is measured.
const SERVE_TIMEOUT: Duration = Duration::from_secs(60);
const SETTLE_TIME: Duration = Duration::from_secs(3);
/// How often processes and memory are looked at.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);
/// How often the proxy's socket is asked a small question.
const ROUND_TRIPS: usize = 100;

/// Measures and prints one run.
pub fn run(kind: ProxyKind, changes: usize) -> Result<()> {
    let etcd = Etcd::start()?;
    let address = bridge_address()?;
    let _agent = start_agent_at(&etcd, &address.to_string())?;
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
    let (load, arrivals) = (Load::start(proxy.port), Arrivals::new(address));
    thread::sleep(SETTLE_TIME);
    let round_trips: Figures = proxy.round_trips(ROUND_TRIPS)?.into_iter().collect();
    let (first, account, reloads, begun) = (proxy.sample(), proxy.account()?, proxy.reloads(), now());
    let (come, most) = watched(&proxy, file, &arrivals, || fleet::change(changes, &arrivals))?;
    let report = Report {
        took: now() - begun,
        reloads: proxy.reloads() - reloads,
        samples: [first, most, proxy.sample()],
        accounts: [account, proxy.account()?],
        outcome: load.stop(),
        arrivals: arrivals.take(),
        round_trips,
    };
    println!("\n=== {kind:?}: {changes} changes, {} requests a second", load::RATE);
    report.print(kind, &come, &events.take())
}

/// Does something while the proxy and its file are watched, and for a while after; gives also the most that was seen.
fn watched<T>(
    proxy: &Proxy,
    file: FileWatch,
    arrivals: &Arrivals,
    act: impl FnOnce() -> Result<T>,
) -> Result<(T, Sample)> {
    let is_over = AtomicBool::new(false);
    // Before it is watched, nothing is new.
    drop(file.take());
    thread::scope(|scope| {
        let is_over = &is_over;
        let sampling = scope.spawn(move || {
            let mut most = Sample::default();
            while !is_over.load(Ordering::Relaxed) {
                let Sample { workers, draining, memory } = proxy.sample();
                most.workers = most.workers.max(workers);
                most.draining = most.draining.max(draining);
                most.memory = most.memory.max(memory);
                thread::sleep(SAMPLE_INTERVAL);
            }
            most
        });
        let following = scope.spawn(move || arrivals.follow(file, proxy.port, is_over));
        let done = act();
        thread::sleep(SETTLE_TIME);
        is_over.store(true, Ordering::Relaxed);
        following.join().expect("following does not panic")?;
        Ok((done?, sampling.join().expect("sampling does not panic")))
    })
}
