//! What checks have found, as values: the registration takes it from here.

use std::collections::BTreeMap;

use rollcall_shared::{
    codec,
    keys::{Key, Keys},
    model::{
        instance::{Instance, Status},
        signal::Incarnation,
    },
    store::Entry,
};

use super::CheckId;
use crate::inventory::Port;

/// What a check has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// The port can be used.
    Passing,
    /// It has never passed.
    Starting,
    /// It has passed, and fails.
    Failing,
}

/// What each check has found; one that is not there has found nothing yet.
pub type Verdicts = BTreeMap<CheckId, Health>;

/// What the status of a port is that is checked by Docker and by us: the worse of the two. A container that drains
/// does, whatever a check finds.
pub fn worse(status: Status, health: Health) -> Status {
    match (status, health) {
        (Status::Draining, _) | (_, Health::Passing) => status,
        (Status::Failing, _) | (_, Health::Failing) => Status::Failing,
        (Status::Starting | Status::Passing, Health::Starting) => Status::Starting,
    }
}

/// What a predecessor of this agent has found, by this node's own instances: a restart of the agent takes nothing out.
pub fn left_behind(instances: &[Entry], keys: &Keys) -> Verdicts {
    let verdict = |entry: &Entry| {
        let Ok(Key::Instance(id)) = keys.parse(&entry.key) else { return None };
        let Instance { id: container, started_at, status, .. } = codec::decode(&entry.value).ok()?;
        let health = match status {
            Status::Passing => Health::Passing,
            Status::Failing => Health::Failing,
            // One that drains is checked no more; should it go on, it is found anew.
            Status::Starting | Status::Draining => return None,
        };
        let port = Port { number: id.port, protocol: id.protocol };
        Some((CheckId { run: Incarnation { container, started_at }, port }, health))
    };
    instances.iter().filter_map(verdict).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worse_of_two_checks_counts() {
        use Health::{Failing, Passing, Starting};
        for (docker, found) in [
            (Status::Passing, [Status::Passing, Status::Starting, Status::Failing]),
            (Status::Starting, [Status::Starting, Status::Starting, Status::Failing]),
            (Status::Failing, [Status::Failing; 3]),
            (Status::Draining, [Status::Draining; 3]),
        ] {
            assert_eq!([Passing, Starting, Failing].map(|health| worse(docker, health)), found);
        }
    }
}
