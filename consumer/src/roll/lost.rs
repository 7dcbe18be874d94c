//! The rows that a target has lost with their nodes, until they come back, others make up for them, or time is over.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use rollcall_shared::model::{instance::InstanceId, name::ServiceName};
use tokio::time::Instant;

use super::selection::Row;

/// Lost rows by service, each service's in the order in which they were lost.
#[derive(Debug, Clone, Default)]
pub struct LostRows {
    services: BTreeMap<ServiceName, BTreeMap<u64, LostRow>>,
    index: HashMap<Arc<InstanceId>, (ServiceName, u64)>,
    last_number: u64,
}

#[derive(Debug, Clone)]
struct LostRow {
    row: Row,
    /// `None` where time does not end it.
    until: Option<Instant>,
}

impl LostRows {
    /// Adds a row that is lost now.
    pub fn insert(&mut self, row: Row, until: Option<Instant>) {
        self.last_number += 1;
        let service = row.instance.service.clone();
        self.index.insert(row.id.clone(), (service.clone(), self.last_number));
        self.services.entry(service).or_default().insert(self.last_number, LostRow { row, until });
    }

    /// Removes an instance's row; tells whether there was one.
    pub fn remove(&mut self, id: &InstanceId) -> bool {
        let Some((service, number)) = self.index.remove(id) else { return false };
        if let Some(rows) = self.services.get_mut(&service) {
            rows.remove(&number);
            if rows.is_empty() {
                self.services.remove(&service);
            }
        }
        true
    }

    /// Removes the rows of a service that were lost first, down to this many; tells whether there were any.
    pub fn truncate(&mut self, service: &ServiceName, count: usize) -> bool {
        let Some(rows) = self.services.get_mut(service) else { return false };
        let excess = rows.len().saturating_sub(count);
        for _ in 0..excess {
            if let Some((_, LostRow { row, .. })) = rows.pop_first() {
                self.index.remove(&row.id);
            }
        }
        if rows.is_empty() {
            self.services.remove(service);
        }
        excess > 0
    }

    /// Removes the rows whose time is over.
    pub fn expire(&mut self, now: Instant) {
        let index = &mut self.index;
        self.services.retain(|_, rows| {
            while let Some(first) = rows.first_entry().filter(|first| !first.get().is_shown(now)) {
                index.remove(&first.remove().row.id);
            }
            !rows.is_empty()
        });
    }

    /// The rows of a service whose time is not over, in the order in which they were lost, each with its end.
    pub fn of(&self, service: &ServiceName, now: Instant) -> impl Iterator<Item = (&Row, Option<Instant>)> {
        let rows = self.services.get(service).into_iter().flat_map(BTreeMap::values);
        rows.filter(move |lost| lost.is_shown(now)).map(|LostRow { row, until }| (row, *until))
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }
}

impl LostRow {
    fn is_shown(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}
