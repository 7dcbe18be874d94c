//! A check of one port of one run of a container.

use std::{collections::BTreeMap, fmt};

use rollcall_shared::model::{instance::Instance, name::ContainerName, signal::Incarnation};

use super::{Ready, Spec, target::Target};
use crate::{
    inventory::{Port, Running, RunningContainers},
    registration::{address, omission::Omission},
};

/// Which check: a container that is restarted begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CheckId {
    /// The run of the container.
    pub run: Incarnation,
    /// The port inside it.
    pub port: Port,
}

/// A check of one port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// The container's name.
    pub container: ContainerName,
    /// What is asked, and how often.
    pub spec: Spec,
    /// Where.
    pub target: Target,
    /// Whether nothing is asked now: the container is paused, or has been told to stop.
    pub is_suspended: bool,
}

impl Definition {
    /// The check of a container's instance, if it has one.
    ///
    /// # Errors
    /// What its labels ask for and cannot be.
    pub fn of(
        running: &Running,
        all: &RunningContainers,
        instance: &Instance,
        ready: Ready,
    ) -> Result<Option<Self>, Omission> {
        let container = &*running.container;
        let port = Port { number: instance.container_port, protocol: instance.protocol };
        let Some(spec) = Spec::of(container, port, ready)? else { return Ok(None) };
        Ok(Some(Self {
            container: container.name.clone(),
            spec,
            target: Target::new(address::network_of(container, all)?, instance),
            is_suspended: running.is_draining || container.paused,
        }))
    }
}

/// The checks of a host's containers.
pub type Definitions = BTreeMap<CheckId, Definition>;

impl fmt::Display for Definition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { container: _, spec, target, is_suspended: _ } = self;
        write!(f, "{spec}, {target}")
    }
}
