//! The store's contract on real etcd, and members that fail or lag behind.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use futures_util::StreamExt;
use rollcall_shared::{
    process::error::one_line,
    store::{Position, Revision, Store, StoreError, conformance},
};
use rollcall_tests::{Etcd, EtcdCluster, EtcdConfig, Tls};

use super::{commit, put, range, store};

#[tokio::test]
async fn a_single_etcd_keeps_the_contract() -> Result<()> {
    let etcd = Etcd::start()?;
    conformance::run(&store(&[etcd.endpoint()], &[])?).await;
    Ok(())
}

#[tokio::test]
async fn a_cluster_of_three_keeps_the_contract() -> Result<()> {
    let cluster = EtcdCluster::start(3)?;
    conformance::run(&store(&cluster.endpoints(), &[])?).await;
    Ok(())
}

#[tokio::test]
async fn when_a_member_fails_the_next_one_is_asked() -> Result<()> {
    let mut cluster = EtcdCluster::start(3)?;
    let store = store(&cluster.endpoints(), &[])?;
    let mut revision = commit(&store, "/a/0").await?.revision;
    let lease = store.grant(Duration::from_secs(60)).await?;
    for member in 0..3 {
        cluster.member_mut(member).kill();
        // The one killed may have been the leader: the others need an election time-out to see it.
        let key = format!("/a/{}", member + 1);
        let commit = async {
            loop {
                match store.commit(&put(&key), Some(lease), None).await {
                    Err(StoreError::Unavailable { .. }) => {
                        tokio::time::sleep(Duration::from_millis(50)).await
                    }
                    committed => return committed,
                }
            }
        };
        let next = tokio::time::timeout(Duration::from_secs(20), commit).await.context("a commit")??[0];
        assert!(next > revision);
        revision = next;
        assert_eq!(store.list(&range()).await?.entries.len(), member + 2);
        cluster.member_mut(member).start_again()?;
    }
    Ok(())
}

#[tokio::test]
async fn a_compacted_history_and_a_store_that_went_back_are_told_apart() -> Result<()> {
    let mut etcd = Etcd::start()?;
    let store = store(&[etcd.endpoint()], &[])?;
    let first = commit(&store, "/a/1").await?;
    let last = commit(&store, "/a/2").await?;
    etcd.etcdctl(&["compact", &last.revision.to_string()])?;
    // A watch from before the first write wants what is compacted.
    let before = Position { revision: Revision(first.revision.0 - 1), ..first };
    let mut watch = store.watch(&range(), before).await?;
    let next = tokio::time::timeout(Duration::from_secs(5), watch.next()).await?;
    assert!(matches!(next, Some(Err(StoreError::Compacted))), "{next:?}");
    etcd.stop()?;
    etcd.wipe()?;
    etcd.start_again()?;
    let rolled_back = loop {
        match store.watch(&range(), last).await.map(drop) {
            Err(StoreError::Unavailable { .. }) => {}
            watched => break watched,
        }
    };
    assert!(matches!(rolled_back, Err(StoreError::WentBack { .. })), "{rolled_back:?}");
    Ok(())
}

#[tokio::test]
async fn mutual_tls_and_a_user_are_let_in_and_strangers_are_told_why_not() -> Result<()> {
    let tls = Arc::new(Tls::generate(&[])?);
    let mut etcd = Etcd::start_with(EtcdConfig { tls: Some(tls.clone()), ..EtcdConfig::default() })?;
    etcd.enable_auth("secret")?;
    let endpoint = [etcd.endpoint()];
    let (cert, key) = tls.client();
    let flags = |cacert: &str, password: &str| {
        let show = |path: &std::path::Path| path.display().to_string();
        [
            format!("--etcd-cacert={cacert}"),
            format!("--etcd-cert={}", show(&cert)),
            format!("--etcd-key={}", show(&key)),
            format!("--etcd-user=root:{password}"),
        ]
    };
    let ask = async |cacert: &str, password: &str| {
        let flags = flags(cacert, password);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let store = store(&endpoint, &flags).expect("the settings fit");
        store.list(&range()).await.map(|listing| listing.entries.len())
    };
    let ca = tls.ca().display().to_string();
    assert!(matches!(ask(&ca, "secret").await, Ok(0)));
    let wrong_password = ask(&ca, "guess").await.expect_err("the password is wrong");
    assert!(matches!(wrong_password, StoreError::LoginFailed { .. }), "{wrong_password:?}");
    let other = Tls::generate(&[])?;
    let wrong_ca = ask(&other.ca().display().to_string(), "secret").await.expect_err("the CA is another's");
    assert!(one_line(&wrong_ca).contains("certificate"), "{wrong_ca:?}");
    Ok(())
}

/// A member that lags behind is not a store that went back: the other ones are asked.
#[tokio::test]
async fn a_member_that_lags_behind_is_left_for_another() -> Result<()> {
    let mut cluster = EtcdCluster::start(3)?;
    let all = store(&cluster.endpoints(), &[])?;
    commit(&all, "/a/1").await?;
    // The first one stands still while the others go on.
    let lagging = cluster.member(0).pid();
    let lagging = rustix::process::Pid::from_raw(i32::try_from(lagging)?).context("a PID")?;
    rustix::process::kill_process(lagging, rustix::process::Signal::STOP)?;
    let others = store(&cluster.endpoints()[1..], &[])?;
    let mut last = Position::default();
    for number in 0..20 {
        let key = format!("/a/{number}");
        last = loop {
            match commit(&others, &key).await {
                Ok(position) => break position,
                // It may have been the leader.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
    }
    rustix::process::kill_process(lagging, rustix::process::Signal::CONT)?;
    for _ in 0..20 {
        match all.watch(&range(), last).await.map(drop) {
            Ok(()) | Err(StoreError::Unavailable { .. }) => {}
            Err(error) => {
                return Err(error).context("a member that lags behind was taken for a store that went back");
            }
        }
    }
    cluster.member_mut(0).kill();
    Ok(())
}

#[test]
fn a_certificate_that_is_none_is_refused_naming_its_setting() -> Result<()> {
    let error = store(&["https://127.0.0.1:1".to_owned()], &["--etcd-cacert=/dev/null"]).expect_err("no PEM");
    assert_eq!(error.to_string(), "--etcd-cacert is /dev/null: expected a PEM file");
    Ok(())
}
