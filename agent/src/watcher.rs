//! Keeps [`Containers`] up with Docker: reads the events, asks the questions, publishes the result.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, pin_mut};
use jiff::Timestamp;
use rollcall_shared::{health::Health, retry::Retry};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::MissedTickBehavior,
};

use crate::{
    container::{Container, Event, FullId, Summary},
    containers::{Containers, Question, Running},
    docker::{Docker, DockerError},
};

/// What the agent sees of its host.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The running containers by full ID: `None` until Docker was listed, and none of them when it has been
    /// out of reach for longer than the grace time.
    pub running: Option<Arc<BTreeMap<FullId, Running>>>,
    /// Whether Docker has announced more changes.
    pub expects_more: bool,
}

/// Questions that are put to Docker side by side: more would queue behind its lock.
const SIDE_BY_SIDE: usize = 8;

/// Watches one Docker engine.
#[derive(Debug)]
pub struct Watcher {
    docker: Docker,
    containers: Containers,
    /// How often everything is listed again.
    refresh: Duration,
    /// How long what is known stands while Docker is out of reach.
    grace: Duration,
    /// How long an announced change is waited for.
    gather: Duration,
    health: Health,
    seen: watch::Sender<Seen>,
    waiting: VecDeque<Question>,
    asking: JoinSet<Answer>,
    /// Whether a list is among what is asked.
    listing: bool,
    /// Since when Docker has been out of reach.
    away_since: Option<Instant>,
    listed: bool,
    /// Whether all that the first list raised was answered.
    whole: bool,
}

/// The name under which the agent's health report has Docker.
pub const HEALTH_PART: &str = "docker";

/// How far back the events of a new subscription reach: what happens between subscribing and listing is
/// then never missed, and a difference of the clocks is forgiven. Hearing an event twice does no harm.
const OVERLAP: Duration = Duration::from_secs(2);
/// How soon a question without an answer is raised again.
const SOON: Duration = Duration::from_secs(1);

enum Answer {
    Inspected(Question, Result<Option<Box<Container>>, DockerError>),
    Listed(Result<Vec<Summary>, DockerError>),
}

impl Watcher {
    /// A watcher, and where it publishes what it sees.
    pub fn new(
        docker: Docker,
        refresh: Duration,
        grace: Duration,
        gather: Duration,
        health: Health,
    ) -> (Self, watch::Receiver<Seen>) {
        let (seen, receiver) = watch::channel(Seen::default());
        health.ill(HEALTH_PART, "not listed yet");
        let watcher = Self {
            docker,
            containers: Containers::default(),
            refresh,
            grace,
            gather,
            health,
            seen,
            waiting: VecDeque::new(),
            asking: JoinSet::new(),
            listing: false,
            away_since: None,
            listed: false,
            whole: false,
        };
        (watcher, receiver)
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) {
        let mut retry = Retry::new(Duration::from_millis(250), Duration::from_secs(10));
        loop {
            let error = self.follow(&mut retry).await;
            // Their answers would be about what was before the break.
            self.asking.abort_all();
            while self.asking.join_next().await.is_some() {}
            self.waiting.clear();
            self.listing = false;
            self.away_since.get_or_insert_with(Instant::now);
            self.health.ill(HEALTH_PART, error.to_string());
            let delay = retry.next_delay();
            tracing::warn!(%error, ?delay, "lost Docker, will try again");
            tokio::time::sleep(delay).await;
            self.withdraw_after_grace();
        }
    }

    /// Follows one stream of events until it breaks.
    async fn follow(&mut self, retry: &mut Retry) -> DockerError {
        if self.away_since.is_some()
            && let Err(error) = self.docker.agree().await
        {
            return error;
        }
        // Unbounded, because a reader that waits makes Docker drop events; they are small and few.
        let (sender, mut events) = mpsc::unbounded_channel();
        let stream = self.docker.events(Timestamp::now() - OVERLAP);
        let mut reader = JoinSet::new();
        reader.spawn(async move {
            pin_mut!(stream);
            while let Some(event) = stream.next().await {
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        if self.listed {
            let questions = self.containers.on_events_lost();
            self.waiting.extend(questions);
        }
        let mut relist = tokio::time::interval(self.refresh);
        relist.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // Every branch is cancel safe: a channel, a set of tasks and a timer.
                biased;
                event = events.recv() => match event {
                    Some(Ok(event)) => self.on_event(&event),
                    Some(Err(error)) => return error,
                    None => return self.docker.events_ended(),
                },
                Some(answer) = self.asking.join_next() => {
                    match answer.expect("asking Docker does not panic and is not aborted") {
                        Answer::Inspected(question, Ok(container)) => {
                            self.containers.on_inspected(&question, container.map(|container| *container));
                        }
                        Answer::Inspected(question, Err(error)) => {
                            tracing::warn!(container = &*question.id, %error, "could not inspect a container");
                            self.containers.on_unanswered(&question);
                            relist.reset_after(SOON);
                        }
                        Answer::Listed(list) => {
                            self.listing = false;
                            match list {
                                Ok(list) => self.on_list(&list),
                                Err(error) => return error,
                            }
                            retry.reset();
                        }
                    }
                }
                _ = relist.tick(), if !self.listing => {
                    self.listing = true;
                    let docker = self.docker.clone();
                    self.asking.spawn(async move { Answer::Listed(docker.list().await) });
                }
            }
            self.ask();
            self.publish();
        }
    }

    fn on_list(&mut self, list: &[Summary]) {
        let questions = self.containers.on_list(list, Instant::now());
        self.waiting.extend(questions);
        self.away_since = None;
        self.listed = true;
        self.health.well(HEALTH_PART);
    }

    fn on_event(&mut self, event: &Event) {
        tracing::debug!(container = &*event.id, action = ?event.action, "event");
        metrics::counter!("rollcall_agent_docker_events_total").increment(1);
        let question = self.containers.on_event(event, Instant::now());
        // A start is asked about before the doubts of a list.
        question.into_iter().for_each(|question| self.waiting.push_front(question));
    }

    /// Puts waiting questions to Docker, without those that an event has made moot.
    fn ask(&mut self) {
        while self.asking.len() < SIDE_BY_SIDE {
            let Some(question) = self.waiting.pop_front() else { return };
            if self.containers.is_open(&question) {
                let docker = self.docker.clone();
                self.asking.spawn(async move {
                    let asked = Instant::now();
                    let answer = docker.inspect(&question.id).await;
                    metrics::histogram!("rollcall_agent_inspect_duration_seconds").record(asked.elapsed());
                    Answer::Inspected(question, answer.map(|container| container.map(Box::new)))
                });
            }
        }
    }

    fn publish(&mut self) {
        // The first list is published once its containers are known, never half of it.
        self.whole = self.whole || (self.listed && self.asking.is_empty() && self.waiting.is_empty());
        if !self.whole {
            return;
        }
        let running = self.containers.running();
        let expects_more = self.containers.expects_more(Instant::now(), self.gather);
        self.seen.send_if_modified(|seen| {
            let same = seen.running.as_deref().is_some_and(|before| is_same(before, &running));
            let modified = !same || seen.expects_more != expects_more;
            seen.expects_more = expects_more;
            if !same {
                seen.running = Some(Arc::new(running));
            }
            modified
        });
    }

    fn withdraw_after_grace(&mut self) {
        let away = self.away_since.map_or(Duration::ZERO, |since| since.elapsed());
        if away >= self.grace && self.whole {
            tracing::error!(?away, "Docker is out of reach for longer than --docker-grace: withdrawing");
            self.seen.send_replace(Seen { running: Some(Arc::default()), expects_more: false });
            self.containers = Containers::default();
            (self.listed, self.whole) = (false, false);
        }
    }
}

fn is_same(before: &BTreeMap<FullId, Running>, now: &BTreeMap<FullId, Running>) -> bool {
    before.len() == now.len() && before.iter().zip(now).all(|((a, x), (b, y))| a == b && x.is_same(y))
}
