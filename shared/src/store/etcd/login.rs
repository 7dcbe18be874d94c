//! The user's token: every connection of the process sends the same one, until etcd refuses it.
//!
//! etcd knows a token on every member, and making one costs it some 100 ms of CPU (bcrypt), so that a connection that
//! breaks does not log in again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use etcd_client::{Client, Error};
use http::HeaderValue;

use super::error::is_auth_disabled;
use crate::{process::error::one_line, store::settings::EtcdSettings};

/// Which token it is: each login makes another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TokenNumber(u64);

/// Logs in, and keeps the token. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Login(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    logins: u64,
    token: Option<HeaderValue>,
}

impl Login {
    /// The token that requests bear, if there is one.
    pub(super) fn token(&self) -> Option<HeaderValue> {
        self.state().token.clone()
    }

    /// Which token that is.
    pub(super) fn number(&self) -> TokenNumber {
        TokenNumber(self.state().logins)
    }

    /// Logs in, unless there is a token or no user is set. The password's file is read anew.
    pub(super) async fn ensure(&self, client: &Client, settings: &EtcdSettings) -> Result<(), Error> {
        if self.state().token.is_some() {
            return Ok(());
        }
        let settings = settings.clone();
        let read = tokio::task::spawn_blocking(move || settings.credentials()).await;
        let credentials = read.expect("reading does not panic");
        let credentials = credentials.map_err(|error| Error::InvalidArgs(one_line(&error)))?;
        let Some((user, password)) = credentials else { return Ok(()) };
        let token = match client.auth_client().authenticate(user, password).await {
            Ok(answer) => {
                let token = HeaderValue::from_str(answer.token());
                Some(token.map_err(|error| Error::Internal(error.to_string()))?)
            }
            Err(error) if is_auth_disabled(&error) => None,
            Err(error) => return Err(error),
        };
        let mut state = self.state();
        state.logins += 1;
        state.token = token;
        Ok(())
    }

    /// Forgets a token that etcd refuses, unless there is another one by now.
    pub(super) fn forget(&self, refused: TokenNumber) {
        let mut state = self.state();
        if state.logins == refused.0 {
            state.token = None;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("logins", &self.logins).finish_non_exhaustive()
    }
}
