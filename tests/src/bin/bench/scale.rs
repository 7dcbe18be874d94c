//! One change among many instances, and a cold start.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rollcall_shared::store::{Op, Store};
use rollcall_tests::{Etcd, Program, until};

use crate::engine::now;
use crate::figures::{Figures, heading};
use crate::stage::{self, config_text};
use crate::{floors, watched};

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

fn instance(number: usize, port: usize) -> Op {
    let id = format!("{number:012x}");
    let service = number % 100;
    let value = serde_json::json!({
        "v": 1, "service": format!("service-{service}"), "container": format!("container-{number}"), "id": id,
        "image": "registry.example/team/app:1.2.3", "address": format!("10.{}.{}.{}", number >> 16 & 255, number >> 8 & 255, number & 255),
        "port": port, "protocol": "tcp", "container_port": 80, "status": "passing",
        "started_at": "2026-01-02T03:04:05.678901234Z",
    });
    Op::Put {
        key: format!("/rollcall/instances/h{}/{id}/80-tcp", number / 50),
        value: value.to_string().into(),
    }
}

fn measure(count: usize, runs: usize) -> Result<()> {
    let etcd = Etcd::start()?;
    let store = floors::store(&etcd)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ops: Vec<Op> = (0..count).map(|number| instance(number, 8080)).collect();
    runtime.block_on(store.commit(&ops, None, None))?;
    let dir = tempfile::tempdir()?;
    let (file, config) = (dir.path().join("upstream.conf"), dir.path().join("targets.toml"));
    fs::write(&config, config_text(&file, false))?;
    let start = || stage::consumer(&config, &["--etcd", &etcd.endpoint()]);
    let mut cold = Figures::default();
    for _ in 0..runs.min(10) {
        fs::remove_file(&file).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        let versions = watched::watch(&file)?;
        let began = now();
        let consumer = start()?;
        cold.add(watched::await_version(&versions, |_| true)?.at.saturating_sub(began));
        drop(consumer);
    }
    cold.print("cold start: process start to file", None);
    let _consumer = start()?;
    until("the consumer is there", Duration::from_secs(30), || Ok(file.exists()))?;
    std::thread::sleep(Duration::from_secs(1));
    let versions = watched::watch(&file)?;
    let mut change = Figures::default();
    for run in 0..runs {
        std::thread::sleep(Duration::from_millis(400));
        let port = 20_000 + run;
        let op = instance(run * 7, port);
        let began = now();
        runtime.block_on(store.commit(&[op], None, None))?;
        let wanted = format!(":{port}");
        change
            .add(watched::await_version(&versions, |text| text.contains(&wanted))?.at.saturating_sub(began));
    }
    change.print("one change: put to file", None);
    let size = fs::metadata(&file)?.len();
    let mut floor = Figures::default();
    let text = vec![b'x'; usize::try_from(size).context("a size")?];
    for _ in 0..runs.min(20) {
        let began = Instant::now();
        let staged = dir.path().join("staged");
        let mut staged_file = fs::File::create(&staged)?;
        std::io::Write::write_all(&mut staged_file, &text)?;
        staged_file.sync_all()?;
        fs::rename(&staged, dir.path().join("floor"))?;
        floor.add(began.elapsed());
    }
    floor.print(&format!("  of it: {size} bytes written, fsynced, renamed"), None);
    Ok(())
}
