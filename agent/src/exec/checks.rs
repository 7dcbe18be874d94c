//! Has the checks run that are requested of this node. The dispatcher drives it: a thin shell around [`super::policy`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use rollcall_shared::{
    codec::{self, V1},
    keys::{Key, Keys},
    model::{
        check::{CheckOutcome, CheckRequest, CheckRule, Verdict, Verdicts},
        name::{NodeName, TargetId},
        signal::{Incarnation, Receiver},
    },
    process::{error::one_line, text},
    reflector::{Cache, Decode, Update},
    store::Entry,
};
use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    policy::{self, Decision},
    runner,
    settings::{AllowedCommand, ExecSettings},
};
use crate::{
    docker::Engine,
    registration::SignalReports,
    signals::{acks::Answers, policy::Candidates},
};

/// How many commands run at once in a container: each costs a process there. One whose commands hang holds up no other.
const MAX_AT_ONCE: usize = 4;

/// The checks of a node.
#[derive(Debug)]
pub struct Checks {
    engine: Arc<dyn Engine>,
    allow: Vec<AllowedCommand>,
    requests: Cache<TargetId, CheckRequest>,
    /// The checkers of each target that has some here.
    checkers: BTreeMap<TargetId, Vec<Receiver>>,
    verdicts: Answers<Verdict>,
    running: JoinSet<(TargetId, Verdict)>,
    in_flight: BTreeSet<(TargetId, Incarnation)>,
    /// The places of each run of a container in which something was to be run.
    places: BTreeMap<Incarnation, Arc<Semaphore>>,
}

/// Reads the checks that this node is asked for.
#[derive(Debug)]
pub struct DecodeCheck(pub Keys);

impl Decode for DecodeCheck {
    type Key = TargetId;
    type Value = CheckRequest;

    fn key(&self, key: &str) -> Result<TargetId, String> {
        match self.0.parse(key) {
            Ok(Key::Check(_, target)) => Ok(target),
            Ok(_) => Err("not a check's key".to_owned()),
            Err(error) => Err(one_line(&error)),
        }
    }

    fn value(&self, _: &TargetId, value: Vec<u8>) -> Result<CheckRequest, String> {
        codec::decode(&value).map_err(|error| one_line(&error))
    }
}

/// Describes the metrics of checks.
pub fn describe_metrics() {
    metrics::describe_counter!(
        "rollcall_agent_checks_total",
        "Files that were to be checked in containers of this host, by outcome"
    );
}

impl Checks {
    /// Nothing was requested yet.
    pub fn new(engine: Arc<dyn Engine>, settings: ExecSettings) -> Self {
        Self {
            engine,
            allow: settings.commands,
            requests: Cache::new("check request"),
            checkers: BTreeMap::new(),
            verdicts: Answers::default(),
            running: JoinSet::new(),
            in_flight: BTreeSet::new(),
            places: BTreeMap::new(),
        }
    }

    /// Takes in what is requested.
    pub fn request(&mut self, update: Update<TargetId, CheckRequest>) {
        for change in self.requests.apply(update).changes {
            // Whoever asks under ever new names is not remembered under all of them.
            if change.after.is_none() && !self.checkers.contains_key(&change.key) {
                self.verdicts.forget(&change.key);
            }
        }
    }

    /// Takes a verdict in that this node has given before.
    pub fn recall(&mut self, target: &TargetId, entry: &Entry) {
        // What cannot be read is replaced by what is answered from now on.
        let Ok(Verdicts { v: V1, verdicts }) = codec::decode::<Verdicts>(&entry.value) else { return };
        verdicts.into_iter().for_each(|verdict| self.verdicts.take(target.clone(), verdict));
    }

    /// Finds the checkers of targets among the containers that run.
    pub fn find<'t>(
        &mut self,
        rules: impl Iterator<Item = (TargetId, &'t CheckRule)>,
        candidates: &Candidates,
    ) {
        let found = rules.map(|(target, rule)| (target, policy::checkers(rule, candidates, &self.allow)));
        let found = found.filter(|(_, checkers)| !checkers.is_empty()).collect();
        for target in std::mem::replace(&mut self.checkers, found).keys() {
            if !self.checkers.contains_key(target) && self.requests.get(target).is_none() {
                self.verdicts.forget(target);
            }
        }
    }

    /// Forgets containers that do not run any more, and their verdicts.
    pub fn retain(&mut self, candidates: &Candidates) {
        self.verdicts.retain(candidates);
        self.places.retain(|checker, _| candidates.contains_key(checker));
    }

    /// Begins the checks that are to be run.
    pub fn begin(&mut self, candidates: &Candidates) {
        let requests: Vec<(TargetId, Arc<CheckRequest>)> =
            self.requests.iter().map(|(target, request)| (target.clone(), request.clone())).collect();
        for (target, request) in requests {
            for checker in &request.checkers {
                self.begin_in(&target, &request, *checker, candidates);
            }
        }
    }

    fn begin_in(
        &mut self,
        target: &TargetId,
        request: &Arc<CheckRequest>,
        checker: Incarnation,
        candidates: &Candidates,
    ) {
        if self.in_flight.contains(&(target.clone(), checker)) {
            return;
        }
        let last = self.verdicts.last(target, &checker);
        let verdict = move |id, outcome| Verdict { incarnation: checker, id, outcome, at: Timestamp::now() };
        match policy::decide(request, &checker, last, candidates, &self.allow) {
            Decision::Nothing => {}
            Decision::Refuse(reason) => {
                self.take(target.clone(), verdict(request.id, CheckOutcome::NotRun(reason)));
            }
            Decision::Run(container) => {
                let places = self.places.entry(checker);
                let places = places.or_insert_with(|| Arc::new(Semaphore::new(MAX_AT_ONCE))).clone();
                let engine = self.engine.clone();
                let (target, request) = (target.clone(), request.clone());
                self.in_flight.insert((target.clone(), checker));
                self.running.spawn(async move {
                    let _place = places.acquire_owned().await.expect("nobody closes it");
                    let outcome = runner::run(engine, &container, &request).await;
                    (target, verdict(request.id, outcome))
                });
            }
        }
    }

    /// Waits until a check has ended, and takes its verdict. Cancel safe.
    pub async fn next(&mut self) {
        match self.running.join_next().await {
            Some(ended) => {
                let (target, verdict) = ended.expect("checking does not panic and is not aborted");
                self.in_flight.remove(&(target.clone(), verdict.incarnation));
                self.take(target, verdict);
            }
            None => std::future::pending().await,
        }
    }

    fn take(&mut self, id: TargetId, verdict: Verdict) {
        let TargetId { consumer, target } = &id;
        let container = verdict.incarnation.container;
        let outcome = match &verdict.outcome {
            CheckOutcome::Ended { exit_code: 0, .. } => "passed",
            CheckOutcome::Ended { .. } => "failed",
            CheckOutcome::Unseen => "unseen",
            CheckOutcome::NotRun(_) => "not_run",
        };
        metrics::counter!("rollcall_agent_checks_total", "outcome" => outcome).increment(1);
        match &verdict.outcome {
            CheckOutcome::Ended { exit_code, said } => {
                tracing::info!(%consumer, %target, %container, exit_code, said, "checked a file");
            }
            CheckOutcome::Unseen => {
                tracing::warn!(%consumer, %target, %container, "the container does not see the file to check");
            }
            CheckOutcome::NotRun(reason) => {
                tracing::warn!(%consumer, %target, %container, reason, "could not check a file");
            }
        }
        self.verdicts.take(id, verdict);
    }

    /// The checkers of a target.
    pub fn checkers(&self, target: &TargetId) -> Vec<Receiver> {
        self.checkers.get(target).cloned().unwrap_or_default()
    }

    /// The targets that have checkers here.
    pub fn targets(&self) -> impl Iterator<Item = &TargetId> {
        self.checkers.keys()
    }

    /// Adds the verdicts to what is to be registered.
    pub fn report(&self, keys: &Keys, node: &NodeName, reports: &mut SignalReports) {
        for (target, checkers) in &self.checkers {
            let verdicts = fitting(self.verdicts.of(target, checkers));
            if !verdicts.is_empty() {
                let key = keys.format(&Key::Verdicts(node.clone(), target.clone()));
                reports.verdicts.insert(key, codec::encode(&Verdicts { v: V1, verdicts }));
            }
        }
    }
}

/// The verdicts, with no more of what was said than fits into one value: each may have its share.
fn fitting(mut verdicts: Vec<Verdict>) -> Vec<Verdict> {
    /// What a verdict takes beside, at most.
    const FRAME_BYTES: usize = 256;
    verdicts.truncate(codec::MAX_VALUE_BYTES / FRAME_BYTES - 1);
    let frames = (verdicts.len() + 1) * FRAME_BYTES;
    // JSON has a backslash before some characters.
    let share = (codec::MAX_VALUE_BYTES - frames) / 2 / verdicts.len().max(1);
    for verdict in &mut verdicts {
        match &mut verdict.outcome {
            CheckOutcome::Ended { said: text, .. } | CheckOutcome::NotRun(text) => text::shorten(text, share),
            CheckOutcome::Unseen => {}
        }
    }
    verdicts
}

#[cfg(test)]
mod tests {
    use rollcall_shared::{
        model::selector::Selector,
        reflector::{Held, Item},
        store::Revision,
    };
    use tokio::time::Instant;

    use super::*;
    use crate::{
        docker::testing::ScriptedEngine, inventory::container::testing::container, signals::policy::Candidate,
    };

    #[tokio::test]
    async fn a_verdict_on_a_target_that_is_neither_known_nor_asked_for_any_more_is_forgotten() {
        let proxy = container("proxy");
        let checker = proxy.incarnation();
        let candidate = Candidate { container: Arc::new(proxy), ready_at: Instant::now() };
        let candidates = Candidates::from([(checker, candidate)]);
        let mut checks =
            Checks::new(Arc::new(ScriptedEngine::new("AN:ENGINE")), ExecSettings { commands: vec![] });
        let target =
            TargetId { consumer: "c".parse().expect("a name"), target: "t".parse().expect("a name") };
        let rule = CheckRule {
            to: Selector::container("proxy".parse().expect("a name")),
            command: vec!["nginx".to_owned()],
        };
        let request = Arc::new(CheckRequest {
            v: V1,
            id: 1,
            command: rule.command.clone(),
            file: "/c/.a.rollcall-x".to_owned(),
            dest: "/c/a".to_owned(),
            timeout_ms: 1,
            checkers: vec![checker],
        });
        let revision = Revision(1);
        let held = Held { value: request, revision, lease: None };
        let asked = || Item::Put(target.clone(), held.clone());
        for is_known in [false, true] {
            checks.find(is_known.then(|| (target.clone(), &rule)).into_iter(), &candidates);
            checks.request(Update::Changes { items: vec![asked()], revision });
            checks.begin(&candidates);
            assert!(checks.verdicts.last(&target, &checker).is_some(), "it is refused");
            checks.request(Update::Changes {
                items: vec![Item::Delete(target.clone(), Revision(2))],
                revision,
            });
            assert_eq!(checks.verdicts.last(&target, &checker).is_some(), is_known);
        }
        checks.find([].into_iter(), &candidates);
        assert!(checks.verdicts.last(&target, &checker).is_none());
    }

    #[test]
    fn verdicts_of_however_many_containers_fit_into_a_value() {
        let said = "\"\\é".repeat(1024);
        let ended = CheckOutcome::Ended { exit_code: i64::MIN, said: said.clone() };
        for outcome in [ended, CheckOutcome::NotRun(said.clone())] {
            for count in [0, 1, 7, 8, 100, 1000] {
                let verdict = |number: u64| Verdict {
                    incarnation: Incarnation {
                        container: format!("{number:012x}").parse().expect("an ID"),
                        started_at: Timestamp::MAX,
                    },
                    id: u64::MAX,
                    outcome: outcome.clone(),
                    at: Timestamp::MAX,
                };
                let verdicts = Verdicts { v: V1, verdicts: fitting((0..count).map(verdict).collect()) };
                let size = codec::encode(&verdicts).len();
                assert!(size <= codec::MAX_VALUE_BYTES, "{size} bytes of {count}");
                let is_whole = verdicts.verdicts.iter().all(|verdict| verdict.outcome == outcome);
                assert_eq!(is_whole, count < 8, "{count}");
            }
        }
    }
}
