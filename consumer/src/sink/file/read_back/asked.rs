//! One question to a program, bounded in time and size.

use std::time::Duration;

use hyper::{body::Bytes, http::uri::PathAndQuery};
use rollcall_shared::process::time;

use crate::sink::file::verify::http::{self, HttpError, Url};

/// How long a program may take for an answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer: 10,000 endpoints of Envoy have about 10 MiB.
pub(super) const MAX_BYTES: usize = 64 << 20;

/// Why a program cannot be asked. All of it may be otherwise the next time.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is no answer.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// It answers that it does not.
    #[error("the answer has status {0}")]
    Status(u16),
    /// It answers something else.
    #[error("the answer makes no sense")]
    Nonsense(#[source] serde_json::Error),
    /// The answer does not come, or not to its end.
    #[error("it takes more than {}", time::show(TIMEOUT))]
    Slow,
}

/// The body of the answer to a GET of a path below the address.
pub(super) async fn ask(url: &Url, path: &'static str) -> Result<Bytes, AskError> {
    let url = url.below(&PathAndQuery::from_static(path));
    let answer =
        tokio::time::timeout(TIMEOUT, http::get(&url, MAX_BYTES)).await.map_err(|_| AskError::Slow)??;
    match answer.status {
        200 => Ok(answer.body),
        status => Err(AskError::Status(status)),
    }
}
