//! What the agent needs of a Docker engine. The real client implements it, and the scripted engine of the tests does.

use std::{error::Error, fmt, time::Duration};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use rollcall_shared::{model::signal::Signal, process::setting::SettingError};

use crate::inventory::container::{Container, Event, Summary};

/// What happens to containers. It ends with an error.
pub type Events = BoxStream<'static, Result<Event, DockerError>>;

/// What went wrong between the agent and Docker. `Setting` stays so until someone changes it; the others are worth a
/// retry.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// A setting cannot work.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A call failed.
    #[error("Docker at {host}: {doing}")]
    Call {
        /// The engine's address.
        host: String,
        /// What was being done.
        doing: &'static str,
        /// What the engine or the connection said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// It is connected to and answers nothing.
    #[error("Docker has answered nothing for {0:?}")]
    Silent(Duration),
}

/// A Docker engine.
///
/// # Guarantees
/// - A list and an inspection may lag behind the events, never the other way round.
/// - Every call ends in bounded time; a stream of events goes on for as long as the connection does.
#[async_trait]
pub trait Engine: fmt::Debug + Send + Sync + 'static {
    /// Agrees on the API version to speak from now on. To be called anew after a break: the engine may have been
    /// upgraded meanwhile.
    async fn agree(&self) -> Result<(), DockerError>;

    /// The engine's ID, which it keeps for as long as its data folder.
    async fn id(&self) -> Result<String, DockerError>;

    /// What happens to containers from `since` on, by the engine's clock.
    fn events(&self, since: Timestamp) -> Events;

    /// The containers that run.
    async fn list(&self) -> Result<Vec<Summary>, DockerError>;

    /// The container of this ID or name, or `None` where it does not run.
    async fn inspect(&self, id: &str) -> Result<Option<Container>, DockerError>;

    /// Has the engine send a signal to a container's first process.
    async fn kill(&self, id: &str, signal: Signal) -> Result<(), DockerError>;

    /// Whether a container has something at this path, by its own view of its mounts.
    async fn sees(&self, id: &str, path: &str) -> Result<bool, DockerError>;

    /// Runs a command in a container, as the container's own user, without a shell and without input.
    async fn exec(&self, id: &str, words: &[String], timeout: Duration) -> Result<Exec, DockerError>;
}

/// What became of a command in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exec {
    /// It has ended.
    Ended {
        /// How.
        exit_code: i64,
        /// The beginning of what it wrote to its standard error, or else to its standard output.
        output: Vec<u8>,
    },
    /// It has not ended within its time, and goes on.
    Unfinished {
        /// Its process, in Docker's PID namespace.
        pid: Option<i32>,
    },
}
