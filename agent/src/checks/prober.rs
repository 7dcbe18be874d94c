//! Asks the ports of this host's containers, each in its own time, and publishes what it finds: a thin shell around the
//! [`Monitor`]s.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use rollcall_shared::{
    model::{name::ContainerName, signal::Incarnation},
    process::{error::one_line, time::sleep_until},
};
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
    time::Instant,
};

use super::{
    CheckId, Definition, Definitions, Health, Verdicts,
    monitor::{Monitor, News},
    probe::{Probe, ProbeError},
};

/// Probes that are under way at once.
const MAX_CONCURRENT_PROBES: usize = 256;
/// Of these, those of one container: one whose ports never answer delays no other.
const MAX_CONCURRENT_OF_CONTAINER: usize = 4;
/// A probe comes up to this share of its interval early, so that those of many containers do not come together.
const JITTER: f64 = 0.1;

/// Where definitions go to a prober, and its verdicts come from.
#[derive(Debug)]
pub struct Exchange {
    /// What is to be checked.
    pub definitions: watch::Sender<Arc<Definitions>>,
    /// What was found.
    pub verdicts: watch::Receiver<Arc<Verdicts>>,
}

/// Probes the containers of one host.
#[derive(Debug)]
pub struct Prober {
    probe: Arc<dyn Probe>,
    definitions: watch::Receiver<Arc<Definitions>>,
    verdicts: watch::Sender<Arc<Verdicts>>,
    checks: BTreeMap<CheckId, Check>,
    due: BTreeSet<(Instant, CheckId)>,
    probing: JoinSet<Answer>,
    /// How many probes of each run are under way.
    in_flight: BTreeMap<Incarnation, usize>,
}

#[derive(Debug)]
struct Check {
    definition: Definition,
    monitor: Monitor,
    /// Whether it has been asked, so that its health says something.
    was_asked: bool,
    /// When it is due, if it is; what `due` has is this.
    due_at: Option<Instant>,
}

/// What a probe has found.
struct Answer {
    id: CheckId,
    asked_at: Instant,
    outcome: Result<(), ProbeError>,
}

/// What an answer says.
struct Heard {
    id: CheckId,
    container: ContainerName,
    outcome: Result<(), ProbeError>,
    took: Duration,
    /// Whether nothing was known before.
    is_first: bool,
    news: Option<News>,
}

impl Heard {
    /// Counts it, and logs what is new.
    fn log(&self) {
        let Self { id, container, outcome, took, is_first: _, news } = self;
        let result = if outcome.is_ok() { "passed" } else { "failed" };
        metrics::counter!("rollcall_agent_probes_total", "result" => result).increment(1);
        metrics::histogram!("rollcall_agent_probe_duration_seconds").record(*took);
        let Some(news) = news else { return };
        let reason = outcome.as_ref().err().map(|error| one_line(error)).unwrap_or_default();
        match news {
            News::Passes => tracing::info!(%container, port = %id.port, "its check passes"),
            News::Fails => tracing::warn!(%container, port = %id.port, reason, "its check fails"),
            News::IsLate => {
                tracing::warn!(%container, port = %id.port, reason, "its check has not passed yet");
            }
        }
    }
}

/// Describes the metrics of checks.
pub fn describe_metrics() {
    metrics::describe_gauge!("rollcall_agent_checks", "Checked ports of this host's containers, by health");
    metrics::describe_counter!("rollcall_agent_probes_total", "Probes of checked ports, by result");
    metrics::describe_histogram!(
        "rollcall_agent_probe_duration_seconds",
        metrics::Unit::Seconds,
        "How long a checked port took to answer"
    );
}

impl Prober {
    /// A prober that begins with what was found before.
    pub fn new(probe: Arc<dyn Probe>, found: Verdicts) -> (Self, Exchange) {
        let (definitions, definitions_receiver) = watch::channel(Arc::default());
        let (verdicts_sender, verdicts) = watch::channel(Arc::new(found));
        let prober = Self {
            probe,
            definitions: definitions_receiver,
            verdicts: verdicts_sender,
            checks: BTreeMap::new(),
            due: BTreeSet::new(),
            probing: JoinSet::new(),
            in_flight: BTreeMap::new(),
        };
        (prober, Exchange { definitions, verdicts })
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) {
        loop {
            let now = Instant::now();
            self.begin(now);
            // Those that are due already wait for others to end.
            let wake_at = self.due.iter().map(|(at, _)| *at).find(|at| *at > now);
            tokio::select! {
                // Every branch is cancel safe: a channel, a set of tasks and a timer.
                biased;
                Ok(()) = self.definitions.changed() => self.on_definitions(Instant::now()),
                Some(answer) = self.probing.join_next() => self.on_answers(answer).await,
                () = sleep_until(wake_at) => {}
            }
        }
    }

    /// Begins the probes that are due, as far as there is room.
    fn begin(&mut self, now: Instant) {
        let due: Vec<CheckId> = self.due.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| *id).collect();
        for id in due {
            if self.probing.len() >= MAX_CONCURRENT_PROBES {
                return;
            }
            let Some(Check { definition, .. }) = self.checks.get(&id) else { continue };
            let in_flight = self.in_flight.entry(id.run).or_default();
            if *in_flight >= MAX_CONCURRENT_OF_CONTAINER {
                continue;
            }
            *in_flight += 1;
            let (probe, target, spec) =
                (self.probe.clone(), definition.target.clone(), definition.spec.clone());
            self.probing.spawn(async move {
                let outcome = probe.probe(&target, &spec).await;
                Answer { id, asked_at: now, outcome }
            });
            self.schedule(id, None);
        }
    }

    fn on_definitions(&mut self, now: Instant) {
        let definitions = self.definitions.borrow_and_update().clone();
        let found = self.verdicts.borrow().clone();
        let gone: Vec<CheckId> =
            self.checks.keys().filter(|id| !definitions.contains_key(id)).copied().collect();
        for id in gone {
            self.schedule(id, None);
            self.checks.remove(&id);
        }
        for (id, definition) in &*definitions {
            let at = match self.checks.get_mut(id) {
                Some(check) if check.definition == *definition => continue,
                Some(check) => {
                    check.definition = definition.clone();
                    first_probe(&check.monitor, definition, now)
                }
                None => {
                    let health = found.get(id).copied().unwrap_or(Health::Starting);
                    let monitor = Monitor::new(health, now);
                    let at = first_probe(&monitor, definition, now);
                    let was_asked = health != Health::Starting;
                    let check = Check { definition: definition.clone(), monitor, was_asked, due_at: None };
                    self.checks.insert(*id, check);
                    at
                }
            };
            self.schedule(*id, at);
        }
        self.publish();
    }

    /// Takes the answer of this probe and of whichever have ended as well: what comes together is published together.
    async fn on_answers(&mut self, first: Result<Answer, JoinError>) {
        let (mut ended, mut heard, mut is_news) = (Some(first), Vec::new(), false);
        while let Some(answer) = ended {
            let answer = answer.expect("a probe does not panic and is not aborted");
            if let Some(one) = self.on_answer(answer, Instant::now()) {
                is_news |= one.is_first || one.news.is_some();
                heard.push(one);
            }
            ended = self.probing.try_join_next();
        }
        if is_news {
            self.publish();
            // Whoever waits for the verdicts goes first.
            tokio::task::yield_now().await;
        }
        heard.iter().for_each(Heard::log);
    }

    /// Takes an answer; gives what it says, if it says something.
    fn on_answer(&mut self, Answer { id, asked_at, outcome }: Answer, now: Instant) -> Option<Heard> {
        if let Some(in_flight) = self.in_flight.get_mut(&id.run) {
            *in_flight -= 1;
            if *in_flight == 0 {
                self.in_flight.remove(&id.run);
            }
        }
        let check = self.checks.get_mut(&id)?;
        // What a container did that was paused or told to stop meanwhile says nothing.
        if check.definition.is_suspended {
            return None;
        }
        let Check { definition: Definition { container, spec, .. }, monitor, was_asked, due_at } = check;
        let is_first = !std::mem::replace(was_asked, true);
        let news = monitor.take(outcome.is_ok(), spec, now);
        let next = monitor.delay(spec, now).map(|delay| asked_at + jittered(delay));
        let heard = Heard { id, container: container.clone(), outcome, took: now - asked_at, is_first, news };
        // It is due already where its definition has changed meanwhile.
        let next = due_at.or(next);
        self.schedule(id, next);
        Some(heard)
    }

    /// Sets when a check is due.
    fn schedule(&mut self, id: CheckId, at: Option<Instant>) {
        let Some(check) = self.checks.get_mut(&id) else { return };
        if let Some(before) = std::mem::replace(&mut check.due_at, at) {
            self.due.remove(&(before, id));
        }
        self.due.extend(at.map(|at| (at, id)));
    }

    fn publish(&self) {
        for (health, name) in
            [(Health::Starting, "starting"), (Health::Passing, "passing"), (Health::Failing, "failing")]
        {
            let count = self.checks.values().filter(|check| check.monitor.health() == health).count();
            metrics::gauge!("rollcall_agent_checks", "health" => name).set(count as f64);
        }
        let asked = self.checks.iter().filter(|(_, check)| check.was_asked);
        let verdicts: Verdicts = asked.map(|(id, check)| (*id, check.monitor.health())).collect();
        self.verdicts.send_if_modified(|before| {
            let is_modified = **before != verdicts;
            if is_modified {
                *before = Arc::new(verdicts);
            }
            is_modified
        });
    }
}

/// When a check is asked first: at once, unless it has passed before. Then many are, after a restart of the agent.
fn first_probe(monitor: &Monitor, definition: &Definition, now: Instant) -> Option<Instant> {
    let Definition { spec, is_suspended, .. } = definition;
    if *is_suspended {
        return None;
    }
    let delay = monitor.delay(spec, now)?;
    Some(if monitor.health() == Health::Passing { now + delay.mul_f64(fastrand::f64()) } else { now })
}

fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(1.0 - JITTER * fastrand::f64())
}
