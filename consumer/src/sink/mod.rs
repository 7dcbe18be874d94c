//! What a target writes to.

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};

use crate::{
    roll::Selection,
    target::{generation::Generation, state::Acked},
};

pub mod file;
pub mod program;

/// Something that is kept as the roll calls for.
#[async_trait]
pub trait Sink: Send + std::fmt::Debug + 'static {
    /// Brings it up to the selection as it is now. What is equal is not written.
    ///
    /// # Errors
    /// What was there last stays; it is tried again, with the next selection or after a while.
    async fn apply(&mut self, selection: &watch::Receiver<Selection>) -> Result<Applied, SinkError>;

    /// Verifies what was applied, once everybody has taken it. What was verified before is not verified again.
    ///
    /// # Errors
    /// It does not work: the next [`Sink::apply`] puts back what was verified last.
    async fn verify(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    /// Remembers over restarts which generation was acked, and by which receivers. It may have another one by now.
    ///
    /// # Errors
    /// What could not be remembered is notified again after a restart.
    async fn remember(&mut self, acked: Option<(Generation, Acked)>) -> Result<(), SinkError>;
}

/// Why a sink could not do what was asked.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// What became of a selection.
#[derive(Debug)]
pub enum Applied {
    /// What was there last stays for now.
    Held {
        /// When to look again, at the latest; `None` where time changes nothing.
        until: Option<Instant>,
        /// Why, on one line.
        reason: String,
        /// The change that is there from an earlier run and that not everybody has taken yet, and who has.
        due: Option<(Generation, Acked)>,
    },
    /// It was like that already.
    Unchanged(Content),
    /// It is like that now.
    Written(Content),
}

/// What a sink has now.
#[derive(Debug)]
pub struct Content {
    /// Which change of the sink it is. One that was applied in an earlier run keeps its number.
    pub generation: Generation,
    /// What was acked of it in an earlier run.
    pub acked: Option<Acked>,
    /// How many instances it has.
    pub instances: usize,
    /// Services that keep what they have lost, and why, on one line each: until then, the sink is not ready.
    pub held: Vec<String>,
    /// What is worth a look and stops nothing, on one line each, such as instances that it cannot express.
    pub notes: Vec<String>,
    /// When the containers started that it has for the first time.
    pub started: Vec<Timestamp>,
    /// When to look again even if nothing changes: when something that is held may go.
    pub look_again: Option<Instant>,
}
