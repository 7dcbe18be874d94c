//! Watches: opening one, following it, and leaving a member that has gone silent.

use std::sync::Arc;

use etcd_client::{Error, WatchOptions, WatchResponse, WatchStream};
use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use super::{
    convert::{batch, position},
    error::{classify, is_denial, place, unavailable},
    members::{Connection, Members},
    pulse::Check,
};
use crate::store::{Batch, KeyRange, Position, StoreError, Watch};

/// The largest answer taken, in bytes: a long catch-up of a watch.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// A watch that was opened.
pub(super) struct Opened {
    pub(super) connection: Arc<Connection>,
    stream: WatchStream,
    created: WatchResponse,
}

/// Opens a watch of a range after a position.
pub(super) async fn open(
    connection: Arc<Connection>,
    range: &KeyRange,
    after: Position,
) -> Result<Opened, Error> {
    let (from, to) = range.bounds();
    let options = WatchOptions::new().with_start_revision(after.revision.0 + 1);
    let options = match to {
        Some(to) => options.with_range(to),
        None => options,
    };
    let mut client = connection.client.watch_client().max_decoding_message_size(MAX_ANSWER_BYTES);
    let mut stream = client.watch(from, Some(options)).await?;
    match stream.message().await? {
        Some(created) => Ok(Opened { connection, stream, created }),
        None => Err(Error::WatchError("it closed the watch".to_owned())),
    }
}

impl Opened {
    /// Where the member was that opened it.
    pub(super) fn position(&self) -> Position {
        position(self.created.header())
    }

    /// Whether the member has ended it at once, as the user may not watch this.
    pub(super) fn is_denied(&self) -> bool {
        matches!(changes(&self.connection, &self.created), Err(StoreError::Denied { .. }))
    }

    /// What the watch gives from now on.
    ///
    /// # Errors
    /// The member has ended it already.
    pub(super) fn follow(self, members: Arc<Members>) -> Result<Watch, StoreError> {
        let Self { connection, stream, created } = self;
        let first = changes(&connection, &created)?;
        let following = Following { connection, stream, members };
        let rest = stream::unfold(Some(following), |following| async move {
            let mut following = following?;
            let next = following.next().await;
            let following = next.is_ok().then_some(following);
            Some((next, following))
        });
        Ok(stream::iter(first.map(Ok)).chain(rest).boxed())
    }
}

struct Following {
    connection: Arc<Connection>,
    stream: WatchStream,
    members: Arc<Members>,
}

impl Following {
    /// The next changes.
    async fn next(&mut self) -> Result<Batch, StoreError> {
        loop {
            // Where there is no other member, nothing is won by leaving this one.
            let check = self.members.are_several().then(|| self.check());
            let look_at = match check {
                Some(Check::Leave) => return Err(self.hung()),
                Some(Check::Ask) => {
                    self.ask().await?;
                    continue;
                }
                Some(Check::Wait(at)) => Some(at),
                None => None,
            };
            let answer = tokio::select! {
                // Every branch is cancel safe: a stream, a token and a timer.
                biased;
                answer = self.stream.message() => answer,
                () = self.connection.hung.cancelled() => return Err(self.hung()),
                () = crate::process::time::sleep_until(look_at) => continue,
            };
            self.connection.pulse(|pulse| pulse.hear(Instant::now()));
            let endpoint = &self.connection.endpoint;
            match answer {
                Ok(Some(answer)) => {
                    if let Some(batch) = changes(&self.connection, &answer)? {
                        return Ok(batch);
                    }
                }
                Ok(None) => return Err(unavailable(endpoint, "it closed the watch")),
                Err(error) => {
                    let error = classify(endpoint, error);
                    if matches!(error, StoreError::Unavailable { .. }) {
                        self.members.leave(&self.connection, &error);
                    }
                    return Err(error);
                }
            }
        }
    }

    fn check(&self) -> Check {
        self.connection.pulse(|pulse| pulse.check(Instant::now()))
    }

    async fn ask(&mut self) -> Result<(), StoreError> {
        let asked = self.stream.request_progress().await;
        asked.map_err(|error| classify(&self.connection.endpoint, error))
    }

    fn hung(&self) -> StoreError {
        let error = unavailable(&self.connection.endpoint, "it has stopped answering");
        self.connection.hung.cancel();
        self.members.leave(&self.connection, &error);
        error
    }
}

/// The changes of an answer, or why there will be none.
fn changes(connection: &Connection, answer: &WatchResponse) -> Result<Option<Batch>, StoreError> {
    if answer.compact_revision() > 0 {
        return Err(StoreError::Compacted);
    }
    if answer.canceled() {
        let (endpoint, reason) = (&connection.endpoint, answer.cancel_reason());
        return Err(if is_denial(reason) {
            StoreError::Denied { place: place(endpoint), message: reason.to_owned() }
        } else {
            unavailable(endpoint, format!("it ended the watch: {reason}"))
        });
    }
    Ok(batch(answer))
}
