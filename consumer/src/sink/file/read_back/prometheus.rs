//! What Prometheus has, by its API: `GET /api/v1/targets`, which has each target as it was discovered, also those that
//! relabelling drops.
//!
//! Two targets of one address that relabelling makes the same are one to Prometheus. Some versions (2.42) show what is
//! discovered after relabelling has written over it: the labels that begin with `__meta_` are there still, while the job
//! and the address may be others.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Mismatch, comparison::Listing};

/// Where the targets are.
pub(super) const TARGETS: &str = "/api/v1/targets";
/// The label that all targets of ours have.
const OURS: &str = "__meta_rollcall_service";
/// The label that says what a target's address was first.
const ENDPOINT: &str = "__meta_rollcall_endpoint";

type Labels = BTreeMap<String, String>;

/// A group in the file.
#[derive(Deserialize)]
struct Group {
    targets: Vec<String>,
    #[serde(default)]
    labels: Labels,
}

#[derive(Deserialize)]
struct Answer {
    data: Data,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    #[serde(default)]
    active_targets: Vec<Target>,
    /// null where there are none.
    #[serde(default)]
    dropped_targets: Option<Vec<Target>>,
    /// How many each job drops, since 2.47; more than are shown where keep_dropped_targets bounds that.
    #[serde(default)]
    dropped_target_counts: Option<BTreeMap<String, usize>>,
}

impl Data {
    /// How many targets are there that are not shown.
    fn hidden(&self, job: Option<&str>) -> usize {
        let counts = self.dropped_target_counts.iter().flatten();
        let counts = counts.filter(|(name, _)| job.is_none_or(|job| job == name.as_str()));
        let shown = self.dropped_targets.iter().flatten().filter(|target| target.is_of(job));
        counts.map(|(_, count)| count).sum::<usize>().saturating_sub(shown.count())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    #[serde(default)]
    discovered_labels: Labels,
    /// The job; only of those that are active.
    scrape_pool: Option<String>,
}

impl Target {
    fn is_of(&self, job: Option<&str>) -> bool {
        let found = self.scrape_pool.as_ref().or(self.discovered_labels.get("job"));
        job.is_none_or(|job| found.is_some_and(|found| found == job))
    }
}

/// Compares what is installed with the targets of the job or, where none is named, with all that are Rollcall's.
pub(super) fn compare(installed: &[u8], answer: &[u8], job: Option<&str>) -> Result<(), Mismatch> {
    let groups: Vec<Group> = serde_json::from_slice(installed).map_err(Mismatch::Installed)?;
    let Answer { data } = serde_json::from_slice(answer).map_err(Mismatch::Answer)?;
    let (mut desired, mut found) = (Listing::default(), Listing::default());
    for Group { targets, labels } in &groups {
        targets.iter().for_each(|target| desired.add(name(target, labels), state(labels)));
    }
    let targets = data.active_targets.iter().chain(data.dropped_targets.iter().flatten());
    for target in targets {
        let labels = &target.discovered_labels;
        if target.is_of(job) && (job.is_some() || labels.contains_key(OURS)) {
            let address = labels.get("__address__").map_or("", String::as_str);
            found.add(name(address, labels), state(labels));
        }
    }
    desired.forgive(&found, data.hidden(job));
    desired.difference(&found).map_or(Ok(()), |difference| Err(Mismatch::Differs(difference)))
}

/// The address of a target as it was discovered.
fn name(address: &str, labels: &Labels) -> String {
    labels.get(ENDPOINT).map_or(address, String::as_str).to_owned()
}

/// What the file says of a target; Prometheus adds to it, and takes an empty label for none.
fn state(labels: &Labels) -> String {
    let is_ours = |name: &str| name.starts_with("__meta_docker_") || name.starts_with("__meta_rollcall_");
    let ours = labels.iter().filter(|(name, value)| is_ours(name) && !value.is_empty());
    let ours: Vec<String> = ours.map(|(name, value)| format!("{name}={value:?}")).collect();
    format!("{{{}}}", ours.join(", "))
}
