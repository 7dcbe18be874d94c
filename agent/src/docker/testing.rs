//! A Docker engine that does what a test says: containers start and end, answers lag, calls fail or hang.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use rollcall_shared::model::signal::Signal;
use tokio::sync::{mpsc, watch};

use super::engine::{DockerError, Engine, Events, Exec};
use crate::inventory::container::{Action, Container, Event, FullId, Summary};

/// An engine that is scripted. Clones share it.
///
/// Its containers and its events are two things, as with Docker: a test may change one and not the other. An event
/// reaches those who have subscribed by then.
#[derive(Debug, Clone)]
pub(crate) struct ScriptedEngine {
    state: Arc<Mutex<State>>,
    /// Wakes calls that hang.
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    id: String,
    containers: BTreeMap<FullId, Container>,
    subscribers: Vec<mpsc::UnboundedSender<Result<Event, DockerError>>>,
    /// The events that it remembers, the newest last.
    history: Vec<Event>,
    /// How far its clock is ahead.
    ahead: SignedDuration,
    is_down: bool,
    hanging: BTreeSet<Call>,
    never_inspected: BTreeSet<FullId>,
    refused_kills: BTreeSet<FullId>,
    kills: Vec<(String, Signal)>,
    execs: Vec<(String, Vec<String>)>,
    /// What a command says and how it ends, by its words; others say nothing and end well.
    ends: BTreeMap<String, (i64, String)>,
    unseen: BTreeSet<String>,
    calls: BTreeMap<Call, usize>,
}

/// What an engine can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    Agree,
    Id,
    List,
    Inspect,
    /// A signal to this container.
    Kill(FullId),
    /// A command in this container.
    Exec(FullId),
}

impl ScriptedEngine {
    /// An engine without a container.
    pub(crate) fn new(id: &str) -> Self {
        let state = State { id: id.to_owned(), ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), changed: watch::Sender::new(()) }
    }

    /// A container starts, or one that runs is another from now on.
    pub(crate) fn start(&self, container: &Container) {
        self.put(container);
        self.tell(&container.id, Action::Start);
    }

    /// A container ends.
    pub(crate) fn die(&self, container: &Container) {
        self.remove(container);
        self.tell(&container.id, Action::Die);
    }

    /// A container runs, and no event says so.
    pub(crate) fn put(&self, container: &Container) {
        self.lock().containers.insert(container.id.clone(), container.clone());
    }

    /// A container does not run any more, and no event says so.
    pub(crate) fn remove(&self, container: &Container) {
        self.lock().containers.remove(&container.id);
    }

    /// Sends an event, whatever runs, and remembers it.
    pub(crate) fn tell(&self, id: &FullId, action: Action) {
        let mut state = self.lock();
        let event = Event { id: id.clone(), action, at: Timestamp::now() + state.ahead };
        state.history.push(event.clone());
        state.subscribers.retain(|subscriber| subscriber.send(Ok(event.clone())).is_ok());
    }

    /// Has its clock be this far ahead of ours from now on.
    pub(crate) fn set_clock_ahead(&self, ahead: SignedDuration) {
        self.lock().ahead = ahead;
    }

    /// Forgets its events, as an engine does that restarts.
    pub(crate) fn forget_events(&self) {
        self.lock().history.clear();
    }

    /// Ends every stream of events with an error.
    pub(crate) fn break_events(&self) {
        for subscriber in std::mem::take(&mut self.lock().subscribers) {
            // One that has gone needs no error.
            let _ = subscriber.send(Err(failed("reading its events", "the connection broke")));
        }
    }

    /// Has every call fail, and breaks the events, until it is up again.
    pub(crate) fn set_down(&self, is_down: bool) {
        self.lock().is_down = is_down;
        if is_down {
            self.break_events();
        }
    }

    /// Has a kind of call hang until it is released.
    pub(crate) fn hang(&self, call: Call) {
        self.lock().hanging.insert(call);
    }

    /// Has every inspection of a container hang.
    pub(crate) fn hang_inspect(&self, container: &Container) {
        self.lock().never_inspected.insert(container.id.clone());
    }

    /// Has calls of this kind be answered again; those that hang already go on hanging.
    pub(crate) fn let_through(&self, call: &Call) {
        self.lock().hanging.remove(call);
    }

    /// Lets calls that hang go on.
    pub(crate) fn release(&self, call: &Call) {
        self.lock().hanging.remove(call);
        self.changed.send_replace(());
    }

    /// Has signals to a container fail, or not.
    pub(crate) fn refuse_kills(&self, container: &Container, is_refused: bool) {
        let refused = &mut self.lock().refused_kills;
        if is_refused {
            refused.insert(container.id.clone());
        } else {
            refused.remove(&container.id);
        }
    }

    /// The signals that it was asked to send and has sent: each container's name, and the signal.
    pub(crate) fn kills(&self) -> Vec<(String, Signal)> {
        self.lock().kills.clone()
    }

    /// The commands that it has begun: each container's name, and the words.
    pub(crate) fn execs(&self) -> Vec<(String, Vec<String>)> {
        self.lock().execs.clone()
    }

    /// Has a command end like this from now on.
    pub(crate) fn set_end(&self, words: &str, exit_code: i64, said: &str) {
        self.lock().ends.insert(words.to_owned(), (exit_code, said.to_owned()));
    }

    /// Has no container see this path.
    pub(crate) fn hide(&self, path: &str) {
        self.lock().unseen.insert(path.to_owned());
    }

    /// How often it was asked for something.
    pub(crate) fn calls(&self, call: &Call) -> usize {
        self.lock().calls.get(call).copied().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with it")
    }

    /// Waits while the call hangs; then fails, where the engine is down.
    async fn take(&self, call: Call, doing: &'static str) -> Result<(), DockerError> {
        *self.lock().calls.entry(call.clone()).or_default() += 1;
        let mut changed = self.changed.subscribe();
        while self.lock().hanging.contains(&call) {
            changed.changed().await.expect("the engine lives as long as its calls");
        }
        if self.lock().is_down { Err(failed(doing, "it is down")) } else { Ok(()) }
    }
}

fn failed(doing: &'static str, reason: &str) -> DockerError {
    DockerError::Call { host: "the script".to_owned(), doing, source: reason.into() }
}

#[async_trait]
impl Engine for ScriptedEngine {
    async fn agree(&self) -> Result<(), DockerError> {
        self.take(Call::Agree, "agreeing on a version").await
    }

    async fn id(&self) -> Result<String, DockerError> {
        self.take(Call::Id, "asking for its ID").await?;
        Ok(self.lock().id.clone())
    }

    /// As Docker does, it repeats what it remembers, back to the first event that is older than `since`.
    fn events(&self, since: Timestamp) -> Events {
        let (subscriber, events) = mpsc::unbounded_channel();
        if self.lock().is_down {
            // The receiver is there.
            let _ = subscriber.send(Err(failed("reading its events", "it is down")));
        } else {
            let mut state = self.lock();
            let repeated = state.history.iter().rev().take_while(|event| event.at >= since);
            for event in repeated.collect::<Vec<_>>().into_iter().rev() {
                // The receiver is there.
                let _ = subscriber.send(Ok(event.clone()));
            }
            state.subscribers.push(subscriber);
        }
        let next = |mut events: mpsc::UnboundedReceiver<_>| async { Some((events.recv().await?, events)) };
        stream::unfold(events, next).boxed()
    }

    async fn list(&self) -> Result<Vec<Summary>, DockerError> {
        self.take(Call::List, "listing containers").await?;
        Ok(self.lock().containers.values().map(Summary::of).collect())
    }

    async fn inspect(&self, id: &str) -> Result<Option<Container>, DockerError> {
        self.take(Call::Inspect, "inspecting a container").await?;
        if self.lock().never_inspected.contains(id) {
            std::future::pending::<()>().await;
        }
        Ok(self.lock().containers.get(id).cloned())
    }

    async fn kill(&self, id: &str, signal: Signal) -> Result<(), DockerError> {
        self.take(Call::Kill(id.into()), "sending a signal").await?;
        let mut state = self.lock();
        let container = state.containers.get(id);
        let name = container.ok_or_else(|| failed("sending a signal", "no such container"))?.name.to_string();
        if state.refused_kills.contains(id) {
            return Err(failed("sending a signal", "it is told to refuse"));
        }
        state.kills.push((name, signal));
        Ok(())
    }

    async fn sees(&self, _: &str, path: &str) -> Result<bool, DockerError> {
        Ok(!self.lock().unseen.contains(path))
    }

    async fn exec(&self, id: &str, words: &[String], timeout: Duration) -> Result<Exec, DockerError> {
        let name = self.lock().containers.get(id).map(|container| container.name.to_string());
        let name = name.ok_or_else(|| failed("running a command", "no such container"))?;
        self.lock().execs.push((name, words.to_vec()));
        let taken = self.take(Call::Exec(id.into()), "running a command");
        match tokio::time::timeout(timeout, taken).await {
            Err(_) => return Ok(Exec::Unfinished { pid: None }),
            Ok(taken) => taken?,
        }
        let (exit_code, said) = self.lock().ends.get(&words.join(" ")).cloned().unwrap_or_default();
        Ok(Exec::Ended { exit_code, output: said.into_bytes() })
    }
}
