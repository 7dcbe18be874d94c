//! What a service is shown of while none of its instances has a wanted status: those that drain, as they still serve;
//! else those that fail, as a check that fails for all at once is likelier wrong than they are, and no server at all is
//! the worst answer. One that is starting has never served, and stands in for nobody.
//!
//! It follows from what is registered alone: what has gone for a known reason is kept by nobody.

use std::collections::{BTreeMap, BTreeSet};

use rollcall_shared::model::{
    instance::{Instance, Status},
    name::ServiceName,
};

use super::{Row, Select, Shift};

/// What becomes of a service of which no instance has a wanted status, while some are there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AllFailing {
    /// Those that drain stay, or else those that fail.
    #[default]
    Keep,
    /// It is empty.
    Drop,
}

/// The rows of each service that stand in for those that are wanted.
#[derive(Debug, Clone, Default)]
pub struct Fallback {
    services: BTreeMap<ServiceName, Reserve>,
}

/// Those of one service; never none.
#[derive(Debug, Clone, Default)]
struct Reserve {
    draining: BTreeSet<Row>,
    failing: BTreeSet<Row>,
    /// The step of the selection with which they, or whether they are shown, last changed.
    step: u64,
}

impl Reserve {
    fn of(&mut self, status: Status) -> &mut BTreeSet<Row> {
        match status {
            Status::Draining => &mut self.draining,
            Status::Starting | Status::Passing | Status::Failing => &mut self.failing,
        }
    }

    fn shown(&self) -> &BTreeSet<Row> {
        if self.draining.is_empty() { &self.failing } else { &self.draining }
    }
}

impl Fallback {
    /// Takes in what happened to an instance at a step; tells whether that has changed any row.
    pub fn shift(&mut self, select: &Select, shift: &Shift, step: u64) -> bool {
        let Shift { id, before, after, departure: _ } = shift;
        let row = |instance: &std::sync::Arc<Instance>| {
            let endpoint = select.stand_in(id, instance)?;
            Some(Row { id: id.clone(), endpoint, instance: instance.clone(), since: 0 })
        };
        let (old, new) = (before.as_ref().and_then(row), after.as_ref().and_then(row));
        let has_changed = old.is_some() || new.is_some();
        if let Some(old) = old {
            self.take(&old, step);
        }
        if let Some(new) = new {
            let reserve = self.services.entry(new.instance.service.clone()).or_default();
            reserve.step = step;
            reserve.of(new.instance.status).insert(new);
        }
        has_changed
    }

    fn take(&mut self, row: &Row, step: u64) {
        let service = &row.instance.service;
        let Some(reserve) = self.services.get_mut(service) else { return };
        reserve.of(row.instance.status).remove(row);
        reserve.step = step;
        if reserve.shown().is_empty() {
            self.services.remove(service);
        }
    }

    /// Takes note that a service has lost the last of its wanted rows at a step: its own are shown from now on.
    pub fn begin(&mut self, service: &ServiceName, step: u64) {
        if let Some(reserve) = self.services.get_mut(service) {
            reserve.step = step;
        }
    }

    /// The services that have some.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.keys()
    }

    /// What a service is shown of where it has no row that is wanted.
    pub fn rows(&self, service: &ServiceName) -> impl Iterator<Item = &Row> {
        self.services.get(service).into_iter().flat_map(Reserve::shown)
    }

    /// How many those are.
    pub fn len(&self, service: &ServiceName) -> usize {
        self.services.get(service).map_or(0, |reserve| reserve.shown().len())
    }

    /// The step with which that changed last.
    pub fn step(&self, service: &ServiceName) -> u64 {
        self.services.get(service).map_or(0, |reserve| reserve.step)
    }

    /// Which rows stand in for a service's own, on one line.
    pub fn note(&self, service: &ServiceName) -> Option<String> {
        let reserve = self.services.get(service)?;
        let (count, what) = match reserve.draining.len() {
            0 => (reserve.failing.len(), "failing"),
            count => (count, "draining"),
        };
        Some(match count {
            1 => format!("service {service}: none of its instances passes: the {what} one is kept"),
            count => {
                format!("service {service}: none of its instances passes: all {count} {what} ones are kept")
            }
        })
    }
}
