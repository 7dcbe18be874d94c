//! The file sink: renders a selection, stages it, has it checked and installs it. What blocks runs on another thread.
//!
//! It notifies nobody; it remembers what was acked, and so knows which change a file is that it finds.

use std::{os::fd::OwnedFd, path::Path};

use async_trait::async_trait;
use jiff::Timestamp;
use rollcall_shared::process::setting::SettingError;
use tokio::{sync::watch, time::Instant};

use super::{
    Check, FileConfig,
    command::CommandError,
    install::{InstallError, Installer, Staged},
    render::{RenderError, Rendered, Renderer},
};
use crate::{
    config::TargetConfig,
    roll::{Hold, Selection},
    sink::{Applied, Content, Sink, SinkError},
    target::{
        generation::Generation,
        state::{Acked, AppliedContent, Digest, TargetState},
    },
};

/// Why a selection did not become a file. It is tried again, with the next selection or after a while.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Rendering failed.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// The check refused the staged file.
    #[error("the check refuses the new file")]
    Check(#[from] CommandError),
    /// Installing failed.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// The state could not be written that keeps the new file from being taken for acked.
    #[error("cannot write the target's state in --state-dir")]
    State(#[from] std::io::Error),
}

/// Keeps one file.
#[derive(Debug)]
pub struct FileSink {
    /// Away only while it is at work on another thread.
    worker: Option<Worker>,
    check: Option<Check>,
}

/// The part that blocks.
#[derive(Debug)]
struct Worker {
    renderer: Renderer,
    installer: Installer,
    /// Kept where there is somebody to notify.
    state: Option<TargetState>,
    is_checked: bool,
    last_generation: Option<Generation>,
    /// The selection's step that the file shows.
    shown: u64,
    /// The file that was replaced last, until its reader was notified: freeing it takes longer than the rename.
    replaced: Option<OwnedFd>,
}

/// A rendered selection that is not installed yet.
#[derive(Debug)]
struct Draft {
    /// The digest of its bytes, where a state is kept.
    digest: Option<Digest>,
    instances: usize,
    remarks: Vec<String>,
    started: Vec<Timestamp>,
    look_again: Option<Instant>,
    step: u64,
}

enum Made {
    Done(Applied),
    Staged(Draft, Staged),
}

impl FileSink {
    /// A sink for the target, after a look at what can be known to be wrong before there is a roll.
    ///
    /// # Errors
    /// A setting that cannot work.
    pub fn open(target: &TargetConfig, state_dir: &Path) -> Result<Self, SettingError> {
        let named = |error: SettingError| error.within(&format!("target {}: ", target.name));
        let (renderer, installer) = parts(target);
        renderer.check().map_err(named)?;
        installer.check().map_err(named)?;
        let state = target.file.notify.as_ref().map(|notify| {
            let subject = format!("{} and {notify}", target.file.dest.display());
            let opened = TargetState::open(state_dir, &target.name, subject);
            opened.map_err(|error| SettingError::caused("--state-dir", state_dir.display(), error))
        });
        installer.clear_leftovers();
        let FileConfig { check, .. } = &target.file;
        let worker = Worker {
            renderer,
            installer,
            state: state.transpose()?,
            is_checked: check.is_some(),
            last_generation: None,
            shown: 0,
            replaced: None,
        };
        Ok(Self { worker: Some(worker), check: check.clone() })
    }

    /// Works on another thread.
    async fn work<T: Send + 'static>(&mut self, work: impl FnOnce(&mut Worker) -> T + Send + 'static) -> T {
        let mut worker = self.worker.take().expect("it is back after every work");
        let working = tokio::task::spawn_blocking(move || {
            let done = work(&mut worker);
            (worker, done)
        });
        match working.await {
            Ok((worker, done)) => {
                self.worker = Some(worker);
                done
            }
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is going down, and this task with it.
                Err(_) => std::future::pending().await,
            },
        }
    }

    async fn write(&mut self, selection: watch::Receiver<Selection>) -> Result<Applied, FileError> {
        let now = Instant::now();
        match self.work(move |worker| worker.make(&selection, now)).await? {
            Made::Done(applied) => Ok(applied),
            Made::Staged(draft, staged) => {
                if let Some(Check { command, timeout }) = &self.check {
                    command.run(staged.path(), *timeout).await?;
                }
                self.work(move |worker| worker.install(draft, staged)).await.map(Applied::Written)
            }
        }
    }
}

#[async_trait]
impl Sink for FileSink {
    async fn apply(&mut self, selection: &watch::Receiver<Selection>) -> Result<Applied, SinkError> {
        Ok(self.write(selection.clone()).await?)
    }

    async fn remember(&mut self, acked: Option<Acked>) -> Result<(), SinkError> {
        Ok(self.work(move |worker| worker.remember(acked)).await?)
    }
}

impl Worker {
    /// Makes the file that the selection calls for, or stages it where it is to be checked.
    fn make(&mut self, selection: &watch::Receiver<Selection>, now: Instant) -> Result<Made, FileError> {
        let (rendered, verdict, started, step) = {
            let selection = selection.borrow();
            let verdict = selection.verdict(now);
            let started = selection.newer_than(self.shown).map(|row| row.instance.started_at).collect();
            (self.renderer.render(&selection, &verdict)?, verdict, started, selection.step())
        };
        let look_again = verdict.next_change();
        if let Some(Hold { until, reason }) = verdict.floor {
            return Ok(Made::Done(Applied::Held { until, reason }));
        }
        let Rendered { bytes, instances, left_out } = rendered;
        let held = verdict.services.into_values().map(|hold| hold.reason);
        let draft = Draft {
            digest: self.state.is_some().then(|| Digest::of(&bytes)),
            instances,
            remarks: remark(&left_out).into_iter().chain(held).collect(),
            started,
            look_again,
            step,
        };
        match self.installer.stage(&bytes)? {
            None => Ok(Made::Done(Applied::Unchanged(self.found(draft)))),
            Some(staged) if self.is_checked => Ok(Made::Staged(draft, staged)),
            Some(staged) => Ok(Made::Done(Applied::Written(self.install(draft, staged)?))),
        }
    }

    /// Installs what was staged.
    fn install(&mut self, draft: Draft, staged: Staged) -> Result<Content, FileError> {
        if let (Some(state), Some(digest)) = (&mut self.state, &draft.digest) {
            state.before_apply(digest)?;
        }
        self.replaced = self.installer.install(staged)?.filter(|_| self.state.is_some());
        let generation = self.next_generation(&draft);
        Ok(self.content(draft, generation, None))
    }

    /// The file is as the draft already. It may be a change of an earlier run.
    fn found(&mut self, draft: Draft) -> Content {
        let applied = self.state.as_ref().and_then(TargetState::applied);
        let known = applied.filter(|applied| Some(&applied.sha256) == draft.digest.as_ref());
        let Some(generation) = known.map(|applied| applied.generation) else {
            let generation = self.next_generation(&draft);
            return self.content(draft, generation, None);
        };
        self.last_generation = self.last_generation.max(Some(generation));
        let acked = self.state.as_ref().and_then(|state| state.acked(generation)).cloned();
        self.content(draft, generation, acked)
    }

    fn next_generation(&mut self, draft: &Draft) -> Generation {
        let generation = Generation::after(self.last_generation, Timestamp::now());
        self.last_generation = Some(generation);
        if let (Some(state), Some(sha256)) = (&mut self.state, draft.digest.clone()) {
            state.on_applied(AppliedContent { generation, sha256 });
        }
        generation
    }

    fn content(&mut self, draft: Draft, generation: Generation, acked: Option<Acked>) -> Content {
        let Draft { digest: _, instances, remarks, started, look_again, step } = draft;
        self.shown = step;
        Content { generation, acked, instances, remarks, started, look_again }
    }

    fn remember(&mut self, acked: Option<Acked>) -> Result<(), FileError> {
        self.replaced = None;
        match &mut self.state {
            Some(state) => Ok(state.remember(acked.unwrap_or_default())?),
            None => Ok(()),
        }
    }
}

/// One line for what the format cannot express.
fn remark(left_out: &[String]) -> Option<String> {
    let first = left_out.first()?;
    let more = match left_out.len() - 1 {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!("leaves out what the format cannot express: {first}{more}"))
}

/// What renders and what installs a target's file.
pub(super) fn parts(target: &TargetConfig) -> (Renderer, Installer) {
    let FileConfig { dest, content, mode, owner, backups, .. } = &target.file;
    let renderer = Renderer::new(target.name.clone(), content.clone(), target.select.named_services());
    let installer = Installer { dest: dest.clone(), mode: *mode, owner: *owner, backups: backups.clone() };
    (renderer, installer)
}
