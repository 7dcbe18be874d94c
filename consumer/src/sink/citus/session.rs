//! One session with a server: how it is opened and watched, and how a statement that is never answered ends.

use std::{error::Error as _, sync::Arc, time::Duration};

use rollcall_shared::process::time;
use tokio::{sync::Notify, task::JoinHandle};
use tokio_postgres::{
    Client, NoTls, Row, Transaction, config,
    error::SqlState,
    types::{ToSql, Type},
};

use super::{
    error::{CitusError, explain},
    libpq::{Login, Server},
    passfile::Found,
    tls::{self, SslMode},
};

/// How much longer than the server's own time-out an answer is waited for.
const ANSWER_MARGIN: Duration = Duration::from_secs(5);
/// How long ending a session in order may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What else is set. A server must notice within a minute that a client's host is gone: until then it keeps the locks of
/// its session, and by itself it looks after two hours.
const SETTINGS: &str = "SET search_path = pg_catalog; SET client_min_messages = warning; \
    SET idle_in_transaction_session_timeout = '60s'; SET tcp_keepalives_idle = 30; \
    SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3";

/// A value of a statement and its type.
pub type Value<'v> = (&'v (dyn ToSql + Sync), Type);

/// An open session.
#[derive(Debug)]
pub struct Session {
    /// Where it is to.
    pub server: String,
    client: Client,
    connection: JoinHandle<()>,
    /// Told when the connection has ended.
    ended: Arc<Notify>,
    statement_timeout: Option<Duration>,
}

impl Session {
    /// Opens a session with the first server that takes it and may be written to; the last one is taken as it is.
    ///
    /// # Errors
    /// None of them does; that of the last one.
    pub async fn open(login: &Login, statement_timeout: Option<Duration>) -> Result<Self, CitusError> {
        let (last, others) = login.servers.split_last().expect("a login has a server");
        for server in others {
            match Self::open_at(login, server, statement_timeout).await {
                Ok(session) if session.is_writable().await => return Ok(session),
                Ok(session) => session.close().await,
                Err(error) => tracing::debug!(%error, "the next host is tried"),
            }
        }
        Self::open_at(login, last, statement_timeout).await
    }

    async fn open_at(
        login: &Login,
        server: &Server,
        statement_timeout: Option<Duration>,
    ) -> Result<Self, CitusError> {
        // There is no TLS on a socket, as in libpq.
        let is_socket = server.host.starts_with('/');
        let attempts = if is_socket { SslMode::Disable } else { login.ssl_mode }.attempts();
        let mut result = connect(login, server, attempts[0]).await;
        if let (Err(CitusError::Connect { tries_again: true, .. }), Some(again)) = (&result, attempts.get(1))
        {
            // The first attempt's error is the one that helps.
            result = connect(login, server, *again).await.or(result);
        }
        let (client, connection, ended) = result?;
        let session = Self { server: name(server), client, connection, ended, statement_timeout };
        let milliseconds = statement_timeout.map_or(0, |timeout| timeout.as_millis());
        let set = format!("SET statement_timeout = {milliseconds}; {SETTINGS}");
        session.batch("cannot set up the session", &set).await?;
        Ok(session)
    }

    async fn is_writable(&self) -> bool {
        let answer = self.query("cannot ask", "SELECT NOT pg_is_in_recovery()", &[]).await;
        answer.is_ok_and(|rows| rows.first().is_some_and(|row| row.get(0)))
    }

    /// Runs a statement and gives its rows. It is not prepared under a name, so poolers do not mind.
    ///
    /// # Errors
    /// The server refuses it or does not answer; `what` says what for.
    pub async fn query(&self, what: &str, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, CitusError> {
        self.within(what, self.client.query_typed(sql, values)).await
    }

    /// Runs statements that have no values.
    ///
    /// # Errors
    /// As [`Session::query`].
    pub async fn batch(&self, what: &str, sql: &str) -> Result<(), CitusError> {
        self.within(what, self.client.batch_execute(sql)).await
    }

    /// Begins a transaction, which is rolled back unless it is committed.
    ///
    /// # Errors
    /// As [`Session::query`].
    pub async fn transaction(&mut self) -> Result<InTransaction<'_>, CitusError> {
        let timeout = self.statement_timeout;
        let begun = within(timeout, "cannot begin a transaction", self.client.transaction()).await?;
        Ok(InTransaction { transaction: begun, statement_timeout: timeout })
    }

    async fn within<T>(
        &self,
        what: &str,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, CitusError> {
        within(self.statement_timeout, what, answer).await
    }

    /// Whether the connection has ended.
    pub fn has_ended(&self) -> bool {
        self.connection.is_finished() || self.client.is_closed()
    }

    /// What tells when the connection ends.
    pub fn ended(&self) -> Arc<Notify> {
        self.ended.clone()
    }

    /// Ends it in order.
    pub async fn close(self) {
        let Self { client, connection, .. } = self;
        drop(client);
        // One that hangs ends by its keep-alives.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, connection).await;
    }
}

/// A session within a transaction.
pub struct InTransaction<'s> {
    transaction: Transaction<'s>,
    statement_timeout: Option<Duration>,
}

impl InTransaction<'_> {
    /// As [`Session::query`].
    ///
    /// # Errors
    /// As [`Session::query`].
    pub async fn query(&self, what: &str, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, CitusError> {
        within(self.statement_timeout, what, self.transaction.query_typed(sql, values)).await
    }

    /// Commits it.
    ///
    /// # Errors
    /// The server refuses it or does not answer.
    pub async fn commit(self, what: &str) -> Result<(), CitusError> {
        within(self.statement_timeout, what, self.transaction.commit()).await
    }
}

/// An answer, or that there is none long after the server itself should have given up.
async fn within<T>(
    statement_timeout: Option<Duration>,
    what: &str,
    answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, CitusError> {
    let answered = match statement_timeout.map(|timeout| timeout + ANSWER_MARGIN) {
        Some(timeout) => tokio::time::timeout(timeout, answer)
            .await
            .map_err(|_| CitusError::Silent(what.to_owned(), time::show(timeout)))?,
        None => answer.await,
    };
    answered.map_err(|error| CitusError::statement(what, &error))
}

/// Where a server is, as it is shown.
fn name(server: &Server) -> String {
    if server.host.contains(':') {
        return format!("[{}]:{}", server.host, server.port);
    }
    format!("{}:{}", server.host, server.port)
}

type Connected = (Client, JoinHandle<()>, Arc<Notify>);

/// Connects, and has the connection served by a task of its own until it ends.
async fn connect(login: &Login, server: &Server, with_tls: bool) -> Result<Connected, CitusError> {
    let mut config = login.config(server)?;
    let failed =
        |reason: String, tries_again| CitusError::Connect { server: name(server), reason, tries_again };
    let refused = |error: tokio_postgres::Error| {
        let mut reason = explain(&error);
        if let (Found::Nothing(Some(why)), true) = (login.password(server), is_about_password(&error)) {
            reason = format!("{reason}; {why}");
        }
        let is_tls = error.to_string().starts_with("error performing TLS handshake");
        let reason = if is_tls { format!("TLS failed: {reason}") } else { reason };
        failed(reason, is_tls || error.as_db_error().is_some())
    };
    let ended = Arc::new(Notify::new());
    let opened = async {
        if with_tls {
            let prefers = login.ssl_mode == SslMode::Prefer;
            config.ssl_mode(if prefers { config::SslMode::Prefer } else { config::SslMode::Require });
            let connector = tls::connector(login.ssl_mode, &login.tls)?;
            let (client, connection) = config.connect(connector).await.map_err(refused)?;
            Ok((client, serve(connection, ended.clone())))
        } else {
            config.ssl_mode(config::SslMode::Disable);
            let (client, connection) = config.connect(NoTls).await.map_err(refused)?;
            Ok((client, serve(connection, ended.clone())))
        }
    };
    match tokio::time::timeout(login.connect_timeout, opened).await {
        Ok(opened) => opened.map(|(client, task)| (client, task, ended)),
        Err(_) => Err(failed(format!("no answer within {}", time::show(login.connect_timeout)), false)),
    }
}

fn serve(
    connection: impl Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static,
    ended: Arc<Notify>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = explain(&error), "a connection to PostgreSQL ended");
        }
        ended.notify_one();
    })
}

/// Whether an error may come of a password that was not found.
fn is_about_password(error: &tokio_postgres::Error) -> bool {
    let text = error.source().map(ToString::to_string).unwrap_or_default();
    text.contains("password") || error.code() == Some(&SqlState::INVALID_PASSWORD)
}
