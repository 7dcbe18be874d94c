//! One change among many instances, and a cold start.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rollcall_shared::store::Op;
use rollcall_tests::{Etcd, Program};

use crate::client::Client;
use crate::clock::now;
use crate::consumer::ConsumerDir;
use crate::figures::{Figures, heading};
use crate::file_watch::FileWatch;

/// The time between two changes: longer than the file takes.
const SCALE_INTERVAL: Duration = Duration::from_millis(400);
/// The most cold starts, as each takes a while.
const MAX_COLD_STARTS: usize = 10;
/// The most files written by hand.
const MAX_FLOOR_RUNS: usize = 20;

/// Measures and prints 10,000 and 100,000 instances.
pub fn run(runs: usize) -> Result<()> {
    // Built now, and not while the first start is measured.
    Program::consumer()?;
    for count in [10_000, 100_000] {
        heading(&format!("{count} instances"));
        measure(count, runs)?;
    }
    Ok(())
}

fn measure(count: usize, runs: usize) -> Result<()> {
    let etcd = Etcd::start()?;
    let client = Client::new(&etcd)?;
    let ops: Vec<Op> = (0..count).map(|number| instance(number, 8080)).collect();
    client.commit(&ops)?;
    cold_starts(&etcd, runs.min(MAX_COLD_STARTS))?.print("cold start: process start to file", None);
    let mut consumer = ConsumerDir::new(false)?.start("bench", &["--etcd", &etcd.endpoint()])?;
    consumer.wait_file()?;
    thread::sleep(Duration::from_secs(1));
    changes(&client, &consumer.dest(), runs)?.print("one change: put to file", None);
    let size = fs::metadata(consumer.dest())?.len();
    let floor = file_floor(size, runs.min(MAX_FLOOR_RUNS))?;
    floor.print(&format!("  of it: {size} bytes written, fsynced, renamed"), None);
    Ok(())
}

/// Each with a folder and a name of its own, so that it finds neither a state nor a claim.
fn cold_starts(etcd: &Etcd, runs: usize) -> Result<Figures> {
    let mut figures = Figures::default();
    for run in 0..runs {
        let dir = ConsumerDir::new(false)?;
        let file = FileWatch::start(&dir.dest())?;
        let began = now();
        let _consumer = dir.start(&format!("bench-cold-{run}"), &["--etcd", &etcd.endpoint()])?;
        figures.add(file.wait(|_| Ok(true))?.at.saturating_sub(began));
    }
    Ok(figures)
}

fn changes(client: &Client, dest: &Path, runs: usize) -> Result<Figures> {
    let file = FileWatch::start(dest)?;
    let mut figures = Figures::default();
    for run in 0..runs {
        thread::sleep(SCALE_INTERVAL);
        let port = 20_000 + run;
        let op = instance(run * 7, port);
        let wanted = format!(":{port}");
        let began = now();
        client.commit(&[op])?;
        let version = file.wait(|version| Ok(version.text()?.contains(&wanted)))?;
        figures.add(version.at.saturating_sub(began));
    }
    Ok(figures)
}

/// What the disk alone takes for a file of that size.
fn file_floor(size: u64, runs: usize) -> Result<Figures> {
    let dir = tempfile::tempdir()?;
    let text = vec![b'x'; usize::try_from(size).context("the file is larger than memory")?];
    let mut figures = Figures::default();
    for _ in 0..runs {
        let began = Instant::now();
        let staged = dir.path().join("staged");
        let mut file = fs::File::create(&staged)?;
        std::io::Write::write_all(&mut file, &text)?;
        file.sync_all()?;
        fs::rename(&staged, dir.path().join("dest"))?;
        figures.add(began.elapsed());
    }
    Ok(figures)
}

/// The registration of an instance, one of 100 services.
fn instance(number: usize, port: usize) -> Op {
    instance_of(&format!("service-{}", number % 100), number, port)
}

/// The registration of an instance of a service, 50 to a node.
pub fn instance_of(service: &str, number: usize, port: usize) -> Op {
    let id = format!("{number:012x}");
    let address = format!("10.{}.{}.{}", number >> 16 & 255, number >> 8 & 255, number & 255);
    let value = serde_json::json!({
        "v": 1, "service": service, "container": format!("container-{number}"),
        "id": id, "image": "registry.example/team/app:1.2.3", "address": address, "port": port,
        "protocol": "tcp", "container_port": 80, "status": "passing",
        "started_at": "2026-01-02T03:04:05.678901234Z",
    });
    let key = format!("/rollcall/instances/h{}/{id}/80-tcp", number / 50);
    Op::Put { key, value: value.to_string().into() }
}
