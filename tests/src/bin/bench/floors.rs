//! The floors: what Docker, etcd, the disk and a signal cost by themselves, on this machine, now.

use std::fs::{self, File};
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use futures_util::StreamExt;
use rollcall_shared::store::{Op, Revision, Store, etcd::EtcdStore, settings::EtcdSettings};
use rollcall_tests::Etcd;

use crate::engine::{self, Made};
use crate::figures::{Figures, heading};

/// The medians, in ms.
#[derive(Debug, Clone, Copy)]
pub struct Floors {
    pub start_event: f64,
    pub die_event: f64,
    pub inspect: f64,
    pub etcd: f64,
    pub file: f64,
    pub kill: f64,
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    etcd: EtcdSettings,
}

/// A store at an etcd.
pub fn store(etcd: &Etcd) -> Result<EtcdStore> {
    let Cli { etcd } = Cli::try_parse_from(["bench", "--etcd", &etcd.endpoint()])?;
    Ok(EtcdStore::new(etcd)?)
}

/// Measures and prints them.
pub fn measure(runs: usize) -> Result<Floors> {
    heading("floors");
    let (mut start, mut die, mut inspect) = (Figures::default(), Figures::default(), Figures::default());
    let events = engine::events()?;
    let made = Made::new("bench-floor", &[], serde_json::json!({}), &[])?;
    for _ in 0..runs.min(30) {
        made.start()?;
        let event = engine::await_event(&events, &made.id, "start")?;
        start.add(event.read_at.saturating_sub(event.at));
        let asked = Instant::now();
        engine::call("GET", &format!("/containers/{}/json", made.id), None)?;
        inspect.add(asked.elapsed());
        made.kill()?;
        let event = engine::await_event(&events, &made.id, "die")?;
        die.add(event.read_at.saturating_sub(event.at));
    }
    drop(made);
    let etcd = etcd(runs)?;
    let file = file(runs)?;
    let kill = kill(runs)?;
    for (name, figures) in [
        ("start event delivery", &start),
        ("die event delivery", &die),
        ("inspect after start", &inspect),
        ("etcd put to watch", &etcd),
        ("2 KiB written, fsynced, renamed", &file),
        ("signal to a process, received", &kill),
    ] {
        figures.print(name, None);
    }
    Ok(Floors {
        start_event: start.median(),
        die_event: die.median(),
        inspect: inspect.median(),
        etcd: etcd.median(),
        file: file.median(),
        kill: kill.median(),
    })
}

fn etcd(runs: usize) -> Result<Figures> {
    let etcd = Etcd::start()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (writer, reader) = (store(&etcd)?, store(&etcd)?);
        let mut watch = reader.watch("/floor/", Revision(0)).await?;
        let mut figures = Figures::default();
        for _ in 0..runs {
            let put = Op::Put { key: "/floor/key".to_owned(), value: vec![b'x'; 400] };
            let began = Instant::now();
            let seen = async { watch.next().await.context("a change")?.map_err(anyhow::Error::from) };
            let put = [put];
            let written = async { writer.commit(&put, None, None).await.map_err(anyhow::Error::from) };
            // The reader's time counts, not the writer's answer.
            let (seen, written) = tokio::join!(async { (seen.await, began.elapsed()) }, written);
            seen.0?;
            written?;
            figures.add(seen.1);
        }
        Ok(figures)
    })
}

fn file(runs: usize) -> Result<Figures> {
    let dir = tempfile::tempdir()?;
    let (staged, dest) = (dir.path().join("staged"), dir.path().join("dest"));
    let mut figures = Figures::default();
    for _ in 0..runs {
        let began = Instant::now();
        let mut file = File::create(&staged)?;
        file.write_all(&[b'x'; 2048])?;
        file.sync_all()?;
        fs::rename(&staged, &dest)?;
        figures.add(began.elapsed());
    }
    Ok(figures)
}

/// A signal to a process of our own that writes the time down, as the bench's target does.
fn kill(runs: usize) -> Result<Figures> {
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("hups");
    let labels = serde_json::json!({});
    let binds = [format!("{}:/out", dir.path().display())];
    let made = Made::new("bench-floor-target", &["HUP_LOG=/out/hups"], labels, &binds)?;
    made.start()?;
    let pid = made.inspect()?["State"]["Pid"].as_i64().context("a PID")?;
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("a PID")?;
    std::thread::sleep(Duration::from_millis(300));
    let mut figures = Figures::default();
    for run in 0..runs.min(50) {
        let began = engine::now();
        rustix::process::kill_process(pid, rustix::process::Signal::HUP)?;
        let received = loop {
            let text = fs::read_to_string(&log).unwrap_or_default();
            if let Some(line) = text.lines().nth(run) {
                break Duration::from_nanos(line.parse()?);
            }
            std::thread::yield_now();
        };
        figures.add(received.saturating_sub(began));
    }
    Ok(figures)
}
