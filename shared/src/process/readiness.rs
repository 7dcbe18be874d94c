//! Whether a process is ready, and why not: a condition for each of its parts. Whoever waits for a part subscribes.

use std::{collections::BTreeMap, fmt};

use tokio::sync::watch;

/// How a part of the process fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// It works.
    Ready,
    /// It works, and something about it is worth a look; what, on one line.
    Noted(String),
    /// It waits for someone else, which is no failure; for what, on one line.
    Waiting(String),
    /// It does not work, and is tried again; why, on one line.
    Failed(String),
}

impl Condition {
    /// Whether it works.
    pub fn is_ready(&self) -> bool {
        matches!(self, Condition::Ready | Condition::Noted(_))
    }

    /// Why it is not ready, if so.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Condition::Ready | Condition::Noted(_) => None,
            Condition::Waiting(reason) | Condition::Failed(reason) => Some(reason),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Condition::Ready => f.write_str("ok"),
            Condition::Noted(note) => write!(f, "ok; {note}"),
            Condition::Waiting(reason) | Condition::Failed(reason) => f.write_str(reason),
        }
    }
}

/// The conditions of all parts by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions(BTreeMap<String, Condition>);

impl Conditions {
    /// Whether every part is ready.
    pub fn is_ready(&self) -> bool {
        self.0.values().all(Condition::is_ready)
    }

    /// A part's condition, if there is such a part.
    pub fn get(&self, part: &str) -> Option<&Condition> {
        self.0.get(part)
    }

    /// Why a part is not ready, if so.
    pub fn reason(&self, part: &str) -> Option<&str> {
        self.get(part)?.reason()
    }

    /// Every part with its condition, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Condition)> {
        self.0.iter().map(|(part, condition)| (part.as_str(), condition))
    }
}

/// The readiness of a process. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    conditions: watch::Sender<Conditions>,
}

impl Readiness {
    /// Adds a part, which is not ready yet.
    pub fn part(&self, name: impl Into<String>) -> Part {
        let part = Part { conditions: self.conditions.clone(), name: name.into() };
        part.set(Condition::Waiting("starting".to_owned()));
        part
    }

    /// The conditions as they are.
    pub fn conditions(&self) -> Conditions {
        self.conditions.borrow().clone()
    }

    /// The conditions as they change.
    pub fn subscribe(&self) -> watch::Receiver<Conditions> {
        self.conditions.subscribe()
    }
}

/// A part of the process, which says how it fares. A change of the condition is logged. Dropping it removes the part.
#[derive(Debug)]
pub struct Part {
    conditions: watch::Sender<Conditions>,
    name: String,
}

impl Part {
    /// It works.
    pub fn ready(&self) {
        if matches!(self.set(Condition::Ready), Some(Condition::Failed(_))) {
            tracing::info!(part = self.name, "works again");
        }
    }

    /// It works, and something about it is worth a look, such as a container that was left out.
    pub fn noted(&self, note: impl Into<String>) {
        let note = note.into();
        if self.set(Condition::Noted(note.clone())).is_some() {
            tracing::warn!(part = self.name, note, "works, and something is worth a look");
        }
    }

    /// It waits for someone else.
    pub fn waiting(&self, reason: impl Into<String>) {
        let condition = Condition::Waiting(reason.into());
        let reason = condition.to_string();
        if self.set(condition).is_some() {
            tracing::info!(part = self.name, reason, "waiting");
        }
    }

    /// It does not work, and is tried again.
    pub fn failed(&self, reason: impl Into<String>) {
        let condition = Condition::Failed(reason.into());
        let reason = condition.to_string();
        if self.set(condition).is_some() {
            tracing::warn!(part = self.name, reason, "failed, will try again");
        }
    }

    /// Sets the condition; gives the one before where it is another one.
    fn set(&self, condition: Condition) -> Option<Condition> {
        let mut before = None;
        self.conditions.send_if_modified(|Conditions(conditions)| {
            if conditions.get(&self.name) == Some(&condition) {
                return false;
            }
            before = conditions.insert(self.name.clone(), condition);
            true
        });
        before
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.conditions.send_modify(|Conditions(conditions)| drop(conditions.remove(&self.name)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_part_that_fails_is_enough_not_to_be_ready() {
        let readiness = Readiness::default();
        let (docker, etcd) = (readiness.part("docker"), readiness.part("etcd"));
        assert!(!readiness.conditions().is_ready(), "they are starting");
        docker.ready();
        etcd.failed("unreachable");
        assert!(!readiness.conditions().is_ready());
        assert_eq!(readiness.conditions().reason("etcd"), Some("unreachable"));
        etcd.ready();
        assert!(readiness.conditions().is_ready());
    }

    #[test]
    fn a_note_is_shown_and_does_not_make_it_unready() {
        let readiness = Readiness::default();
        let part = readiness.part("registration");
        part.noted("container greedy is left out");
        let conditions = readiness.conditions();
        assert!(conditions.is_ready());
        assert_eq!(conditions.reason("registration"), None);
        let shown = conditions.get("registration").expect("a part").to_string();
        assert_eq!(shown, "ok; container greedy is left out");
    }

    #[test]
    fn the_same_condition_again_is_no_change() {
        let readiness = Readiness::default();
        let part = readiness.part("etcd");
        let mut changes = readiness.subscribe();
        part.failed("unreachable");
        assert!(changes.has_changed().expect("it is there"));
        changes.mark_unchanged();
        part.failed("unreachable");
        assert!(!changes.has_changed().expect("it is there"));
        drop(part);
        assert!(readiness.conditions().is_ready(), "a part that has gone is not waited for");
    }
}
