//! A cluster that loses its leader: writes go on as soon as it takes them again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rollcall_shared::store::Store;
use rollcall_tests::EtcdCluster;

use super::{TIMEOUT, available, commit, put, range, store};

/// How long after the cluster takes writes again ours may take.
const BOUND: Duration = Duration::from_millis(500);

/// The member that leads.
fn leader(cluster: &EtcdCluster) -> Result<usize> {
    let leads = |member: &usize| {
        cluster.member(*member).metric("etcd_server_is_leader").is_ok_and(|is_leader| is_leader == 1.0)
    };
    (0..3).find(leads).context("a leader")
}

#[tokio::test]
async fn writes_go_on_within_half_a_second_of_the_cluster_taking_them_again() -> Result<()> {
    for is_killed in [true, false] {
        let mut cluster = EtcdCluster::start(3)?;
        let ours = store(&cluster.endpoints(), &[])?;
        commit(&ours, "/a/1").await?;
        let leader = leader(&cluster)?;
        let others: Vec<usize> = (0..3).filter(|member| *member != leader).collect();
        // What an unhurried client sees at the members that are left: one write after the other, none waited for long.
        let probes: Vec<_> = others
            .iter()
            .map(|member| store(&[cluster.member(*member).endpoint()], &[]))
            .collect::<Result<_>>()?;
        for probe in &probes {
            commit(probe, "/a/probe").await?;
        }
        if is_killed {
            cluster.member_mut(leader).kill();
        } else {
            cluster.member_mut(leader).hang()?;
        }
        let begun = Instant::now();
        let taken = async {
            loop {
                let probe = async {
                    for probe in &probes {
                        let put = put("/a/probe");
                        let asked = probe.commit(&put, None, None);
                        if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_millis(100), asked).await {
                            return true;
                        }
                    }
                    false
                };
                if probe.await {
                    return begun.elapsed();
                }
            }
        };
        let written = async {
            while ours.commit(&put("/a/2"), None, None).await.is_err() {}
            begun.elapsed()
        };
        let both = async { tokio::join!(taken, written) };
        let (taken, written) = tokio::time::timeout(TIMEOUT, both).await?;
        println!(
            "the leader was killed: {is_killed}, writes were taken after {taken:?}, ours after {written:?}"
        );
        ensure!(written < taken + BOUND, "killed: {is_killed}, {written:?} after {taken:?}");
        if !is_killed {
            cluster.member_mut(leader).resume()?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn calls_end_while_there_is_no_majority_and_work_once_there_is_one() -> Result<()> {
    let mut cluster = EtcdCluster::start(3)?;
    let store = store(&cluster.endpoints(), &["--etcd-command-timeout=2s"])?;
    let position = commit(&store, "/a/1").await?;
    cluster.member_mut(0).kill();
    cluster.member_mut(1).kill();
    for _ in 0..2 {
        let ended = tokio::time::timeout(TIMEOUT, store.commit(&put("/a/2"), None, None)).await?;
        ensure!(ended.is_err(), "there is no majority");
        let ended = tokio::time::timeout(TIMEOUT, store.watch(&range(), position)).await?;
        ensure!(ended.is_err(), "there is no majority");
    }
    cluster.member_mut(0).start_again()?;
    available(async || store.commit(&put("/a/2"), None, None).await).await?;
    Ok(())
}
