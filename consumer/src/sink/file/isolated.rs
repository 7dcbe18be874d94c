//! The instances that are left out of a file, as its check refuses them, for as long as they stay as they were.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rollcall_shared::{
    model::{
        instance::{Instance, InstanceId},
        name::ServiceName,
    },
    process::text,
};

use crate::roll::{Row, Selection, Verdict};

/// The instances that are left out.
#[derive(Debug, Clone, Default)]
pub struct Isolated(BTreeMap<Arc<InstanceId>, Offender>);

#[derive(Debug, Clone)]
struct Offender {
    /// As it was: any other value of it is tried anew.
    instance: Arc<Instance>,
    /// What the check says of it; empty while it is only tried without it.
    reason: String,
}

impl Isolated {
    /// These and that row, for this reason.
    pub fn insert(&mut self, row: &Row, reason: String) {
        self.0.insert(row.id.clone(), Offender { instance: row.instance.clone(), reason });
    }

    /// Whether a row is left out.
    pub fn has(&self, row: &Row) -> bool {
        self.0.get(&row.id).is_some_and(|offender| offender.instance == row.instance)
    }

    /// How many are left out.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Forgets those that the selection does not have any more as they were.
    pub fn retain(&mut self, selection: &Selection, verdict: &Verdict) {
        // All of a service may be left out while offenders are looked for: its rows are gone through once.
        let mut there = BTreeMap::<ServiceName, BTreeMap<_, _>>::new();
        for Offender { instance, .. } in self.0.values() {
            if !there.contains_key(&instance.service) {
                let rows = selection.rows(&instance.service, verdict).into_iter();
                let rows = rows.map(|row| (&row.id, &row.instance)).collect();
                there.insert(instance.service.clone(), rows);
            }
        }
        self.0.retain(|id, Offender { instance, .. }| there[&instance.service].get(id) == Some(&&*instance));
    }

    /// The services that have other rows with these left out than with those.
    pub fn services_that_differ(&self, other: &Isolated) -> BTreeSet<ServiceName> {
        let only = |these: &Self, those: &Self| {
            let differs = |(id, offender): &(&Arc<InstanceId>, &Offender)| {
                those.0.get(*id).is_none_or(|other| other.instance != offender.instance)
            };
            these
                .0
                .iter()
                .filter(differs)
                .map(|(_, offender)| offender.instance.service.clone())
                .collect::<Vec<_>>()
        };
        only(self, other).into_iter().chain(only(other, self)).collect()
    }

    /// One line for each.
    pub fn notes(&self) -> Vec<String> {
        let note = |(id, Offender { instance, reason }): (&Arc<InstanceId>, &Offender)| {
            let Instance { service, container, address, port, .. } = &**instance;
            text::escaped(&format!(
                "leaves out service {service}, container {container} on node {} ({address}:{port}): {reason}",
                id.node
            ))
        };
        self.0.iter().map(note).collect()
    }
}
