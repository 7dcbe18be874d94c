//! Writes that the store refuses for what they are: they are found one by one, and tried again alone and more and more
//! rarely, so that no other write waits for them. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use itertools::Itertools;
use tokio::time::Instant;

use crate::{
    process::backoff::Backoff,
    store::{KeyRange, Op, StoreError},
};

/// The first wait before a refused write is tried again, and the longest.
const RETRY_DELAYS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The writes that were refused.
#[derive(Debug, Default)]
pub struct Refusals {
    /// Where the keys of one folder are written together, or none of them is.
    wholes: Vec<KeyRange>,
    /// Keys of a commit that was refused as a whole: one of them is to blame.
    suspects: BTreeSet<String>,
    /// Whether even deletes were refused together.
    are_deletes_refused: bool,
    set_aside: BTreeMap<String, SetAside>,
}

/// A write that was refused alone, or with those that it is written together with.
#[derive(Debug)]
pub struct SetAside {
    op: Op,
    /// Why.
    pub error: Arc<StoreError>,
    retry_at: Instant,
    backoff: Backoff,
}

/// Which of the writes that are called for may be tried now.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    /// These.
    Now(Vec<Op>),
    /// None, before then.
    At(Instant),
    /// None, as there is none.
    Nothing,
}

impl Refusals {
    /// Without a refusal. In these ranges the keys of one folder are written together, or none of them is.
    pub fn with_wholes(wholes: Vec<KeyRange>) -> Self {
        Self { wholes, ..Self::default() }
    }

    /// Whether an error is about what was written, so that other writes may still be taken.
    pub fn is_refusal(error: &StoreError) -> bool {
        matches!(error, StoreError::Refused { .. } | StoreError::TooLarge { .. } | StoreError::Denied { .. })
    }

    /// Chooses among the writes that are called for. What is not called for any more is forgotten.
    pub fn choose(&mut self, ops: Vec<Op>, now: Instant) -> Due {
        self.forget_all_but(&ops);
        let (waiting, ready) = self.part(ops, now);
        let (suspects, others): (Vec<Op>, Vec<Op>) =
            ready.into_iter().partition(|op| self.suspects.contains(op.key()));
        let (deletes, puts): (Vec<Op>, Vec<Op>) =
            suspects.into_iter().partition(|op| matches!(op, Op::Delete { .. }));
        match (others, deletes) {
            (others, _) if !others.is_empty() => Due::Now(others),
            // No delete is too large, or short of space.
            (_, deletes) if !deletes.is_empty() && !self.are_deletes_refused => Due::Now(deletes),
            (_, deletes) => match puts.first().or(deletes.first()).map(|first| self.whole(first.key())) {
                Some(whole) => {
                    let tried = if puts.is_empty() { &deletes } else { &puts };
                    Due::Now(tried.iter().filter(|op| self.whole(op.key()) == whole).cloned().collect())
                }
                None => self.next_retry(&waiting).map_or(Due::Nothing, Due::At),
            },
        }
    }

    /// Parts what waits to be tried again from what does not. Of what is written together, all or nothing waits.
    fn part(&self, ops: Vec<Op>, now: Instant) -> (Vec<Op>, Vec<Op>) {
        if self.set_aside.is_empty() {
            return (Vec::new(), ops);
        }
        let ready = ops.iter().filter(|op| !self.is_waiting(op, now));
        let ready: BTreeSet<String> = ready.map(|op| self.whole(op.key()).to_owned()).collect();
        ops.into_iter().partition(|op| !ready.contains(self.whole(op.key())))
    }

    /// What a key is written together with: its folder, or itself alone.
    fn whole<'k>(&self, key: &'k str) -> &'k str {
        match key.rsplit_once('/') {
            Some((folder, _)) if self.wholes.iter().any(|range| range.contains(key)) => folder,
            _ => key,
        }
    }

    /// Takes note that writes were refused together; tells whether one is set aside that was not before, or a folder.
    pub fn refused(&mut self, ops: &[Op], error: StoreError, now: Instant) -> bool {
        let is_whole = ops.iter().map(|op| self.whole(op.key())).all_equal();
        if !is_whole || ops.is_empty() {
            self.are_deletes_refused |= ops.iter().all(|op| matches!(op, Op::Delete { .. }));
            self.suspects.extend(ops.iter().map(|op| op.key().to_owned()));
            return false;
        }
        let (error, mut is_new, mut delay) = (Arc::new(error), false, None);
        for op in ops {
            self.suspects.remove(op.key());
            let known = self.set_aside.remove(op.key());
            is_new |= known.is_none();
            let mut backoff =
                known.map_or_else(|| Backoff::new(RETRY_DELAYS.0, RETRY_DELAYS.1), |known| known.backoff);
            let own_delay = backoff.next_delay();
            let retry_at = now + *delay.get_or_insert(own_delay);
            let (op, error) = (op.clone(), error.clone());
            self.set_aside.insert(op.key().to_owned(), SetAside { op, error, retry_at, backoff });
        }
        is_new
    }

    /// Takes note that writes were taken.
    pub fn taken(&mut self, ops: &[Op]) {
        self.are_deletes_refused &= !ops.iter().any(|op| matches!(op, Op::Delete { .. }));
        for op in ops {
            self.suspects.remove(op.key());
            self.set_aside.remove(op.key());
        }
    }

    /// Has everything that is set aside tried again now: something else may be the case.
    pub fn hasten(&mut self, now: Instant) {
        self.set_aside.values_mut().for_each(|known| known.retry_at = now);
    }

    /// The writes that are set aside, by key.
    pub fn set_aside(&self) -> &BTreeMap<String, SetAside> {
        &self.set_aside
    }

    fn forget_all_but(&mut self, ops: &[Op]) {
        if self.suspects.is_empty() && self.set_aside.is_empty() {
            return;
        }
        let keys: BTreeSet<&str> = ops.iter().map(Op::key).collect();
        self.suspects.retain(|key| keys.contains(key.as_str()));
        self.set_aside.retain(|key, _| keys.contains(key.as_str()));
    }

    /// Whether a write is set aside. Another one of the same key is another matter.
    fn is_waiting(&self, op: &Op, now: Instant) -> bool {
        self.set_aside.get(op.key()).is_some_and(|known| known.op == *op && now < known.retry_at)
    }

    fn next_retry(&self, waiting: &[Op]) -> Option<Instant> {
        waiting.iter().filter_map(|op| Some(self.set_aside.get(op.key())?.retry_at)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str) -> Op {
        Op::Put { key: key.to_owned(), value: value.as_bytes().to_vec() }
    }

    fn delete(key: &str) -> Op {
        Op::Delete { key: key.to_owned() }
    }

    fn too_large() -> StoreError {
        StoreError::TooLarge { place: "the store".to_owned(), message: "request is too large".to_owned() }
    }

    /// Tries everything that is called for on a store that refuses one value; gives the commits that it was asked for.
    fn try_all(refusals: &mut Refusals, called_for: &[Op], bad: &Op, now: Instant) -> Vec<Vec<Op>> {
        let (mut left, mut commits) = (called_for.to_vec(), Vec::new());
        while let Due::Now(ops) = refusals.choose(left.clone(), now) {
            commits.push(ops.clone());
            assert!(commits.len() < 50, "it goes round in circles: {commits:?}");
            if ops.contains(bad) {
                refusals.refused(&ops, too_large(), now);
            } else {
                refusals.taken(&ops);
                left.retain(|op| !ops.contains(op));
            }
        }
        commits
    }

    #[test]
    fn one_bad_write_is_found_and_set_aside_and_every_other_is_taken() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        let all = [put("a", "1"), put("b", "bad"), put("c", "1"), delete("d")];
        let commits = try_all(&mut refusals, &all, &all[1], now);
        assert_eq!(commits[0], all, "at first they are tried together");
        assert_eq!(commits[1], [delete("d")], "deletes wait behind none");
        assert_eq!(refusals.set_aside().keys().collect::<Vec<_>>(), ["b"]);
        let Due::At(retry_at) = refusals.choose(vec![all[1].clone()], now) else {
            panic!("it is tried again")
        };
        assert!(retry_at >= now + RETRY_DELAYS.0);
        assert_eq!(refusals.choose(vec![all[1].clone(), put("e", "1")], now), Due::Now(vec![put("e", "1")]));
    }

    #[test]
    fn what_is_written_together_is_tried_and_set_aside_together() {
        let (host, port) =
            (put("/containers/web/80/host", "10.0.0.5"), put("/containers/web/80/port", "8080"));
        let all = [host.clone(), put("a", "bad"), port.clone(), put("/containers/web/81/host", "10.0.0.5")];
        let with_wholes = || Refusals::with_wholes(vec![KeyRange::folder("/containers/".to_owned())]);
        let now = Instant::now();
        let has = |commit: &Vec<Op>, op: &Op| commit.contains(op);
        for bad in [&all[1], &port] {
            let mut refusals = with_wholes();
            let commits = try_all(&mut refusals, &all, bad, now);
            assert!(commits.iter().all(|commit| has(commit, &host) == has(commit, &port)), "{commits:?}");
            let expected = if *bad == port { 2 } else { 1 };
            assert_eq!(refusals.set_aside().len(), expected);
        }
        let mut refusals = with_wholes();
        refusals.refused(&[host, port.clone()], too_large(), now);
        let moved = put("/containers/web/80/host", "10.0.0.6");
        let called_for = vec![moved, port];
        assert_eq!(refusals.choose(called_for.clone(), now), Due::Now(called_for), "the host is another one");
    }

    #[test]
    fn it_is_tried_again_more_and_more_rarely() {
        let (mut refusals, mut now, mut tries) = (Refusals::default(), Instant::now(), 0);
        let (bad, end) = (put("b", "bad"), now + Duration::from_secs(60));
        while now < end {
            match refusals.choose(vec![bad.clone()], now) {
                Due::Now(ops) => {
                    refusals.refused(&ops, too_large(), now);
                    tries += 1;
                }
                Due::At(at) => now = at,
                Due::Nothing => panic!("it is called for"),
            }
        }
        assert!((3..=8).contains(&tries), "{tries} tries in a minute");
    }

    #[test]
    fn another_value_is_tried_at_once_and_what_is_not_called_for_is_forgotten() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        refusals.refused(&[put("b", "bad")], too_large(), now);
        assert_eq!(refusals.choose(vec![put("b", "good")], now), Due::Now(vec![put("b", "good")]));
        assert_eq!(refusals.choose(vec![], now), Due::Nothing);
        assert!(refusals.set_aside().is_empty());
    }

    #[test]
    fn a_role_that_may_write_nothing_is_refused_for_each_write_and_then_waited_for() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        let denied =
            || StoreError::Denied { place: "the store".to_owned(), message: "permission denied".to_owned() };
        let all = [put("a", "1"), delete("b"), delete("c")];
        let mut tries = 0;
        while let Due::Now(ops) = refusals.choose(all.to_vec(), now) {
            refusals.refused(&ops, denied(), now);
            tries += 1;
            assert!(tries < 20, "it goes round in circles");
        }
        assert_eq!(refusals.set_aside().len(), 3);
    }
}
