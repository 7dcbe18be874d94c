//! How soon all is right again after etcd was restored, after a member hangs, and after the leader was lost.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use rollcall_shared::store::{KeyRange, Op};
use rollcall_tests::{Etcd, EtcdCluster, TcpProxy};
use rustix::process::Signal;

use crate::client::Client;
use crate::container::BenchContainer;
use crate::figures::{Figures, heading};
use crate::setup::start_agent;

/// What does not happen by then does not happen.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long one try of a write may take that looks whether the cluster takes writes.
const PROBE_TIMEOUT: Duration = Duration::from_millis(100);

/// Measures and prints each of them so many times.
pub fn run(runs: usize) -> Result<()> {
    heading("recovery");
    repeat(runs, restore)?.print("etcd restored: agent reconnecting to all put back", None);
    repeat(runs, hang)?.print("a member hangs: to the next change elsewhere", None);
    let (mut taken, mut ours) = (Figures::default(), Figures::default());
    for _ in 0..runs {
        let (by_hand, with_rollcall) = leader()?;
        taken.add(by_hand);
        ours.add(with_rollcall);
    }
    taken.print("the leader is killed: to a write of one member's", None);
    ours.print("  to a write of ours", Some(taken.median()));
    Ok(())
}

fn repeat(runs: usize, measure: fn() -> Result<Duration>) -> Result<Figures> {
    (0..runs).map(|_| measure()).collect()
}

fn put(key: &str) -> Op {
    Op::Put { key: key.to_owned(), value: b"x".to_vec() }
}

fn instances() -> KeyRange {
    KeyRange::folder("/rollcall/instances/".to_owned())
}

/// An etcd that is restored to before a container started, and that others have written on.
fn restore() -> Result<Duration> {
    let mut etcd = Etcd::start()?;
    let mut agent = start_agent(&etcd)?;
    let snapshot = etcd.snapshot()?;
    let container = BenchContainer::new("bench-restored")?;
    container.start()?;
    // Whatever else runs on this engine is registered as well.
    let is_registered = |client: &Client| -> Result<bool> {
        Ok(client.keys(&instances())?.iter().any(|key| key.contains(container.short_id())))
    };
    let client = Client::new(&etcd)?;
    wait_until(|| is_registered(&client))?;
    let revision = etcd.ctl().revision()?;
    agent.signal(Signal::STOP)?;
    etcd.stop()?;
    etcd.restore(&snapshot)?;
    etcd.start_again()?;
    while etcd.ctl().revision()? <= revision {
        etcd.ctl().put("/other", "x")?;
    }
    let client = Client::new(&etcd)?;
    ensure!(!is_registered(&client)?, "the snapshot is older than the container");
    agent.signal(Signal::CONT)?;
    let began = Instant::now();
    wait_until(|| is_registered(&client))?;
    Ok(began.elapsed())
}

/// A watched member that hangs while the others go on.
fn hang() -> Result<Duration> {
    let mut cluster = EtcdCluster::start(3)?;
    // They show which member is watched.
    let proxies = cluster.endpoints().iter().map(|url| TcpProxy::start(url)).collect::<Result<Vec<_>>>()?;
    let client = Client::of(&proxies.iter().map(TcpProxy::url).collect::<Vec<_>>())?;
    let range = KeyRange::folder("/a/".to_owned());
    let mut watch = client.watch(&range)?;
    let watched = proxies.iter().position(|proxy| proxy.accepted() > 0).context("one is watched")?;
    cluster.member_mut(watched).hang()?;
    let began = Instant::now();
    ensure!(client.block_on(watch.next()).is_some_and(|next| next.is_err()), "it ends");
    let mut watch = retried(|| client.watch(&range))?;
    retried(|| client.commit(&[put("/a/1")]))?;
    client.block_on(watch.next()).context("the change")??;
    let took = began.elapsed();
    cluster.member_mut(watched).resume()?;
    Ok(took)
}

/// The leader that is killed: how long until the members that are left take a write, and ours.
fn leader() -> Result<(Duration, Duration)> {
    let mut cluster = EtcdCluster::start(3)?;
    let ours = Client::of(&cluster.endpoints())?;
    ours.commit(&[put("/a/1")])?;
    let leads = |member: &usize| {
        cluster.member(*member).metric("etcd_server_is_leader").is_ok_and(|is_leader| is_leader == 1.0)
    };
    let leader = (0..3).find(leads).context("a leader")?;
    let others = (0..3).filter(|member| *member != leader);
    let others = others.map(|member| Client::new(cluster.member(member))).collect::<Result<Vec<_>>>()?;
    for other in &others {
        other.commit(&[put("/a/probe")])?;
    }
    cluster.member_mut(leader).kill();
    let began = Instant::now();
    thread::scope(|scope| {
        let taken = scope.spawn(|| {
            while !others.iter().any(|other| other.is_taken(&put("/a/probe"), PROBE_TIMEOUT)) {}
            began.elapsed()
        });
        retried(|| ours.commit(&[put("/a/2")]))?;
        let ours = began.elapsed();
        Ok((taken.join().expect("it does not panic"), ours))
    })
}

fn retried<T>(mut call: impl FnMut() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        match call() {
            Err(_) if began.elapsed() < TIMEOUT => thread::sleep(Duration::from_millis(5)),
            done => return done,
        }
    }
}

fn wait_until(mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !condition()? {
        ensure!(began.elapsed() < TIMEOUT, "it never came");
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
