use std::sync::Arc;

use super::*;
use crate::{sink::program::Scope, testing};

fn row(number: usize) -> Row {
    let instance = testing::instance(number, "citus");
    let endpoint = Endpoint { address: instance.address.clone(), port: instance.port };
    Row { id: testing::id(number).into(), endpoint, instance: Arc::new(instance), since: 0 }
}

/// The worker of this number, at the address of another one.
fn moved(number: usize, to: usize) -> Row {
    Row { endpoint: row(to).endpoint, ..row(number) }
}

/// The same name on another container.
fn renewed(number: usize) -> Row {
    let instance = testing::instance(number, "citus");
    Row { id: testing::id(number + 100).into(), instance: Arc::new(instance), ..row(number) }
}

fn system(number: usize) -> SystemId {
    SystemId(i64::try_from(number).expect("a small number"))
}

fn node(number: usize) -> (NodeId, Node) {
    let (id, endpoint) = (i32::try_from(number).expect("a small number"), row(number).endpoint);
    let node = Node {
        group: id,
        host: endpoint.address.to_string(),
        port: endpoint.port.into(),
        is_active: true,
        is_primary: true,
        has_metadata: true,
        is_synced: true,
    };
    (id, node)
}

fn desired(rows: &[Row]) -> Desired {
    let services = [("citus".parse().expect("a name"), rows.to_vec())];
    Desired { scope: Scope::All, services: services.into() }
}

/// A coordinator with the nodes of these workers, all recorded.
fn observed(numbers: &[usize]) -> Observed {
    let coordinator = Node { group: 0, host: "10.9.9.9".to_owned(), ..node(1).1 };
    let known = |number: &usize| {
        let member = Member::of_row(&row(*number));
        (system(*number), Known { node: Some(node(*number).0), member, is_drained: false })
    };
    Observed {
        coordinator: SystemId(99),
        nodes: numbers.iter().map(|number| node(*number)).chain([(1000, coordinator)]).collect(),
        known: numbers.iter().map(known).collect(),
        answers: BTreeMap::new(),
        stuck: BTreeMap::new(),
        failed: BTreeMap::new(),
        asked_again: ASK_INTERVAL,
    }
}

fn identity(number: usize, group: i32) -> Identity {
    let (system, group) = (system(number), Some(group));
    Identity { system, group, is_standby: false, has_metadata: group != Some(0), coordinator: None }
}

fn answer(observed: &mut Observed, row: &Row, number: usize, group: i32) {
    let identity = identity(number, group);
    observed.answers.insert(Candidate::of_row(row), Ok(identity));
}

fn config(force_after: Option<Duration>) -> CitusConfig {
    let raw = super::super::settings::RawCitus { force_after, ..Default::default() };
    raw.parse().expect("settings")
}

fn planned(rows: &[Row], observed: &Observed) -> Plan {
    plan(&desired(rows), observed, &config(None))
}

fn steps(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(ToString::to_string).collect()
}

fn only(lines: &[String]) -> &str {
    let [line] = lines else { panic!("one line: {lines:#?}") };
    line
}

#[test]
fn what_is_in_place_is_not_asked_and_not_told() {
    let plan = planned(&[row(1), row(2)], &observed(&[1, 2]));
    assert_eq!(plan, Plan::default());
}

#[test]
fn unknown_workers_are_asked_together_and_then_added() {
    let mut observed = observed(&[1]);
    let rows = [row(1), row(2), row(3)];
    let asked = planned(&rows, &observed);
    assert_eq!(
        steps(&asked),
        [
            "ask worker h1/citus-2 at 10.0.0.2:8002, worker h1/citus-3 at 10.0.0.3:8003 who it is, and add or move it"
        ]
    );
    answer(&mut observed, &row(2), 2, 0);
    answer(&mut observed, &row(3), 3, 0);
    let expected = ["add worker h1/citus-2 at 10.0.0.2:8002", "add worker h1/citus-3 at 10.0.0.3:8003"];
    assert_eq!(steps(&planned(&rows, &observed)), expected);
    // One that cannot be added holds up no other.
    observed.failed.insert(Candidate::of_row(&row(2)), 1);
    assert_eq!(steps(&planned(&rows, &observed)), [expected[1], expected[0]]);
}

#[test]
fn a_successor_with_the_same_data_is_recorded_or_moved() {
    let mut observed = observed(&[1]);
    answer(&mut observed, &renewed(1), 1, 1);
    let plan = planned(&[renewed(1)], &observed);
    assert_eq!(steps(&plan), ["record that node 1 is worker h1/citus-1 with system identifier 1"]);
    let there = Row { endpoint: row(5).endpoint, ..renewed(1) };
    answer(&mut observed, &there, 1, 1);
    let plan = planned(&[there], &observed);
    assert_eq!(steps(&plan), ["move node 1 from 10.0.0.1:8001 to worker h1/citus-1 at 10.0.0.5:8005"]);
}

#[test]
fn a_move_is_forced_once_it_was_stuck_for_long_enough() {
    let mut observed = observed(&[1]);
    let rows = [moved(1, 5)];
    answer(&mut observed, &rows[0], 1, 1);
    for (stuck, after, expected) in [(9, None, false), (9, Some(10), false), (10, Some(10), true)] {
        observed.stuck.insert(1, Duration::from_secs(stuck));
        let plan = plan(&desired(&rows), &observed, &config(after.map(Duration::from_secs)));
        assert!(matches!(plan.steps[..], [Step::UpdateNode { force, .. }] if force == expected), "{plan:?}");
    }
}

#[test]
fn those_that_take_each_others_addresses_move_at_once_and_the_rest_by_itself() {
    let mut observed = observed(&[1, 2, 3, 4]);
    let rows = [moved(1, 2), moved(2, 1), moved(3, 5), row(4)];
    for (row, number) in rows.iter().zip([1, 2, 3]) {
        answer(&mut observed, row, number, i32::try_from(number).expect("small"));
    }
    let plan = planned(&rows, &observed);
    assert_eq!(
        steps(&plan),
        [
            "move node 3 from 10.0.0.3:8003 to worker h1/citus-3 at 10.0.0.5:8005",
            "move node 1 to worker h1/citus-1 at 10.0.0.2:8002, node 2 to worker h1/citus-2 at 10.0.0.1:8001 at once",
        ]
    );
    // One whose worker is gone keeps its address.
    let plan = planned(&rows[..1], &observed);
    assert_eq!(plan.steps, []);
    assert!(only(&plan.refusals).ends_with("its address is that of node 2 (10.0.0.2:8002)"), "{plan:?}");
    assert_eq!(plan.look_again, Some(ASK_INTERVAL));
}

#[test]
fn adding_waits_for_moves_for_the_metadata_and_for_the_coordinators_host() {
    let mut observed = observed(&[1]);
    let rows = [moved(1, 5), row(2)];
    answer(&mut observed, &rows[0], 1, 1);
    answer(&mut observed, &rows[1], 2, 0);
    let plan = planned(&rows, &observed);
    assert_eq!(plan.steps.len(), 1);
    assert!(only(&plan.refusals).ends_with("is not added yet: other nodes are moved first"), "{plan:?}");
    observed.nodes.get_mut(&1).expect("it is there").is_synced = false;
    let plan = planned(&[row(1), row(2)], &observed);
    assert!(
        only(&plan.refusals).ends_with("the metadata of node 1 (10.0.0.1:8001) is not synced yet"),
        "{plan:?}"
    );
    assert_eq!((plan.steps.len(), plan.look_again), (0, Some(SYNC_INTERVAL)));
    // An inactive node is not synced for as long as it is.
    observed.nodes.get_mut(&1).expect("it is there").is_active = false;
    assert_eq!(planned(&[row(1), row(2)], &observed).steps.len(), 1);
    observed.nodes.get_mut(&1000).expect("it is there").host = "localhost".to_owned();
    let plan = planned(&[row(2)], &observed);
    assert!(only(&plan.refusals).contains("SELECT citus_set_coordinator_host('<host>', 8001)"), "{plan:?}");
}

#[test]
fn whoever_is_not_what_it_should_be_is_refused_and_named() {
    let base = observed(&[1]);
    let healthy = || identity(7, 0);
    for (row, answer, expected) in [
        (row(7), Err("no route".to_owned()), "it does not say who it is: no route"),
        (row(7), Ok(Identity { is_standby: true, ..healthy() }), "it is a read-only standby"),
        (row(7), Ok(Identity { group: None, ..healthy() }), "its database has no Citus: CREATE EXTENSION"),
        (
            row(7),
            Ok(Identity { group: Some(2), ..healthy() }),
            "it is of group 2 of a cluster, and no node is",
        ),
        (
            row(7),
            Ok(Identity { has_metadata: true, ..healthy() }),
            "it has nodes or distributed tables of its own",
        ),
        (row(7), Ok(Identity { system: SystemId(99), ..healthy() }), "it is the coordinator itself"),
        (
            renewed(1),
            Ok(healthy()),
            "it has system identifier 7, and node 1, whose address it has, has 1: its volume",
        ),
        (
            Row { endpoint: row(7).endpoint, ..renewed(1) },
            Ok(healthy()),
            "it has system identifier 7, and node 1, which goes by this name, has 1: its volume",
        ),
        (moved(7, 1), Ok(healthy()), "it has system identifier 7, and node 1, whose address it has, has 1"),
        (
            moved(1, 7),
            Ok(Identity { system: system(1), group: Some(5), ..healthy() }),
            "it says that it is of group 5, and its node 1 is of group 1",
        ),
    ] {
        let mut observed = base.clone();
        observed.answers.insert(Candidate::of_row(&row), answer);
        let plan = planned(std::slice::from_ref(&row), &observed);
        assert_eq!(plan.steps, [], "{expected}");
        let refusal = only(&plan.refusals);
        assert!(refusal.starts_with(&format!("worker {} at", Member::of_row(&row))), "{refusal}");
        assert!(refusal.contains(&format!(" is left out: {expected}")), "{refusal}\n{expected}");
        assert_eq!(plan.look_again, Some(ASK_INTERVAL));
    }
}

#[test]
fn of_two_with_the_same_data_the_one_in_place_counts() {
    let mut observed = observed(&[1]);
    answer(&mut observed, &row(2), 1, 1);
    answer(&mut observed, &row(3), 1, 1);
    let plan = planned(&[row(1), row(2)], &observed);
    assert!(only(&plan.refusals).contains("one of them is a copy"), "{plan:?}");
    let plan = planned(&[row(2), row(3)], &observed);
    assert_eq!((plan.steps.len(), plan.refusals.len()), (0, 2), "nobody knows which");
}

#[test]
fn a_copy_in_another_service_takes_no_node_while_only_that_service_is_looked_at() {
    let mut observed = observed(&[1]);
    let service: ServiceName = "clone".parse().expect("a name");
    let copy = Row { instance: Arc::new(testing::instance(2, "clone")), ..row(2) };
    answer(&mut observed, &copy, 1, 1);
    let services = BTreeMap::from([(service.clone(), vec![copy.clone()])]);
    let only_clone = Desired { scope: Scope::Services([service.clone()].into()), services: services.clone() };
    let narrow = plan(&only_clone, &observed, &config(None));
    assert_eq!((narrow.steps, narrow.look_again), (vec![], Some(SYNC_INTERVAL)));
    assert!(only(&narrow.refusals).contains("is not taken for node 1 yet: whether service citus"));
    // A service that was renamed has it once the other is known to have it no more.
    let all = plan(&Desired { scope: Scope::All, services }, &observed, &config(None));
    assert_eq!(steps(&all).len(), 1, "{all:?}");
    let mut both = desired(&[row(1)]);
    both.services.insert(service, vec![copy]);
    assert!(only(&plan(&both, &observed, &config(None)).refusals).contains("one of them is a copy"));
}

#[test]
fn a_node_made_by_hand_is_left_alone_or_adopted_where_its_worker_proves_to_be_ours() {
    let mut observed = observed(&[1, 2]);
    observed.known.remove(&system(2));
    let plan = planned(&[row(1)], &observed);
    assert_eq!(plan.steps, []);
    assert_eq!(only(&plan.notes), "node 2 (10.0.0.2:8002) was made by hand and is left alone");
    answer(&mut observed, &row(2), 2, 2);
    let plan = planned(&[row(1), row(2)], &observed);
    assert_eq!(steps(&plan), ["record that node 2 is worker h1/citus-2 with system identifier 2"]);
    assert!(only(&plan.notes).starts_with("node 2 was made by hand and is worker h1/citus-2"), "{plan:?}");
    // An empty volume has no group, even where the metadata is about to be synced.
    answer(&mut observed, &row(2), 2, 0);
    observed.nodes.get_mut(&2).expect("it is there").is_synced = false;
    let plan = planned(&[row(1), row(2)], &observed);
    assert!(only(&plan.refusals).contains("its volume is empty or another one"), "{plan:?}");
    // Before Citus 11, a worker need not have the metadata, and then never learns its group.
    observed.nodes.get_mut(&2).expect("it is there").has_metadata = false;
    assert_eq!(planned(&[row(1), row(2)], &observed).steps.len(), 1);
}

#[test]
fn a_worker_of_another_cluster_is_not_taken_for_one_of_ours_that_has_its_group() {
    let of = |host: &str| Identity { coordinator: Some((host.to_owned(), 8001)), ..identity(2, 2) };
    // At the address of a node that was made by hand, and one whose node was removed.
    let mut by_hand = observed(&[1, 2]);
    by_hand.known.remove(&system(2));
    let mut removed = observed(&[1, 2]);
    removed.nodes.remove(&2);
    for (mut observed, expected) in [
        (by_hand, "record that node 2 is worker h1/citus-2 with system identifier 2"),
        (removed, "add worker h1/citus-2 at 10.0.0.2:8002"),
    ] {
        observed.answers.insert(Candidate::of_row(&row(2)), Ok(of("10.8.8.8")));
        let plan = planned(&[row(1), row(2)], &observed);
        assert_eq!(plan.steps, []);
        let refusal = only(&plan.refusals);
        assert!(
            refusal.ends_with("group 2 of another cluster, whose coordinator is 10.8.8.8:8001"),
            "{refusal}"
        );
        observed.answers.insert(Candidate::of_row(&row(2)), Ok(of("10.9.9.9")));
        assert_eq!(steps(&planned(&[row(1), row(2)], &observed)), [expected]);
    }
}

#[test]
fn a_node_that_an_operator_removed_and_added_again_is_adopted() {
    let mut observed = observed(&[1, 2]);
    let again = Node { group: 7, ..observed.nodes.remove(&2).expect("it is there") };
    observed.nodes.insert(7, again);
    answer(&mut observed, &row(2), 2, 7);
    let plan = planned(&[row(1), row(2)], &observed);
    assert_eq!(steps(&plan), ["record that node 7 is worker h1/citus-2 with system identifier 2"]);
}

#[test]
fn a_worker_that_is_gone_is_noted_and_nothing_is_done() {
    let plan = planned(&[row(1)], &observed(&[1, 2]));
    assert_eq!((plan.steps.len(), plan.refusals.len()), (0, 0));
    assert_eq!(
        only(&plan.notes),
        "node 2 (10.0.0.2:8002): worker h1/citus-2 is gone; the node stays as it is"
    );
}

#[test]
fn a_drained_worker_stays_out_whatever_its_container_and_a_new_volume_is_another_worker() {
    let mut observed = observed(&[1, 2]);
    observed.nodes.remove(&2);
    let known = observed.known.get_mut(&system(2)).expect("it is there");
    (known.node, known.is_drained) = (None, true);
    let out = |plan: Plan| {
        assert_eq!((plan.steps.len(), plan.refusals.len()), (0, 0));
        assert!(only(&plan.notes).contains("was drained by the operator"), "{plan:?}");
    };
    out(planned(&[row(1), row(2)], &observed));
    answer(&mut observed, &renewed(2), 2, 0);
    out(planned(&[row(1), renewed(2)], &observed));
    answer(&mut observed, &renewed(2), 5, 0);
    assert_eq!(steps(&planned(&[row(1), renewed(2)], &observed)), ["add worker h1/citus-2 at 10.0.0.2:8002"]);
}

#[test]
fn a_node_that_was_removed_by_hand_is_added_again_and_one_that_is_inactive_is_not_touched() {
    let mut observed = observed(&[1]);
    observed.nodes.remove(&1);
    answer(&mut observed, &row(1), 1, 1);
    assert_eq!(steps(&planned(&[row(1)], &observed)), ["add worker h1/citus-1 at 10.0.0.1:8001"]);
    observed.nodes.extend([node(1)]);
    observed.nodes.get_mut(&1).expect("it is there").is_active = false;
    let plan = planned(&[row(1)], &observed);
    assert_eq!(plan.steps, []);
    assert_eq!(
        only(&plan.refusals),
        "node 1 (10.0.0.1:8001) is inactive: SELECT citus_activate_node('10.0.0.1', 8001) makes it active"
    );
}
