//! How targets fare, as anybody may ask: SYNCED, HELD, STALE since when, or FAILED and why.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rollcall_shared::model::name::TargetName;
use serde::{Serialize, Serializer};
use tokio::sync::watch;

/// How a target fares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// It is as the roll calls for, by the word of whoever reads it.
    Synced,
    /// It stays as it is for now, as the loss guard or an empty selection wants it.
    Held,
    /// What the roll calls for was written, and not everybody has taken it yet. So is a target that has just begun.
    #[default]
    Stale,
    /// It could not be brought up, and is tried again.
    Failed,
}

impl State {
    /// Every state.
    pub const ALL: [State; 4] = [State::Synced, State::Held, State::Stale, State::Failed];

    /// The state in lower case, as metrics have it.
    pub fn as_label(self) -> &'static str {
        match self {
            State::Synced => "synced",
            State::Held => "held",
            State::Stale => "stale",
            State::Failed => "failed",
        }
    }
}

/// How a target fares, and since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// How.
    pub state: State,
    /// Since when it has been in that state.
    #[serde(serialize_with = "in_seconds")]
    pub since: Timestamp,
    /// Why it is not synced, or what is worth a look; on one line.
    pub reason: Option<String>,
    /// How many instances it has.
    pub instances: usize,
}

fn in_seconds<S: Serializer>(time: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&time.round(jiff::Unit::Second).unwrap_or(*time))
}

/// How all targets fare. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Board(watch::Sender<BTreeMap<TargetName, Status>>);

impl Board {
    /// How the targets fare now.
    pub fn all(&self) -> BTreeMap<TargetName, Status> {
        self.0.borrow().clone()
    }

    /// A place for a target, which is stale to begin with.
    pub fn entry(&self, target: TargetName) -> BoardEntry {
        let entry = BoardEntry { board: self.clone(), target };
        entry.set(State::Stale, Some("starting".to_owned()), 0);
        entry
    }
}

/// A target's place on the board, which goes with it.
#[derive(Debug)]
pub struct BoardEntry {
    board: Board,
    target: TargetName,
}

impl BoardEntry {
    /// Says how the target fares. It has been so since the state was another.
    pub fn set(&self, state: State, reason: Option<String>, instances: usize) {
        self.board.0.send_modify(|all| {
            let before = all.get(&self.target).filter(|before| before.state == state);
            let since = before.map_or_else(Timestamp::now, |before| before.since);
            all.insert(self.target.clone(), Status { state, since, reason, instances });
        });
        for known in State::ALL {
            metrics::gauge!(
                "rollcall_consumer_target_state",
                "target" => self.target.to_string(),
                "state" => known.as_label()
            )
            .set(f64::from(u8::from(known == state)));
        }
    }
}

impl Drop for BoardEntry {
    fn drop(&mut self) {
        self.board.0.send_modify(|all| drop(all.remove(&self.target)));
        for known in State::ALL {
            metrics::gauge!(
                "rollcall_consumer_target_state",
                "target" => self.target.to_string(),
                "state" => known.as_label()
            )
            .set(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_lasts_since_it_was_another_one_whatever_its_reason() {
        let board = Board::default();
        let name: TargetName = "web".parse().expect("a name");
        let entry = board.entry(name.clone());
        entry.set(State::Failed, Some("one".to_owned()), 1);
        let first = board.all()[&name].clone();
        entry.set(State::Failed, Some("another".to_owned()), 1);
        let second = board.all()[&name].clone();
        assert_eq!((first.since, second.reason.as_deref()), (second.since, Some("another")));
        drop(entry);
        assert!(board.all().is_empty());
    }
}
