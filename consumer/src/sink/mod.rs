//! What a target writes to.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use rollcall_shared::process::setting::SettingError;
use tokio::{sync::watch, time::Instant};
use tokio_util::task::TaskTracker;

use crate::{
    config::TargetConfig,
    roll::Selection,
    state_dir::StateDir,
    target::{generation::Generation, state::Acked},
};
use citus::CitusProgram;
use file::{FileSink, check::ContainerChecker, notify::Told};
use haproxy::HaproxySink;
use http::{HttpSink, Pages};
use program::Reconciler;
use settings::SinkConfig;

pub mod citus;
pub mod file;
pub mod haproxy;
pub mod http;
mod intake;
pub mod preview;
pub mod program;
pub mod settings;

/// Checks what can be known to be wrong with a target's sink before there is a roll.
///
/// # Errors
/// A setting that cannot work.
pub fn check(target: &TargetConfig) -> Result<(), SettingError> {
    match &target.sink {
        SinkConfig::File(file) => FileSink::check(target, file),
        SinkConfig::Haproxy(haproxy) => FileSink::check(target, &haproxy.file),
        // It is checked as it is parsed.
        SinkConfig::Citus(_) => Ok(()),
        SinkConfig::Http(http) => http.check(target),
    }
}

/// Opens the sink of a target that was checked. It blocks.
pub fn open(target: &TargetConfig, state_dir: Arc<StateDir>, pages: Pages) -> Box<dyn Sink> {
    match &target.sink {
        SinkConfig::File(file) => Box::new(FileSink::open(target, file, state_dir)),
        SinkConfig::Haproxy(haproxy) => Box::new(HaproxySink::open(target, haproxy, state_dir)),
        SinkConfig::Citus(citus) => {
            let program = CitusProgram::new((**citus).clone());
            Box::new(Reconciler::new(program, target, state_dir))
        }
        SinkConfig::Http(http) => Box::new(HttpSink::open(target, http, state_dir, pages)),
    }
}

/// What a sink works with that is there once its target is set up.
#[derive(Debug)]
pub struct Equipment {
    /// Counts what it does on other threads, which goes on when nobody waits for it any more.
    pub tasks: TaskTracker,
    /// Checks files in containers, where that is wanted.
    pub checker: Option<ContainerChecker>,
}

/// Something that is kept as the roll calls for.
///
/// ```text
/// selection -> apply (observe, plan, apply) -> notified -> verify -> read back -> acked
/// ```
#[async_trait]
pub trait Sink: Send + std::fmt::Debug + 'static {
    /// Has it work with this.
    fn equip(&mut self, _: Equipment) {}

    /// What its notify command is told by, where it has one of its own.
    fn told(&self) -> Option<Told> {
        None
    }

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

    /// Asks the program behind whether it has what was applied, where it follows by itself; `None` where nobody is asked.
    fn read_back(&self) -> Option<Question> {
        None
    }

    /// Waits until what is behind it is another than it was, such as a program that has restarted. Cancel safe.
    async fn disturbed(&mut self) {
        std::future::pending().await
    }

    /// Remembers over restarts which generation was acked, and by which receivers. It may have another one by now.
    ///
    /// # Errors
    /// What could not be remembered is notified again after a restart.
    async fn remember(&mut self, acked: Option<(Generation, Acked)>) -> Result<(), SinkError>;
}

/// Why a sink could not do what was asked.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// A question to the program behind a sink; an error says what it does not have, or why it cannot be asked.
pub struct Question(BoxFuture<'static, Result<(), SinkError>>);

impl Question {
    /// This question.
    pub fn new(asking: impl Future<Output = Result<(), SinkError>> + Send + 'static) -> Self {
        Self(Box::pin(asking))
    }
}

impl Future for Question {
    type Output = Result<(), SinkError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context)
    }
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Question")
    }
}

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
    /// What cannot be had, and why, on one line each: until that changes, the sink is not ready.
    pub refused: Vec<String>,
    /// What is worth a look and stops nothing, on one line each, such as instances that it cannot express.
    pub notes: Vec<String>,
    /// When the containers started that it has for the first time.
    pub started: Vec<Timestamp>,
    /// Whether it is there without anybody being notified.
    pub is_quiet: bool,
    /// When to look again even if nothing changes: when something that is held may go.
    pub look_again: Option<Instant>,
}
