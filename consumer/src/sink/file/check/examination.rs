//! What the nodes say of one file that is to be checked in containers, and what is still to be requested. Pure.
//!
//! A file must pass in every container that sees it, and one has to. Those that cannot check it, as they do not see it or
//! do not allow the command, count only where nobody can.

use std::collections::BTreeMap;

use rollcall_shared::model::{
    check::{CheckOutcome, CheckRequest},
    name::{ContainerName, NodeName},
    signal::{Incarnation, Receiver},
};

use crate::sink::file::notify::delivery::Reports;

/// The checks that are to be requested, by the node that they are addressed to.
pub type Checks = BTreeMap<NodeName, CheckRequest>;

/// How an examination stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// No container that is meant runs.
    Nobody,
    /// These have not answered.
    Waiting(Checks),
    /// The file is good.
    Passed,
    /// A program refuses the file.
    Failed {
        /// Whose.
        container: ContainerName,
        /// How it ended.
        exit_code: i64,
        /// What it said, on one line.
        said: String,
    },
    /// Nobody could check it, and why not.
    NotRun(String),
}

/// Looks at what the nodes say of a request; `request` is what each node is to be asked, and to whom.
pub fn progress(request: &CheckRequest, reports: &Reports) -> Progress {
    let (mut waiting, mut has_passed, mut unable, mut is_anybody) = (Checks::new(), false, vec![], false);
    for (node, receivers) in &reports.receivers {
        let mut silent = vec![];
        for Receiver { incarnation, name, refused } in &receivers.checkers {
            is_anybody = true;
            if let Some(reason) = refused {
                unable.push(format!("node {node} refuses: {reason}"));
                continue;
            }
            match outcome(request.id, reports, node, incarnation) {
                None => silent.push(*incarnation),
                Some(CheckOutcome::Ended { exit_code: 0, said: _ }) => has_passed = true,
                Some(CheckOutcome::Ended { exit_code, said }) => {
                    let (container, exit_code, said) = (name.clone(), *exit_code, said.clone());
                    return Progress::Failed { container, exit_code, said };
                }
                Some(CheckOutcome::Unseen) => unable.push(format!(
                    "container {name} on node {node} does not see {}: expected a folder that it shares with this \
                     consumer, and check.dir to be its path there",
                    request.file
                )),
                Some(CheckOutcome::NotRun(reason)) => {
                    unable.push(format!("container {name} on node {node} could not check it: {reason}"));
                }
            }
        }
        if !silent.is_empty() {
            waiting.insert(node.clone(), CheckRequest { checkers: silent, ..request.clone() });
        }
    }
    match (is_anybody, waiting.is_empty(), has_passed) {
        (false, ..) => Progress::Nobody,
        (true, false, _) => Progress::Waiting(waiting),
        (true, true, true) => Progress::Passed,
        (true, true, false) => Progress::NotRun(unable.join("; ")),
    }
}

fn outcome<'r>(
    id: u64,
    reports: &'r Reports,
    node: &NodeName,
    incarnation: &Incarnation,
) -> Option<&'r CheckOutcome> {
    let verdicts = &reports.verdicts.get(node)?.verdicts;
    let verdict = verdicts.iter().find(|verdict| verdict.id == id && verdict.incarnation == *incarnation);
    verdict.map(|verdict| &verdict.outcome)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use rollcall_shared::{
        codec::V1,
        model::{
            check::{Verdict, Verdicts},
            signal::Receivers,
        },
    };

    use super::*;

    const ID: u64 = 7;

    fn request() -> CheckRequest {
        CheckRequest {
            v: V1,
            id: ID,
            command: vec!["check".to_owned(), "{file}".to_owned()],
            file: "/c/.a.rollcall-x".to_owned(),
            dest: "/c/a".to_owned(),
            timeout_ms: 1000,
            checkers: vec![],
        }
    }

    fn incarnation(number: u8) -> Incarnation {
        Incarnation {
            container: format!("{number:012x}").parse().expect("an ID"),
            started_at: Timestamp::UNIX_EPOCH,
        }
    }

    fn node(name: &str) -> NodeName {
        name.parse().expect("a name")
    }

    fn checker(number: u8, refused: Option<&str>) -> Receiver {
        let name = format!("proxy-{number}").parse().expect("a name");
        Receiver { incarnation: incarnation(number), name, refused: refused.map(str::to_owned) }
    }

    /// Checker 1 on h1 and 2 on h2, which have answered the request of this ID like this.
    fn reports(id: u64, outcomes: [Option<CheckOutcome>; 2]) -> Reports {
        let mut reports = Reports::default();
        for ((number, name), outcome) in [(1, "h1"), (2, "h2")].into_iter().zip(outcomes) {
            let receivers = Receivers { v: V1, receivers: vec![], checkers: vec![checker(number, None)] };
            reports.receivers.insert(node(name), receivers);
            let verdict = |outcome| Verdict {
                incarnation: incarnation(number),
                id,
                outcome,
                at: Timestamp::UNIX_EPOCH,
            };
            let verdicts = outcome.map(verdict).into_iter().collect();
            reports.verdicts.insert(node(name), Verdicts { v: V1, verdicts });
        }
        reports
    }

    fn ended(exit_code: i64) -> CheckOutcome {
        CheckOutcome::Ended { exit_code, said: "emerg".to_owned() }
    }

    #[test]
    fn every_container_that_is_meant_is_asked_until_it_has_answered_this_request() {
        let Progress::Waiting(checks) = progress(&request(), &reports(ID, [None, Some(ended(0))])) else {
            panic!("one is silent")
        };
        assert_eq!(checks.keys().collect::<Vec<_>>(), [&node("h1")]);
        assert_eq!(checks[&node("h1")].checkers, [incarnation(1)]);
        let old = reports(ID - 1, [Some(ended(0)), Some(ended(1))]);
        assert!(matches!(progress(&request(), &old), Progress::Waiting(checks) if checks.len() == 2));
    }

    #[test]
    fn a_file_passes_where_it_is_seen_and_fails_where_one_refuses_it() {
        use CheckOutcome::{NotRun, Unseen};
        let of = |outcomes| progress(&request(), &reports(ID, outcomes));
        assert_eq!(of([Some(ended(0)), Some(ended(0))]), Progress::Passed);
        assert_eq!(of([Some(ended(0)), Some(Unseen)]), Progress::Passed);
        assert_eq!(of([Some(ended(0)), Some(NotRun("x".to_owned()))]), Progress::Passed);
        let failed = Progress::Failed {
            container: "proxy-2".parse().expect("a name"),
            exit_code: 1,
            said: "emerg".to_owned(),
        };
        assert_eq!(of([Some(ended(0)), Some(ended(1))]), failed);
        assert_eq!(of([None, Some(ended(1))]), failed, "the others are not waited for");
        let Progress::NotRun(reason) = of([Some(Unseen), Some(NotRun("it is paused".to_owned()))]) else {
            panic!("nobody has checked it")
        };
        assert!(
            reason.contains("does not see /c/.a.rollcall-x") && reason.contains("it is paused"),
            "{reason}"
        );
    }

    #[test]
    fn one_that_does_not_allow_the_command_is_named_and_not_asked() {
        let mut refusing = reports(ID, [None, Some(ended(0))]);
        refusing.receivers.get_mut(&node("h1")).expect("a node").checkers[0] =
            checker(1, Some("it is not allowed"));
        assert_eq!(progress(&request(), &refusing), Progress::Passed);
        refusing.receivers.remove(&node("h2"));
        let reason = "node h1 refuses: it is not allowed".to_owned();
        assert_eq!(progress(&request(), &refusing), Progress::NotRun(reason));
        assert_eq!(progress(&request(), &Reports::default()), Progress::Nobody);
    }
}
