//! The agent's settings: each a flag with an environment twin. Each room has its own.

use crate::{
    checks::CheckSettings,
    docker::DockerSettings,
    exec::ExecSettings,
    registration::{FilterSettings, NodeSettings},
    signals::SignalSettings,
};

/// Everything that an agent is told, beside where its store is.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    /// How to reach Docker.
    #[command(flatten)]
    pub docker: DockerSettings,
    /// Who this host is, and how its containers are reached.
    #[command(flatten)]
    pub node: NodeSettings,
    /// Which containers are registered, and with what.
    #[command(flatten)]
    pub filter: FilterSettings,
    /// What is checked where a container does not say.
    #[command(flatten)]
    pub checks: CheckSettings,
    /// Which signals are delivered.
    #[command(flatten)]
    pub signals: SignalSettings,
    /// Which commands may be run in containers.
    #[command(flatten)]
    pub exec: ExecSettings,
}
