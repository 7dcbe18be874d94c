//! Keeps the standing signal requests in the store, under the consumer's claim on its name.
//!
//! Rendering and installing never wait for it. When the session is lost, a new one is opened and every
//! request that stands is put again as it was. At the end the lease is revoked: what was not acked is
//! still owed by the ledger.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rollcall_shared::{
    key::{Key, Keys},
    name::{ConsumerName, TargetName},
    record::ConsumerRecord,
    retry::Retry,
    session::{Session, SessionError},
    signal::SignalRequest,
    store::{Op, Store, StoreError},
    wire,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::signal::Standing;
use crate::condition::Condition;

/// How long the end of the session may take; after that its TTL ends it.
const FAREWELL: Duration = Duration::from_secs(3);

/// Holds the consumer's session and puts its requests.
#[derive(Debug)]
pub struct Requests {
    store: Arc<dyn Store>,
    keys: Keys,
    consumer: ConsumerName,
    record: ConsumerRecord,
    refresh: Duration,
    standing: watch::Receiver<Standing>,
    condition: Condition,
    retry: Retry,
    state: State,
    /// Whether there has been a session before.
    was_held: bool,
}

/// Where it stands.
#[derive(Debug)]
enum State {
    /// There is no session: open one.
    Opening,
    /// The session is there, and under it these requests.
    Holding { session: Session, put: BTreeMap<TargetName, SignalRequest>, refresh_at: Instant },
}

impl Requests {
    /// Requests that stand as the receiver has them.
    pub fn new(
        store: Arc<dyn Store>,
        keys: Keys,
        (consumer, record): (ConsumerName, ConsumerRecord),
        refresh: Duration,
        standing: watch::Receiver<Standing>,
        condition: Condition,
    ) -> Self {
        let retry = Retry::new(Duration::from_millis(200), Duration::from_secs(5));
        let (state, was_held) = (State::Opening, false);
        Self { store, keys, consumer, record, refresh, standing, condition, retry, state, was_held }
    }

    /// Runs until it is stopped, and then ends the session.
    ///
    /// # Errors
    /// Another process of this host has taken the name over.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), SessionError> {
        loop {
            tokio::select! {
                // A step that is dropped half way leaves the state as it was before it.
                stepped = self.step() => stepped?,
                () = stop.cancelled() => break,
            }
        }
        if let State::Holding { session, .. } = &self.state {
            let revoked = tokio::time::timeout(FAREWELL, session.revoke(&*self.store)).await;
            if !matches!(revoked, Ok(Ok(()))) {
                tracing::warn!(?revoked, "could not end the session, its TTL will");
            }
        }
        Ok(())
    }

    async fn step(&mut self) -> Result<(), SessionError> {
        match &self.state {
            State::Opening => self.open().await,
            State::Holding { .. } => {
                if let Err(error) = self.hold().await {
                    self.recover(error).await;
                }
                Ok(())
            }
        }
    }

    async fn open(&mut self) -> Result<(), SessionError> {
        let key = self.keys.format(&Key::Consumer(self.consumer.clone()));
        match Session::open(&*self.store, &key, &self.record, self.was_held).await {
            Ok(session) => {
                tracing::info!(consumer = %self.consumer, adopted = session.adopted, "session opened");
                let refresh_at = Instant::now() + self.refresh;
                self.state = State::Holding { session, put: BTreeMap::new(), refresh_at };
                self.was_held = true;
                self.retry.reset();
                self.condition.well();
                Ok(())
            }
            Err(error @ SessionError::TakenOver { .. }) => Err(error),
            Err(error) => {
                self.condition.ill(error.to_string());
                tokio::time::sleep(self.retry.next_delay()).await;
                Ok(())
            }
        }
    }

    /// Puts what stands and is not there yet, or waits for more of it, or refreshes the lease.
    async fn hold(&mut self) -> Result<(), StoreError> {
        let State::Holding { session, put, refresh_at } = &mut self.state else { return Ok(()) };
        let wanted = self.standing.borrow_and_update().clone();
        let news = wanted.iter().filter(|(target, request)| put.get(*target) != Some(*request));
        let op = |(target, request): (&TargetName, &SignalRequest)| Op::Put {
            key: self.keys.format(&Key::Signal(self.consumer.clone(), target.clone())),
            value: wire::encode(request),
        };
        let ops: Vec<Op> = news.map(op).collect();
        if !ops.is_empty() {
            session.commit(&*self.store, &ops).await?;
            *put = wanted;
        } else {
            tokio::select! {
                // Neither branch takes anything that it could lose. Its sender lives as long as we do.
                changed = self.standing.changed() => if changed.is_err() { std::future::pending().await },
                () = tokio::time::sleep_until(*refresh_at) => {
                    session.keep_alive(&*self.store).await?;
                    // Writes nothing, but tells whether the claim is still ours.
                    session.commit(&*self.store, &[]).await?;
                    *refresh_at = Instant::now() + self.refresh;
                }
            }
        }
        self.retry.reset();
        self.condition.well();
        Ok(())
    }

    async fn recover(&mut self, error: StoreError) {
        match error {
            StoreError::LeaseNotFound | StoreError::GuardFailed { .. } => {
                tracing::warn!(%error, "lost the session, opening another");
                self.state = State::Opening;
            }
            error => {
                self.condition.ill(error.to_string());
                tokio::time::sleep(self.retry.next_delay()).await;
            }
        }
    }
}
