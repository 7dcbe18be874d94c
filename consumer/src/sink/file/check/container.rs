//! Has a staged file checked in containers, through the store: a thin shell around [`super::examination`].
//!
//! Where no container that is meant runs, the file is installed unchecked: nobody serves with it, and the program itself
//! reads it when it starts. A stack whose proxy waits for its file could else never start.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use rollcall_shared::{
    codec::V1,
    model::{
        check::{CheckRequest, CheckRule},
        name::{ContainerName, TargetName},
    },
    process::time::{self, sleep_until},
};
use tokio::{sync::watch, time::Instant};

use super::examination::{Checks, Progress, progress};
use crate::{
    sink::file::notify::{delivery::Reports, requests::AllChecks},
    target::generation::Generation,
};

/// How long agents may take to say that a container is there, once they can know that we ask.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the session may take that requests need, and how much longer than the command an agent may take.
const MARGIN: Duration = Duration::from_secs(10);

/// Has the files of one target checked.
#[derive(Debug)]
pub struct ContainerChecker {
    target: TargetName,
    rule: CheckRule,
    /// The folder of the file as the containers see it, where that is another path.
    dir: Option<PathBuf>,
    timeout: Duration,
    /// What the nodes say of the target.
    reports: watch::Receiver<Reports>,
    /// Where the checks of all targets are published.
    checks: watch::Sender<AllChecks>,
    /// Since when agents can know of this consumer, if they can.
    session: watch::Receiver<Option<Instant>>,
    opened_at: Instant,
    last: Option<Generation>,
}

/// What a checker works with.
#[derive(Debug)]
pub struct Surroundings {
    /// What the nodes say of the target.
    pub reports: watch::Receiver<Reports>,
    /// Where the checks of all targets are published.
    pub checks: watch::Sender<AllChecks>,
    /// Since when agents can know of this consumer, if they can.
    pub session: watch::Receiver<Option<Instant>>,
}

/// How a check has ended that is no failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// The file is good.
    Passed,
    /// No container that is meant runs.
    ByNobody,
}

/// Why a file did not pass.
#[derive(Debug, thiserror::Error)]
pub enum ContainerCheckError {
    /// A program refuses it.
    #[error("container {container} refuses it with exit code {exit_code}{}", shown(said))]
    Refused {
        /// Whose program.
        container: ContainerName,
        /// How it ended.
        exit_code: i64,
        /// What it said, on one line.
        said: String,
    },
    /// Nobody could check it. The file may be good.
    #[error("nobody could check it: {0}")]
    NotRun(String),
}

fn shown(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

/// Takes the requests of a target back when they are not waited for any more.
struct Requested<'c>(&'c watch::Sender<AllChecks>, &'c TargetName);

impl Requested<'_> {
    fn publish(&self, wanted: Checks) {
        self.0.send_if_modified(|all| {
            if all.get(self.1) == Some(&wanted) {
                return false;
            }
            all.insert(self.1.clone(), wanted);
            true
        });
    }
}

impl Drop for Requested<'_> {
    fn drop(&mut self) {
        self.0.send_if_modified(|all| all.remove(self.1).is_some());
    }
}

impl ContainerChecker {
    /// A checker for the files of a target.
    pub fn new(
        target: TargetName,
        rule: CheckRule,
        dir: Option<PathBuf>,
        timeout: Duration,
        surroundings: Surroundings,
    ) -> Self {
        let Surroundings { reports, checks, session } = surroundings;
        Self { target, rule, dir, timeout, reports, checks, session, opened_at: Instant::now(), last: None }
    }

    /// Has a staged file checked that goes to `dest`.
    ///
    /// # Errors
    /// A program refuses it, or nobody could check it.
    pub async fn run(&mut self, staged: &Path, dest: &Path) -> Result<Checked, ContainerCheckError> {
        self.await_checkers().await?;
        let request = self.request(staged, dest)?;
        let Self { reports, checks, target, timeout, rule, .. } = self;
        let (requested, deadline) = (Requested(checks, target), Instant::now() + *timeout + MARGIN);
        let mut was_anybody = false;
        loop {
            let standing = progress(&request, &reports.borrow_and_update());
            match standing {
                Progress::Passed => return Ok(Checked::Passed),
                Progress::Failed { container, exit_code, said } => {
                    return Err(ContainerCheckError::Refused { container, exit_code, said });
                }
                Progress::NotRun(reason) => return Err(ContainerCheckError::NotRun(reason)),
                Progress::Nobody if was_anybody => {
                    let reason = format!("{} has ended meanwhile", rule.to);
                    return Err(ContainerCheckError::NotRun(reason));
                }
                Progress::Nobody => return Ok(Checked::ByNobody),
                Progress::Waiting(wanted) => {
                    was_anybody = true;
                    requested.publish(wanted);
                }
            }
            match tokio::time::timeout_at(deadline, reports.changed()).await {
                Ok(Ok(())) => {}
                // Whoever reports has ended, as the process does.
                Ok(Err(_)) => std::future::pending().await,
                Err(_) => {
                    let waited = time::show(*timeout + MARGIN);
                    let reason = format!("no agent has answered for {} within {waited}", rule.to);
                    return Err(ContainerCheckError::NotRun(reason));
                }
            }
        }
    }

    /// Waits until a container is there that is meant, or agents have had the time to say so.
    async fn await_checkers(&mut self) -> Result<(), ContainerCheckError> {
        let deadline = Instant::now() + MARGIN;
        loop {
            let is_anybody =
                self.reports.borrow_and_update().receivers.values().any(|node| !node.checkers.is_empty());
            let session = *self.session.borrow_and_update();
            let settled_at = session.map(|since| since.max(self.opened_at) + SETTLE_TIMEOUT);
            if is_anybody || settled_at.is_some_and(|at| at <= Instant::now()) {
                return Ok(());
            }
            tokio::select! {
                // Every branch is cancel safe: watches and timers.
                Ok(()) = self.reports.changed() => {}
                Ok(()) = self.session.changed() => {}
                () = sleep_until(settled_at) => {}
                () = tokio::time::sleep_until(deadline) => {
                    let reason = "agents cannot be asked, as this consumer's name is not claimed";
                    return Err(ContainerCheckError::NotRun(reason.to_owned()));
                }
            }
        }
    }

    fn request(&mut self, staged: &Path, dest: &Path) -> Result<CheckRequest, ContainerCheckError> {
        let id = Generation::after(self.last, Timestamp::now());
        self.last = Some(id);
        let unnamed = |path: &Path| {
            ContainerCheckError::NotRun(format!("the path {} cannot be told to an agent", path.display()))
        };
        let folder = match (&self.dir, dest.parent(), staged.parent()) {
            (_, folder, staged_in) if folder != staged_in => {
                let reason =
                    format!("it could not be staged beside {}, where containers see it", dest.display());
                return Err(ContainerCheckError::NotRun(reason));
            }
            (Some(dir), ..) => dir.clone(),
            (None, Some(folder), _) => std::path::absolute(folder).map_err(|_| unnamed(folder))?,
            (None, None, _) => return Err(unnamed(dest)),
        };
        let inside = |path: &Path| {
            let named = path.file_name().map(|name| folder.join(name));
            named.and_then(|path| path.to_str().map(str::to_owned)).ok_or_else(|| unnamed(path))
        };
        Ok(CheckRequest {
            v: V1,
            id: id.0,
            command: self.rule.command.clone(),
            file: inside(staged)?,
            dest: inside(dest)?,
            timeout_ms: self.timeout.as_millis().try_into().unwrap_or(u64::MAX),
            checkers: vec![],
        })
    }
}
