//! Publishes the receivers on this host, delivers the signals that are requested of them, and publishes the acks.
//!
//! A thin shell around [`super::policy`]. Each receiver is answered by itself: one that has just started, refuses or
//! fails holds nobody else up.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use rollcall_shared::{
    codec::{self, V1},
    keys::{Key, Keys},
    model::{
        consumer::{ConsumerHome, ConsumerRecord, TargetRecord},
        name::{ConsumerName, ContainerName, NodeName, TargetId},
        signal::{Ack, Acks, Incarnation, Receiver, Receivers, RequestedReceiver, Signal, SignalRequest},
    },
    process::{
        backoff::Backoff,
        error::one_line,
        readiness::{Part, Readiness},
        time::sleep_until,
    },
    reflector::{Cache, Updates},
    session::keeper::SessionHandle,
    store::{Entry, KeyRange, Store},
};
use tokio::{sync::watch, task::JoinSet, time::Instant};

use super::{
    acks::Answers,
    answer::{Answer, Outcome},
    decode::{DecodeConsumer, DecodeRequest},
    pidfd::ProcessHandles,
    policy::{self, Candidate, Candidates, Decision},
    settings::SignalSettings,
};
use crate::{
    docker::Engine,
    exec::{Checks, ExecSettings, checks::DecodeCheck},
    inventory::{
        Running, RunningContainers,
        container::{Container, FullId},
        watcher::InventoryReceiver,
    },
    registration::SignalReports,
};

/// The name under which the readiness report has the delivery of signals.
pub const PART: &str = "signals";

/// What is to be registered of signals, as it changes; `None` until it is known.
pub type ReportsReceiver = watch::Receiver<Option<Arc<SignalReports>>>;

/// Delivers signals to the containers of one node.
#[derive(Debug)]
pub struct Dispatcher {
    host: Host,
    settings: SignalSettings,
    part: Part,
    inputs: Inputs,
    reports: watch::Sender<Option<Arc<SignalReports>>>,
    consumers: Cache<ConsumerName, ConsumerRecord>,
    requests: Cache<TargetId, SignalRequest>,
    /// The containers that run; `None` until that is known.
    candidates: Option<Candidates>,
    /// The receivers of each target that has some here.
    receivers: BTreeMap<TargetId, Vec<Receiver>>,
    acks: Answers<Ack>,
    /// The checks in containers, which have much in common with signals, and their lives.
    checks: Checks,
    handles: ProcessHandles,
    /// The signals that Docker was asked to send.
    sending: JoinSet<Answer>,
    in_flight: BTreeSet<(TargetId, Incarnation)>,
    /// The containers of which it was warned that Docker forgets to restart them.
    warned: BTreeSet<FullId>,
    /// Answers that are published before they are logged.
    unlogged: Vec<Answer>,
}

/// Which host it is, and where its answers are kept.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its Docker engine.
    pub engine: Arc<dyn Engine>,
    /// The store.
    pub store: Arc<dyn Store>,
    /// The store's keys.
    pub keys: Keys,
    /// Its name.
    pub node: NodeName,
    /// The containers that are signalled; all, where there is none. What another agent of this host sees to is not.
    pub containers: Vec<ContainerName>,
}

/// What a dispatcher reads.
#[derive(Debug)]
pub struct Inputs {
    /// The node's session: nothing is delivered before the first one.
    pub sessions: SessionHandle,
    /// What runs.
    pub inventory: InventoryReceiver,
    /// The consumers' records.
    pub consumers: Updates<DecodeConsumer>,
    /// The requests to this node.
    pub requests: Updates<DecodeRequest>,
    /// The checks that this node is asked for.
    pub checks: Updates<DecodeCheck>,
}

impl Dispatcher {
    /// A dispatcher for a host's containers, and where it publishes its receivers and acks.
    pub fn new(
        host: Host,
        settings: SignalSettings,
        exec: ExecSettings,
        inputs: Inputs,
        readiness: &Readiness,
    ) -> (Self, ReportsReceiver) {
        let (reports, receiver) = watch::channel(None);
        let dispatcher = Self {
            checks: Checks::new(host.engine.clone(), exec),
            host,
            settings,
            part: readiness.part(PART),
            inputs,
            reports,
            consumers: Cache::new("consumer"),
            requests: Cache::new("signal request"),
            candidates: None,
            receivers: BTreeMap::new(),
            acks: Answers::default(),
            handles: ProcessHandles::default(),
            sending: JoinSet::new(),
            in_flight: BTreeSet::new(),
            warned: BTreeSet::new(),
            unlogged: Vec::new(),
        };
        (dispatcher, receiver)
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) {
        self.wait_for_session().await;
        self.recall().await;
        self.part.ready();
        self.on_inventory();
        loop {
            let wake_at = self.deliver(Instant::now());
            if let Some(candidates) = &self.candidates {
                self.checks.begin(candidates);
            }
            self.publish();
            self.log().await;
            tokio::select! {
                // Every branch is cancel safe: channels, a set of tasks and a timer.
                biased;
                Some(update) = self.inputs.requests.recv() => drop(self.requests.apply(update)),
                Some(update) = self.inputs.checks.recv() => self.checks.request(update),
                () = self.checks.next() => {}
                Some(sent) = self.sending.join_next() => {
                    self.on_answer(sent.expect("sending does not panic and is not aborted"));
                }
                Some(update) = self.inputs.consumers.recv() => {
                    self.consumers.apply(update);
                    self.match_receivers();
                }
                Ok(()) = self.inputs.inventory.changed() => {
                    // Registering comes first.
                    tokio::task::yield_now().await;
                    self.on_inventory();
                }
                () = sleep_until(wake_at) => {}
            }
        }
    }

    /// Waits for the first session: an agent that is refused as a twin signals nobody.
    async fn wait_for_session(&mut self) {
        while self.inputs.sessions.session().is_none() {
            self.inputs.sessions.changed().await;
        }
    }

    /// Reads the answers that the node has given before, so that a restarted agent signals nobody twice.
    async fn recall(&mut self) {
        let Host { keys, node, .. } = &self.host;
        let (acks, verdicts) = (keys.acks_of(node), keys.verdicts_of(node));
        self.recall_range(&acks).await;
        // A check that is run twice does no harm: signals do not wait for a role to be mended.
        if let Ok(listing) = self.host.store.list(&verdicts).await {
            listing.entries.iter().for_each(|entry| self.recall_entry(entry));
        }
    }

    async fn recall_range(&mut self, range: &KeyRange) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            match self.host.store.list(range).await {
                Ok(listing) => return listing.entries.iter().for_each(|entry| self.recall_entry(entry)),
                Err(error) => self.part.failed(one_line(&error)),
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    fn recall_entry(&mut self, entry: &Entry) {
        let target = match self.host.keys.parse(&entry.key) {
            Ok(Key::Acks(_, target)) => target,
            Ok(Key::Verdicts(_, target)) => return self.checks.recall(&target, entry),
            _ => return,
        };
        // What cannot be read is replaced by what is answered from now on.
        let Ok(Acks { v: V1, acks }) = codec::decode::<Acks>(&entry.value) else { return };
        acks.into_iter().for_each(|ack| self.acks.take(target.clone(), ack));
    }

    fn on_inventory(&mut self) {
        let Some(running) = self.inputs.inventory.borrow_and_update().clone() else { return };
        let candidates = self.candidates_of(&running);
        self.handles.retain(|id| running.contains_key(id));
        self.warned.retain(|id| running.contains_key(id));
        self.acks.retain(&candidates);
        self.checks.retain(&candidates);
        self.candidates = Some(candidates);
        self.match_receivers();
    }

    /// The containers that run. From when on one may be signalled is set once, as the clock may be.
    fn candidates_of(&self, running: &RunningContainers) -> Candidates {
        let (now, clock) = (Instant::now(), Timestamp::now());
        let known = |incarnation: &Incarnation| Some(self.candidates.as_ref()?.get(incarnation)?.ready_at);
        let candidate = |Running { container, is_draining: _ }: &Running| {
            let incarnation = container.incarnation();
            let wait = || now + policy::ready_in(container.started_at, self.settings.signal_settle, clock);
            let ready_at = known(&incarnation).unwrap_or_else(wait);
            (incarnation, Candidate { container: container.clone(), ready_at })
        };
        let only = &self.host.containers;
        let is_ours = |running: &&Running| only.is_empty() || only.contains(&running.container.name);
        running.values().filter(is_ours).map(candidate).collect()
    }

    /// Finds the receivers of every consumer's targets among the containers that run.
    fn match_receivers(&mut self) {
        let Some(candidates) = &self.candidates else { return };
        self.receivers.clear();
        for (consumer, record) in self.consumers.iter() {
            for (target, TargetRecord { delivery, check: _ }) in &record.targets {
                let Some(delivery) = delivery else { continue };
                let receivers = policy::receivers(delivery, candidates, &self.settings.allow);
                if !receivers.is_empty() {
                    let target = TargetId { consumer: consumer.clone(), target: target.clone() };
                    self.receivers.insert(target, receivers);
                }
            }
        }
        let rules = self.consumers.iter().flat_map(|(consumer, record)| {
            record.targets.iter().filter_map(|(target, TargetRecord { check, .. })| {
                Some((TargetId { consumer: consumer.clone(), target: target.clone() }, check.as_ref()?))
            })
        });
        self.checks.find(rules, candidates);
    }

    /// Delivers what is to be delivered now; gives when to look again.
    fn deliver(&mut self, now: Instant) -> Option<Instant> {
        let requests: Vec<_> =
            self.requests.iter().map(|(t, request)| (t.clone(), request.clone())).collect();
        let mut again = None;
        for (target, request) in &requests {
            for requested in &request.receivers {
                let at = self.deliver_to(target, request, requested, now);
                again = [again, at].into_iter().flatten().min();
            }
        }
        again
    }

    /// Does what is to be done about one receiver; gives when to look at it again.
    fn deliver_to(
        &mut self,
        target: &TargetId,
        request: &Arc<SignalRequest>,
        &requested: &RequestedReceiver,
        now: Instant,
    ) -> Option<Instant> {
        let candidates = self.candidates.as_ref()?;
        if self.in_flight.contains(&(target.clone(), requested.incarnation)) {
            return None;
        }
        let last = self.acks.last(target, &requested.incarnation);
        let answer = |container, outcome| {
            let (target, request) = (target.clone(), request.clone());
            Answer { target, request, requested, container, outcome }
        };
        match policy::decide(request, &requested, last, candidates, &self.settings.allow, now) {
            Decision::Nothing => return None,
            Decision::WaitUntil(at) => return Some(at),
            Decision::Refuse { container, reason } => {
                self.on_answer(answer(container, Outcome::Refused(reason)));
            }
            Decision::Deliver { container } => self.send(answer(container, Outcome::Delivered)),
        }
        None
    }

    /// Sends a signal, and takes what becomes of it in place of the outcome that is hoped for.
    fn send(&mut self, hoped: Answer) {
        let signal = hoped.request.signal;
        if self.handles.signal(&hoped.container, signal) {
            return self.on_answer(hoped);
        }
        self.warn_of_restart(&hoped.container, signal);
        self.in_flight.insert((hoped.target.clone(), hoped.requested.incarnation));
        let engine = self.host.engine.clone();
        self.sending.spawn(async move {
            match engine.kill(&hoped.container.id, signal).await {
                Ok(()) => hoped,
                Err(error) => Answer { outcome: Outcome::Failed(one_line(&error)), ..hoped },
            }
        });
    }

    /// Warns, once for a container, of what a signal through Docker does beside.
    fn warn_of_restart(&mut self, container: &Container, signal: Signal) {
        let Some(restart) = policy::forgotten_restart(container, signal) else { return };
        if self.warned.insert(container.id.clone()) {
            let container = &container.name;
            tracing::warn!(
                %container, %restart, "Docker forgets to restart it after a signal through its API: run the agent in \
                 the host's PID namespace (--pid host)"
            );
        }
    }

    fn on_answer(&mut self, answer: Answer) {
        self.in_flight.remove(&(answer.target.clone(), answer.requested.incarnation));
        self.acks.take(answer.target.clone(), answer.ack(Timestamp::now()));
        self.unlogged.push(answer);
    }

    /// Publishes the receivers and their last answers, once both can be known.
    fn publish(&self) {
        if self.candidates.is_none() || self.consumers.position().is_none() {
            return;
        }
        let reports = self.reports();
        self.reports.send_if_modified(|before| {
            let is_modified = before.as_deref() != Some(&reports);
            if is_modified {
                *before = Some(Arc::new(reports));
            }
            is_modified
        });
    }

    fn reports(&self) -> SignalReports {
        let Host { keys, node, .. } = &self.host;
        let mut reports = SignalReports::default();
        self.checks.report(keys, node, &mut reports);
        let targets: BTreeSet<&TargetId> = self.receivers.keys().chain(self.checks.targets()).collect();
        for target in targets {
            let receivers = self.receivers.get(target).cloned().unwrap_or_default();
            let acks = self.acks.of(target, &receivers);
            if !acks.is_empty() {
                let key = keys.format(&Key::Acks(node.clone(), target.clone()));
                reports.acks.insert(key, codec::encode(&Acks { v: V1, acks }));
            }
            let key = keys.format(&Key::Receivers(node.clone(), target.clone()));
            let receivers = Receivers { v: V1, receivers, checkers: self.checks.checkers(target) };
            reports.receivers.insert(key, codec::encode(&receivers));
        }
        reports.receivers.extend(self.homes());
        reports
    }

    /// What there is to say of the consumers that run on this host and ask for it.
    fn homes(&self) -> impl Iterator<Item = (String, Vec<u8>)> {
        let Host { keys, node, .. } = &self.host;
        let home = |(consumer, record): (&ConsumerName, &Arc<ConsumerRecord>)| {
            let home = policy::home(record.container?, self.candidates.as_ref()?)?;
            Some((
                keys.format(&Key::Home(node.clone(), consumer.clone())),
                codec::encode::<ConsumerHome>(&home),
            ))
        };
        self.consumers.iter().filter_map(home)
    }

    /// Counts and logs what became of requests.
    async fn log(&mut self) {
        if self.unlogged.is_empty() {
            return;
        }
        // Whoever waits for the acks goes first.
        tokio::task::yield_now().await;
        self.unlogged.drain(..).for_each(|answer| answer.log());
    }
}
