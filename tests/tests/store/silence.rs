//! Members that hang: their connections stay open, and nothing comes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use rollcall_shared::store::{LeaseId, Position, Store, StoreError, etcd::EtcdStore};
use rollcall_tests::{EtcdCluster, TcpProxy};

use super::{TIMEOUT, available, commit, next, put, range, store};

/// The dial time-out, within which another member is asked, and some time for its answer and for an election, if the one
/// that hangs was the leader (its time-out is 0.5 s here).
const BOUND: Duration = Duration::from_millis(2000 + 1500);

/// What is asked of a member that hangs.
#[derive(Debug, Clone, Copy)]
enum Call {
    Grant,
    Claim,
    List,
    Commit,
    Watch,
    KeepAlive,
    Revoke,
}

impl Call {
    const ALL: [Call; 7] =
        [Call::Grant, Call::Claim, Call::List, Call::Commit, Call::Watch, Call::KeepAlive, Call::Revoke];

    async fn make(self, store: &EtcdStore, lease: LeaseId, position: Position) -> Result<(), StoreError> {
        match self {
            Call::Grant => store.grant(Duration::from_secs(60)).await.map(drop),
            Call::Claim => store.get("/a/1").await.map(drop),
            Call::List => store.list(&range()).await.map(drop),
            Call::Commit => store.commit(&put("/a/2"), Some(lease), None).await.map(drop),
            Call::Watch => store.watch(&range(), position).await.map(drop),
            Call::KeepAlive => store.keep_alive(lease).await,
            Call::Revoke => store.revoke(lease).await,
        }
    }
}

/// A store of a cluster whose members are behind proxies, which show which one is connected to.
struct Scene {
    cluster: EtcdCluster,
    proxies: Vec<TcpProxy>,
    store: EtcdStore,
}

impl Scene {
    fn start() -> Result<Self> {
        let cluster = EtcdCluster::start(3)?;
        let proxies =
            cluster.endpoints().iter().map(|url| TcpProxy::start(url)).collect::<Result<Vec<_>>>()?;
        let store = store(&proxies.iter().map(TcpProxy::url).collect::<Vec<_>>(), &[])?;
        Ok(Self { cluster, proxies, store })
    }

    /// Has the member hang that a fresh store is connected to.
    fn hang(&mut self) -> Result<usize> {
        let connected = self.proxies.iter().position(|proxy| proxy.accepted() > 0).context("a connection")?;
        self.cluster.member_mut(connected).hang()?;
        Ok(connected)
    }
}

#[tokio::test]
async fn another_member_is_asked_within_the_dial_time_out_whatever_was_asked() -> Result<()> {
    for call in Call::ALL {
        let mut scene = Scene::start()?;
        let lease = available(async || scene.store.grant(Duration::from_secs(60)).await).await?;
        let position = commit(&scene.store, "/a/1").await?;
        scene.hang()?;
        let begun = Instant::now();
        let made = call.make(&scene.store, lease, position).await;
        let took = begun.elapsed();
        match (call, made) {
            // The first request was taken after all.
            (Call::Revoke, Err(StoreError::LeaseNotFound)) => {}
            (_, made) => made.with_context(|| format!("{call:?} while its member hangs"))?,
        }
        ensure!(took < BOUND, "{call:?} took {took:?} while its member hung");
    }
    Ok(())
}

#[tokio::test]
async fn a_watch_of_a_member_that_hangs_ends_and_goes_on_at_another_within_five_seconds() -> Result<()> {
    let mut scene = Scene::start()?;
    let position = commit(&scene.store, "/a/1").await?;
    let mut watch = scene.store.watch(&range(), position).await?;
    scene.hang()?;
    let begun = Instant::now();
    let ended = tokio::time::timeout(TIMEOUT, watch.next()).await?;
    ensure!(matches!(ended, Some(Err(StoreError::Unavailable { .. }))), "{ended:?}");
    let mut watch = available(async || scene.store.watch(&range(), position).await).await?;
    available(async || scene.store.commit(&put("/a/2"), None, None).await).await?;
    next(&mut watch).await?;
    let took = begun.elapsed();
    println!("the next change came {took:?} after its member hung");
    ensure!(took < Duration::from_secs(5), "it took {took:?}");
    Ok(())
}

#[tokio::test]
async fn a_quiet_watch_goes_on_for_as_long_as_its_member_answers() -> Result<()> {
    let cluster = EtcdCluster::start(3)?;
    let store = store(&cluster.endpoints(), &[])?;
    let position = commit(&store, "/a/1").await?;
    let mut watch = store.watch(&range(), position).await?;
    // Longer than a member may be silent and take to answer, twice.
    let silence = tokio::time::timeout(Duration::from_secs(9), watch.next()).await;
    ensure!(silence.is_err(), "{silence:?}");
    store.commit(&put("/a/2"), None, None).await?;
    tokio::time::timeout(TIMEOUT, next(&mut watch)).await??;
    Ok(())
}
