//! The part of a target that blocks: it reads the rows, asks the guard, renders, stages and installs.
//!
//! One visit to a blocking thread does all of it, or all up to a user's check. It signals nobody.

use std::{os::fd::OwnedFd, path::Path};

use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};

use crate::{
    config::TargetSettings,
    guard::{Guard, GuardSettings, Verdict},
    install::{InstallError, Installer, Staged},
    ledger::{Digest, Ledger},
    render::{RenderError, Rendered, Renderer},
    select::Selection,
};

/// Why a roll did not become a file. It is tried again, with the next roll or after a while.
#[derive(Debug, thiserror::Error)]
pub enum PressError {
    /// Rendering failed.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// Installing failed.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// The ledger could not be made to say that what comes next is not acked.
    #[error("cannot update the ledger in --state-dir: {0}")]
    Ledger(std::io::Error),
}

/// What a file was made of.
#[derive(Debug)]
pub struct Edition {
    /// The digest of its bytes, where a ledger is kept.
    pub digest: Option<Digest>,
    /// How many instances are in it.
    pub instances: usize,
    /// The instances that the format cannot express.
    pub left_out: Vec<String>,
    /// When the containers started that are in it for the first time.
    pub started: Vec<Timestamp>,
    /// The selection's step that it shows.
    step: u64,
}

/// What came of a roll.
#[derive(Debug)]
pub enum Made {
    /// The last good file stays for now.
    Held {
        /// When to look again, at the latest.
        until: Instant,
        /// Why.
        reason: String,
    },
    /// The file is like this already.
    Unchanged(Edition),
    /// It is staged, and waits for the user's check.
    Staged(Edition, Staged),
    /// It is installed.
    Installed(Edition),
}

/// Makes one target's file.
#[derive(Debug)]
pub struct Press {
    renderer: Renderer,
    installer: Installer,
    guard: Guard,
    /// Kept where there is somebody to notify.
    ledger: Option<Ledger>,
    /// Whether a user's check comes between staging and installing.
    is_checked: bool,
    /// The selection's step that the file shows.
    shown: u64,
    /// The file that was replaced last, until whoever reads the new one was told or that is replaced as well.
    replaced: Option<OwnedFd>,
}

impl Press {
    /// A press for the target, after a look at what can be known to be wrong before there is a roll.
    ///
    /// # Errors
    /// A sentence naming the setting, its value and what was expected.
    pub fn new(target: &TargetSettings, guard: GuardSettings, state_dir: &Path) -> Result<Self, String> {
        let named = |why: String| format!("target {}: {why}", target.name);
        let (renderer, installer) = parts(target);
        renderer.check().map_err(|error| named(error.to_string()))?;
        installer.check().map_err(named)?;
        let ledger = match &target.notify {
            Some(notify) => {
                let subject = format!("{} and {notify}", target.dest.display());
                let opened = Ledger::open(state_dir, &target.name, subject);
                Some(opened.map_err(|error| {
                    let dir = state_dir.display();
                    format!("--state-dir is {dir}: {error}: expected a folder to write in")
                })?)
            }
            None => None,
        };
        let installed = installer.installed().map_err(|error| named(error.to_string()))?;
        let acked = ledger.as_ref().zip(installed).filter(|(ledger, bytes)| !ledger.owes(&Digest::of(bytes)));
        let guard = Guard::new(guard, acked.and_then(|(ledger, _)| ledger.instances()));
        installer.clear_leftovers();
        Ok(Self {
            renderer,
            installer,
            guard,
            ledger,
            is_checked: target.check.is_some(),
            shown: 0,
            replaced: None,
        })
    }

    /// Makes the file that the rows call for.
    ///
    /// # Errors
    /// The last good file stays where it is.
    pub fn make(&mut self, selection: &watch::Receiver<Selection>, now: Instant) -> Result<Made, PressError> {
        let (rendered, is_suspect, started, step) = {
            // Held for as long as rendering takes; the roll waits for it, and so goes on to no half of it.
            let selection = selection.borrow();
            let started = selection.newer_than(self.shown).map(|row| row.instance.started_at).collect();
            (self.renderer.render(&selection)?, selection.is_suspect(), started, selection.step())
        };
        let Rendered { bytes, instances, left_out } = rendered;
        if let Verdict::Hold { until, reason } = self.guard.judge(instances, is_suspect, now) {
            return Ok(Made::Held { until, reason });
        }
        let digest = self.ledger.is_some().then(|| Digest::of(&bytes));
        let edition = Edition { digest, instances, left_out, started, step };
        match self.installer.stage(&bytes)? {
            None => {
                self.show(&edition);
                Ok(Made::Unchanged(edition))
            }
            Some(staged) if self.is_checked => Ok(Made::Staged(edition, staged)),
            Some(staged) => self.install(edition, staged).map(Made::Installed),
        }
    }

    /// Installs what was staged.
    ///
    /// # Errors
    /// The last good file stays where it is.
    pub fn install(&mut self, edition: Edition, staged: Staged) -> Result<Edition, PressError> {
        if let (Some(ledger), Some(digest)) = (&mut self.ledger, &edition.digest) {
            ledger.before_install(digest).map_err(PressError::Ledger)?;
        }
        self.replaced = self.installer.install(staged)?.filter(|_| self.ledger.is_some());
        self.show(&edition);
        Ok(edition)
    }

    fn show(&mut self, edition: &Edition) {
        self.guard.installed(edition.instances);
        self.shown = edition.step;
    }

    /// Whether the notification of the installed edition has not been acked.
    pub fn owes(&self, edition: &Edition) -> bool {
        match (&self.ledger, &edition.digest) {
            (Some(ledger), Some(digest)) => ledger.owes(digest),
            _ => false,
        }
    }

    /// The notification of the installed edition was acked.
    ///
    /// # Errors
    /// The operating system's; the notification is sent again after a restart then.
    pub fn settle(&mut self, digest: Digest, instances: usize) -> std::io::Result<()> {
        self.replaced = None;
        match &mut self.ledger {
            Some(ledger) => ledger.settle(digest, instances),
            None => Ok(()),
        }
    }
}

/// What renders and what installs a target's file.
pub fn parts(target: &TargetSettings) -> (Renderer, Installer) {
    let TargetSettings { name, dest, content, select, mode, owner, backups, .. } = target;
    let renderer = Renderer::new(name.clone(), content.clone(), select.named_services());
    let installer = Installer { dest: dest.clone(), mode: *mode, owner: *owner, backups: backups.clone() };
    (renderer, installer)
}
