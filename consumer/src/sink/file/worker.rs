//! The part of the file sink that blocks: renders, stages, installs and remembers.

mod verified;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
};

use jiff::Timestamp;
use rollcall_shared::{
    model::{instance::Endpoint, name::ServiceName},
    process::{error::one_line, setting::SettingError},
};
use tokio::{sync::watch, time::Instant};

use super::{
    FileConfig,
    install::{
        Attributes, Batch, Contents, Files, Installer, Stamp,
        files::{Done, Reader},
    },
    isolated::Isolated,
    nginx::{Draining, Master, Workers},
    notes::{self, BACK, CHANGED},
    notify::{Notify, Told},
    render::{Changes, Content as RenderContent, Rendered, Renderer},
    sink::FileError,
    verify::{LastGood, Probe, Verify},
};
use crate::{
    config::TargetConfig,
    roll::{Hold, Row, Selection, Verdict},
    sink::{Applied, Content},
    state_dir::StateDir,
    target::{
        generation::Generation,
        matched::Matched,
        state::{Acked, AppliedContent, Digest, TargetState},
    },
};

/// The part that blocks.
#[derive(Debug)]
pub(super) struct Worker {
    renderer: Renderer,
    files: Files,
    /// Kept where there is somebody to notify.
    state: Option<TargetState>,
    /// Kept where what was applied is verified.
    good: Option<LastGood>,
    /// nginx's master, where its workers verify the file.
    master: Option<Master>,
    /// Its workers when the file was installed that is there now.
    before: Option<Workers>,
    /// What looks at nginx's workers, where its pid file is known.
    draining: Option<Draining>,
    /// What a notify command is told by.
    told: Option<Told>,
    /// The endpoints that were taken out of the selection last, where somebody is told.
    endpoints: Option<BTreeSet<Endpoint>>,
    is_checked: bool,
    /// What decides whether the file may be emptied; `None` where it always may.
    matched: Option<Matched>,
    /// The target's name, for metrics.
    target: String,
    /// What is left out, as the check refuses it.
    isolated: Isolated,
    /// What was left out before a search for offenders, until that has ended well.
    before_search: Option<Isolated>,
    /// The template by which that was found, where there is one.
    template: Template,
    last_generation: Option<Generation>,
    /// The selection's step that the file shows.
    shown: u64,
    /// What the file has, while that is what was to be applied last.
    current: Option<Current>,
    /// The file that was replaced last, until its reader was notified: freeing it takes longer than the rename.
    replaced: Vec<OwnedFd>,
}

/// What tells at a glance whether files are still as they were left.
type Stamps = BTreeMap<PathBuf, Option<Stamp>>;

/// What the file has, and how it was left.
#[derive(Debug)]
struct Current {
    /// The digest of its bytes, where that is kept.
    digest: Option<Digest>,
    stamps: Stamps,
    generation: Generation,
    acked: Option<Acked>,
    instances: usize,
    notes: Vec<String>,
    /// Why it is not what was rendered, if it is not.
    refusal: Option<String>,
}

/// A rendered selection that is not installed yet.
#[derive(Debug)]
pub(super) struct Draft {
    /// The digest of its bytes, where a state is kept.
    digest: Option<Digest>,
    instances: usize,
    held: Vec<String>,
    /// Why it is not what was rendered, if it is not.
    refusal: Option<String>,
    pub(super) notes: Vec<String>,
    started: Vec<Timestamp>,
    look_again: Option<Instant>,
    step: u64,
}

/// What became of a selection so far.
pub(super) enum Made {
    /// There is nothing left to do.
    Done(Applied),
    /// It is to be checked, and then installed.
    Staged(Draft, Batch),
}

/// What is taken out of a selection, so that nobody waits for the rest of the work.
struct Taken {
    changes: Changes,
    verdict: Verdict,
    started: Vec<Timestamp>,
    /// Why nothing has ever matched, where that keeps the file from being emptied.
    mismatch: Option<String>,
    /// Which services keep what is not wanted, on one line each.
    kept: Vec<String>,
    step: u64,
}

impl Worker {
    /// Checks what can be known to be wrong before there is a roll.
    pub fn check(target: &TargetConfig, file: &FileConfig) -> Result<(), SettingError> {
        let (renderer, files) = parts(target, file, None);
        renderer.check().and_then(|()| files.check())
    }

    /// A worker for a target that was checked.
    pub fn open(target: &TargetConfig, file: &FileConfig, state_dir: Arc<StateDir>) -> Self {
        let (mut renderer, files) = parts(target, file, Some(state_dir.clone()));
        seed(&mut renderer, &files);
        let state = file.notify.as_ref().map(|notify| {
            let subject = format!("{} and {notify}", file.dest.display());
            TargetState::open(state_dir.clone(), &target.name, subject)
        });
        let good = file.verify.as_ref().map(|verify| {
            let subject = format!("{} by {}", file.dest.display(), verify.probe);
            LastGood::open(state_dir.clone(), &target.name, subject)
        });
        files.clear_leftovers();
        let master = verified_master(file);
        let known = master.clone().or_else(|| notified_master(file));
        Self {
            draining: known.map(|master| Draining::new(master, target.name.to_string())),
            master,
            before: None,
            told: told(file),
            endpoints: None,
            renderer,
            files,
            state,
            good,
            is_checked: file.check.is_some(),
            matched: (!target.allow_empty).then(|| Matched::open(state_dir, target)),
            target: target.name.to_string(),
            isolated: Isolated::default(),
            before_search: None,
            template: Template::of(&file.content),
            last_generation: None,
            shown: 0,
            current: None,
            replaced: vec![],
        }
    }

    /// Makes the file that the selection calls for, or stages it where it is to be checked.
    pub fn make(&mut self, selection: &watch::Receiver<Selection>, now: Instant) -> Result<Made, FileError> {
        // A search that has come to nothing, for whatever reason, leaves nothing out.
        if let Some(before) = self.before_search.take() {
            self.isolate(before);
        }
        if self.template.has_changed() {
            self.isolate(Isolated::default());
        }
        self.make_as_isolated(selection, now)
    }

    /// The same without these, and no others: as a part of a search for offenders.
    pub fn make_without(
        &mut self,
        isolated: Isolated,
        selection: &watch::Receiver<Selection>,
        now: Instant,
    ) -> Result<Made, FileError> {
        self.before_search.get_or_insert_with(|| self.isolated.clone());
        self.isolate(isolated);
        self.make_as_isolated(selection, now)
    }

    /// The search for offenders has ended well: what was left out last stays so.
    pub fn end_search(&mut self) {
        self.before_search = None;
    }

    fn make_as_isolated(
        &mut self,
        selection: &watch::Receiver<Selection>,
        now: Instant,
    ) -> Result<Made, FileError> {
        self.renderer.look_again(now);
        let Taken { changes, verdict, started, mismatch, kept, step } = self.take(&selection.borrow(), now);
        metrics::gauge!("rollcall_consumer_kept_services", "target" => self.target.clone())
            .set(kept.len() as f64);
        let found = self.files.stamps();
        if let Some(Hold { until, reason }) = verdict.floor {
            let was_changed = self.current.as_ref().is_some_and(|current| current.stamps != found);
            if let Some(made) = self.put_back(&reason, until)? {
                return Ok(made);
            }
            let reason = if was_changed { format!("{reason}; {CHANGED}") } else { reason };
            return Ok(Made::Done(Applied::Held { until, reason, due: self.due() }));
        }
        // Away until the new file is there: what fails is tried from the start.
        let current = self.current.take();
        let was_changed = current.as_ref().is_some_and(|current| current.stamps != found);
        let next_change = verdict.next_change();
        let held = verdict.services.into_values().map(|hold| hold.reason).collect();
        let is_same = changes.is_empty() && !was_changed && step == self.shown;
        if let Some(current) = current.filter(|current| is_same && !self.is_in_doubt(current)) {
            let look_again = [next_change, self.renderer.next_look()].into_iter().flatten().min();
            self.draining.iter_mut().for_each(Draining::look);
            return Ok(Made::Done(Applied::Unchanged(self.shown_again(current, held, look_again, step))));
        }
        let Rendered { bytes, each, instances, left_out, keeps_hosts } =
            self.renderer.render(changes, now)?;
        let contents = if self.files.are_many() { Contents::Each(each) } else { Contents::One(bytes) };
        let is_held = mismatch.is_some() && self.files.loses_content(&contents)?;
        metrics::gauge!("rollcall_consumer_unmatched", "target" => self.target.clone())
            .set(f64::from(u8::from(mismatch.is_some())));
        if let Some(reason) = mismatch.as_ref().filter(|_| is_held) {
            let (reason, due) = (notes::unmatched(reason), self.due());
            return Ok(Made::Done(Applied::Held { until: None, reason, due }));
        }
        let (contents, refusal) = self.last_good(contents)?;
        let mut draft = Draft {
            digest: self.keeps_digests().then(|| digest(&contents)),
            instances,
            held,
            refusal,
            notes: [
                mismatch.map(|reason| format!("nothing has matched yet: {reason}")).into_iter().collect(),
                kept,
                notes::notes(&left_out, keeps_hosts),
                self.isolated.notes(),
            ]
            .concat(),
            started,
            look_again: [next_change, self.renderer.next_look()].into_iter().flatten().min(),
            step,
        };
        let staged = self.files.stage(&contents)?;
        draft.notes.extend(staged.left.iter().cloned());
        if staged.is_done() {
            self.files.adopt(&staged)?;
            let found = self.files.stamps();
            return Ok(Made::Done(Applied::Unchanged(self.found(draft, found))));
        }
        if was_changed {
            let file = self.files.dest().display();
            tracing::warn!(%file, "the file was changed by someone else, and is put back");
        }
        if self.is_checked {
            return Ok(Made::Staged(draft, staged));
        }
        Ok(Made::Done(Applied::Written(self.install(draft, staged)?)))
    }

    /// Leaves these out from now on, and no others.
    fn isolate(&mut self, isolated: Isolated) {
        self.renderer.forget(&isolated.services_that_differ(&self.isolated));
        self.isolated = isolated;
    }

    /// What is left out now.
    pub fn isolated(&self) -> &Isolated {
        &self.isolated
    }

    /// A copy of the selection, and those of its rows that are not left out, in the order in which they are rendered.
    pub fn suspects(&self, selection: &watch::Receiver<Selection>, now: Instant) -> (Selection, Vec<Row>) {
        let selection = selection.borrow().clone();
        let verdict = selection.verdict(now);
        let services = selection.services(&verdict);
        let rows = services.into_iter().flat_map(|service| selection.rows(service, &verdict));
        let rows = rows.filter(|row| !self.isolated.has(row)).cloned().collect();
        (selection, rows)
    }

    fn take(&mut self, selection: &Selection, now: Instant) -> Taken {
        let verdict = selection.verdict(now);
        self.isolated.retain(selection, &verdict);
        if let Some(matched) = self.matched.as_mut().filter(|_| selection.has_matched()) {
            matched.on_match();
        }
        let never_matched = self.matched.as_ref().is_some_and(|matched| !matched.has_matched());
        if self.told.is_some() {
            self.endpoints = Some(self.endpoints_of(selection, &verdict));
        }
        let mut changes = self.renderer.changes(selection, &verdict);
        changes.leave_out(|row| self.isolated.has(row));
        Taken {
            changes,
            started: selection
                .newer_than(self.shown)
                .filter(|row| !self.isolated.has(row))
                .map(|row| row.instance.started_at)
                .collect(),
            mismatch: if never_matched { selection.mismatch() } else { None },
            kept: selection.kept_notes(),
            step: selection.step(),
            verdict,
        }
    }

    /// The endpoints of all that is not left out.
    fn endpoints_of(&self, selection: &Selection, verdict: &Verdict) -> BTreeSet<Endpoint> {
        let services = selection.services(verdict);
        let rows = services.into_iter().flat_map(|service| selection.rows(service, verdict));
        rows.filter(|row| !self.isolated.has(row)).map(|row| row.endpoint.clone()).collect()
    }

    /// What reads the files again.
    pub fn reader(&self) -> Reader {
        self.files.reader()
    }

    /// What a notify command is told by, where there is one that this target does not share.
    pub fn told(&self) -> Option<Told> {
        self.told.clone()
    }

    /// Installs what was staged.
    pub fn install(&mut self, mut draft: Draft, staged: Batch) -> Result<Content, FileError> {
        if let (Some(state), Some(digest)) = (&mut self.state, &draft.digest) {
            state.before_apply(digest);
        }
        self.keep_first()?;
        let Done { replaced, not_kept } = self.files.install(staged)?;
        // Afterwards: a worker that was started in between may not have read it.
        self.before = self.master.as_ref().map(|master| master.workers().unwrap_or_default());
        self.replaced = if self.state.is_some() { replaced } else { vec![] };
        if let Some(error) = not_kept {
            let reason = one_line(&error);
            tracing::warn!(reason, "the file that was replaced is not kept");
            draft.notes.push(reason);
        }
        let (generation, stamps) = (self.next_generation(&draft), self.files.stamps());
        Ok(self.content(draft, generation, None, stamps))
    }

    /// Nothing has changed since the file was looked at last.
    fn shown_again(
        &mut self,
        current: Current,
        held: Vec<String>,
        look_again: Option<Instant>,
        step: u64,
    ) -> Content {
        let Current { digest, generation, acked, instances, notes, stamps, refusal } = current;
        let draft = Draft { digest, instances, held, refusal, notes, started: vec![], look_again, step };
        self.content(draft, generation, acked, stamps)
    }

    /// The file is as the draft already. It may be a change of an earlier run.
    fn found(&mut self, draft: Draft, stamps: Stamps) -> Content {
        self.matched.iter_mut().for_each(Matched::remember);
        let applied = self.state.as_ref().and_then(TargetState::applied);
        let known = applied.filter(|applied| Some(&applied.sha256) == draft.digest.as_ref());
        let Some(generation) = known.map(|applied| applied.generation) else {
            let generation = self.next_generation(&draft);
            return self.content(draft, generation, None, stamps);
        };
        self.last_generation = self.last_generation.max(Some(generation));
        let acked = self.state.as_ref().and_then(|state| state.acked(generation)).cloned();
        self.content(draft, generation, acked, stamps)
    }

    /// What an earlier run has installed and not everybody has taken, unless this one has made a change already: while
    /// the file stays as it is, its reader is to have it.
    fn due(&mut self) -> Option<(Generation, Acked)> {
        if self.last_generation.is_some() {
            return None;
        }
        let state = self.state.as_mut()?;
        let AppliedContent { generation, sha256 } = state.applied()?.clone();
        let acked = state.acked(generation).cloned().unwrap_or_default();
        let installed = if self.files.are_many() { None } else { self.files.installed().ok().flatten() };
        // A crash may have come before it was remembered.
        let other = installed.map(|bytes| Digest::of(&bytes)).filter(|digest| *digest != sha256);
        let (generation, acked) = match other {
            Some(sha256) => {
                let generation = Generation::after(Some(generation), Timestamp::now());
                state.on_applied(AppliedContent { generation, sha256 });
                (generation, Acked::default())
            }
            None if acked.is_complete => return None,
            None => (generation, acked),
        };
        self.last_generation = Some(generation);
        Some((generation, acked))
    }

    fn next_generation(&mut self, draft: &Draft) -> Generation {
        let generation = Generation::after(self.last_generation, Timestamp::now());
        self.last_generation = Some(generation);
        if let (Some(state), Some(sha256)) = (&mut self.state, draft.digest.clone()) {
            state.on_applied(AppliedContent { generation, sha256 });
        }
        generation
    }

    fn content(
        &mut self,
        draft: Draft,
        generation: Generation,
        acked: Option<Acked>,
        stamps: Stamps,
    ) -> Content {
        let Draft { digest, instances, held, refusal, notes, started, look_again, step } = draft;
        let refused = refusal.iter().cloned().collect();
        if let Some(told) = &self.told {
            // What was taken back has other instances than the selection.
            told.on_applied(self.endpoints.clone().filter(|_| refusal.is_none()));
            if acked.as_ref().is_some_and(|acked| acked.is_complete) {
                told.on_found_acked();
            }
        }
        metrics::gauge!("rollcall_consumer_isolated_instances", "target" => self.target.clone())
            .set(self.isolated.count() as f64);
        self.shown = step;
        let (kept_notes, kept_acked) = (notes.clone(), acked.clone());
        self.current = Some(Current {
            digest,
            stamps,
            generation,
            acked: kept_acked,
            instances,
            notes: kept_notes,
            refusal,
        });
        let note = self.draining.as_ref().and_then(Draining::note).map(str::to_owned);
        let notes = notes.into_iter().chain(note).collect();
        Content { generation, acked, instances, held, refused, notes, started, is_quiet: false, look_again }
    }

    /// Whether it matters which content is which.
    fn keeps_digests(&self) -> bool {
        self.state.is_some() || self.good.is_some()
    }

    /// Remembers what was acked, if the file still has that: a change that took long to install may have come since.
    pub fn remember(&mut self, acked: Option<(Generation, Acked)>) -> Result<(), FileError> {
        self.replaced.clear();
        self.draining.iter_mut().for_each(Draining::look);
        self.matched.iter_mut().for_each(Matched::remember);
        match &mut self.state {
            Some(state) => {
                let applied = state.applied().map(|applied| applied.generation);
                let acked = acked.filter(|(generation, _)| Some(*generation) == applied);
                Ok(state.remember(acked.map(|(_, acked)| acked).unwrap_or_default())?)
            }
            None => Ok(()),
        }
    }
}

impl Drop for Worker {
    /// A target that has gone holds nothing back.
    fn drop(&mut self) {
        for name in [
            "rollcall_consumer_kept_services",
            "rollcall_consumer_unmatched",
            "rollcall_consumer_isolated_instances",
        ] {
            metrics::gauge!(name, "target" => self.target.clone()).set(0.0);
        }
    }
}

/// The template of a file: another one may take what the last one did not.
#[derive(Debug)]
struct Template {
    path: Option<PathBuf>,
    stamp: Option<Stamp>,
}

impl Template {
    fn of(content: &RenderContent) -> Self {
        let path = match content {
            RenderContent::Template(path) => Some(path.clone()),
            RenderContent::Format(_) => None,
        };
        Self { stamp: path.as_deref().and_then(Stamp::at), path }
    }

    /// Whether its file is another one than it was the last time.
    fn has_changed(&mut self) -> bool {
        let Some(path) = &self.path else { return false };
        let stamp = Stamp::at(path);
        std::mem::replace(&mut self.stamp, stamp) != self.stamp
    }
}

/// nginx's master, where its workers verify the file.
fn verified_master(file: &FileConfig) -> Option<Master> {
    match &file.verify {
        Some(Verify { probe: Probe::Nginx(master), .. }) => Some(master.clone()),
        _ => None,
    }
}

/// What may be nginx's master, as it is signalled by its pid file.
fn notified_master(file: &FileConfig) -> Option<Master> {
    match &file.notify {
        Some(Notify::PidFile { pid_file, .. }) => Some(Master { pid_file: pid_file.clone() }),
        _ => None,
    }
}

/// What a notify command is told by, where the target does not share it.
fn told(file: &FileConfig) -> Option<Told> {
    let is_command = matches!(file.notify, Some(Notify::Command { .. }));
    (is_command && file.shared.is_none()).then(Told::default)
}

/// Tells the renderer what stands in the file. One that cannot be read is a failure once it is to be replaced.
pub(super) fn seed(renderer: &mut Renderer, files: &Files) {
    renderer.seed_services(files.services());
    if let Ok(Some(file)) = files.installed() {
        renderer.seed(&file);
    }
}

/// The digest of all that a target's files are to have.
fn digest(contents: &Contents) -> Digest {
    match contents {
        Contents::One(bytes) => Digest::of(bytes),
        Contents::Each(all) => {
            let one = |(service, bytes): (&ServiceName, &Vec<u8>)| {
                [format!("{service} {}\n", bytes.len()).as_bytes(), bytes].concat()
            };
            Digest::of(&all.iter().flat_map(one).collect::<Vec<u8>>())
        }
    }
}

/// What renders and what installs a target's files.
pub(super) fn parts(
    target: &TargetConfig,
    file: &FileConfig,
    state_dir: Option<Arc<StateDir>>,
) -> (Renderer, Files) {
    let FileConfig { dest, content, render, mode, owner, backups, .. } = file;
    let renderer = Renderer::new(target.name.clone(), content.clone(), target.select.named_services())
        .with(render.clone());
    let attributes = Attributes { mode: *mode, owner: *owner };
    let installer =
        Installer { dest: dest.clone(), target: target.name.clone(), attributes, backups: backups.clone() };
    let files = Files::open(installer, state_dir).owning(target.select.services.clone());
    (renderer.per_service(files.are_many()), files)
}

#[cfg(test)]
mod tests;
