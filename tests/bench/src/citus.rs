//! How soon a Citus coordinator has a worker that is new or has moved, and what rounds without a change write. The
//! coordinator is PostgreSQL 15 with the tests' stand-in for Citus.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rollcall_shared::store::Op;
use rollcall_tests::citus::HOST;
use rollcall_tests::{Etcd, Postgres, http, port, until};

use crate::client::Client;
use crate::consumer::ConsumerDir;
use crate::figures::{Figures, heading};

/// How many workers come, and then move.
const WORKERS: usize = 8;
/// Rounds without a change, and how often there is one.
const QUIET_ROUNDS: f64 = 100.0;
const RECONCILE: &str = "100ms";
/// How long anything may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The pause between two looks at the coordinator, each of which starts psql.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// Measures and prints it.
pub fn run() -> Result<()> {
    let mut workers = Postgres::several(WORKERS + 1)?;
    let coordinator = workers.remove(0);
    coordinator.sql(&format!("SELECT citus_set_coordinator_host('{HOST}')"))?;
    let (etcd, listen) = (Etcd::start()?, format!("127.0.0.1:{}", port::free(Ipv4Addr::LOCALHOST.into())?));
    let client = Client::new(&etcd)?;
    let dir = ConsumerDir::empty()?;
    dir.configure_without_file(&format!(
        "sink = \"citus\"\nreconcile = {RECONCILE:?}\ncitus = {{ database = {:?} }}\n",
        coordinator.conninfo()
    ))?;
    let _consumer = dir.start_at(&listen, "bench-citus", &["--etcd", &etcd.endpoint()])?;
    until("the consumer has looked", TIMEOUT, || Ok(rounds(&listen)? > 1.0))?;
    let (mut added, mut moved) = (Figures::default(), Figures::default());
    for (number, worker) in workers.iter().enumerate() {
        let begun = Instant::now();
        client.commit(&[registration(number, worker.port())])?;
        wait_active(&coordinator, worker.port())?;
        added.add(begun.elapsed());
    }
    for (number, worker) in workers.iter_mut().enumerate() {
        let port = port::free(HOST)?;
        worker.stop()?;
        worker.start_again(port)?;
        let begun = Instant::now();
        client.commit(&[registration(number, port)])?;
        wait_active(&coordinator, port)?;
        moved.add(begun.elapsed());
    }
    let begun = Instant::now();
    coordinator.sql("SELECT 1")?;
    let look = begun.elapsed();
    let count = coordinator.sql("SELECT count(*) FROM pg_dist_node WHERE groupid <> 0")?;
    ensure!(count == WORKERS.to_string(), "each worker has kept its node: {count}");
    heading("Citus by SQL");
    added.print("put -> a new worker is active (1 s at most)", None);
    moved.print("put -> a worker that moved is active (5 s at most)", None);
    println!("    (a look, by psql, takes {:.0} ms of it)", look.as_secs_f64() * 1e3);
    print_quiet(&coordinator, &listen)
}

/// What is written while nothing changes.
fn print_quiet(coordinator: &Postgres, listen: &str) -> Result<()> {
    coordinator.sql("SELECT start_metadata_sync_to_all_nodes()")?;
    thread::sleep(Duration::from_secs(1));
    // Neither a checkpoint that is due nor hint bits of what was read for the first time.
    coordinator.sql("CHECKPOINT")?;
    let written = || coordinator.sql("SELECT pg_current_wal_insert_lsn()");
    let (before, first) = (written()?, rounds(listen)?);
    until("there were rounds enough", TIMEOUT, || Ok(rounds(listen)? >= first + QUIET_ROUNDS))?;
    let (after, rounds) = (written()?, rounds(listen)? - first);
    let bytes = coordinator.sql(&format!("SELECT pg_wal_lsn_diff('{after}', '{before}')"))?;
    println!("  {rounds} rounds without a change: {bytes} bytes of WAL (nothing is to be written)");
    Ok(())
}

/// Waits until a worker at this port is active.
fn wait_active(coordinator: &Postgres, port: u16) -> Result<()> {
    let begun = Instant::now();
    let sql = format!("SELECT count(*) FROM pg_dist_node WHERE nodeport = {port} AND isactive");
    while coordinator.sql(&sql)? != "1" {
        ensure!(begun.elapsed() < TIMEOUT, "the worker at {port} is not active");
        thread::sleep(LOOK_PAUSE);
    }
    Ok(())
}

/// How many rounds the consumer has done that changed nothing.
fn rounds(listen: &str) -> Result<f64> {
    let metrics = http::get(&format!("http://{listen}/metrics"))?.body;
    let line = metrics.lines().find_map(|line| line.strip_prefix("rollcall_consumer_unchanged_total{"));
    let Some(line) = line else { return Ok(0.0) };
    line.split(' ').next_back().and_then(|count| count.parse().ok()).with_context(|| line.to_owned())
}

/// The registration of a worker.
fn registration(number: usize, port: u16) -> Op {
    let id = format!("{number:012x}");
    let value = serde_json::json!({
        "v": 1, "service": "worker", "container": format!("w{number}"), "id": id, "image": "citus:12",
        "address": HOST, "port": port, "protocol": "tcp", "container_port": 5432, "status": "passing",
        "started_at": "2026-01-01T00:00:00Z",
    });
    Op::Put { key: format!("/rollcall/instances/h1/{id}/5432-tcp"), value: value.to_string().into() }
}
