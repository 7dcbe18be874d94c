//! What etcd and the connection to it say when a call fails, and what that means.

use std::io;

use etcd_client::Error;

use crate::store::StoreError;

/// The numbers of gRPC's status codes, which `etcd_client` does not re-export
/// (<https://grpc.github.io/grpc/core/md_doc_statuscodes.html>).
mod code {
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const NOT_FOUND: i32 = 5;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(super) const FAILED_PRECONDITION: i32 = 9;
    pub(super) const OUT_OF_RANGE: i32 = 11;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

/// What etcd says of a token that it does not take any more, or of a call without one
/// (etcd's `api/v3rpc/rpctypes/error.go`).
const TOKEN_REFUSALS: [&str; 4] = [
    "invalid auth token",
    "revision of auth store is old",
    // So 3.5 puts it.
    "revision in header is old",
    "user name is empty",
];

/// How a member is called in messages.
pub(super) fn place(endpoint: &str) -> String {
    format!("etcd at {endpoint}")
}

pub(super) fn unavailable(
    endpoint: &str,
    reason: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StoreError {
    StoreError::Unavailable { place: place(endpoint), source: reason.into() }
}

pub(super) fn timed_out(doing: &str) -> Error {
    Error::IoError(io::Error::new(io::ErrorKind::TimedOut, format!("timed out {doing}")))
}

/// Whether a call was refused because of its token: with a new one it may be taken.
pub(super) fn is_token_refused(error: &Error) -> bool {
    let Error::GRpcStatus(status) = error else { return false };
    i32::from(status.code()) == code::UNAUTHENTICATED
        || TOKEN_REFUSALS.iter().any(|refusal| status.message().contains(refusal))
}

/// Whether a watch was ended because its user may not have it, or its token was refused.
pub(super) fn is_denial(cancel_reason: &str) -> bool {
    cancel_reason.contains("permission denied")
        || TOKEN_REFUSALS.iter().any(|refusal| cancel_reason.contains(refusal))
}

/// Whether etcd has no users: it takes every call without a token.
pub(super) fn is_auth_disabled(error: &Error) -> bool {
    let Error::GRpcStatus(status) = error else { return false };
    i32::from(status.code()) == code::FAILED_PRECONDITION
        && status.message().contains("authentication is not enabled")
}

/// Whether the member itself answered that it cannot do this now, as while there is no leader: its connection is good.
pub(super) fn is_answer(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.message().starts_with("etcdserver: "))
}

/// The same error as one of logging in: it is not about what was asked.
pub(super) fn login_failed(error: StoreError) -> StoreError {
    match error {
        StoreError::Denied { place, message } | StoreError::Refused { place, message } => {
            StoreError::LoginFailed { place, message }
        }
        error => error,
    }
}

/// What an error means to whoever called.
pub(super) fn classify(endpoint: &str, error: Error) -> StoreError {
    let place = place(endpoint);
    match error {
        Error::GRpcStatus(status) => {
            let message = status.message().to_owned();
            match i32::from(status.code()) {
                code::NOT_FOUND if message.contains("lease not found") => StoreError::LeaseNotFound,
                code::PERMISSION_DENIED | code::UNAUTHENTICATED => StoreError::Denied { place, message },
                code::INVALID_ARGUMENT if message.contains("auth") || message.contains("user") => {
                    StoreError::Denied { place, message }
                }
                code::INVALID_ARGUMENT | code::RESOURCE_EXHAUSTED if is_too_large(&message) => {
                    StoreError::TooLarge { place, message }
                }
                code::INVALID_ARGUMENT => StoreError::Refused { place, message },
                code::OUT_OF_RANGE if message.contains("compacted") => StoreError::Compacted,
                // The database is full.
                code::RESOURCE_EXHAUSTED if !message.contains("too many requests") => {
                    StoreError::Refused { place, message }
                }
                _ => StoreError::Unavailable { place, source: words(&status).into() },
            }
        }
        Error::LeaseKeepAliveError(message) if message.contains("lease not found") => {
            StoreError::LeaseNotFound
        }
        Error::InvalidArgs(message) => StoreError::Refused { place, message },
        Error::InvalidUri(error) => StoreError::Refused { place, message: error.to_string() },
        Error::IoError(error) => StoreError::Unavailable { place, source: error.into() },
        error => StoreError::Unavailable { place, source: error.into() },
    }
}

/// By etcd's own limit, or by gRPC's before it.
fn is_too_large(message: &str) -> bool {
    message.contains("request is too large") || message.contains("message larger than max")
}

/// What a status says: etcd's own words, or the last cause, which names a refused connection or a bad certificate.
fn words(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        Some(cause) => root(cause),
        None if status.message().is_empty() => status.code().description().to_owned(),
        None => status.message().to_owned(),
    }
}

/// The last cause of an error.
pub(super) fn root(error: &dyn std::error::Error) -> String {
    let mut root = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        root = cause.to_string();
        next = cause.source();
    }
    root
}

/// The same error once more, for another who waited for the same thing.
pub(super) fn again(error: &StoreError) -> StoreError {
    match error {
        StoreError::Denied { place, message } => {
            StoreError::Denied { place: place.clone(), message: message.clone() }
        }
        StoreError::LoginFailed { place, message } => {
            StoreError::LoginFailed { place: place.clone(), message: message.clone() }
        }
        StoreError::Unavailable { place, source } => {
            StoreError::Unavailable { place: place.clone(), source: source.to_string().into() }
        }
        error => StoreError::Unavailable { place: "etcd".to_owned(), source: error.to_string().into() },
    }
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};

    use super::*;
    use crate::process::error::one_line;

    fn status(code: Code, message: &str) -> Error {
        Error::GRpcStatus(Status::new(code, message))
    }

    #[test]
    fn errors_show_etcds_own_words() {
        for code in [Code::Unknown, Code::Unavailable, Code::DeadlineExceeded] {
            let error = classify("http://h:1", status(code, "etcdserver: leader changed"));
            assert_eq!(one_line(&error), "etcd at http://h:1 is not available: etcdserver: leader changed");
        }
    }

    #[test]
    fn what_stays_so_until_someone_acts_is_told_from_what_may_work_again() {
        let kind = |code, message| match classify("h", status(code, message)) {
            StoreError::Denied { .. } => "denied",
            StoreError::Refused { .. } => "refused",
            StoreError::Unavailable { .. } => "unavailable",
            StoreError::TooLarge { .. } => "too large",
            StoreError::LeaseNotFound => "no lease",
            _ => "another",
        };
        for (code, message, expected) in [
            (Code::NotFound, "etcdserver: requested lease not found", "no lease"),
            (Code::PermissionDenied, "etcdserver: permission denied", "denied"),
            (
                Code::InvalidArgument,
                "etcdserver: authentication failed, invalid user ID or password",
                "denied",
            ),
            (Code::InvalidArgument, "etcdserver: request is too large", "too large"),
            (Code::ResourceExhausted, "grpc: received message larger than max (9 vs. 8)", "too large"),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", "refused"),
            (Code::ResourceExhausted, "etcdserver: too many requests", "unavailable"),
            (Code::Unavailable, "etcdserver: no leader", "unavailable"),
        ] {
            assert_eq!(kind(code, message), expected, "{message}");
        }
    }

    #[test]
    fn a_refused_token_is_told_from_a_refused_user() {
        for (code, message, expected) in [
            (Code::Unauthenticated, "etcdserver: invalid auth token", true),
            (Code::Unknown, "etcdserver: invalid auth token", true),
            (Code::InvalidArgument, "etcdserver: revision of auth store is old", true),
            (Code::InvalidArgument, "etcdserver: user name is empty", true),
            (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password", false),
            (Code::PermissionDenied, "etcdserver: permission denied", false),
        ] {
            assert_eq!(is_token_refused(&status(code, message)), expected, "{message}");
        }
    }
}
