//! Finds the instances for which a check refuses a file, by halving. Pure: it says what to try, and is told what became
//! of that.
//!
//! The instances stand in one order. Of those that are still in, the shortest beginning that fails ends with an offender:
//! a beginning before it passes. The offender is left out and all the rest is tried; what still fails has another one. So
//! of two that only clash with each other, the later one is left out.
//!
//! What failed before the search began may pass by now, as instances change while a check runs: nobody is blamed before
//! something has failed in the search itself. Nor is everybody: that would empty the file.

use std::collections::BTreeSet;

/// How many offenders are left out at most: more are no accident of single instances.
pub const MAX_OFFENDERS: usize = 8;

/// A search among instances, which go by their places in the order.
#[derive(Debug)]
pub struct Search {
    total: usize,
    out: BTreeSet<usize>,
    /// Whether anything has failed since it began.
    has_failed: bool,
    stage: Stage,
}

/// What is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The file without any instance: if that fails, none is to blame.
    Nothing,
    /// A beginning between one that passes and one that fails, by their lengths.
    Halving { passes: usize, fails: usize },
    /// All of it, as nothing has failed yet: else the last one is the offender.
    Whole,
    /// All that is not left out. Its first so many pass.
    Rest { passes: usize },
    /// It is over.
    Over { has_found: bool },
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Try the file without these.
    Try(BTreeSet<usize>),
    /// Without these it passes; that was tried last.
    Found(BTreeSet<usize>),
    /// No few instances are to blame.
    GiveUp,
}

impl Search {
    /// A search among so many instances, with all of which the file fails.
    pub fn new(total: usize) -> Self {
        Self { total, out: BTreeSet::new(), has_failed: false, stage: Stage::Nothing }
    }

    /// What to do next.
    pub fn next(&self) -> Next {
        match self.stage {
            Stage::Nothing => Next::Try((0..self.total).collect()),
            Stage::Halving { passes, fails } => {
                let beginning = passes.midpoint(fails);
                Next::Try(self.out.iter().copied().chain(beginning..self.total).collect())
            }
            Stage::Whole | Stage::Rest { .. } => Next::Try(self.out.clone()),
            Stage::Over { has_found: true } => Next::Found(self.out.clone()),
            Stage::Over { has_found: false } => Next::GiveUp,
        }
    }

    /// Takes what became of what was to be tried; gives the offender that is known by that.
    pub fn take(&mut self, has_passed: bool) -> Option<usize> {
        self.has_failed |= !has_passed;
        let (passes, fails) = match (self.stage, has_passed) {
            (Stage::Nothing, true) => (0, self.total),
            (Stage::Halving { passes, fails }, true) => (passes.midpoint(fails), fails),
            (Stage::Halving { passes, fails }, false) => (passes, passes.midpoint(fails)),
            (Stage::Whole, false) => (self.total - 1, self.total),
            (Stage::Whole | Stage::Rest { .. }, true) => {
                self.stage = Stage::Over { has_found: true };
                return None;
            }
            (Stage::Rest { passes }, false) if self.out.len() < MAX_OFFENDERS => (passes, self.total),
            (Stage::Nothing | Stage::Rest { .. } | Stage::Over { .. }, _) => {
                self.stage = Stage::Over { has_found: false };
                return None;
            }
        };
        match fails - passes {
            // It has passed before as what it is now: the check is not the same twice.
            0 => {
                self.stage = Stage::Over { has_found: false };
                None
            }
            1 if !self.has_failed => {
                self.stage = Stage::Whole;
                None
            }
            1 => {
                self.out.insert(passes);
                self.stage = match self.out.len() == self.total {
                    true => Stage::Over { has_found: false },
                    false => Stage::Rest { passes: fails },
                };
                Some(passes)
            }
            _ => {
                self.stage = Stage::Halving { passes, fails };
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Searches where the file fails as this says of the instances that are in; gives what is left out, and how often it
    /// was tried.
    fn search(total: usize, fails: impl Fn(&BTreeSet<usize>) -> bool) -> (Option<BTreeSet<usize>>, usize) {
        let mut search = Search::new(total);
        for tried in 0.. {
            match search.next() {
                Next::Try(out) => {
                    let is_in = (0..total).filter(|place| !out.contains(place)).collect();
                    search.take(!fails(&is_in));
                }
                Next::Found(out) => return (Some(out), tried),
                Next::GiveUp => return (None, tried),
            }
        }
        unreachable!("it ends")
    }

    #[test]
    fn an_offender_among_many_is_found_in_some_tries_and_nothing_else_is_left_out() {
        for offender in [0, 1, 499, 998, 999] {
            let (out, tried) = search(1000, |is_in| is_in.contains(&offender));
            assert_eq!(out, Some(BTreeSet::from([offender])));
            assert!(tried <= 13, "{tried} tries");
        }
    }

    #[test]
    fn what_passes_by_now_blames_nobody() {
        assert_eq!(search(1000, |_| false).0, Some(BTreeSet::new()));
        assert_eq!(search(1, |_| false).0, Some(BTreeSet::new()));
    }

    #[test]
    fn where_all_instances_are_to_blame_it_gives_up() {
        for total in 1..=MAX_OFFENDERS {
            assert_eq!(search(total, |is_in| !is_in.is_empty()).0, None, "{total}");
        }
    }

    #[test]
    fn of_two_that_clash_the_later_one_is_left_out() {
        let (out, _) = search(10, |is_in| is_in.contains(&2) && is_in.contains(&7));
        assert_eq!(out, Some(BTreeSet::from([7])));
    }

    #[test]
    fn where_no_instance_or_too_many_are_to_blame_it_gives_up() {
        assert_eq!(search(1000, |_| true), (None, 1));
        assert_eq!(search(0, |_| true).0, None);
        let (out, tried) = search(1000, |is_in| is_in.iter().any(|place| place % 100 == 0));
        assert!(out.is_none() && tried <= 1 + 12 * MAX_OFFENDERS, "{tried} tries");
    }

    proptest! {
        #[test]
        fn few_offenders_are_found_one_after_another(
            total in 1usize..300, places in proptest::collection::btree_set(0usize..300, 1..=MAX_OFFENDERS),
        ) {
            let offenders: BTreeSet<usize> = places.into_iter().filter(|place| *place < total).collect();
            prop_assume!(!offenders.is_empty() && offenders.len() < total);
            let (out, tried) = search(total, |is_in| !is_in.is_disjoint(&offenders));
            prop_assert_eq!(out, Some(offenders.clone()));
            prop_assert!(tried <= 1 + 10 * offenders.len() + offenders.len());
        }

        #[test]
        fn a_check_that_is_not_the_same_twice_ends_as_well(total in 0usize..300, passes in any::<[bool; 128]>()) {
            let mut search = Search::new(total);
            for has_passed in passes {
                if !matches!(search.next(), Next::Try(_)) {
                    return Ok(());
                }
                search.take(has_passed);
            }
            prop_assert!(!matches!(search.next(), Next::Try(_)));
        }
    }
}
