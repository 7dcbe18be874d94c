//! Why an agent could not start, or had to stop.

use rollcall_shared::{
    process::{cli::Failure, setting::SettingError},
    session::KeeperError,
    store::StoreError,
};

use crate::docker::DockerError;

/// Why an agent could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting cannot work.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// Docker cannot be reached at the start.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// The store cannot be reached at the start.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The node's name is another agent's.
    #[error(transparent)]
    Claim(#[from] KeeperError),
    /// The node's name is held by a twin, and each may be there for containers of its own.
    #[error("{0}; or one agent for both, by --container NAME,NAME")]
    TwinBeside(KeeperError),
    /// A part that runs for ever has ended.
    #[error("the agent's {0} ended without being asked to")]
    Ended(&'static str),
}

impl Error {
    /// Whether it may work in a moment, as when a host boots.
    pub(crate) fn is_worth_a_retry(&self) -> bool {
        matches!(
            self,
            Error::Docker(DockerError::Call { .. } | DockerError::Silent(_))
                | Error::Store(StoreError::Unavailable { .. })
        )
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Setting(_)
            | Error::Docker(DockerError::Setting(_))
            | Error::Store(StoreError::Setting(_)) => Failure::usage(error),
            Error::Docker(DockerError::Call { .. } | DockerError::Silent(_))
            | Error::Store(_)
            | Error::Claim(_)
            | Error::TwinBeside(_)
            | Error::Ended(_) => Failure::failed(error),
        }
    }
}
