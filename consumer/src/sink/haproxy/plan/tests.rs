use std::sync::Arc;

use rollcall_shared::model::{
    instance::{Address, Instance, Status},
    name::ServiceName,
};

use super::{
    super::{
        server::{name, slot_name},
        settings::RawRuntime,
        state::{Load, ServerState},
    },
    *,
};
use crate::{roll::Row, testing};

const NONE: Load = Load { sessions: 0, queued: 0, connections: 0 };

fn config(text: &str) -> RuntimeConfig {
    let raw: RawRuntime = toml::from_str(&format!("socket = \"/s\"\n{text}")).expect("a table");
    raw.parse().expect("it can work")
}

fn service(name: &str) -> ServiceName {
    name.parse().expect("a name")
}

/// The number's own row, at 10.0.0.NUMBER:8000+NUMBER.
fn row(number: usize, service: &str) -> Row {
    let instance = testing::instance(number, service);
    Row { id: testing::id(number).into(), endpoint: instance.endpoint(), instance: instance.into(), since: 0 }
}

fn with(row: &Row, change: impl FnOnce(&mut Instance)) -> Row {
    let mut instance = (*row.instance).clone();
    change(&mut instance);
    Row { endpoint: instance.endpoint(), instance: Arc::new(instance), ..row.clone() }
}

/// All that there is.
fn all(rows: &[Row]) -> Desired {
    let mut services = BTreeMap::<_, Vec<Row>>::new();
    for row in rows {
        services.entry(row.instance.service.clone()).or_default().push(row.clone());
    }
    Desired { scope: Scope::All, services }
}

/// One service only.
fn only(name: &str, rows: &[Row]) -> Desired {
    let services = rows.to_vec();
    Desired { scope: Scope::Services([service(name)].into()), services: [(service(name), services)].into() }
}

/// A server as `show servers state` has it: the admin state is given in HAProxy's bits.
fn server(backend: &str, name: &str, at: &str, admin: u32) -> Server {
    let (ip, port) = at.rsplit_once(':').expect("an address and a port");
    let up = if admin & 1 == 0 { 2 } else { 0 };
    let text = format!(
        "1\n# be_id be_name srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_check_state \
         srv_fqdn srv_port\n3 {backend} {name} {ip} {up} {admin} 1 1 6 - {port}\n"
    );
    let state = ServerState::parse_all(&text).expect("an answer").remove(0);
    let owned = Owned::parse(&state.name);
    Server { state, owned, load: None, leaves_for: Duration::ZERO, is_pinned: false, others: vec![] }
}

/// The server that a row has when all is done.
fn served(row: &Row) -> Server {
    server(row.instance.service.as_str(), &name(row), &row.endpoint.to_string(), 0)
}

/// A server that has left for a while, with this load.
fn left(row: &Row, admin: u32, load: Load, seconds: u64) -> Server {
    let server = server(row.instance.service.as_str(), &name(row), &row.endpoint.to_string(), admin);
    Server { load: Some(load), leaves_for: Duration::from_secs(seconds), ..server }
}

fn observed(algorithm: Algorithm, backends: &[&str], servers: impl IntoIterator<Item = Server>) -> Observed {
    let info = "Version: 2.8.1\nPid: 1\nUptime_sec: 1\nStopping: 0\n";
    let empty = |name: &&str| ((*name).to_owned(), Backend { algorithm, servers: BTreeMap::new() });
    let mut backends: BTreeMap<_, _> = backends.iter().map(empty).collect();
    for server in servers {
        let backend = backends.get_mut(&server.state.backend).expect("it is there");
        backend.servers.insert(server.state.name.clone(), server);
    }
    Observed { info: Info::parse(info).expect("an answer"), backends }
}

fn dynamic(servers: impl IntoIterator<Item = Server>) -> Observed {
    observed(Algorithm::Dynamic, &["web", "api"], servers)
}

fn steps(draft: &Draft) -> Vec<String> {
    draft.plan.steps.iter().map(ToString::to_string).collect()
}

fn planned(desired: &Desired, observed: &Observed) -> Vec<String> {
    steps(&plan(&config(""), desired, observed))
}

const WEB_1: &str = "web/h1:web-1:80:000000000001";

#[test]
fn what_is_there_needs_nothing() {
    let rows = [row(1, "web"), row(2, "web"), row(3, "api")];
    let draft = plan(&config(""), &all(&rows), &dynamic(rows.iter().map(served)));
    assert_eq!(draft.plan, crate::sink::program::Plan::default());
    assert!(draft.plan.reloads.is_empty());
}

#[test]
fn a_new_instance_is_added_before_another_one_leaves() {
    let (new, gone) = (row(1, "web"), row(2, "web"));
    let draft = plan(&config(""), &all(&[new]), &dynamic([served(&gone)]));
    let drained = "drain server web/h1:web-2:80:000000000002".to_owned();
    assert_eq!(steps(&draft), [format!("add server {WEB_1} at 10.0.0.1:8001, weight 1"), drained]);
    let commands: Vec<_> = draft.plan.steps[0].commands().into_iter().map(|command| command.text).collect();
    assert_eq!(
        commands,
        [
            format!("add server {WEB_1} 10.0.0.1:8001 weight 1 check inter 2s fastinter 500ms fall 3 rise 2"),
            format!("enable health {WEB_1}"),
            format!("set server {WEB_1} state ready"),
        ]
    );
}

#[test]
fn a_server_leaves_step_by_step_and_is_never_forced() {
    let gone = row(1, "web");
    let busy = Load { sessions: 1, ..NONE };
    let kept = Load { connections: 2, ..NONE };
    for (admin, load, seconds, expected) in [
        // It drains, and for a second at least.
        (0, NONE, 0, Some("drain server")),
        (8, NONE, 0, None),
        (8, NONE, 1, Some("put server")),
        (8, busy, 29, None),
        (8, busy, 30, Some("put server")),
        // The sample has to be of a time after it went into maintenance.
        (1, NONE, 0, None),
        (1, NONE, 1, Some("delete server")),
        (1, kept, 60, None),
        (1, busy, 6000, None),
    ] {
        let draft = plan(&config(""), &all(&[]), &dynamic([left(&gone, admin, load, seconds)]));
        let steps = steps(&draft);
        match expected {
            Some(expected) => {
                assert!(steps.len() == 1 && steps[0].starts_with(expected), "{admin} {load:?}: {steps:?}")
            }
            None => {
                assert!(steps.is_empty() && draft.plan.look_again.is_some(), "{admin} {load:?}: {steps:?}")
            }
        }
    }
}

#[test]
fn a_server_that_cannot_be_deleted_stays_and_is_named() {
    let server = Server { is_pinned: true, ..left(&row(1, "web"), 1, NONE, 60) };
    let draft = plan(&config(""), &all(&[]), &dynamic([server]));
    assert!(draft.plan.steps.is_empty() && draft.plan.look_again.is_none());
    assert!(
        draft.plan.notes[0].starts_with(&format!("server {WEB_1} stays in maintenance")),
        "{:?}",
        draft.plan.notes
    );
}

#[test]
fn what_somebody_did_to_a_server_is_put_back_but_not_what_a_check_found() {
    let row = row(1, "web");
    let heavy = with(&row, |instance| instance.weight = 9);
    let mut unchecked = served(&row);
    unchecked.state = ServerState::parse_all(
        "1\n# be_id be_name srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_check_state \
         srv_fqdn srv_port\n3 web h1:web-1:80:000000000001 10.0.0.1 0 0 1 1 2 - 8001\n",
    )
    .expect("an answer")
    .remove(0);
    for (row, server, expected) in [
        (&heavy, served(&row), vec![format!("give server {WEB_1} weight 9")]),
        (&row, left(&row, 1, NONE, 60), vec![format!("put server {WEB_1} into service")]),
        (&row, left(&row, 5, NONE, 60), vec![format!("put server {WEB_1} into service")]),
        (&row, left(&row, 8, NONE, 60), vec![format!("put server {WEB_1} into service")]),
        // Its name does not resolve: nobody did that.
        (&row, left(&row, 0x20, NONE, 60), vec![]),
        (&row, unchecked, vec![format!("switch on the check of server {WEB_1}")]),
        (
            &row,
            server("web", &name(&row), "10.0.0.9:8001", 0),
            vec![format!("move server {WEB_1} to 10.0.0.1:8001")],
        ),
    ] {
        assert_eq!(planned(&all(std::slice::from_ref(row)), &dynamic([server])), expected);
    }
}

#[test]
fn a_server_drains_while_its_instance_does_and_comes_back() {
    let (drains, other) =
        (with(&row(1, "web"), |instance| instance.status = Status::Draining), row(2, "web"));
    let rows = [drains.clone(), other.clone()];
    assert_eq!(planned(&all(&rows), &dynamic(rows.iter().map(served))), [format!("drain server {WEB_1}")]);
    let drained = dynamic([left(&drains, 8, NONE, 600), served(&other)]);
    assert!(planned(&all(&rows), &drained).is_empty(), "it is not put into maintenance");
    let back = [row(1, "web"), other];
    assert_eq!(planned(&all(&back), &drained), [format!("put server {WEB_1} into service")]);
    let added = planned(&all(&rows), &dynamic([served(&rows[1])]));
    assert_eq!(added, [format!("add server {WEB_1} at 10.0.0.1:8001, weight 1, draining")]);
}

#[test]
fn what_an_operator_made_stays_and_is_named() {
    let rows = [row(1, "web")];
    let theirs = (1..9).map(|number| server("web", &format!("hand{number}"), "10.0.0.1:8001", 0));
    let draft = plan(&config(""), &all(&rows), &dynamic(theirs.chain([served(&rows[0])])));
    assert!(draft.plan.steps.is_empty());
    assert_eq!(
        draft.plan.notes,
        [
            "backend web has servers that Rollcall did not make, and leaves alone: hand1, hand2, hand3, hand4, hand5 and 3 more"
        ]
    );
}

#[test]
fn an_address_that_another_container_has_taken_gets_nothing_of_the_old_one() {
    let old = row(1, "web");
    let moved = |number, service| Row { endpoint: old.endpoint.clone(), ..row(number, service) };
    // Within the service, connections that are kept are closed; another service's requests are cut.
    assert_eq!(
        planned(&all(&[moved(2, "web")]), &dynamic([served(&old)]))[0],
        format!("put server {WEB_1} into maintenance, as another container has its address")
    );
    let cut = format!(
        "put server {WEB_1} into maintenance and end its requests, as another service has its address"
    );
    for leaving in [served(&old), left(&old, 8, NONE, 0)] {
        let steps = planned(&all(&[moved(2, "api")]), &dynamic([leaving]));
        assert_eq!(
            steps,
            [cut.clone(), "add server api/h1:api-2:80:000000000002 at 10.0.0.1:8001, weight 1".to_owned()]
        );
    }
    // Also where the round is about the other service only, as long as the old server leaves.
    let steps = planned(&only("api", &[moved(2, "api")]), &dynamic([left(&old, 8, NONE, 0)]));
    assert_eq!(steps[0], cut);
    assert_eq!(planned(&only("api", &[moved(2, "api")]), &dynamic([served(&old)])).len(), 1);
    // And where the other service came first.
    let Some(Owned::Instance(other)) = Owned::parse("h1:api-2:80:000000000002") else {
        panic!("it is Rollcall's")
    };
    let server = Server { others: vec![other], ..served(&old) };
    assert_eq!(planned(&only("web", &[]), &dynamic([server])), [cut]);
}

#[test]
fn a_container_that_is_another_service_now_finishes_what_it_has() {
    let old = row(1, "web");
    let renamed = row(1, "api");
    let steps = planned(&all(&[renamed]), &dynamic([served(&old)]));
    let added = "add server api/h1:api-1:80:000000000001 at 10.0.0.1:8001, weight 1".to_owned();
    assert_eq!(steps, [added, format!("drain server {WEB_1}")]);
}

#[test]
fn a_backend_that_is_lacking_is_named_and_needs_a_reload() {
    let draft = plan(&config(""), &all(&[row(1, "zoo")]), &dynamic([]));
    assert_eq!(draft.plan.refusals, ["HAProxy has no backend zoo"]);
    assert_eq!(draft.plan.reloads, ["backend zoo is new"]);
    assert!(plan(&config(""), &only("zoo", &[]), &dynamic([])).plan.reloads.is_empty());
}

#[test]
fn a_service_that_the_round_is_not_about_keeps_what_it_has() {
    let servers = [served(&row(1, "web")), served(&row(3, "api"))];
    let steps = planned(&only("web", &[]), &dynamic(servers));
    assert_eq!(steps, [format!("drain server {WEB_1}")]);
}

#[test]
fn a_host_name_is_refused_unless_the_file_has_it() {
    let named =
        with(&row(1, "web"), |instance| instance.address = Address::Name("web-1".parse().expect("a name")));
    let draft = plan(&config(""), &all(std::slice::from_ref(&named)), &dynamic([]));
    assert!(draft.plan.refusals[0].contains("is at web-1:8001: HAProxy resolves host names as it starts"));
    assert_eq!(draft.plan.reloads, ["web-1:8001 in backend web is a host name"]);
    let mut server = served(&row(1, "web"));
    server.state.ip = None;
    server.state.host = Some("web-1".to_owned());
    assert!(plan(&config(""), &all(&[named]), &dynamic([server])).plan.refusals.is_empty());
}

fn slot(number: usize, at: &str, admin: u32) -> Server {
    let load = (admin != 0).then_some(NONE);
    Server { load, ..server("web", &slot_name(number), at, admin) }
}

#[test]
fn slots_are_taken_by_address_and_free_ones_are_filled() {
    let (there, new) = (row(1, "web"), with(&row(2, "web"), |instance| instance.weight = 3));
    let free = slot(2, "127.0.0.1:9", 5);
    let slots = observed(Algorithm::Static, &["web"], [slot(1, "10.0.0.1:8001", 0), free]);
    let draft = plan(&config(""), &all(&[there.clone(), new.clone()]), &slots);
    assert_eq!(
        steps(&draft),
        ["move server web/rollcall-slot-2 to 10.0.0.2:8002", "put server web/rollcall-slot-2 into service"]
    );
    assert_eq!(
        draft.plan.notes,
        [
            "backend web keeps the weights of rollcall-slot-2: its balance algorithm is static",
            "backend web has its servers in slots: its balance algorithm takes no servers at run time"
        ]
    );
    // The first one leaves; its slot drains, and is free again in the end.
    let drains = plan(
        &config(""),
        &all(&[new]),
        &observed(Algorithm::Static, &["web"], [slot(1, "10.0.0.1:8001", 0), slot(2, "10.0.0.2:8002", 0)]),
    );
    assert_eq!(steps(&drains), ["drain server web/rollcall-slot-1"]);
    let free = observed(Algorithm::Static, &["web"], [slot(1, "10.0.0.1:8001", 1)]);
    let draft = plan(&config(""), &all(&[]), &free);
    assert!(draft.plan.steps.is_empty() && draft.plan.look_again.is_none());
}

#[test]
fn slots_that_run_out_need_a_reload_with_twice_as_many() {
    let rows: Vec<_> = (1..=3).map(|number| row(number, "web")).collect();
    let full = [slot(1, "10.0.0.1:8001", 0), slot(2, "10.0.0.2:8002", 0)];
    let slots = config("method = \"slots\"\nslots = 2");
    let draft = plan(&slots, &all(&rows), &observed(Algorithm::Dynamic, &["web"], full));
    assert!(draft.plan.steps.is_empty());
    assert_eq!(draft.plan.refusals, ["backend web has no free slot for 1 instances: it has 2, all taken"]);
    assert_eq!(draft.plan.reloads, ["backend web has no free slot among its 2, and the file has more"]);
    // One that still serves somebody is not free.
    let busy = Server { load: Some(Load { sessions: 1, ..NONE }), ..slot(2, "10.0.0.9:80", 1) };
    let draft = plan(
        &slots,
        &all(&rows[..2]),
        &observed(Algorithm::Dynamic, &["web"], [slot(1, "10.0.0.1:8001", 0), busy]),
    );
    assert_eq!(draft.plan.refusals.len(), 1);
}

#[test]
fn a_static_algorithm_without_slots_needs_a_reload() {
    let rows = [row(1, "web")];
    let draft = plan(&config(""), &all(&rows), &observed(Algorithm::Static, &["web"], []));
    assert_eq!(
        draft.plan.refusals,
        ["backend web has no place for 1 instances: its balance algorithm takes no servers at run time; \
          method = \"slots\" saves the reload"]
    );
    assert_eq!(draft.plan.reloads.len(), 1);
}

#[test]
fn ipv6_is_written_as_each_command_wants_it() {
    let row = with(&row(1, "web"), |instance| {
        instance.address = Address::Ip("fd00::1".parse().expect("an address"))
    });
    let commands = |observed| {
        let draft = plan(&config(""), &all(std::slice::from_ref(&row)), &observed);
        draft.plan.steps[0].commands()[0].text.clone()
    };
    assert!(commands(dynamic([])).starts_with(&format!("add server {WEB_1} [fd00::1]:8001 weight 1")));
    let moved = commands(dynamic([server("web", &name(&row), "10.0.0.1:8001", 0)]));
    assert_eq!(moved, format!("set server {WEB_1} addr fd00::1 port 8001"));
}
