//! The keeper of a claim: it claims a name, keeps the lease alive, notices when either is lost and claims again, answers
//! later processes that ask whether it lives, and ends the session.
//!
//! Agents and consumers keep their claims by this one state machine. `decide` says what to do about the record that
//! is found; the rest does it. Every wait ends when the process is asked to stop.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    KeeperError, Session,
    decision::{Step, Tenure, decide},
    settings::LeaseSettings,
};
use crate::{
    codec,
    model::claim::{Claim, Presence, Record},
    process::{
        backoff::Backoff,
        error::one_line,
        readiness::{Part, Readiness},
        time::sleep_until,
    },
    reflector::{Cache, Cause, Changed, Decode, Reflector, Update},
    store::{Guard, KeyRange, LeaseId, Op, Revision, Store, StoreError},
};

/// How long a process that holds the name may take to answer that it lives.
const CHALLENGE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long ending the session may take.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// A lost claim is claimed again within this time, at a random moment: agents that lose their leases at once do not all
/// come back at once.
const MAX_RECLAIM_JITTER: Duration = Duration::from_millis(500);
/// How often a lease is looked at that nobody keeps any more.
const LEFT_LEASE_INTERVAL: Duration = Duration::from_secs(1);

/// What becomes of the session when the process is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnExit {
    /// Its keys go at once.
    Revoke,
    /// They stay until their TTL is over, for a process that is about to come back.
    Keep,
}

/// Keeps a claim.
#[derive(Debug)]
pub struct Keeper<R: Record> {
    store: Arc<dyn Store>,
    /// The name that is claimed, for messages.
    name: String,
    key: String,
    record: R,
    /// Where others say what the record should be.
    records: watch::Sender<R>,
    /// Whether the store has another record of ours than this one.
    is_outdated: bool,
    refresh: Duration,
    on_exit: OnExit,
    claim_part: Part,
    watch_part: Option<Part>,
    sessions: watch::Sender<Option<Session>>,
    doubts: mpsc::Receiver<Session>,
    state: State,
    /// A lease of ours that no session has yet, or that outlived one.
    spare_lease: Option<LeaseId>,
    tenure: Tenure,
}

/// What others see of a keeper.
#[derive(Debug, Clone)]
pub struct SessionHandle {
    sessions: watch::Receiver<Option<Session>>,
    doubts: mpsc::Sender<Session>,
}

impl SessionHandle {
    /// The session; `None` while there is none.
    pub fn session(&mut self) -> Option<Session> {
        self.sessions.borrow_and_update().clone()
    }

    /// Waits until the session is another one than [`SessionHandle::session`] last gave. Cancel safe.
    pub async fn changed(&mut self) {
        if self.sessions.changed().await.is_err() {
            // The keeper has ended, and with it the process does.
            std::future::pending().await
        }
    }

    /// Tells the keeper that a commit under this session failed because of its claim or its lease.
    pub fn doubt(&self, session: Session) {
        // One that waits is enough.
        let _ = self.doubts.try_send(session);
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// There is no session; look at the record, not before then.
    Claiming { not_before: Option<Instant> },
    /// The process that holds the name was asked whether it lives, by a record put at this revision.
    Challenging { asked: Revision, until: Instant },
    /// The session is there.
    Holding { session: Session, refresh_at: Instant },
}

/// Reads the claim's own key and nothing else.
#[derive(Debug)]
struct DecodeClaim;

impl Decode for DecodeClaim {
    type Key = ();
    type Value = Vec<u8>;

    fn key(&self, _: &str) -> Result<(), String> {
        Ok(())
    }

    fn value(&self, (): &(), value: Vec<u8>) -> Result<Vec<u8>, String> {
        Ok(value)
    }
}

/// Describes the keepers' metrics.
pub fn describe_metrics() {
    metrics::describe_counter!("rollcall_leases_lost_total", "Leases that were lost, and claims with them");
}

impl<R: Record> Keeper<R> {
    /// A keeper of the claim of `name` at `key`, and the handle of its sessions. It reports its condition as the part
    /// `claim`.
    pub fn new(
        store: Arc<dyn Store>,
        (name, key): (String, String),
        record: R,
        lease: LeaseSettings,
        on_exit: OnExit,
        readiness: &Readiness,
    ) -> (Self, SessionHandle) {
        let (sessions, receiver) = watch::channel(None);
        let (doubts_sender, doubts) = mpsc::channel(1);
        let keeper = Self {
            store,
            name,
            key,
            records: watch::Sender::new(record.clone()),
            record,
            is_outdated: false,
            refresh: lease.refresh,
            on_exit,
            claim_part: readiness.part("claim"),
            watch_part: Some(readiness.part("watch of the claim")),
            sessions,
            doubts,
            state: State::Claiming { not_before: None },
            spare_lease: None,
            tenure: Tenure::New,
        };
        (keeper, SessionHandle { sessions: receiver, doubts: doubts_sender })
    }

    /// Where to say that the record should be another; its claim stays. The session goes on under the same lease.
    pub fn records(&self) -> watch::Sender<R> {
        self.records.clone()
    }

    /// Runs until it is asked to stop, and then ends the session.
    ///
    /// # Errors
    /// The name is another's, or was taken over.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), KeeperError> {
        let range = KeyRange::key(self.key.clone());
        let part = self.watch_part.take().expect("it runs once");
        let (reflector, updates) = Reflector::new(self.store.clone(), range, DecodeClaim, part);
        let kept = tokio::select! {
            // Where it is dropped half way through a step, `leave` looks at what is there.
            () = stop.cancelled() => Ok(()),
            kept = self.keep(updates) => kept,
            () = reflector.run() => Ok(()),
        };
        self.sessions.send_replace(None);
        kept?;
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, self.leave()).await.is_err() {
            tracing::error!("could not end the session in {SHUTDOWN_TIMEOUT:?}, its TTL will");
        }
        Ok(())
    }

    /// Keeps the claim until it belongs to another.
    async fn keep(&mut self, mut updates: mpsc::Receiver<Update<(), Vec<u8>>>) -> Result<(), KeeperError> {
        let mut claims = Cache::new("claim");
        let (mut recoveries, mut records) = (self.store.recoveries(), self.records.subscribe());
        let mut backoff =
            Backoff::new(Duration::from_millis(100), Duration::from_secs(5).min(self.refresh / 2));
        loop {
            let next = match &self.state {
                State::Claiming { not_before } => not_before.unwrap_or_else(Instant::now),
                State::Challenging { until, .. } => *until,
                State::Holding { refresh_at, .. } => *refresh_at,
            };
            let stepped = if next <= Instant::now() {
                self.step().await?
            } else {
                tokio::select! {
                    // Every branch is cancel safe: channels and a timer.
                    biased;
                    Some(update) = updates.recv() => {
                        let delta = claims.apply(update);
                        if delta.listed == Some(Cause::WentBack) {
                            self.went_back();
                        } else if !delta.changes.iter().any(|change| self.is_foreign(change, &claims)) {
                            continue;
                        }
                        self.look().await?
                    }
                    Some(session) = self.doubts.recv() => {
                        if !matches!(&self.state, State::Holding { session: held, .. } if *held == session) {
                            continue;
                        }
                        self.look().await?
                    }
                    Ok(()) = records.changed() => {
                        self.renew(&records.borrow_and_update());
                        continue;
                    }
                    () = recoveries.next() => {
                        self.hasten();
                        continue;
                    }
                    () = sleep_until(Some(next)) => continue,
                }
            };
            match stepped {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    self.claim_part.failed(one_line(&error));
                    let delay = backoff.next_delay();
                    let again = Instant::now() + delay;
                    match &mut self.state {
                        State::Claiming { not_before } => *not_before = Some(again),
                        // The holder could not answer either: it gets its whole time again.
                        State::Challenging { until, .. } => {
                            *until = Instant::now() + delay.max(CHALLENGE_TIMEOUT);
                        }
                        State::Holding { refresh_at, .. } => *refresh_at = again,
                    }
                }
            }
        }
    }

    /// Whether a change of the claim's key is not the echo of our own put.
    fn is_foreign(&self, changed: &Changed<(), Vec<u8>>, claims: &Cache<(), Vec<u8>>) -> bool {
        match &self.state {
            State::Holding { session, .. } => {
                let revision = claims.held().get(&()).map(|held| held.revision);
                changed.after.is_none() || revision != session.guard().revision
            }
            State::Challenging { .. } => true,
            State::Claiming { .. } => false,
        }
    }

    /// Whoever holds the name there, it was not taken from us.
    fn went_back(&mut self) {
        if self.tenure == Tenure::Held {
            self.tenure = Tenure::HeldBeforeRestore;
        }
        self.spare_lease = None;
        self.sessions.send_replace(None);
        self.state = State::Claiming { not_before: None };
    }

    /// The record is to be another one, but for the claim.
    fn renew(&mut self, wanted: &R) {
        let claim = self.record.claim().clone();
        self.record = wanted.clone();
        *self.record.claim_mut() = claim;
        self.is_outdated = true;
        self.hasten();
    }

    /// What waits to be tried is due now.
    fn hasten(&mut self) {
        match &mut self.state {
            State::Claiming { not_before } => *not_before = None,
            State::Challenging { .. } => {}
            State::Holding { refresh_at, .. } => *refresh_at = Instant::now(),
        }
    }

    /// Does what is due: refreshes the lease, or looks at the record.
    async fn step(&mut self) -> Result<Result<(), StoreError>, KeeperError> {
        if self.is_outdated {
            return self.look().await;
        }
        if let State::Holding { session, refresh_at } = &mut self.state {
            match self.store.keep_alive(session.lease()).await {
                Ok(()) => {
                    *refresh_at = Instant::now() + self.refresh;
                    self.claim_part.ready();
                    return Ok(Ok(()));
                }
                Err(StoreError::LeaseNotFound) => {
                    self.lose();
                    return Ok(Ok(()));
                }
                Err(error) => return Ok(Err(error)),
            }
        }
        self.look().await
    }

    /// The lease is gone, and every key with it.
    fn lose(&mut self) {
        metrics::counter!("rollcall_leases_lost_total").increment(1);
        tracing::warn!("the lease was lost, claiming again");
        self.sessions.send_replace(None);
        self.spare_lease = None;
        let jitter = MAX_RECLAIM_JITTER.min(self.refresh / 10).mul_f64(fastrand::f64());
        self.state = State::Claiming { not_before: Some(Instant::now() + jitter) };
    }

    /// Looks at the record and does what it calls for.
    async fn look(&mut self) -> Result<Result<(), StoreError>, KeeperError> {
        let mut dead_lease = None;
        loop {
            let found = match self.store.get(&self.key).await {
                Ok(found) => found,
                Err(error) => return Ok(Err(error)),
            };
            let revision = found.as_ref().map(|entry| entry.revision);
            let lease =
                found.as_ref().and_then(|entry| entry.lease).filter(|lease| Some(*lease) != dead_lease);
            let record = found.map(|entry| codec::decode::<R>(&entry.value)).transpose();
            let record = record.map_err(|source| KeeperError::Unreadable {
                what: R::WHAT,
                flag: R::FLAG,
                name: self.name.clone(),
                source,
            })?;
            if let State::Holding { session, .. } = &self.state
                && session.guard().revision == revision
                && !self.is_outdated
            {
                // The claim stands, so the doubt is about the lease.
                return match self.store.keep_alive(session.lease()).await {
                    Ok(()) => Ok(Ok(())),
                    Err(StoreError::LeaseNotFound) => {
                        self.lose();
                        Ok(Ok(()))
                    }
                    Err(error) => Ok(Err(error)),
                };
            }
            let asked = match self.state {
                State::Challenging { asked, until } => Some((asked, until <= Instant::now())),
                State::Claiming { .. } | State::Holding { .. } => None,
            };
            let claim = record.as_ref().map(Record::claim);
            let found = claim.zip(revision).map(|(claim, revision)| (claim, lease, revision));
            let step = decide(found, self.record.claim(), asked, self.tenure);
            let over = Guard { key: self.key.clone(), revision };
            let done = match (step, record) {
                (Step::Claim, _) => self.claim(None, &over).await,
                (Step::Adopt(lease), _) => self.claim(Some(lease), &over).await,
                (Step::Challenge(lease), Some(record)) => self.challenge(record, lease, &over).await,
                (Step::Wait, _) => return Ok(Ok(())),
                (Step::WaitForLease, _) => {
                    let (what, name) = (R::WHAT, &self.name);
                    self.claim_part.waiting(format!(
                        "the restored store has an old record of the {what} name {name}: waiting for its lease to end"
                    ));
                    self.state = State::Claiming { not_before: Some(Instant::now() + LEFT_LEASE_INTERVAL) };
                    return Ok(Ok(()));
                }
                (refusal, Some(record)) => return Err(self.refusal(&refusal, record.claim())),
                (_, None) => continue,
            };
            match done {
                Ok(()) => return Ok(Ok(())),
                // Someone else was faster: look again.
                Err(StoreError::GuardFailed { .. }) => {}
                Err(StoreError::LeaseNotFound) => dead_lease = lease,
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    fn refusal(&self, step: &Step, holder: &Claim) -> KeeperError {
        let (what, flag, name, holder) = (R::WHAT, R::FLAG, self.name.clone(), Box::new(holder.clone()));
        match step {
            Step::GiveUp => KeeperError::TakenOver { what, name, holder },
            Step::RefuseTwin => KeeperError::Twin { what, flag, name, holder },
            _ => KeeperError::Refused { what, flag, name, holder, owner: self.record.claim().owner.clone() },
        }
    }

    /// Puts our record over the one that was found, under the lease that was found or one of ours.
    async fn claim(&mut self, adopted: Option<LeaseId>, over: &Guard) -> Result<(), StoreError> {
        // A claim that someone deleted is put back under the lease that still has our other keys.
        let held = match &self.state {
            State::Holding { session, .. } => Some(session.lease()),
            State::Claiming { .. } | State::Challenging { .. } => self.spare_lease,
        };
        let ttl = Duration::from_secs(self.record.claim().ttl_seconds);
        let lease = match adopted.or(held) {
            Some(lease) => match self.store.keep_alive(lease).await {
                Ok(()) => lease,
                Err(StoreError::LeaseNotFound) if adopted.is_none() => self.store.grant(ttl).await?,
                Err(error) => return Err(error),
            },
            None => self.store.grant(ttl).await?,
        };
        self.spare_lease = Some(lease);
        let put = Op::Put { key: self.key.clone(), value: codec::encode(&self.record) };
        let revisions = self.store.commit(&[put], Some(lease), Some(over)).await?;
        let session = Session::new(lease, &self.key, revisions.last().copied().unwrap_or_default());
        let is_new = !matches!(&self.state, State::Holding { session, .. } if session.lease() == lease);
        self.state = State::Holding { session: session.clone(), refresh_at: Instant::now() + self.refresh };
        self.sessions.send_replace(Some(session));
        self.tenure = Tenure::Held;
        self.is_outdated = false;
        self.claim_part.ready();
        if is_new {
            let (what, name) = (R::WHAT, &self.name);
            tracing::info!(what, name, adopted = adopted.is_some(), "claimed the name");
        }
        Ok(())
    }

    /// Asks the process that holds the name whether it lives, by naming ourselves in its record.
    async fn challenge(&mut self, mut record: R, lease: LeaseId, over: &Guard) -> Result<(), StoreError> {
        record.claim_mut().challenger = Some(self.record.claim().holder.clone());
        let put = Op::Put { key: self.key.clone(), value: codec::encode(&record) };
        let revisions = self.store.commit(&[put], Some(lease), Some(over)).await?;
        let asked = revisions.last().copied().unwrap_or_default();
        self.state = State::Challenging { asked, until: Instant::now() + CHALLENGE_TIMEOUT };
        let (what, name) = (R::WHAT, &self.name);
        self.claim_part
            .waiting(format!("asking the process that holds the {what} name {name} whether it lives"));
        Ok(())
    }

    /// Ends the session, unless another process has the claim by now: its keys may be under the same lease.
    async fn leave(&mut self) {
        let presence = match self.on_exit {
            OnExit::Revoke => Presence::Leaving,
            OnExit::Keep => Presence::Left,
        };
        match self.say_goodbye(presence).await {
            Ok(None) => {}
            Ok(Some(_)) if self.on_exit == OnExit::Keep => {
                tracing::info!("left every key to its TTL");
            }
            Ok(Some(lease)) => match self.store.revoke(lease).await {
                Ok(()) | Err(StoreError::LeaseNotFound) => tracing::info!("withdrew every key"),
                Err(error) => {
                    tracing::error!(error = one_line(&error), "could not end the session, its TTL will")
                }
            },
            Err(error) => {
                tracing::error!(error = one_line(&error), "could not end the session, its TTL will")
            }
        }
    }

    /// Marks our record; gives its lease, or `None` where the claim is not ours.
    async fn say_goodbye(&mut self, presence: Presence) -> Result<Option<LeaseId>, StoreError> {
        self.record.claim_mut().presence = presence;
        let put = [Op::Put { key: self.key.clone(), value: codec::encode(&self.record) }];
        loop {
            let Some(entry) = self.store.get(&self.key).await? else { return Ok(None) };
            let Ok(record) = codec::decode::<R>(&entry.value) else { return Ok(None) };
            let is_ours = record.claim().holder == self.record.claim().holder;
            let Some(lease) = entry.lease.filter(|_| is_ours) else { return Ok(None) };
            if record.claim().presence == presence {
                return Ok(Some(lease));
            }
            let over = Guard { key: self.key.clone(), revision: Some(entry.revision) };
            match self.store.commit(&put, Some(lease), Some(&over)).await {
                // A commit that is repeated fails by its own first answer.
                Ok(_) | Err(StoreError::GuardFailed { .. }) => {}
                Err(StoreError::LeaseNotFound) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests;
