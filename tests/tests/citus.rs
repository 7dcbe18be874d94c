//! Citus by SQL, on PostgreSQL 15 with an extension that stands in for Citus.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rollcall_consumer::roll::Row;
use rollcall_consumer::sink::citus::{
    CitusProgram, RawCitus, conninfo::Conninfo, coordinator, drain, libpq, session::Session,
};
use rollcall_consumer::sink::program::{Desired, Plan, Program, Scope};
use rollcall_shared::model::instance::{Endpoint, InstanceId, Protocol};
use rollcall_tests::citus::HOST;
use rollcall_tests::{Postgres, Tls, until};
use serde_json::json;

const TIMEOUT: Duration = Duration::from_secs(20);

/// A coordinator whose host is set, and workers.
struct Cluster {
    coordinator: Postgres,
    workers: Vec<Postgres>,
    runtime: tokio::runtime::Runtime,
}

impl Cluster {
    fn new(workers: usize) -> Result<Self> {
        let mut workers = Postgres::several(workers + 1)?;
        let coordinator = workers.remove(0);
        coordinator.sql(&format!("SELECT citus_set_coordinator_host('{HOST}')"))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self { coordinator, workers, runtime })
    }

    fn program(&self) -> Result<CitusProgram> {
        program(&self.coordinator.conninfo(), "")
    }

    /// Observes, plans and applies, as the reconciler does: what was done, and what is left afterwards.
    fn round(&self, program: &mut CitusProgram, rows: &[Row]) -> Result<Round> {
        let desired = desired(rows);
        let observe_and_plan = |program: &mut CitusProgram| -> Result<Plan<_>> {
            let observed =
                self.runtime.block_on(program.observe(&desired.scope)).map_err(|error| anyhow!(error))?;
            Ok(program.plan(&desired, &observed))
        };
        let plan = observe_and_plan(program)?;
        for step in &plan.steps {
            self.runtime.block_on(program.apply(step)).map_err(|error| anyhow!(error))?;
        }
        let left = observe_and_plan(program)?;
        let steps = plan.steps.iter().map(ToString::to_string).collect();
        let left_steps: Vec<_> = left.steps.iter().map(ToString::to_string).collect();
        assert_eq!(left_steps, Vec::<String>::new(), "what was applied is read back");
        Ok(Round { steps, refusals: left.refusals, notes: left.notes, look_again: left.look_again })
    }

    /// A round that does all that it is to.
    fn settle(&self, program: &mut CitusProgram, rows: &[Row]) -> Result<Vec<String>> {
        let round = self.round(program, rows)?;
        assert_eq!(round.refusals, Vec::<String>::new());
        Ok(round.steps)
    }

    /// Rows of the workers, named w0, w1 and so on.
    fn rows(&self) -> Vec<Row> {
        self.workers.iter().enumerate().map(|(n, worker)| row(&format!("w{n}"), n, worker.port())).collect()
    }

    /// Node IDs and ports of the workers, in the order of their IDs.
    fn nodes(&self) -> Result<Vec<(i32, u16)>> {
        let rows = self
            .coordinator
            .sql("SELECT nodeid, nodeport FROM pg_dist_node WHERE groupid <> 0 ORDER BY nodeid")?;
        let node = |line: &str| -> Result<(i32, u16)> {
            let (id, port) = line.split_once('|').context("two columns")?;
            Ok((id.parse()?, port.parse()?))
        };
        rows.lines().map(node).collect()
    }

    /// What Citus's maintenance daemon does every few seconds.
    fn sync(&self) -> Result<()> {
        self.coordinator.sql("SELECT start_metadata_sync_to_all_nodes()").map(drop)
    }
}

#[derive(Debug)]
struct Round {
    steps: Vec<String>,
    refusals: Vec<String>,
    notes: Vec<String>,
    look_again: Option<Duration>,
}

fn program(conninfo: &str, more: &str) -> Result<CitusProgram> {
    let raw: RawCitus = toml::from_str(&format!("database = {conninfo:?}\n{more}"))?;
    Ok(CitusProgram::new(raw.parse()?))
}

fn desired(rows: &[Row]) -> Desired {
    let services = match rows.first() {
        Some(row) => BTreeMap::from([(row.instance.service.clone(), rows.to_vec())]),
        None => BTreeMap::new(),
    };
    Desired { scope: Scope::All, services }
}

/// A passing container of this name on node h1. Its number is that of its ID.
fn row(container: &str, number: usize, port: u16) -> Row {
    let id = format!("{number:012x}");
    let instance = json!({
        "v": 1, "service": "worker", "container": container, "id": id, "image": "citus:12", "address": HOST,
        "port": port, "protocol": "tcp", "container_port": 5432, "status": "passing",
        "started_at": "2026-01-01T00:00:00Z",
    });
    let id = InstanceId {
        node: "h1".parse().expect("a name"),
        container: id.parse().expect("an ID"),
        port: 5432,
        protocol: Protocol::Tcp,
    };
    Row {
        id: Arc::new(id),
        endpoint: Endpoint { address: rollcall_shared::model::instance::Address::Ip(HOST), port },
        instance: Arc::new(serde_json::from_value(instance).expect("an instance")),
        since: 0,
    }
}

fn only(lines: &[String]) -> &str {
    let [line] = lines else { panic!("one line: {lines:#?}") };
    assert!(!line.contains('\n'), "{line}");
    line
}

fn fails(round: Result<Round>) -> String {
    let text = format!("{:#}", round.expect_err("it fails"));
    assert!(!text.contains('\n'), "{text}");
    text
}

#[test]
fn a_passing_worker_is_added_and_is_active_and_then_nothing_is_written() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let mut program = cluster.program()?;
    let begun = Instant::now();
    assert_eq!(cluster.settle(&mut program, &cluster.rows())?.len(), 1, "both are asked and added at once");
    println!("two workers were added after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(cluster.coordinator.sql("SELECT count(*) FROM master_get_active_worker_nodes()")?, "2");
    let recorded =
        "SELECT count(*) FROM rollcall.citus_worker JOIN pg_dist_node ON nodeid = node_id WHERE node = 'h1'";
    assert_eq!(cluster.coordinator.sql(recorded)?, "2");

    // Nothing else writes: neither a checkpoint that is due nor hint bits of what was read for the first time.
    cluster.coordinator.sql("CHECKPOINT")?;
    let written = || cluster.coordinator.sql("SELECT pg_current_wal_insert_lsn()");
    let (before, begun) = (written()?, Instant::now());
    for _ in 0..100 {
        assert_eq!(cluster.settle(&mut program, &cluster.rows())?, Vec::<String>::new());
    }
    println!("100 rounds took {:?}", begun.elapsed());
    assert_eq!(written()?, before);
    // Another consumer, as after a restart, finds all in place.
    assert_eq!(cluster.settle(&mut cluster.program()?, &cluster.rows())?, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_worker_that_moved_keeps_its_node_and_a_new_one_waits_for_the_metadata() -> Result<()> {
    let mut cluster = Cluster::new(3)?;
    let mut program = cluster.program()?;
    let late = cluster.workers.pop().context("three")?;
    cluster.settle(&mut program, &cluster.rows())?;
    let before = cluster.nodes()?;
    cluster.workers[0].stop()?;
    let gone = cluster.round(&mut program, &cluster.rows()[1..])?;
    assert_eq!(gone.steps, Vec::<String>::new());
    assert!(only(&gone.notes).ends_with("worker h1/w0 is gone; the node stays as it is"), "{gone:?}");

    let port = rollcall_tests::port::free(HOST)?;
    cluster.workers[0].start_again(port)?;
    // The container that has its volume now is another one, of the same name.
    let rows = [row("w0", 7, port), cluster.rows()[1].clone(), row("w9", 9, late.port())];
    let begun = Instant::now();
    let round = cluster.round(&mut program, &rows)?;
    println!("a worker had moved after {:?}", begun.elapsed());
    assert_eq!(cluster.nodes()?, [(before[0].0, port), before[1]]);
    assert!(only(&round.refusals).contains("w9 at 127.0.0.1:"), "{round:?}");
    assert!(only(&round.refusals).contains("is not added yet: the metadata of node "), "{round:?}");
    assert_eq!(round.look_again, Some(Duration::from_secs(1)));
    cluster.sync()?;
    cluster.settle(&mut program, &rows)?;
    assert_eq!(cluster.nodes()?.len(), 3);
    Ok(())
}

#[test]
fn a_worker_that_does_not_listen_yet_is_asked_again_soon_whether_it_is_new_or_has_moved() -> Result<()> {
    let mut cluster = Cluster::new(2)?;
    let mut program = cluster.program()?;
    let rows = cluster.rows();
    cluster.workers[1].stop()?;
    // The same container at another port, as "docker start" makes it.
    let moved = rollcall_tests::port::free(HOST)?;
    for (number, port) in [(1, cluster.workers[1].port()), (0, moved)] {
        let mut rows = rows.clone();
        rows[0] = row("w0", 0, if number == 0 { port } else { rows[0].endpoint.port });
        if number == 0 {
            cluster.workers[0].stop()?;
        }
        let round = cluster.round(&mut program, &rows)?;
        let refusal = only(&round.refusals);
        assert!(refusal.contains("does not say who it is: cannot connect to"), "{round:?}");
        assert!(round.look_again < Some(Duration::from_millis(500)), "{round:?}");
        cluster.workers[number].start_again(port)?;
        let begun = Instant::now();
        until("it is in its place", TIMEOUT, || {
            let round = cluster.round(&mut program, &rows)?;
            Ok(round.refusals.is_empty() && cluster.nodes()?.iter().any(|node| node.1 == port))
        })?;
        println!("worker {number} listens -> in its place: {:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
    assert_eq!(cluster.nodes()?.len(), 2);
    Ok(())
}

#[test]
fn two_workers_that_swap_their_addresses_are_moved_in_one_transaction() -> Result<()> {
    let mut cluster = Cluster::new(2)?;
    let mut program = cluster.program()?;
    cluster.settle(&mut program, &cluster.rows())?;
    let before = cluster.nodes()?;
    let (a, b) = (cluster.workers[0].port(), cluster.workers[1].port());
    cluster.workers[0].stop()?;
    cluster.workers[1].stop()?;
    cluster.workers[0].start_again(b)?;
    cluster.workers[1].start_again(a)?;
    let rows = [row("w0", 10, b), row("w1", 11, a)];
    cluster.settle(&mut program, &rows)?;
    assert_eq!(cluster.nodes()?, [(before[0].0, before[1].1), (before[1].0, before[0].1)]);
    Ok(())
}

#[test]
fn an_empty_volume_a_copy_a_stranger_and_a_standby_are_refused_by_name() -> Result<()> {
    let mut cluster = Cluster::new(2)?;
    let mut program = cluster.program()?;
    let other = cluster.workers.pop().context("two")?;
    cluster.settle(&mut program, &cluster.rows())?;
    let before = cluster.nodes()?;
    let first = cluster.rows()[0].clone();

    // Under the old name, at another address and then at the old one.
    let empty = cluster.round(&mut program, &[row("w0", 20, other.port())])?;
    assert!(only(&empty.refusals).contains("which goes by this name, has "), "{empty:?}");
    let copy = cluster.workers[0].copy(false)?;
    let round = cluster.round(&mut program, &[first.clone(), row("w5", 21, copy.port())])?;
    assert!(only(&round.refusals).contains("one of them is a copy"), "{round:?}");
    drop(copy);
    let standby = cluster.workers[0].copy(true)?;
    let round = cluster.round(&mut program, &[first.clone(), row("w6", 22, standby.port())])?;
    assert!(only(&round.refusals).ends_with("it is a read-only standby"), "{round:?}");
    drop(standby);
    // A coordinator is of group 0 as well, and being added as a worker would wipe its metadata.
    other.sql(
        "SELECT citus_set_coordinator_host('127.0.0.1'); SELECT citus_add_inactive_node('10.9.9.9', 5432)",
    )?;
    let round = cluster.round(&mut program, &[first.clone(), row("w9", 26, other.port())])?;
    assert!(only(&round.refusals).contains("it has nodes or distributed tables of its own"), "{round:?}");
    other.sql("UPDATE pg_dist_local_group SET groupid = 3")?;
    let round = cluster.round(&mut program, &[first.clone(), row("w7", 23, other.port())])?;
    assert!(only(&round.refusals).contains("it is of group 3 of a cluster"), "{round:?}");
    let round = cluster.round(&mut program, &[first.clone(), row("c", 24, cluster.coordinator.port())])?;
    assert!(only(&round.refusals).contains("it is the coordinator itself"), "{round:?}");
    let again = cluster.round(&mut program, &[first.clone(), row("c", 24, cluster.coordinator.port())])?;
    assert_eq!((again.steps.len(), again.refusals), (0, round.refusals), "nobody is asked at each round");
    let nobody = rollcall_tests::port::free(HOST)?;
    let round = cluster.round(&mut program, &[first, row("w8", 25, nobody)])?;
    assert!(only(&round.refusals).contains("it does not say who it is: cannot connect to"), "{round:?}");
    assert!(only(&round.refusals).contains("Connection refused"), "{round:?}");
    assert_eq!(cluster.nodes()?, before);
    Ok(())
}

#[test]
fn an_empty_volume_at_the_old_address_is_refused() -> Result<()> {
    let mut cluster = Cluster::new(2)?;
    let mut program = cluster.program()?;
    let mut other = cluster.workers.pop().context("two")?;
    cluster.settle(&mut program, &cluster.rows())?;
    let port = cluster.workers[0].port();
    cluster.workers[0].stop()?;
    other.stop()?;
    other.start_again(port)?;
    let round = cluster.round(&mut program, &[row("w0", 30, port)])?;
    assert!(only(&round.refusals).contains("whose address it has, has "), "{round:?}");
    Ok(())
}

#[test]
fn a_node_made_by_hand_is_left_alone_and_adopted_where_its_worker_is_ours() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let mut program = cluster.program()?;
    let rows = cluster.rows();
    for worker in &cluster.workers {
        cluster.coordinator.sql(&format!("SELECT citus_add_node('{HOST}', {})", worker.port()))?;
    }
    let before = cluster.nodes()?;
    let round = cluster.round(&mut program, &rows[..1])?;
    assert!(only(&round.notes).ends_with("was made by hand and is left alone"), "{round:?}");
    assert_eq!(cluster.nodes()?, before);
    assert_eq!(
        cluster.coordinator.sql("SELECT node_id FROM rollcall.citus_worker")?,
        before[0].0.to_string()
    );

    // An operator's word is not overruled.
    cluster
        .coordinator
        .sql(&format!("SELECT citus_disable_node('{HOST}', {})", cluster.workers[0].port()))?;
    let round = cluster.round(&mut program, &rows)?;
    assert!(
        only(&round.refusals).contains("is inactive: SELECT citus_activate_node('127.0.0.1', "),
        "{round:?}"
    );
    Ok(())
}

#[test]
fn a_worker_that_is_a_node_under_another_name_is_not_added_twice() -> Result<()> {
    let mut cluster = Cluster::new(2)?;
    let mut program = cluster.program()?;
    let port = cluster.workers[0].port();
    cluster.coordinator.sql(&format!("SELECT citus_add_node('localhost', {port})"))?;
    let round = cluster.round(&mut program, &cluster.rows()[..1])?;
    let refusal = only(&round.refusals);
    assert!(refusal.contains("; if it is node "), "{refusal}");
    assert!(
        refusal.contains(&format!("citus_update_node(2, '{HOST}', {port}) gives it this address")),
        "{refusal}"
    );
    // As before Citus 11: neither side knows.
    cluster
        .coordinator
        .sql("UPDATE pg_dist_node SET hasmetadata = false, metadatasynced = false WHERE groupid <> 0")?;
    cluster.workers[0].sql("UPDATE pg_dist_local_group SET groupid = 0; DELETE FROM pg_dist_node")?;
    let before = cluster.nodes()?;
    let mut program = cluster.program()?;
    let text = fails(cluster.round(&mut program, &cluster.rows()[..1]));
    assert!(
        text.contains(&format!("it is node 2 (localhost:{port}) already, under another address")),
        "{text}"
    );
    assert_eq!(cluster.nodes()?, before);
    // Another one is added, unless nobody can tell whether it is another one.
    cluster.settle(&mut program, &cluster.rows()[1..])?;
    assert_eq!(cluster.nodes()?.len(), 2);
    cluster.workers[0].stop()?;
    let third = Postgres::citus()?;
    let text = fails(cluster.round(&mut program, &[row("w2", 50, third.port())]));
    assert!(text.contains("it may be node 2 (localhost:"), "{text}");
    Ok(())
}

#[test]
fn what_is_wrong_with_a_coordinator_is_said_on_one_line_and_nothing_is_changed() -> Result<()> {
    let cluster = Cluster::new(1)?;
    let (coordinator, rows) = (&cluster.coordinator, cluster.rows());
    coordinator.sql("CREATE ROLE plain LOGIN PASSWORD 'right'")?;
    coordinator.sql("CREATE DATABASE bare")?;
    let at = |text: &str| format!("host={HOST} port={} sslmode=disable {text}", coordinator.port());
    let says = |conninfo: &str, expected: &str| -> Result<()> {
        let text = fails(cluster.round(&mut program(conninfo, "")?, &rows));
        assert!(text.contains(expected), "{text}\n{expected}");
        Ok(())
    };
    says(&at("dbname=none user=postgres"), "the database is absent (database \"none\" does not exist)")?;
    says(&at("dbname=bare user=postgres"), "has no Citus: CREATE EXTENSION citus adds it")?;
    says(&at("dbname=app user=plain"), "permission denied: user \"plain\" at 127.0.0.1:")?;
    says(&cluster.workers[0].conninfo(), "the coordinator's own host is not set at 127.0.0.1:")?;
    says(&format!("host={HOST} port=1 user=postgres"), "Connection refused")?;
    coordinator.set_access("host all postgres all trust\nhost all all all scram-sha-256\n")?;
    says(
        &at("dbname=app user=plain password=wrong"),
        "the password is wrong (password authentication failed",
    )?;
    let dir = tempfile::tempdir()?;
    let pgpass = dir.path().join("pgpass");
    fs::write(&pgpass, "*:*:*:plain:right\n")?;
    let with_file = at(&format!("dbname=app user=plain passfile={}", pgpass.display()));
    fs::set_permissions(&pgpass, fs::Permissions::from_mode(0o644))?;
    says(&with_file, "has mode 0644, so it is not read: expected 0600 or less")?;
    fs::set_permissions(&pgpass, fs::Permissions::from_mode(0o600))?;
    says(&with_file, "permission denied: user \"plain\"")?;
    coordinator.sql(
        "GRANT EXECUTE ON FUNCTION citus_add_node(text, int, int, noderole, name), \
         citus_update_node(int, text, int, bool, int) TO plain; GRANT CREATE ON DATABASE app TO plain; \
         GRANT EXECUTE ON FUNCTION pg_control_system() TO plain",
    )?;
    cluster.workers[0].sql("CREATE ROLE plain LOGIN")?;
    says(&with_file, "permission denied (")?;
    coordinator.sql("SELECT citus_set_coordinator_host('localhost')")?;
    let round = cluster.round(&mut cluster.program()?, &rows)?;
    assert!(only(&round.refusals).contains("the coordinator's own host is set to localhost"), "{round:?}");
    assert_eq!(cluster.nodes()?, []);
    Ok(())
}

#[test]
fn servers_that_answer_nonsense_or_nothing_are_named_and_hold_up_no_other() -> Result<()> {
    let cluster = Cluster::new(1)?;
    let (nonsense, silent) = (TcpListener::bind((HOST, 0))?, TcpListener::bind((HOST, 0))?);
    let ports = [nonsense.local_addr()?.port(), silent.local_addr()?.port()];
    std::thread::spawn(move || {
        for mut stream in nonsense.incoming().flatten() {
            // Whoever has gone already needs no answer.
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    for (port, expected) in ports.into_iter().zip(["not PostgreSQL", "no answer within 1s"]) {
        let conninfo = format!("host={HOST} port={port} user=postgres connect_timeout=1");
        let text = fails(cluster.round(&mut program(&conninfo, "")?, &cluster.rows()));
        assert!(text.starts_with(&format!("cannot connect to {HOST}:{port}: ")), "{text}");
        assert!(text.contains(expected), "{text}");
        println!("{text}");
    }
    let rows = [row("a", 50, ports[0]), row("b", 51, ports[1]), cluster.rows()[0].clone()];
    let round = cluster.round(&mut cluster.program()?, &rows)?;
    assert_eq!((round.refusals.len(), cluster.nodes()?.len()), (2, 1), "{round:?}");
    Ok(())
}

#[test]
fn a_lock_that_another_holds_and_a_statement_that_takes_too_long_end_the_round_and_nothing_else() -> Result<()>
{
    let cluster = Cluster::new(1)?;
    let other = cluster.runtime.block_on(session(&cluster.coordinator))?;
    let run = |sql: &str| cluster.runtime.block_on(other.batch("test", sql)).map_err(anyhow::Error::from);
    let mut program = program(&cluster.coordinator.conninfo(), "statement_timeout = '500ms'")?;
    let key = i64::from_be_bytes(*b"rollcall");
    run(&format!("SELECT pg_advisory_lock({key})"))?;
    let text = fails(cluster.round(&mut program, &cluster.rows()));
    assert_eq!(text, "another consumer is at work on this coordinator");
    run(&format!("SELECT pg_advisory_unlock({key})"))?;

    run("BEGIN; LOCK TABLE pg_dist_node IN EXCLUSIVE MODE")?;
    let text = fails(cluster.round(&mut program, &cluster.rows()));
    assert!(text.contains("it took longer than statement_timeout"), "{text}");
    assert_eq!(cluster.nodes()?, []);
    assert_eq!(cluster.coordinator.sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")?, "0");
    run("ROLLBACK")?;
    cluster.settle(&mut program, &cluster.rows())?;
    assert_eq!(cluster.nodes()?.len(), 1);
    Ok(())
}

#[test]
fn a_move_that_others_hold_up_is_forced_after_its_time_only() -> Result<()> {
    let mut cluster = Cluster::new(1)?;
    let more = "statement_timeout = '1s'\nforce_after = '1500ms'\nlock_cooldown = '100ms'";
    let mut program = program(&cluster.coordinator.conninfo(), more)?;
    cluster.settle(&mut program, &cluster.rows())?;
    let other = cluster.runtime.block_on(session(&cluster.coordinator))?;
    let hold = "BEGIN; LOCK TABLE pg_dist_placement IN ROW EXCLUSIVE MODE";
    cluster.runtime.block_on(other.batch("test", hold))?;
    let port = rollcall_tests::port::free(HOST)?;
    cluster.workers[0].stop()?;
    cluster.workers[0].start_again(port)?;
    let begun = Instant::now();
    let text = fails(cluster.round(&mut program, &cluster.rows()));
    assert!(text.contains("it took longer than statement_timeout"), "{text}");
    assert!(!other.has_ended());
    until("the move is forced", TIMEOUT, || cluster.settle(&mut program, &cluster.rows()).map(|_| true))?;
    assert!(begun.elapsed() > Duration::from_millis(1500));
    assert_eq!(cluster.nodes()?[0].1, port);
    until("the holder is cut off", TIMEOUT, || Ok(other.has_ended()))
}

#[test]
fn a_worker_that_was_mended_is_noticed_and_nodes_that_changed_since_the_look_are_looked_at_anew() -> Result<()>
{
    let cluster = Cluster::new(1)?;
    let mut program = cluster.program()?;
    let (worker, rows) = (&cluster.workers[0], cluster.rows());
    worker.sql("UPDATE pg_dist_local_group SET groupid = 3")?;
    let round = cluster.round(&mut program, &rows)?;
    assert!(only(&round.refusals).contains("it is of group 3 of a cluster"), "{round:?}");
    worker.sql("UPDATE pg_dist_local_group SET groupid = 0")?;
    let desired = desired(&rows);
    let plan = until("it is asked again", TIMEOUT, || {
        let observed =
            cluster.runtime.block_on(program.observe(&desired.scope)).map_err(|error| anyhow!(error))?;
        let plan = program.plan(&desired, &observed);
        Ok((!plan.steps.is_empty()).then_some(plan))
    })?;
    assert!(plan.steps[0].to_string().starts_with("add worker h1/w0 at "), "{plan:?}");
    cluster.coordinator.sql("SELECT citus_set_coordinator_host('localhost')")?;
    let error = cluster.runtime.block_on(program.apply(&plan.steps[0])).expect_err("it was another plan");
    assert_eq!(error.to_string(), "somebody else changed the coordinator's nodes meanwhile");
    assert_eq!(cluster.coordinator.sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")?, "0");
    cluster.coordinator.sql(&format!("SELECT citus_set_coordinator_host('{HOST}')"))?;
    cluster.settle(&mut program, &rows)?;
    assert_eq!(cluster.nodes()?.len(), 1);
    Ok(())
}

#[test]
fn a_connection_that_dies_in_the_middle_of_a_step_leaves_nothing_half_done() -> Result<()> {
    let cluster = Cluster::new(1)?;
    let mut program = cluster.program()?;
    cluster.settle(&mut program, &[])?;
    let other = cluster.runtime.block_on(session(&cluster.coordinator))?;
    cluster.runtime.block_on(other.batch("test", "BEGIN; LOCK TABLE pg_dist_node IN EXCLUSIVE MODE"))?;
    let killed = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            until("the step is cut off", TIMEOUT, || {
                let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                            WHERE application_name = 'rollcall-consumer' AND wait_event_type = 'Lock'";
                Ok(cluster.coordinator.sql(kill)? == "1")
            })
        });
        let text = fails(cluster.round(&mut program, &cluster.rows()));
        assert!(text.contains("the server was told to end the connection"), "{text}");
        killer.join().expect("it does not panic")
    });
    killed?;
    assert_eq!(cluster.nodes()?, []);
    cluster.runtime.block_on(other.batch("test", "ROLLBACK"))?;
    cluster.settle(&mut program, &cluster.rows())?;
    assert_eq!(cluster.nodes()?.len(), 1);
    Ok(())
}

#[test]
fn a_restart_of_the_coordinator_is_noticed() -> Result<()> {
    let mut cluster = Cluster::new(1)?;
    let mut program = cluster.program()?;
    cluster.settle(&mut program, &cluster.rows())?;
    let port = cluster.coordinator.port();
    cluster.coordinator.stop()?;
    cluster.runtime.block_on(async { tokio::time::timeout(TIMEOUT, program.restarted()).await })?;
    let text = fails(cluster.round(&mut program, &cluster.rows()));
    assert!(text.contains("Connection refused"), "{text}");
    cluster.coordinator.start_again(port)?;
    assert_eq!(cluster.settle(&mut program, &cluster.rows())?, Vec::<String>::new());
    Ok(())
}

#[test]
fn draining_is_the_operators_word_and_the_worker_stays_out_until_it_is_let_in_again() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let mut program = cluster.program()?;
    cluster.settle(&mut program, &cluster.rows())?;
    cluster.coordinator.sql(
        "CREATE TABLE public.t (); \
         INSERT INTO pg_dist_partition VALUES ('public.t', 'h'); \
         INSERT INTO pg_dist_shard VALUES ('public.t', 1, 't'), ('public.t', 2, 't'); \
         INSERT INTO pg_dist_placement SELECT groupid, groupid, 1, 0, groupid FROM pg_dist_node WHERE groupid > 0",
    )?;
    let open = || cluster.runtime.block_on(session_without_timeout(&cluster.coordinator));
    let operator = open()?;
    let drain = |worker: &str| cluster.runtime.block_on(drain::drain(&operator, worker));
    let error = drain("w7").expect_err("there is none").to_string();
    assert!(error.starts_with("no node is called \"w7\": there are 127.0.0.1:"), "{error}");
    let said = drain("h1/w0")?;
    assert!(said.ends_with("is drained and removed"), "{said}");
    assert_eq!(cluster.nodes()?.len(), 1);
    assert_eq!(
        cluster.coordinator.sql("SELECT count(*), count(DISTINCT groupid) FROM pg_dist_placement")?,
        "2|1"
    );
    // The container runs on, and so does one that has its volume.
    for number in [0, 40] {
        let rows = [row("w0", number, cluster.workers[0].port()), cluster.rows()[1].clone()];
        let round = cluster.round(&mut program, &rows)?;
        assert!(only(&round.notes).contains("was drained by the operator and is left out"), "{round:?}");
        assert_eq!((round.refusals.len(), cluster.nodes()?.len()), (0, 1));
    }
    // The last one holds all the shards.
    let error = drain("h1/w1").expect_err("there is no other").to_string();
    assert!(
        error.contains("has 2 placements of shards after it was drained, so it is not removed"),
        "{error}"
    );
    for (worker, expected) in [
        ("w0", "worker h1/w0 may be added again".to_owned()),
        (
            "w1",
            format!(
                "worker h1/w1 is no longer drained; its node gets shards again after SELECT \
                 citus_set_node_property('{HOST}', {}, 'shouldhaveshards', true)",
                cluster.workers[1].port()
            ),
        ),
    ] {
        assert_eq!(cluster.runtime.block_on(drain::undrain(&operator, worker))?, expected);
    }
    cluster.settle(&mut program, &cluster.rows())?;
    assert_eq!(cluster.nodes()?.len(), 2);
    Ok(())
}

#[test]
fn a_node_is_drained_once_no_consumer_is_about_to_move_it() -> Result<()> {
    let cluster = Cluster::new(1)?;
    let mut program = cluster.program()?;
    cluster.settle(&mut program, &cluster.rows())?;
    let operator = cluster.runtime.block_on(session_without_timeout(&cluster.coordinator))?;
    let consumer = cluster.runtime.block_on(session(&cluster.coordinator))?;
    cluster.runtime.block_on(coordinator::lock(&consumer))?;
    let draining = drain::drain(&operator, "w0");
    let moving = async {
        // Not while the consumer has the lock: the node that is drained has the address that it is given meanwhile.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let sql = "UPDATE pg_dist_node SET nodename = '127.0.0.2' WHERE groupid <> 0";
        consumer.batch("move", sql).await?;
        coordinator::unlock(&consumer).await?;
        Ok(())
    };
    let (said, moved) = cluster.runtime.block_on(async { tokio::join!(draining, moving) });
    moved.map_err(|error: anyhow::Error| error)?;
    assert!(said?.contains("(127.0.0.2:"), "it has the address that it has now");
    assert_eq!(cluster.nodes()?, []);
    Ok(())
}

#[test]
fn a_server_notices_soon_that_a_consumers_host_is_gone() -> Result<()> {
    let cluster = Cluster::new(0)?;
    let session = cluster.runtime.block_on(session(&cluster.coordinator))?;
    for (setting, expected) in [
        ("tcp_keepalives_idle", "30"),
        ("tcp_keepalives_interval", "10"),
        ("tcp_keepalives_count", "3"),
        ("idle_in_transaction_session_timeout", "1min"),
    ] {
        let sql = format!("SHOW {setting}");
        let rows = cluster.runtime.block_on(session.query("ask", &sql, &[]))?;
        assert_eq!(rows[0].get::<_, String>(0), expected, "{setting}");
    }
    Ok(())
}

#[test]
fn tls_verifies_what_its_mode_says() -> Result<()> {
    let cluster = Cluster::new(0)?;
    let (tls, stranger) = (Tls::generate(&[])?, Tls::generate(&[])?);
    let (certificate, key) = tls.server();
    cluster.coordinator.set_tls(&certificate, &key)?;
    cluster.coordinator.set_access(
        "hostssl all all all trust\nhostnossl all postgres all trust\nhostnossl all all all reject\n",
    )?;
    cluster.coordinator.sql("CREATE ROLE far SUPERUSER LOGIN")?;
    let port = cluster.coordinator.port();
    let look = |host: &str, mode: &str, root: &Tls| -> Result<Round> {
        let root = root.ca();
        let text =
            format!("{host} port={port} dbname=app user=far sslmode={mode} sslrootcert={}", root.display());
        cluster.round(&mut program(&text, "")?, &[])
    };
    let named = format!("host={HOST}");
    let unnamed = format!("host=elsewhere hostaddr={HOST}");
    look(&named, "verify-full", &tls)?;
    look(&unnamed, "verify-ca", &tls)?;
    look(&named, "prefer", &stranger)?;
    for (host, mode, root, expected) in [
        (&named, "verify-full", &stranger, "TLS failed: invalid peer certificate: BadSignature"),
        (&named, "verify-ca", &stranger, "TLS failed: invalid peer certificate: BadSignature"),
        (&named, "require", &stranger, "TLS failed: invalid peer certificate: BadSignature"),
        (
            &unnamed,
            "verify-full",
            &tls,
            "TLS failed: invalid peer certificate: certificate not valid for name",
        ),
        (&named, "disable", &tls, "the server does not let this user in from here"),
    ] {
        let text = fails(look(host, mode, root));
        assert!(text.contains(expected), "{mode}: {text}");
    }
    Ok(())
}

async fn session(server: &Postgres) -> Result<Session> {
    open(server, Some(TIMEOUT)).await
}

async fn session_without_timeout(server: &Postgres) -> Result<Session> {
    open(server, None).await
}

async fn open(server: &Postgres, timeout: Option<Duration>) -> Result<Session> {
    let text = format!("{} application_name=test", server.conninfo());
    let login = libpq::Login::resolve(Conninfo::parse(&text)?, libpq::Environment::default())?;
    Ok(Session::open(&login, timeout).await?)
}
