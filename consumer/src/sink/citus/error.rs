//! What a server or a connection says, on one line of plain English.

use std::{error::Error as _, io};

use rollcall_shared::process::error::one_line;
use tokio_postgres::error::{DbError, SqlState};

use super::{libpq::LoginError, tls::TlsError};

/// Why a coordinator or a worker could not be asked or told.
#[derive(Debug, thiserror::Error)]
pub enum CitusError {
    /// The settings of the connection.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// The settings of TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A server does not take the connection.
    #[error("cannot connect to {server}: {reason}")]
    Connect {
        /// Where.
        server: String,
        /// Why.
        reason: String,
        /// Whether it may do with TLS, or without it.
        tries_again: bool,
    },
    /// A server refuses a statement, or the connection ended in the middle of it.
    #[error("{what}: {reason}")]
    Statement {
        /// What was being done.
        what: String,
        /// Why not.
        reason: String,
        /// Whether the connection is gone.
        is_closed: bool,
    },
    /// The server does not answer.
    #[error("{0}: no answer within {1}")]
    Silent(String, String),
    /// The server is not what it should be, or not ours to change.
    #[error("{0}")]
    Unfit(String),
}

impl CitusError {
    /// A statement that failed.
    pub fn statement(what: impl Into<String>, error: &tokio_postgres::Error) -> Self {
        let is_closed = error.is_closed() || error.as_db_error().is_some_and(ends_session);
        Self::Statement { what: what.into(), reason: explain(error), is_closed }
    }

    /// Whether the connection cannot be used any more.
    pub fn ends_connection(&self) -> bool {
        match self {
            CitusError::Statement { is_closed, .. } => *is_closed,
            CitusError::Silent(..) | CitusError::Connect { .. } => true,
            CitusError::Login(_) | CitusError::Tls(_) | CitusError::Unfit(_) => false,
        }
    }
}

/// Whether a server ends the session with this error.
fn ends_session(error: &DbError) -> bool {
    matches!(error.severity(), "FATAL" | "PANIC")
}

/// What an error means, on one line.
pub fn explain(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => explain_db(error),
        None if error.is_closed() => "the server closed the connection".to_owned(),
        None => match error.source() {
            // The outer words ("error connecting to server") repeat what the line says already.
            Some(source) => cut_off(source).map_or_else(|| one_line(source), str::to_owned),
            None => one_line(error),
        },
    }
}

/// What it means that a connection broke: a server that ends a session in order says so first.
fn cut_off(source: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, InvalidData, InvalidInput, UnexpectedEof};
    let error = source.downcast_ref::<io::Error>()?;
    if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
        return None;
    }
    match error.kind() {
        BrokenPipe | ConnectionReset | UnexpectedEof => {
            Some("the connection was cut off, by a crash or by what is not PostgreSQL")
        }
        InvalidData | InvalidInput => Some("the answer is not PostgreSQL's"),
        _ => None,
    }
}

/// What the error code means, what the server said, and what it hints at.
fn explain_db(error: &DbError) -> String {
    let mut text = match meaning(error.code()) {
        Some(meaning) => format!("{meaning} ({})", error.message()),
        None => error.message().to_owned(),
    };
    for more in [error.detail(), error.hint()].into_iter().flatten() {
        text = format!("{}; {more}", text.trim_end_matches('.'));
    }
    // A server's words may have line breaks, and control characters of names.
    text.replace(char::is_control, " ")
}

/// Codes are those of "PostgreSQL Error Codes".
fn meaning(code: &SqlState) -> Option<&'static str> {
    Some(match *code {
        SqlState::INVALID_PASSWORD => "the password is wrong",
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION => "the server does not let this user in from here",
        SqlState::INVALID_CATALOG_NAME => "the database is absent",
        SqlState::INSUFFICIENT_PRIVILEGE => "permission denied",
        SqlState::READ_ONLY_SQL_TRANSACTION => "the server is read-only",
        SqlState::QUERY_CANCELED => "it took longer than statement_timeout, or was cancelled",
        SqlState::LOCK_NOT_AVAILABLE => "a lock was not to be had in time",
        SqlState::TOO_MANY_CONNECTIONS => "the server has no connection left",
        SqlState::CANNOT_CONNECT_NOW => "the server is starting or stopping",
        SqlState::ADMIN_SHUTDOWN => "the server was told to end the connection",
        SqlState::CRASH_SHUTDOWN => "the server crashed",
        SqlState::UNDEFINED_FUNCTION => "the server lacks a function of Citus 10 or later",
        SqlState::UNDEFINED_TABLE => "the server lacks a table of Citus",
        _ => return None,
    })
}
