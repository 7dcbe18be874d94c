//! Reads the settings anew while the consumer runs: targets come, go and change, and the others are not disturbed.
//!
//! Flags and environment stay as they are; the file of targets and the templates are read. Everything is checked before
//! anything is touched: what cannot work is refused, and what runs goes on.

use std::{sync::Arc, time::Duration};

use rollcall_shared::process::{error::one_line, setting::SettingError, time};

use crate::{
    config::{Plan, Settings, TargetConfig},
    embedded,
    home::{self, OwnStack},
    roll::follower::FollowerHandle,
    sink,
    state_dir::StateDir,
    targets::{Changes, Targets},
};

/// How long the files of the settings may take to be read: later reloads and new targets wait for it.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Why settings are refused.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    /// They cannot work.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// They are on a file system that hangs.
    #[error("reading the settings and templates takes more than {}", time::show(READ_TIMEOUT))]
    Slow,
}

/// Reads the settings anew.
#[derive(Debug)]
pub struct Reloader {
    settings: Settings,
    /// The settings as the process began with them.
    first: Plan,
    own_stack: OwnStack,
    state: Arc<StateDir>,
    follower: FollowerHandle,
    /// The targets that it changes.
    pub targets: Targets,
}

impl Reloader {
    /// A reloader of these targets.
    pub fn new(
        settings: Settings,
        first: Plan,
        own_stack: OwnStack,
        state: Arc<StateDir>,
        follower: FollowerHandle,
        targets: Targets,
    ) -> Self {
        Self { settings, first, own_stack, state, follower, targets }
    }

    /// Reads the settings and has the targets as they say.
    ///
    /// # Errors
    /// Why they are refused, on one line; nothing has changed then.
    pub async fn reload(&mut self) -> Result<(), String> {
        match self.read().await {
            Ok(targets) => {
                self.change(&targets).await;
                Ok(())
            }
            Err(error) => {
                let reason = one_line(&error);
                tracing::error!(reason, "the new settings are refused, the old ones stay");
                Err(reason)
            }
        }
    }

    async fn read(&self) -> Result<Vec<TargetConfig>, ReloadError> {
        let (settings, first, own) = (self.settings.clone(), self.first.clone(), self.own_stack.clone());
        let reading = tokio::task::spawn_blocking(move || read(&settings, &first, &own));
        let read = tokio::time::timeout(READ_TIMEOUT, reading).await.map_err(|_| ReloadError::Slow)?;
        Ok(read.expect("reading settings does not panic")?)
    }

    /// Stops what goes, and has what is new come. Waits for no target.
    async fn change(&mut self, targets: &[TargetConfig]) {
        let Changes { stop, start } = self.targets.changes(targets);
        // First: a target whose selection goes ends, and is to have been asked to.
        self.targets.stop(&stop);
        let Some(selections) = self.follower.retarget(targets).await else { return };
        self.targets.declare(targets);
        let (stopped, started) = (stop.len(), start.len());
        for config in start {
            let selection = targets.iter().zip(&selections).find(|(target, _)| target.name == config.name);
            let Some((_, selection)) = selection else { continue };
            let mut selection = selection.clone();
            selection.mark_changed();
            self.targets.come(self.state.clone(), config, selection);
        }
        tracing::info!(targets = targets.len(), stopped, started, "read the settings anew");
    }
}

/// The targets of the settings as they are now, checked.
fn read(settings: &Settings, first: &Plan, own_stack: &OwnStack) -> Result<Vec<TargetConfig>, SettingError> {
    let plan = settings.plan()?;
    if plan.wants_own_stack() && *own_stack == OwnStack::NotAsked && home::own_container().is_some() {
        let expected = "a restart, as no target has asked for it so far";
        return Err(SettingError::new("stack", "own", expected));
    }
    let plan = plan.with_own_stack(own_stack.name())?;
    if plan.embedded {
        embedded::check_reload(first, &plan)?;
    }
    plan.targets.iter().try_for_each(sink::check)?;
    Ok(plan.targets)
}
