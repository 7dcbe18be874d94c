//! Keeps the [`Inventory`] up with Docker: reads the events, asks the questions, publishes which containers run.
//!
//! # Guarantees
//! - Nothing is published before the first list and every inspection that it raised: never half of what runs.
//! - An event is published at once, without waiting for what is being asked.
//!
//! - An engine that hangs is noticed within a refresh: while a list is awaited, something must be answered. A slow engine
//!   is not one that hangs: under a burst of starts inspections are answered and events come while the list waits.
//!
//! # Recovery
//! - After a break the events are subscribed to anew, everything that is known is asked again, and Docker is listed.
//! - While Docker is away, what is known stays for the grace time. Then everything is withdrawn.

use std::{
    collections::{BTreeSet, VecDeque},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use jiff::Timestamp;
use rollcall_shared::{
    model::signal::Incarnation,
    process::{
        backoff::Backoff,
        error::one_line,
        readiness::{Part, Readiness},
        time::sleep_until,
    },
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};

use super::{
    container::{Container, Event, Summary},
    inventory::{Inventory, Question, RunningContainers},
    recent::RecentEvents,
};
use crate::docker::{DockerError, Engine};

/// The containers that run, as they change: `None` until they are known, and none of them when Docker has been out of
/// reach for longer than the grace time.
pub type InventoryReceiver = watch::Receiver<Option<Arc<RunningContainers>>>;

/// Has those who read what runs look again: what is registered depends on something else that has changed.
#[derive(Debug)]
pub struct InventoryNotifier(watch::Sender<Option<Arc<RunningContainers>>>);

impl InventoryNotifier {
    /// Has them look again.
    pub fn notify(&self) {
        self.0.send_modify(|_| {});
    }
}

/// The name under which the readiness report has Docker.
pub const PART: &str = "docker";

/// Inspections, and lists, that are asked for at once: more would queue behind Docker's lock.
const MAX_CONCURRENT_INSPECTS: usize = 8;
/// How long an inspection may take. One that takes longer is asked for again, and holds up no first list until then.
const INSPECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The least that an engine is given to answer a list.
const MIN_LIST_TIMEOUT: Duration = Duration::from_secs(5);
/// The most.
const MAX_LIST_TIMEOUT: Duration = Duration::from_secs(10);
/// The least between two attempts to reach an engine that is away.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(250);
/// The most, where a refresh is long.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(10);
/// How long after an inspection failed Docker is listed, which raises the question again.
const RELIST_DELAY: Duration = Duration::from_secs(1);

/// Watches one Docker engine.
#[derive(Debug)]
pub struct Watcher {
    engine: Arc<dyn Engine>,
    inventory: Inventory,
    recent: RecentEvents,
    /// How often everything is listed again.
    refresh: Duration,
    /// How long what is known stays while Docker is out of reach.
    grace: Duration,
    /// Asks for a list at once.
    relist: Arc<Notify>,
    part: Part,
    running: watch::Sender<Option<Arc<RunningContainers>>>,
    waiting: VecDeque<Question>,
    asking: JoinSet<Answer>,
    /// While a list is among what is asked: when the engine was last heard of, or the list asked for.
    listing_since: Option<Instant>,
    /// Since when Docker has been out of reach, or, where it is not listed, since it was last heard of.
    away_since: Option<Instant>,
    is_listed: bool,
    /// Whether everything that the first list raised was answered.
    is_complete: bool,
}

enum Answer {
    Inspected(Question, Result<Option<Box<Container>>, DockerError>),
    Listed(Result<Vec<Summary>, DockerError>),
}

/// Describes the watcher's metrics.
pub fn describe_metrics() {
    metrics::describe_counter!("rollcall_agent_docker_events_total", "Events that were read from Docker");
    metrics::describe_histogram!(
        "rollcall_agent_inspect_duration_seconds",
        metrics::Unit::Seconds,
        "How long inspecting a container took"
    );
}

impl Watcher {
    /// A watcher, and where it publishes which containers run. `draining` are runs that are known to have been told to
    /// stop.
    pub fn new(
        engine: Arc<dyn Engine>,
        draining: BTreeSet<Incarnation>,
        refresh: Duration,
        grace: Duration,
        relist: Arc<Notify>,
        readiness: &Readiness,
    ) -> (Self, InventoryReceiver) {
        let (running, receiver) = watch::channel(None);
        let watcher = Self {
            engine,
            inventory: Inventory::new(draining),
            recent: RecentEvents::new(Timestamp::now()),
            refresh,
            grace,
            relist,
            part: readiness.part(PART),
            running,
            waiting: VecDeque::new(),
            asking: JoinSet::new(),
            listing_since: None,
            away_since: None,
            is_listed: false,
            is_complete: false,
        };
        (watcher, receiver)
    }

    /// A notifier of those who read what runs.
    pub fn notifier(&self) -> InventoryNotifier {
        InventoryNotifier(self.running.clone())
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) {
        // With its jitter twice that. However long it was away, when it is back nothing is missed for longer than a refresh.
        let max = (self.refresh / 6).clamp(MIN_RETRY_DELAY, MAX_RETRY_DELAY);
        let mut backoff = Backoff::new(MIN_RETRY_DELAY, max);
        loop {
            let error = self.follow(&mut backoff).await;
            self.part.failed(one_line(&error));
            self.away_since.get_or_insert_with(Instant::now);
            // Their answers would be about the time before the break.
            self.asking.shutdown().await;
            self.waiting.clear();
            self.listing_since = None;
            self.within_grace(tokio::time::sleep(backoff.next_delay())).await;
        }
    }

    /// Follows one stream of events until it breaks.
    async fn follow(&mut self, backoff: &mut Backoff) -> DockerError {
        if self.away_since.is_some() {
            let (engine, timeout) = (self.engine.clone(), self.list_timeout());
            let agreed = async move { tokio::time::timeout(timeout, engine.agree()).await };
            match self.within_grace(agreed).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error,
                Err(_) => return DockerError::Silent(timeout),
            }
        }
        let (_reader, mut events) = read_events(&*self.engine, self.recent.since());
        self.waiting.extend(self.inventory.on_events_lost());
        let asked = self.relist.clone();
        // The answer is due within the refresh.
        let mut relist = tokio::time::interval(self.refresh * 2 / 3);
        relist.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (withdraw_at, silent_at) = (self.withdraw_at(), self.silent_at());
            tokio::select! {
                // Every branch is cancel safe: a channel, a set of tasks, a notice and timers.
                biased;
                event = events.recv() => match event.expect("events end with an error") {
                    Ok(event) => self.on_event(&event),
                    Err(error) => return error,
                },
                Some(answer) = self.asking.join_next() => {
                    match answer.expect("asking Docker does not panic and is not aborted") {
                        Answer::Inspected(question, answer) => {
                            if !self.on_inspected(&question, answer) {
                                relist.reset_after(RELIST_DELAY);
                            }
                        }
                        Answer::Listed(Ok(list)) => {
                            self.on_list(&list);
                            backoff.reset();
                        }
                        Answer::Listed(Err(error)) => return error,
                    }
                }
                () = asked.notified() => relist.reset_immediately(),
                _ = relist.tick(), if self.listing_since.is_none() => self.list(),
                () = sleep_until(withdraw_at) => self.withdraw(),
                () = sleep_until(silent_at) => return DockerError::Silent(self.list_timeout()),
            }
            // In this order: what is moot is dropped, and then counts as answered.
            self.ask();
            self.publish();
        }
    }

    /// Awaits something of Docker's; withdraws what is known where the grace time ends before.
    async fn within_grace<T>(&mut self, awaited: impl Future<Output = T>) -> T {
        let mut awaited = pin!(awaited);
        loop {
            tokio::select! {
                // What is awaited is kept, and the other is a timer.
                biased;
                done = &mut awaited => return done,
                () = sleep_until(self.withdraw_at()) => self.withdraw(),
            }
        }
    }

    fn on_event(&mut self, event: &Event) {
        self.on_heard();
        if !self.recent.take(event) {
            return;
        }
        tracing::debug!(container = &*event.id, action = ?event.action, "event");
        metrics::counter!("rollcall_agent_docker_events_total").increment(1);
        // A start is asked about before the doubts of a list.
        self.inventory.on_event(event).into_iter().for_each(|question| self.waiting.push_front(question));
    }

    /// The engine does not hang.
    fn on_heard(&mut self) {
        let now = Instant::now();
        self.listing_since = self.listing_since.map(|_| now);
        self.away_since = self.away_since.map(|_| now);
    }

    /// Takes an answer; tells whether there was one.
    fn on_inspected(
        &mut self,
        question: &Question,
        answer: Result<Option<Box<Container>>, DockerError>,
    ) -> bool {
        match answer {
            Ok(container) => {
                self.on_heard();
                self.inventory.on_inspected(question, container.map(|container| *container));
            }
            Err(error) => {
                let (container, error) = (&*question.id, one_line(&error));
                tracing::warn!(container, error, "could not inspect a container, will try again");
                self.inventory.on_unanswered(question);
                return false;
            }
        }
        true
    }

    fn on_list(&mut self, list: &[Summary]) {
        self.waiting.extend(self.inventory.on_list(list));
        self.away_since = None;
        (self.listing_since, self.is_listed) = (None, true);
        self.part.ready();
    }

    fn list(&mut self) {
        self.listing_since = Some(Instant::now());
        let engine = self.engine.clone();
        self.asking.spawn(async move { Answer::Listed(engine.list().await) });
    }

    /// Puts waiting questions to Docker, without those that an event has made moot.
    fn ask(&mut self) {
        while self.asking.len() < MAX_CONCURRENT_INSPECTS {
            let Some(question) = self.waiting.pop_front() else { return };
            if self.inventory.is_open(&question) {
                let engine = self.engine.clone();
                self.asking.spawn(async move {
                    let asked = Instant::now();
                    let answer = tokio::time::timeout(INSPECT_TIMEOUT, engine.inspect(&question.id)).await;
                    let answer = answer.unwrap_or(Err(DockerError::Silent(INSPECT_TIMEOUT)));
                    metrics::histogram!("rollcall_agent_inspect_duration_seconds").record(asked.elapsed());
                    Answer::Inspected(question, answer.map(|container| container.map(Box::new)))
                });
            }
        }
    }

    fn publish(&mut self) {
        if !self.is_complete && self.is_listed && self.asking.is_empty() && self.waiting.is_empty() {
            self.is_complete = true;
            self.inventory.on_complete();
        }
        if !self.is_complete {
            return;
        }
        let running = self.inventory.running();
        self.running.send_if_modified(|before| {
            let is_modified = before.as_deref().is_none_or(|before| !is_same(before, &running));
            if is_modified {
                *before = Some(Arc::new(running));
            }
            is_modified
        });
    }

    /// When the engine hangs, unless something is heard of it before.
    fn silent_at(&self) -> Option<Instant> {
        self.listing_since.map(|since| since + self.list_timeout())
    }

    fn list_timeout(&self) -> Duration {
        (self.refresh / 3).clamp(MIN_LIST_TIMEOUT, MAX_LIST_TIMEOUT)
    }

    /// When what is known is withdrawn, unless Docker is back by then.
    fn withdraw_at(&self) -> Option<Instant> {
        self.away_since.filter(|_| self.is_complete).map(|since| since + self.grace)
    }

    fn withdraw(&mut self) {
        let grace = self.grace;
        tracing::error!(?grace, "Docker is out of reach for longer than --docker-grace: withdrawing");
        self.inventory.withdraw();
        (self.is_listed, self.is_complete) = (false, false);
        self.running.send_replace(Some(Arc::default()));
    }
}

/// Reads the events for as long as the task set lives: a reader that waits makes Docker drop events, which are small
/// and few, so the channel has no bound.
fn read_events(
    engine: &dyn Engine,
    since: Timestamp,
) -> (JoinSet<()>, mpsc::UnboundedReceiver<Result<Event, DockerError>>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let mut events = engine.events(since);
    let mut reader = JoinSet::new();
    reader.spawn(async move {
        while let Some(event) = events.next().await {
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    (reader, receiver)
}

fn is_same(before: &RunningContainers, now: &RunningContainers) -> bool {
    before.len() == now.len() && before.iter().zip(now).all(|((a, x), (b, y))| a == b && x.is_same(y))
}
