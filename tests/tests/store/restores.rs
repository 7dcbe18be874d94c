//! An etcd that was restored from a snapshot is told from one that was merely away.

use anyhow::Result;
use rollcall_shared::store::{LastChange, Mark, Op, Position, Store, StoreError};
use rollcall_tests::Etcd;

use super::{available, commit, mark, put, range, store};

/// An etcd with a snapshot of it.
struct Restored {
    etcd: Etcd,
    snapshot: std::path::PathBuf,
}

impl Restored {
    fn save(etcd: Etcd) -> Result<Self> {
        Ok(Self { snapshot: etcd.snapshot()?, etcd })
    }

    /// Restores it, and pushes its revision past this position by writes to other keys.
    fn restore_and_push_past(&mut self, position: Position) -> Result<()> {
        self.etcd.stop()?;
        self.etcd.restore(&self.snapshot)?;
        self.etcd.start_again()?;
        while self.etcd.ctl().revision()? <= position.revision.0 {
            self.etcd.ctl().put("/other", "x")?;
        }
        Ok(())
    }
}

fn delete(key: &str) -> [Op; 1] {
    [Op::Delete { key: key.to_owned() }]
}

#[tokio::test]
async fn a_restored_store_that_was_pushed_past_what_was_read_has_gone_back() -> Result<()> {
    let etcd = Etcd::start()?;
    let store = store(&[etcd.endpoint()], &[])?;
    commit(&store, "/a/kept").await?;
    let mut restored = Restored::save(etcd)?;
    let put_later = commit(&store, "/a/lost").await?;
    store.commit(&delete("/a/kept"), None, None).await?;
    let deleted_later = store.list(&range()).await?.position;
    restored.restore_and_push_past(deleted_later)?;
    let deletion = LastChange { key: "/a/kept".to_owned(), revision: deleted_later.revision, is_put: false };
    for mark in [mark("/a/lost", put_later), Mark { position: deleted_later, last: Some(deletion) }] {
        let confirmed = available(async || store.confirm(&mark).await).await;
        assert!(matches!(confirmed, Err(StoreError::WentBack { .. })), "{mark:?}: {confirmed:?}");
    }
    Ok(())
}

#[tokio::test]
async fn what_was_read_before_the_snapshot_is_confirmed_after_the_restore() -> Result<()> {
    let etcd = Etcd::start()?;
    let store = store(&[etcd.endpoint()], &[])?;
    commit(&store, "/a/gone").await?;
    let kept = commit(&store, "/a/kept").await?;
    store.commit(&delete("/a/gone"), None, None).await?;
    let gone = store.list(&range()).await?.position;
    let mut restored = Restored::save(etcd)?;
    restored.restore_and_push_past(gone)?;
    available(async || store.confirm(&mark("/a/kept", kept)).await).await?;
    let deletion = LastChange { key: "/a/gone".to_owned(), revision: gone.revision, is_put: false };
    store.confirm(&Mark { position: gone, last: Some(deletion) }).await?;
    Ok(())
}

#[tokio::test]
async fn a_store_that_was_merely_away_is_confirmed_and_a_compacted_history_says_so() -> Result<()> {
    let mut etcd = Etcd::start()?;
    let store = store(&[etcd.endpoint()], &[])?;
    let first = commit(&store, "/a/1").await?;
    etcd.kill();
    etcd.start_again()?;
    available(async || store.confirm(&mark("/a/1", first)).await).await?;
    let last = available(async || store.commit(&put("/a/2"), None, None).await).await?;
    etcd.etcdctl(&["compact", &last[0].to_string()])?;
    let confirmed = store.confirm(&mark("/a/1", first)).await;
    assert!(matches!(confirmed, Err(StoreError::Compacted)), "{confirmed:?}");
    Ok(())
}
