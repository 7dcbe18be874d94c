//! The sink that all programs share: brings one up to the selection, and believes only what it answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use rollcall_shared::model::name::ServiceName;
use tokio::{sync::watch, time::Instant};

use super::{Desired, Plan, Program, Scope};
use crate::{
    config::TargetConfig,
    roll::{Difference, Hold, Selection, Verdict, Version},
    sink::{Applied, Content, Sink, SinkError, file::notes, intake::Intake, preview::Outcome},
    state_dir::StateDir,
    target::{generation::Generation, state::Acked},
};

/// Keeps one program.
#[derive(Debug)]
pub struct Reconciler<P> {
    program: P,
    intake: Intake,
    /// How often everything is compared, whatever changes meanwhile.
    interval: Duration,
    /// When everything was compared last; `None` where it is to be now.
    compared_at: Option<Instant>,
    /// Which rows of each service the program has.
    applied: BTreeMap<ServiceName, Version>,
    /// What the last look at everything found to tell.
    told: Remarks,
    /// Whether the last round left steps for later, as for a server whose connections end first.
    is_unfinished: bool,
    generation: Option<Generation>,
}

/// What is to be told of a program, by the round that found it: one about some services knows of no others.
#[derive(Debug, Default, Clone)]
struct Remarks {
    refusals: Vec<String>,
    notes: Vec<String>,
}

/// The program does not have what it was given.
#[derive(Debug, thiserror::Error)]
#[error("it was told, and what it answers is still another: {step}")]
pub struct NotTaken {
    /// What was done again and again.
    step: String,
}

/// How often steps may follow from others before they count as not taken.
const MAX_ROUNDS: usize = 5;

impl<P: Program> Reconciler<P> {
    /// A reconciler of a program that nothing is known of yet.
    pub fn new(program: P, target: &TargetConfig, state_dir: Arc<StateDir>) -> Self {
        Self {
            program,
            intake: Intake::open(target, state_dir),
            interval: target.reconcile,
            compared_at: None,
            applied: BTreeMap::new(),
            told: Remarks::default(),
            is_unfinished: false,
            generation: None,
        }
    }

    /// What the round is about: what has changed or, when that is due, everything.
    fn scope(&self, selection: &Selection, verdict: &Verdict, now: Instant) -> Scope {
        let is_due = self.compared_at.is_none_or(|at| now.duration_since(at) >= self.interval);
        let known = self.applied.iter().map(|(service, version)| (service, Some(*version)));
        let Difference { changed, gone } = selection.difference(verdict, known);
        let changed = changed.into_iter().map(|(service, _)| service);
        let changed: BTreeSet<_> = changed.chain(gone).cloned().collect();
        // Nothing has changed: somebody wants to know how the program fares.
        if is_due || changed.is_empty() { Scope::All } else { Scope::Services(changed) }
    }

    /// Has the program take what is desired; gives what is left to tell, and how many steps that took.
    ///
    /// # Errors
    /// The program cannot be asked, refuses a step, or does not have afterwards what it was given.
    async fn bring_up(&mut self, desired: &Desired) -> Result<(Plan<P::Step>, usize), SinkError> {
        let mut done = 0;
        let mut last = None;
        // A step may follow from what the first ones have done.
        for _ in 0..MAX_ROUNDS {
            let observed = self.program.observe(&desired.scope).await?;
            let plan = self.program.plan(desired, &observed);
            if plan.steps.is_empty() {
                return Ok((plan, done));
            }
            for step in &plan.steps {
                tracing::debug!(%step, "applying");
                self.program.apply(step).await?;
            }
            done += plan.steps.len();
            last = plan.steps.first().map(P::Step::to_string);
        }
        Err(Box::new(NotTaken { step: last.unwrap_or_default() }))
    }

    /// Remembers what the program has now.
    fn has(&mut self, desired: &Desired, versions: BTreeMap<ServiceName, Version>, now: Instant) {
        match &desired.scope {
            Scope::All => {
                self.applied = versions;
                self.compared_at = Some(now);
            }
            Scope::Services(services) => {
                for service in services {
                    self.applied.remove(service);
                }
                self.applied.extend(versions);
            }
        }
    }

    /// Whether steps of this round mend what somebody else did: the same is desired as before, and no step of ours was
    /// still to come.
    fn mends(&self, desired: &Desired, versions: &BTreeMap<ServiceName, Version>) -> bool {
        let is_finished = !self.is_unfinished && self.told.refusals.is_empty();
        let is_same = desired.scope == Scope::All && self.applied == *versions;
        self.generation.is_some() && is_finished && is_same
    }

    /// Everything is compared next time.
    fn forget(&mut self) {
        self.compared_at = None;
    }

    /// What is to be told after a round.
    fn tell(&mut self, scope: &Scope, plan: &Plan<P::Step>) -> Remarks {
        let mut told = Remarks { refusals: plan.refusals.clone(), notes: plan.notes.clone() };
        match scope {
            Scope::All => self.told = told.clone(),
            Scope::Services(_) => {
                self.told.refusals.clone_from(&told.refusals);
                let known = self.told.notes.iter().filter(|note| !plan.notes.contains(note));
                told.notes.extend(known.cloned());
            }
        }
        told
    }
}

/// Says what would be done, one step a line; touches nothing. `has_matched` says whether an earlier run has found something
/// that matches.
///
/// # Errors
/// The program cannot be asked.
pub async fn preview<P: Program>(
    program: &mut P,
    target: &TargetConfig,
    selection: &watch::Receiver<Selection>,
    has_matched: bool,
    say: &mut (dyn FnMut(String) + Send),
) -> Result<Outcome, SinkError> {
    let (desired, verdict, mismatch) = {
        let selection = selection.borrow();
        let verdict = selection.verdict(Instant::now());
        let may_empty = has_matched || target.allow_empty;
        let mismatch = if may_empty { None } else { selection.mismatch() };
        selection.kept_notes().into_iter().for_each(&mut *say);
        (desired(Scope::All, &selection, &verdict).0, verdict, mismatch)
    };
    if let Some(Hold { reason, .. }) = verdict.floor {
        say(format!("stays as it is: {reason}"));
        return Ok(Outcome::Same);
    }
    verdict.services.into_values().for_each(|hold| say(hold.reason));
    let observed = program.observe(&desired.scope).await?;
    let Plan { steps, refusals, notes, reloads, look_again: _ } = program.plan(&desired, &observed);
    refusals.into_iter().chain(notes).for_each(&mut *say);
    let has_to_reload = !reloads.is_empty();
    reloads.into_iter().for_each(|reason| say(format!("has to reload: {reason}")));
    if let Some(reason) = mismatch.filter(|_| !steps.is_empty()) {
        say(format!("stays as it is: {}", notes::unmatched(&reason)));
        return Ok(Outcome::Same);
    }
    steps.iter().for_each(|step| say(step.to_string()));
    Ok(if steps.is_empty() && !has_to_reload { Outcome::Same } else { Outcome::Changed })
}

/// What the program should have, and which versions of the rows that is.
fn desired(
    scope: Scope,
    selection: &Selection,
    verdict: &Verdict,
) -> (Desired, BTreeMap<ServiceName, Version>) {
    let about = match &scope {
        Scope::All => selection.versions(verdict),
        Scope::Services(services) => {
            services.iter().map(|service| (service, selection.version(service, verdict))).collect()
        }
    };
    let (mut services, mut versions) = (BTreeMap::new(), BTreeMap::new());
    for (service, version) in about {
        let rows: Vec<_> = selection.rows(service, verdict).into_iter().cloned().collect();
        // One that has gone has none.
        if !rows.is_empty() {
            services.insert(service.clone(), rows);
            versions.insert(service.clone(), version);
        }
    }
    (Desired { scope, services }, versions)
}

#[async_trait]
impl<P: Program> Sink for Reconciler<P> {
    async fn apply(&mut self, selection: &watch::Receiver<Selection>) -> Result<Applied, SinkError> {
        Ok(self.reconcile(selection).await?.0)
    }

    async fn disturbed(&mut self) {
        self.program.restarted().await;
        self.forget();
    }

    async fn remember(&mut self, _: Option<(Generation, Acked)>) -> Result<(), SinkError> {
        self.intake.remember().await;
        Ok(())
    }
}

impl<P: Program> Reconciler<P> {
    /// Brings the program up to the selection as it is now; gives also why it has to read the file beside it anew.
    ///
    /// # Errors
    /// As [`Sink::apply`].
    pub async fn reconcile(
        &mut self,
        selection: &watch::Receiver<Selection>,
    ) -> Result<(Applied, Vec<String>), SinkError> {
        let now = Instant::now();
        let (taken, desired, versions, instances) = {
            let selection = selection.borrow();
            let taken = self.intake.take(&selection, now);
            let scope = match self.told.refusals.is_empty() {
                true => self.scope(&selection, &taken.verdict, now),
                false => Scope::All,
            };
            let (desired, versions) = desired(scope, &selection, &taken.verdict);
            (taken, desired, versions, selection.len())
        };
        if let Some(Hold { until, reason }) = taken.verdict.floor {
            return Ok((Applied::Held { until, reason, due: None }, vec![]));
        }
        if let Some(reason) = &taken.mismatch {
            let observed = self.program.observe(&Scope::All).await?;
            if !self.program.plan(&desired, &observed).steps.is_empty() {
                let reason = notes::unmatched(reason);
                return Ok((Applied::Held { until: None, reason, due: None }, vec![]));
            }
        }
        let (plan, done) = match self.bring_up(&desired).await {
            Ok(done) => done,
            Err(error) => {
                self.forget();
                return Err(error);
            }
        };
        let mends = self.mends(&desired, &versions);
        self.has(&desired, versions, now);
        self.is_unfinished = plan.look_again.is_some();
        if done > 0 && mends {
            tracing::info!(steps = done, "the program was not as it was left, and is again");
        }
        self.intake.shown(taken.step);
        if done > 0 || self.generation.is_none() {
            self.generation = Some(Generation::after(self.generation, Timestamp::now()));
        }
        let told = self.tell(&desired.scope, &plan);
        let again = plan.look_again.map(|delay| Instant::now() + delay);
        let content = Content {
            generation: self.generation.expect("it was set above"),
            acked: None,
            instances,
            held: taken.held(),
            refused: told.refusals,
            notes: [taken.notes, told.notes].concat(),
            started: taken.started,
            is_quiet: true,
            look_again: [taken.verdict.next_change(), again].into_iter().flatten().min(),
        };
        let applied = if done > 0 { Applied::Written(content) } else { Applied::Unchanged(content) };
        Ok((applied, plan.reloads))
    }
}

#[cfg(test)]
mod tests;
