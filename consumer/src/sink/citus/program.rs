//! A coordinator as a program that is told directly: one session that is kept, and the workers that were asked.
//!
//! Looking takes no lock. Whoever changes something takes the advisory lock first, makes sure that what it looked at is
//! still so, and gives the lock back with the next look.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use rollcall_shared::model::instance::Endpoint;
use tokio::{task::JoinSet, time::Instant};

use super::{
    coordinator::{self, State},
    error::CitusError,
    identity::{self, Answer},
    libpq::{Environment, Login},
    plan::{self, ASK_INTERVAL, Candidate, Move, NodeId, Observed, Plan, Step},
    session::Session,
    settings::CitusConfig,
};
use crate::sink::{
    SinkError,
    program::{Desired, Program, Scope},
};

/// After this time a worker that was refused again and again is asked as a new one: it may not be desired any more.
const ASKED_EXPIRY: Duration = Duration::from_secs(600);
/// When a worker that was refused is asked again at first: one that has just started may not listen yet. It takes twice as
/// long each time, up to [`ASK_INTERVAL`].
const FIRST_ASK_INTERVAL: Duration = Duration::from_millis(250);
/// How long a look may wait for workers that are asked again. Those that take longer are as they were.
const ASK_AGAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// A coordinator that is told.
#[derive(Debug)]
pub struct CitusProgram {
    config: CitusConfig,
    session: Option<Session>,
    /// Whether the session holds the lock.
    is_locked: bool,
    /// What was looked at last.
    last: Option<State>,
    /// The workers that were asked and have no node yet.
    asked: BTreeMap<Candidate, Asked>,
    /// Since when nodes could not be moved.
    stuck: BTreeMap<NodeId, Instant>,
    /// How often workers could not be added.
    failed: BTreeMap<Candidate, u32>,
}

/// A worker that was asked who it is.
#[derive(Debug)]
struct Asked {
    answer: Answer,
    first: Instant,
    last: Instant,
}

impl Asked {
    /// How long after it was asked last it is asked again.
    fn interval(&self) -> Duration {
        (self.last - self.first).clamp(FIRST_ASK_INTERVAL, ASK_INTERVAL)
    }
}

impl CitusProgram {
    /// A coordinator that nobody has connected to yet.
    pub fn new(config: CitusConfig) -> Self {
        Self {
            config,
            session: None,
            is_locked: false,
            last: None,
            asked: BTreeMap::new(),
            stuck: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    fn login(&self) -> Result<Login, CitusError> {
        Ok(Login::resolve(self.config.database.clone(), Environment::of_process())?)
    }

    /// The session, a new one where there is none or the last one has ended.
    async fn session(&mut self) -> Result<&mut Session, CitusError> {
        if self.session.as_ref().is_none_or(Session::has_ended) {
            self.forget_session();
            self.session = Some(Session::open(&self.login()?, Some(self.config.statement_timeout)).await?);
        }
        Ok(self.session.as_mut().expect("it was opened above"))
    }

    /// The server gives a lock back when its session ends.
    fn forget_session(&mut self) {
        self.session = None;
        self.is_locked = false;
    }

    async fn read(&mut self) -> Result<State, CitusError> {
        let state = coordinator::read(self.session().await?).await?;
        self.last = Some(state.clone());
        Ok(state)
    }

    /// Gives the lock back, so that nobody waits for a consumer that has failed. A session that is broken is closed.
    async fn settle<T>(&mut self, result: Result<T, CitusError>) -> Result<T, CitusError> {
        let is_over = result.as_ref().is_err_and(CitusError::ends_connection);
        match &self.session {
            Some(session) if self.is_locked && !is_over => {
                if coordinator::unlock(session).await.is_err() {
                    self.forget_session();
                }
                self.is_locked = false;
            }
            Some(_) if is_over => self.forget_session(),
            _ => {}
        }
        result
    }

    async fn look(&mut self) -> Result<Observed, CitusError> {
        let state = self.read().await?;
        self.ask_again(&state).await?;
        Ok(self.observed(state))
    }

    fn observed(&self, State { system, nodes, known }: State) -> Observed {
        Observed {
            coordinator: system,
            nodes,
            known,
            answers: self.asked.iter().map(|(one, asked)| (one.clone(), asked.answer.clone())).collect(),
            stuck: self.stuck.iter().map(|(node, since)| (*node, since.elapsed())).collect(),
            failed: self.failed.clone(),
            asked_again: self.asked.values().map(Asked::interval).min().unwrap_or(ASK_INTERVAL),
        }
    }

    /// Asks those again that have no node yet, and forgets those that have one or were drained.
    async fn ask_again(&mut self, state: &State) -> Result<(), CitusError> {
        let has_node = |candidate: &Candidate| {
            let known = state.known.values().find(|known| known.member == candidate.member);
            // One that has moved has a node too, but not where it is now.
            let is_there = |node| state.nodes.get(&node).is_some_and(|node| node.is_at(&candidate.endpoint));
            known.is_some_and(|known| known.is_drained || known.node.is_some_and(is_there))
        };
        self.asked.retain(|one, asked| !has_node(one) && asked.first.elapsed() < ASKED_EXPIRY);
        let is_old = |asked: &Asked| asked.last.elapsed() >= asked.interval();
        let old = self.asked.iter().filter(|(_, asked)| is_old(asked)).map(|(one, _)| one.clone()).collect();
        self.ask(old, ASK_AGAIN_TIMEOUT).await
    }

    /// Asks workers, all at once. What those say that take too long stays as it was.
    async fn ask(&mut self, candidates: Vec<Candidate>, timeout: Duration) -> Result<(), CitusError> {
        if candidates.is_empty() {
            return Ok(());
        }
        let login = self.login()?.for_workers(self.config.workers.as_ref())?;
        let mut asking = JoinSet::new();
        for candidate in &candidates {
            let (candidate, login) = (candidate.clone(), login.clone());
            asking.spawn(async move {
                let Endpoint { address, port } = &candidate.endpoint;
                let answer = identity::ask(&login, address.to_string(), *port).await;
                (candidate, answer)
            });
        }
        let now = Instant::now();
        for candidate in candidates {
            let silent = || Asked { answer: Err("no answer yet".to_owned()), first: now, last: now };
            self.asked.entry(candidate).or_insert_with(silent).last = now;
        }
        let all = async {
            while let Some(answered) = asking.join_next().await {
                let Ok((candidate, answer)) = answered else { continue };
                self.asked.entry(candidate).and_modify(|asked| asked.answer = answer);
            }
        };
        let _ = tokio::time::timeout(timeout, all).await;
        Ok(())
    }

    /// Takes the lock and makes sure that nobody changed what was looked at.
    async fn lock(&mut self) -> Result<(), CitusError> {
        if self.is_locked && self.session.as_ref().is_some_and(|session| !session.has_ended()) {
            return Ok(());
        }
        let looked_at = self.last.clone();
        coordinator::lock(self.session().await?).await?;
        self.is_locked = true;
        let now = self.read().await?;
        match looked_at {
            Some(looked_at) if looked_at != now => {
                Err(CitusError::Unfit("somebody else changed the coordinator's nodes meanwhile".to_owned()))
            }
            _ => Ok(()),
        }
    }

    async fn act(&mut self, step: &Step) -> Result<(), CitusError> {
        // Another session would not have the lock.
        let gone = || CitusError::Unfit("the connection to the coordinator ended".to_owned());
        let session = self.session.as_mut().ok_or_else(gone)?;
        let result = coordinator::act(session, step, &self.config).await;
        match step {
            Step::UpdateNode { node, .. } => self.note_move([node], result.is_ok()),
            Step::SwapNodes { nodes, .. } => self.note_move(nodes, result.is_ok()),
            Step::AddNode { candidate, .. } if result.is_ok() => drop(self.failed.remove(candidate)),
            Step::AddNode { candidate, .. } => *self.failed.entry(candidate.clone()).or_default() += 1,
            Step::Ask { .. } | Step::RecordIdentity { .. } => {}
        }
        result
    }

    fn note_move<'m>(&mut self, nodes: impl IntoIterator<Item = &'m Move>, is_done: bool) {
        for Move { node, .. } in nodes {
            if is_done {
                self.stuck.remove(node);
            } else {
                self.stuck.entry(*node).or_insert_with(Instant::now);
            }
        }
    }

    async fn step(&mut self, step: &Step) -> Result<(), CitusError> {
        let Step::Ask { candidates, desired } = step else {
            self.lock().await?;
            return self.act(step).await;
        };
        if desired.scope == Scope::All {
            let wanted: Vec<Candidate> = desired.services.values().flatten().map(Candidate::of_row).collect();
            self.asked.retain(|one, _| wanted.contains(one));
        }
        self.ask(candidates.clone(), ASK_INTERVAL).await?;
        // What follows is done at once: another round would be a new worker's time.
        let state = self.read().await?;
        let steps = self.plan_for(desired, &self.observed(state)).steps;
        for step in steps.iter().filter(|step| !matches!(step, Step::Ask { .. })) {
            self.lock().await?;
            self.act(step).await?;
        }
        Ok(())
    }

    fn plan_for(&self, desired: &Desired, observed: &Observed) -> Plan {
        plan::plan(desired, observed, &self.config)
    }
}

#[async_trait]
impl Program for CitusProgram {
    type Observed = Observed;
    type Step = Step;

    async fn observe(&mut self, _: &Scope) -> Result<Observed, SinkError> {
        let mut result = self.look().await;
        // A session that broke while nobody looked is no failure of the coordinator's.
        if result.as_ref().is_err_and(|error| matches!(error, CitusError::Statement { is_closed: true, .. }))
        {
            self.forget_session();
            result = self.look().await;
        }
        Ok(self.settle(result).await?)
    }

    fn plan(&self, desired: &Desired, observed: &Observed) -> Plan {
        self.plan_for(desired, observed)
    }

    async fn apply(&mut self, step: &Step) -> Result<(), SinkError> {
        let result = self.step(step).await;
        if result.is_ok() {
            return Ok(());
        }
        Ok(self.settle(result).await?)
    }

    async fn restarted(&mut self) {
        let Some(session) = &self.session else { return std::future::pending().await };
        session.ended().notified().await;
        self.forget_session();
    }
}
