//! Reads the settings anew while the consumer runs: targets come, go and change, and the others are not disturbed.
//!
//! Flags and environment stay as they are; the file of targets and the templates are read. Everything is checked before
//! anything is touched: what cannot work is refused, and what runs goes on.

use std::sync::Arc;

use rollcall_shared::process::{error::one_line, setting::SettingError};

use crate::{
    config::{Plan, Settings, TargetConfig},
    embedded,
    roll::follower::FollowerHandle,
    sink::file::FileSink,
    state_dir::StateDir,
    supervisor::Supervisor,
    targets::{Changes, Targets},
};

/// Reads the settings anew.
#[derive(Debug)]
pub struct Reloader {
    settings: Settings,
    /// The settings as the process began with them.
    first: Plan,
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
        state: Arc<StateDir>,
        follower: FollowerHandle,
        targets: Targets,
    ) -> Self {
        Self { settings, first, state, follower, targets }
    }

    /// Reads the settings and has the targets as they say.
    ///
    /// # Errors
    /// Why they are refused, on one line; nothing has changed then.
    pub async fn reload(&mut self, supervisor: &mut Supervisor) -> Result<(), String> {
        let (settings, first) = (self.settings.clone(), self.first.clone());
        let read = tokio::task::spawn_blocking(move || read(&settings, &first)).await;
        let targets = match read.expect("reading settings does not panic") {
            Ok(targets) => targets,
            Err(error) => {
                let reason = one_line(&error);
                tracing::error!(reason, "the new settings are refused, the old ones stay");
                return Err(reason);
            }
        };
        self.change(supervisor, &targets).await;
        Ok(())
    }

    async fn change(&mut self, supervisor: &mut Supervisor, targets: &[TargetConfig]) {
        let Changes { stop, start } = self.targets.changes(targets);
        self.targets.stop(&stop).await;
        let Some(selections) = self.follower.retarget(targets).await else { return };
        self.targets.declare(targets);
        let sinks = Targets::sinks(self.state.clone(), start.clone()).await;
        let (stopped, started) = (stop.len(), start.len());
        for (config, sink) in start.into_iter().zip(sinks) {
            let selection = targets.iter().zip(&selections).find(|(target, _)| target.name == config.name);
            let Some((_, selection)) = selection else { continue };
            let mut selection = selection.clone();
            selection.mark_changed();
            let target = self.targets.open(supervisor, config, sink, selection);
            self.targets.start(supervisor, target);
        }
        tracing::info!(targets = targets.len(), stopped, started, "read the settings anew");
    }
}

/// The targets of the settings as they are now, checked.
fn read(settings: &Settings, first: &Plan) -> Result<Vec<TargetConfig>, SettingError> {
    let plan = settings.plan()?;
    if plan.embedded {
        embedded::check_reload(first, &plan)?;
    }
    plan.targets.iter().try_for_each(FileSink::check)?;
    Ok(plan.targets)
}
