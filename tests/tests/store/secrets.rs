//! Users, passwords, tokens and certificates that change while a process runs.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rollcall_shared::{
    process::error::one_line,
    store::{Op, Position, Store, StoreError, etcd::EtcdStore},
};
use rollcall_tests::{Etcd, EtcdConfig, TcpProxy, Tls};

use super::{available, commit, next, put, range, store};

const ROOT: [&str; 2] = ["--etcd-user=root", "--etcd-password=secret"];

fn with_users(extra: &[&str]) -> Result<Etcd> {
    with_users_of(false, extra)
}

/// An etcd with users: the machine's own or 3.5, which says some things otherwise.
fn with_users_of(is_3_5: bool, extra: &[&str]) -> Result<Etcd> {
    let extra = extra.iter().map(|flag| (*flag).to_owned()).collect();
    let mut etcd = Etcd::start_with(EtcdConfig { extra, is_3_5, ..EtcdConfig::default() })?;
    etcd.enable_auth("secret")?;
    Ok(etcd)
}

/// Checks that a watch is let in and shows a write.
async fn watches_and_writes(store: &EtcdStore, after: Position) -> Result<()> {
    let mut watch = available(async || store.watch(&range(), after).await).await?;
    available(async || store.commit(&put("/a/2"), None, None).await).await?;
    next(&mut watch).await?;
    Ok(())
}

#[tokio::test]
async fn a_token_is_held_over_broken_connections() -> Result<()> {
    let etcd = with_users(&[])?;
    let proxy = TcpProxy::start(&etcd.endpoint())?;
    let store = store(&[proxy.url()], &ROOT)?;
    let position = commit(&store, "/a/1").await?;
    let logins = || etcd.metric("grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Authenticate\"");
    let before = logins()?;
    for _ in 0..5 {
        proxy.cut();
        watches_and_writes(&store, position).await?;
    }
    ensure!(proxy.accepted() >= 6, "it connected anew each time");
    assert_eq!(logins()?, before);
    Ok(())
}

#[tokio::test]
async fn an_expired_token_is_renewed_for_watches_as_for_writes() -> Result<()> {
    for is_3_5 in [false, true] {
        let etcd = with_users_of(is_3_5, &["--auth-token-ttl", "1"])?;
        let store = store(&[etcd.endpoint()], &ROOT)?;
        let position = commit(&store, "/a/1").await?;
        // Nobody can see a token expire; etcd looks once a second.
        tokio::time::sleep(Duration::from_millis(3500)).await;
        store.watch(&range(), position).await.map(drop).context("a watch comes first")?;
        watches_and_writes(&store, position).await?;
        tokio::time::sleep(Duration::from_millis(3500)).await;
        store.commit(&put("/a/3"), None, None).await.map(drop).context("a write comes first")?;
    }
    Ok(())
}

#[tokio::test]
async fn an_etcd_that_restarts_and_forgets_its_tokens_lets_watches_in_again() -> Result<()> {
    for is_3_5 in [false, true] {
        let mut etcd = with_users_of(is_3_5, &[])?;
        let store = store(&[etcd.endpoint()], &ROOT)?;
        let position = commit(&store, "/a/1").await?;
        for _ in 0..3 {
            etcd.kill();
            etcd.start_again()?;
            available(async || store.watch(&range(), position).await.map(drop)).await?;
        }
        watches_and_writes(&store, position).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_change_of_users_under_jwt_stops_neither_writes_nor_watches() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let key = dir.path().join("key");
    fs::write(&key, "a secret that both sides of the token know")?;
    let jwt = format!("jwt,sign-method=HS256,priv-key={},ttl=10m", key.display());
    for is_3_5 in [false, true] {
        let etcd = with_users_of(is_3_5, &["--auth-token", &jwt])?;
        let store = store(&[etcd.endpoint()], &ROOT)?;
        let position = commit(&store, "/a/1").await?;
        etcd.etcdctl(&["role", "add", "another"])?;
        store.watch(&range(), position).await.map(drop).context("a watch comes first")?;
        etcd.etcdctl(&["role", "add", "a-third"])?;
        watches_and_writes(&store, position).await?;
    }
    Ok(())
}

#[tokio::test]
async fn errors_of_etcd_3_5_show_its_own_words() -> Result<()> {
    let etcd = with_users_of(true, &["--quota-backend-bytes", "5000000"])?;
    let store = store(&[etcd.endpoint()], &ROOT)?;
    let large = Op::Put { key: "/a/large".to_owned(), value: vec![b'x'; 3 << 20] };
    let refused = store.commit(&[large], None, None).await.expect_err("it is too large");
    ensure!(matches!(refused, StoreError::TooLarge { .. }), "{refused:?}");
    let filling = [Op::Put { key: "/a/fill".to_owned(), value: vec![b'x'; 900_000] }];
    // etcd counts what is written each 100 ms.
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut filled = Ok(vec![]);
    while filled.is_ok() && Instant::now() < deadline {
        filled = store.commit(&filling, None, None).await;
    }
    let full = one_line(&filled.expect_err("it is full"));
    ensure!(full.ends_with("etcdserver: mvcc: database space exceeded"), "{full}");
    let denied = super::store(&[etcd.endpoint()], &["--etcd-user=root:guess"])?.get("/a/1").await;
    let denied = one_line(&denied.expect_err("the password is wrong"));
    ensure!(denied.ends_with("authentication failed, invalid user ID or password"), "{denied}");
    Ok(())
}

#[tokio::test]
async fn users_that_are_turned_on_while_it_runs_are_logged_in() -> Result<()> {
    let mut etcd = Etcd::start()?;
    let store = store(&[etcd.endpoint()], &ROOT)?;
    let position = commit(&store, "/a/1").await?;
    etcd.enable_auth("secret")?;
    watches_and_writes(&store, position).await
}

#[tokio::test]
async fn a_password_that_was_changed_is_read_again_from_its_file() -> Result<()> {
    let etcd = with_users(&[])?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("password");
    etcd.etcdctl(&["user", "add", "me:first"])?;
    etcd.etcdctl(&["user", "grant-role", "me", "root"])?;
    fs::write(&file, "first\n")?;
    let flag = format!("--etcd-password-file={}", file.display());
    let store = store(&[etcd.endpoint()], &["--etcd-user=me", &flag])?;
    let position = commit(&store, "/a/1").await?;
    // etcdctl asks for a password, so the user is made anew.
    etcd.etcdctl(&["user", "delete", "me"])?;
    etcd.etcdctl(&["user", "add", "me:second"])?;
    etcd.etcdctl(&["user", "grant-role", "me", "root"])?;
    let refused = store.commit(&put("/a/2"), None, None).await.expect_err("the file has the old password");
    ensure!(matches!(refused, StoreError::LoginFailed { .. }), "{refused}");
    fs::write(&file, "second\n")?;
    available(async || match store.get("/a/1").await {
        // It is not asked again at once.
        Err(StoreError::LoginFailed { place, message }) => {
            Err(StoreError::Unavailable { place, source: message.into() })
        }
        answer => answer,
    })
    .await?;
    watches_and_writes(&store, position).await
}

#[tokio::test]
async fn passwords_with_punctuation_log_in() -> Result<()> {
    let etcd = with_users(&[])?;
    for (number, password) in
        ["a:b", "$HOME", "say \"hi\"", "a space", "it's", "back\\slash", "ü"].iter().enumerate()
    {
        let user = format!("user{number}");
        etcd.etcdctl(&["user", "add", &format!("{user}:{password}")])?;
        etcd.etcdctl(&["user", "grant-role", &user, "root"])?;
        let both = [format!("--etcd-user={user}:{password}")];
        let apart = [format!("--etcd-user={user}"), format!("--etcd-password={password}")];
        for flags in [&both[..], &apart[..]] {
            let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
            store(&[etcd.endpoint()], &flags)?.get("/a/1").await.with_context(|| format!("{flags:?}"))?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn certificates_that_were_rotated_on_disk_are_used_at_the_next_connection() -> Result<()> {
    let (old, new, dir) =
        (Arc::new(Tls::generate(&[])?), Arc::new(Tls::generate(&[])?), tempfile::tempdir()?);
    let install = |tls: &Tls| -> Result<()> {
        for name in ["ca.pem", "cert.pem", "key.pem"] {
            fs::copy(tls.client_dir().join(name), dir.path().join(name))?;
        }
        Ok(())
    };
    install(&old)?;
    let mut etcd = Etcd::start_with(EtcdConfig { tls: Some(old), ..EtcdConfig::default() })?;
    let flag =
        |name: &str, file: &str| format!("--etcd-{name}={}", Path::new(dir.path()).join(file).display());
    let flags = [flag("cacert", "ca.pem"), flag("cert", "cert.pem"), flag("key", "key.pem")];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let store = store(&[etcd.endpoint()], &flags)?;
    let position = commit(&store, "/a/1").await?;
    etcd.stop()?;
    etcd.set_tls(new.clone());
    etcd.start_again()?;
    let refused = store.get("/a/1").await.expect_err("the authority is another one");
    ensure!(matches!(refused, StoreError::Unavailable { .. }), "{refused}");
    install(&new)?;
    watches_and_writes(&store, position).await
}
