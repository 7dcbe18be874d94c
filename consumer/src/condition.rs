//! One part's line in the health report, logged when it changes.

use rollcall_shared::health::Health;

/// Whether one part works, and why not.
#[derive(Debug)]
pub struct Condition {
    health: Health,
    part: String,
    reason: Option<String>,
}

impl Condition {
    /// The line of a part, as it stands.
    pub fn new(health: Health, part: String) -> Self {
        Self { health, part, reason: None }
    }

    /// It works.
    pub fn well(&mut self) {
        self.health.well(&self.part);
        if self.reason.take().is_some() {
            tracing::info!(part = self.part, "works again");
        }
    }

    /// It does not work, and is tried again. The same reason is logged once.
    pub fn ill(&mut self, reason: String) {
        self.health.ill(&self.part, reason.clone());
        if self.reason.as_ref() != Some(&reason) {
            tracing::warn!(part = self.part, reason, "does not work, will try again");
            self.reason = Some(reason);
        }
    }

    /// It does not work because it waits for someone else, which is no failure.
    pub fn waiting(&mut self, reason: String) {
        self.health.ill(&self.part, reason.clone());
        if self.reason.as_ref() != Some(&reason) {
            tracing::info!(part = self.part, reason, "waits");
            self.reason = Some(reason);
        }
    }
}
