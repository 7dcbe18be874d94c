//! Every format and templates, with hostile values.

use std::{fs, net::IpAddr};

use proptest::prelude::*;
use rollcall_shared::{
    codec,
    model::instance::{Address, Instance, InstanceId},
    process::error::one_line,
};
use tokio::time::Instant;

use super::{
    super::{RawRenderSettings, format::is_reachable, lookups::Answer},
    *,
};
use crate::{roll::Select, target::loss_guard::GuardSettings, testing};

mod programs;
mod whole;

fn renderer(content: Content, named: &[&str]) -> Renderer {
    let named = named.iter().map(|name| name.parse().expect("a name")).collect();
    let renderer =
        Renderer::new("test".parse().expect("a name"), content, Named { services: named, is_guess: false });
    Renderer { hosts: Hosts::new(|_| Answer::Found), ..renderer }
}

fn selection(instances: Vec<(InstanceId, Instance)>) -> Selection {
    let mut selection = Selection::new(Select::default().into(), GuardSettings::default());
    selection.apply(&testing::come(instances), Instant::now());
    selection
}

fn rendered(renderer: &mut Renderer, selection: &Selection) -> Result<Rendered, RenderError> {
    let changes = renderer.changes(selection, &selection.verdict(Instant::now()));
    renderer.render(changes, Instant::now())
}

fn text(rendered: &Rendered) -> &str {
    std::str::from_utf8(&rendered.bytes).expect("text")
}

fn render(format: Format, named: &[&str], instances: Vec<(InstanceId, Instance)>) -> String {
    let mut renderer = renderer(Content::Format(format), named);
    text(&rendered(&mut renderer, &selection(instances)).expect("it renders")).to_owned()
}

/// Two of `web`, one of them heavy and on IPv6, and one of `api` that is known by name.
fn three() -> Vec<(InstanceId, Instance)> {
    let v6 = Address::Ip("fd00::2".parse().expect("an address"));
    let name = Address::Name("api-3".parse().expect("a name"));
    vec![
        (testing::id(1), testing::instance(1, "web")),
        (testing::id(2), Instance { address: v6, weight: 300, ..testing::instance(2, "web") }),
        (testing::id(3), Instance { address: name, ..testing::instance(3, "api") }),
    ]
}

#[test]
fn citus_workers_are_lines_of_host_and_port() {
    insta::assert_snapshot!(render(Format::CitusWorkers, &["web"], three()), @r"
    api-3 8003
    10.0.0.1 8001
    fd00::2 8002
    ");
    assert_eq!(render(Format::CitusWorkers, &["web"], vec![]), "");
}

#[test]
fn nginx_upstreams_are_there_also_when_empty_if_they_are_named() {
    insta::assert_snapshot!(render(Format::NginxUpstream, &["web", "zoo"], three()), @r"
    # Rendered by Rollcall; do not edit.

    upstream api {
        server api-3:8003;
    }

    upstream web {
        server 10.0.0.1:8001;
        server [fd00::2]:8002 weight=300;
    }

    upstream zoo {
        # No instance is there; nginx wants a server in every upstream, and answers 502.
        server 127.0.0.1:9 down;
    }
    ");
    insta::assert_snapshot!(render(Format::NginxUpstream, &[], vec![]), @"# Rendered by Rollcall; do not edit.");
}

/// Upstreams with these settings, where no host name resolves but `localhost`.
fn upstreams(settings: &str, instances: Vec<(InstanceId, Instance)>) -> Rendered {
    let content = Content::Format(Format::NginxUpstream);
    let nginx = Some(toml::from_str(settings).expect("a table"));
    let settings = RawRenderSettings { nginx, ..RawRenderSettings::default() }.parse(&content);
    let renderer = renderer(content, &["zoo"]).with(settings.expect("settings"));
    let resolve = |name: &str| if name == "localhost" { Answer::Found } else { Answer::NotFound };
    let mut renderer = Renderer { hosts: Hosts::new(resolve), ..renderer };
    rendered(&mut renderer, &selection(instances)).expect("it renders")
}

fn tagged(number: usize, tag: &str) -> (InstanceId, Instance) {
    (testing::id(number), Instance { tags: vec![tag.to_owned()], ..testing::instance(number, "web") })
}

#[test]
fn nginx_upstreams_have_what_their_table_says() {
    let settings = "zone = \"64k\"\nbalance = \"least_conn\"\nkeepalive = 16\nmax_fails = 2\n\
                    fail_timeout = \"5s\"\nbackup = \"standby\"\nresolve = true\nresolver = \"127.0.0.11\"";
    let rendered = upstreams(settings, [three(), vec![tagged(4, "standby")]].concat());
    assert_eq!((rendered.instances, rendered.left_out.len()), (4, 0), "nginx resolves the name itself");
    insta::assert_snapshot!(text(&rendered), @r"
    # Rendered by Rollcall; do not edit.

    upstream api {
        zone rollcall_api 64k;
        resolver 127.0.0.11;
        least_conn;
        keepalive 16;
        server api-3:8003 max_fails=2 fail_timeout=5s resolve;
    }

    upstream web {
        zone rollcall_web 64k;
        resolver 127.0.0.11;
        least_conn;
        keepalive 16;
        server 10.0.0.1:8001 max_fails=2 fail_timeout=5s;
        server 10.0.0.4:8004 max_fails=2 fail_timeout=5s backup;
        server [fd00::2]:8002 weight=300 max_fails=2 fail_timeout=5s;
    }

    upstream zoo {
        zone rollcall_zoo 64k;
        resolver 127.0.0.11;
        least_conn;
        keepalive 16;
        # No instance is there; nginx wants a server in every upstream, and answers 502.
        server 127.0.0.1:9 down;
    }
    ");
}

#[test]
fn an_upstream_of_nothing_but_backups_has_servers() {
    let rendered = upstreams("backup = \"standby\"", vec![tagged(1, "standby"), tagged(2, "standby")]);
    assert!(!text(&rendered).contains("backup") && rendered.instances == 2, "nginx refuses it otherwise");
}

#[test]
fn haproxy_servers_have_names_of_their_own() {
    insta::assert_snapshot!(render(Format::HaproxyBackend, &["zoo"], three()), @r"
    # Rendered by Rollcall; do not edit.

    backend api
        server h1:api-3:80:000000000003 api-3:8003 weight 1 check init-addr libc,none

    backend web
        server h1:web-1:80:000000000001 10.0.0.1:8001 weight 1 check
        server h1:web-2:80:000000000002 [fd00::2]:8002 weight 256 check

    backend zoo
    ");
}

#[test]
fn haproxy_servers_are_told_apart_by_their_containers() {
    let (id, instance) = (testing::id(1), testing::instance(1, "web"));
    let successor = InstanceId { container: testing::id(2).container, ..id.clone() };
    let moved = Instance { port: 9001, ..instance.clone() };
    let text = render(Format::HaproxyBackend, &[], vec![(id, instance), (successor, moved)]);
    let names: Vec<_> = text.lines().filter_map(|line| line.trim().strip_prefix("server ")).collect();
    assert!(names.len() == 2 && names.iter().all(|name| name.starts_with("h1:web-1:80:")), "{text}");
    assert_ne!(names[0].split(' ').next(), names[1].split(' ').next());
}

#[test]
fn json_has_one_instance_a_line() {
    insta::assert_snapshot!(render(Format::Json, &[], three()), @r#"
    [
    {"service":"api","node":"h1","container":"api-3","id":"000000000003","image":"app:1","address":"api-3","port":8003,"endpoint":"api-3:8003","protocol":"tcp","container_port":80,"network":null,"status":"passing","weight":1,"started_at":"1970-01-01T00:00:00Z","tags":[],"labels":{},"environment":{},"alternatives":[]},
    {"service":"web","node":"h1","container":"web-1","id":"000000000001","image":"app:1","address":"10.0.0.1","port":8001,"endpoint":"10.0.0.1:8001","protocol":"tcp","container_port":80,"network":null,"status":"passing","weight":1,"started_at":"1970-01-01T00:00:00Z","tags":[],"labels":{},"environment":{},"alternatives":[]},
    {"service":"web","node":"h1","container":"web-2","id":"000000000002","image":"app:1","address":"fd00::2","port":8002,"endpoint":"[fd00::2]:8002","protocol":"tcp","container_port":80,"network":null,"status":"passing","weight":300,"started_at":"1970-01-01T00:00:00Z","tags":[],"labels":{},"environment":{},"alternatives":[]}
    ]
    "#);
    assert_eq!(render(Format::Json, &["web"], vec![]), "[]\n");
}

#[test]
fn an_endpoint_that_two_nodes_name_is_one_server() {
    let twice = |node: &str| {
        let id = InstanceId { node: node.parse().expect("a name"), ..testing::id(1) };
        (id, testing::instance(1, "web"))
    };
    let instances = vec![twice("h1"), twice("h2")];
    assert_eq!(render(Format::CitusWorkers, &[], instances.clone()), "10.0.0.1 8001\n");
    assert_eq!(render(Format::HaproxyBackend, &[], instances).matches("server ").count(), 2);
}

#[test]
fn what_nobody_can_reach_is_left_out_and_named() {
    let nowhere = Instance { address: Address::Ip([0, 0, 0, 0].into()), ..testing::instance(1, "web") };
    let instances = vec![(testing::id(1), nowhere), (testing::id(2), testing::instance(2, "web"))];
    let mut renderer = renderer(Content::Format(Format::NginxUpstream), &[]);
    let rendered = rendered(&mut renderer, &selection(instances)).expect("it renders");
    assert_eq!(rendered.left_out, ["web-1 of h1 at 0.0.0.0:8001"]);
    assert_eq!(rendered.instances, 1);
    assert!(!text(&rendered).contains("0.0.0.0"));
}

#[test]
fn a_host_name_that_does_not_resolve_is_left_out_until_it_does_where_the_program_would_refuse_all() {
    let found = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_found = found.clone();
    let resolve = move |_: &str| {
        if is_found.load(std::sync::atomic::Ordering::Relaxed) { Answer::Found } else { Answer::NotFound }
    };
    let selection = selection(three());
    let mut nginx = renderer(Content::Format(Format::NginxUpstream), &[]);
    nginx.hosts = Hosts::new(resolve.clone());
    let first = rendered(&mut nginx, &selection).expect("it renders");
    assert_eq!(first.left_out, ["api-3 of h1 at api-3:8003, which does not resolve"]);
    assert!(text(&first).contains("upstream api {") && !text(&first).contains("api-3"), "{}", text(&first));
    assert!(nginx.next_look().is_some());
    found.store(true, std::sync::atomic::Ordering::Relaxed);
    nginx.look_again(Instant::now() + std::time::Duration::from_secs(60));
    let second = rendered(&mut nginx, &selection).expect("it renders");
    assert!(second.left_out.is_empty() && text(&second).contains("server api-3:8003;"));
    assert_eq!(nginx.next_look(), None);
    found.store(false, std::sync::atomic::Ordering::Relaxed);
    for format in [Format::CitusWorkers, Format::HaproxyBackend, Format::Json] {
        let mut other = renderer(Content::Format(format), &[]);
        other.hosts = Hosts::new(resolve.clone());
        let rendered = rendered(&mut other, &selection).expect("it renders");
        assert!(rendered.left_out.is_empty(), "{format:?} takes names as they are");
    }
}

const OLD: &[u8] = b"# Rendered by Rollcall; do not edit.\n\nupstream api {\n    server api-3:8003;\n}\n";

#[test]
fn a_restart_while_the_resolver_is_away_or_is_another_one_empties_no_upstream() {
    for (answer, keeps_hosts) in [(Answer::Unknown, false), (Answer::NotFound, true)] {
        let mut nginx = renderer(Content::Format(Format::NginxUpstream), &[]);
        nginx.hosts = Hosts::new(move |_| answer);
        nginx.seed(OLD);
        let mut instances = three();
        let name = Address::Name("new".parse().expect("a name"));
        instances.push((testing::id(4), Instance { address: name, ..testing::instance(4, "api") }));
        let rendered = rendered(&mut nginx, &selection(instances)).expect("it renders");
        assert!(text(&rendered).contains("server api-3:8003;"), "{answer:?}: {}", text(&rendered));
        assert_eq!(rendered.left_out, ["api-4 of h1 at new:8004, which does not resolve"], "{answer:?}");
        assert_eq!(rendered.keeps_hosts, keeps_hosts, "{answer:?}");
    }
}

#[test]
fn a_service_that_was_shown_stays_whatever_else_differs_from_it_in_case_only() {
    let of = |services: &[&str]| {
        let one =
            |(number, service): (usize, &&str)| (testing::id(number), testing::instance(number, service));
        selection(services.iter().enumerate().map(one).collect())
    };
    let mut nginx = renderer(Content::Format(Format::NginxUpstream), &[]);
    rendered(&mut nginx, &of(&["web"])).expect("it renders");
    let both = rendered(&mut nginx, &of(&["web", "WEB", "Web"])).expect("it renders");
    assert!(text(&both).contains("upstream web {"), "{}", text(&both));
    let named = |name: &str| format!("service {name}, which differs from web in case only");
    assert_eq!(both.left_out, ["WEB", "Web"].map(named));
    let mut restarted = renderer(Content::Format(Format::NginxUpstream), &[]);
    restarted.seed(&both.bytes);
    assert_eq!(rendered(&mut restarted, &of(&["web", "WEB", "Web"])).expect("it renders"), both);
    let others = rendered(&mut nginx, &of(&["WEB", "Web"])).expect("it renders");
    assert!(text(&others).contains("upstream WEB {"), "it has gone: {}", text(&others));
}

#[test]
fn of_upstreams_that_differ_in_case_only_the_first_stays() {
    let instances = vec![
        (testing::id(1), testing::instance(1, "web")),
        (testing::id(2), testing::instance(2, "Web")),
        (testing::id(3), testing::instance(3, "WEB")),
    ];
    let selection = selection(instances);
    let mut nginx = renderer(Content::Format(Format::NginxUpstream), &["wEb"]);
    let rendered = rendered(&mut nginx, &selection).expect("it renders");
    assert_eq!(text(&rendered).matches("upstream").count(), 1);
    assert!(text(&rendered).contains("upstream WEB {"));
    let named = |name: &str| format!("service {name}, which differs from WEB in case only");
    assert_eq!(rendered.left_out, ["Web", "wEb", "web"].map(named));
    assert_eq!(rendered.instances, 1);
}

#[test]
fn a_service_whose_last_instance_is_gone_is_gone_or_empty() {
    let mut selection = selection(three());
    let mut renderer = renderer(Content::Format(Format::NginxUpstream), &["web"]);
    rendered(&mut renderer, &selection).expect("it renders");
    let gone = |number: usize, service: &str| {
        let mut shifts = testing::come(three().into_iter().filter(|(id, _)| *id == testing::id(number)));
        for shift in &mut shifts.shifts {
            assert_eq!(shift.after.as_ref().expect("it was there").service.as_str(), service);
            std::mem::swap(&mut shift.before, &mut shift.after);
        }
        shifts
    };
    for shifts in [gone(1, "web"), gone(2, "web"), gone(3, "api")] {
        selection.apply(&shifts, Instant::now());
    }
    let rendered = rendered(&mut renderer, &selection).expect("it renders");
    assert_eq!(rendered.instances, 0);
    insta::assert_snapshot!(text(&rendered), @r"
    # Rendered by Rollcall; do not edit.

    upstream web {
        # No instance is there; nginx wants a server in every upstream, and answers 502.
        server 127.0.0.1:9 down;
    }
    ");
}

fn template(source: &str) -> (tempfile::TempDir, Renderer) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("list.j2");
    fs::write(&path, source).expect("a file");
    let renderer = renderer(Content::Template(path), &["web"]);
    (dir, renderer)
}

#[test]
fn a_users_template_sees_instances_and_services() {
    let source = "{% for name, list in services|items %}\n\
        {{ name }}: {{ list|map(attribute='endpoint')|join(' ') }}\n\
        {% endfor %}\n\
        {{ target.name }} has {{ instances|length }}, first on {{ instances[0].node }}\n";
    let (_dir, mut renderer) = template(source);
    let full = rendered(&mut renderer, &selection(three())).expect("it renders");
    insta::assert_snapshot!(text(&full), @r"
    api: api-3:8003
    web: 10.0.0.1:8001 [fd00::2]:8002
    test has 3, first on h1
    ");
    assert_eq!(full.instances, 3);
    let empty = rendered(&mut renderer, &selection(vec![]));
    let error = empty.expect_err("there is no first").to_string();
    assert!(error.ends_with("list.j2 fails: line 4: `instances[0]` is undefined"), "{error}");
}

#[test]
fn a_template_that_is_wrong_is_named_with_the_line() {
    let (_dir, renderer) = template("ok\n{% for %}\n");
    let error = one_line(&renderer.check().expect_err("it cannot be parsed"));
    assert!(error.contains("list.j2: line 2: ") && !error.contains('\n'), "{error}");
    let missing = self::renderer(Content::Template("/no/such.j2".into()), &[]);
    let error = one_line(&missing.check().expect_err("there is none"));
    assert!(error.starts_with("template is /no/such.j2: No such file"), "{error}");
}

#[test]
fn a_template_of_a_thousand_million_steps_ends_before_them_and_says_so() {
    let source = "{% for a in range(1000) %}{% for b in range(1000) %}{% for c in range(1000) %}\n\
        {% endfor %}{% endfor %}{% endfor %}\n";
    let (_dir, mut renderer) = template(source);
    let error = rendered(&mut renderer, &selection(three())).expect_err("it is too long").to_string();
    assert!(error.ends_with("it takes more than 50000000 steps"), "{error}");
}

#[test]
fn only_services_whose_rows_are_others_are_taken_out_of_a_selection() {
    let mut selection = selection(three());
    let mut renderer = renderer(Content::Format(Format::Json), &["web"]);
    let changes = |renderer: &Renderer, selection: &Selection| {
        let Changes { gone, changed, .. } = renderer.changes(selection, &selection.verdict(Instant::now()));
        let changed = changed.into_iter().map(|(service, ..)| service.to_string());
        (gone.iter().map(ToString::to_string).collect::<Vec<_>>(), changed.collect::<Vec<_>>())
    };
    rendered(&mut renderer, &selection).expect("it renders");
    assert_eq!(changes(&renderer, &selection), (vec![], vec![]));
    let moved = testing::come([(testing::id(4), testing::instance(4, "web"))]);
    selection.apply(&moved, Instant::now());
    assert_eq!(changes(&renderer, &selection), (vec![], vec!["web".to_owned()]));
}

fn any_address() -> impl Strategy<Value = Address> {
    prop_oneof![
        any::<IpAddr>().prop_map(Address::Ip),
        "[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,20}".prop_map(|name| name.try_into().expect("an address")),
    ]
}

/// Any instance that a reader takes in, its texts as hostile as they may be.
fn any_instance() -> impl Strategy<Value = Instance> {
    let name = "[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,20}";
    let evil = r#"[;{}"'#$\\\\ a-z]{0,20}"#;
    (name, name, any_address(), 1u16.., 1u16.., evil).prop_map(
        |(service, container, address, port, weight, evil)| Instance {
            service: service.parse().expect("a name"),
            container: container.parse().expect("a name"),
            address,
            port,
            weight,
            image: evil.clone(),
            tags: vec![evil.clone()],
            labels: [(evil.clone(), evil)].into(),
            ..testing::instance(1, "x")
        },
    )
}

proptest! {
    #[test]
    fn no_value_makes_an_extra_line_or_directive(instance in any_instance()) {
        let read = codec::decode::<Instance>(&codec::encode(&instance));
        prop_assert_eq!(read.expect("a reader takes it in"), instance.clone());
        let expected = usize::from(is_reachable(&instance.address));
        let all = |format| render(format, &[], vec![(testing::id(1), instance.clone())]);

        let citus = all(Format::CitusWorkers);
        prop_assert_eq!(citus.lines().count(), expected);
        prop_assert!(citus.lines().all(|line| line.split(' ').count() == 2));

        let nginx = all(Format::NginxUpstream);
        let directives = nginx.lines().filter(|line| !line.trim_start().starts_with('#'));
        let directives = directives.collect::<Vec<_>>().join("\n");
        prop_assert_eq!(directives.matches(';').count(), 1);
        prop_assert_eq!(directives.matches(['{', '}']).count(), 2);
        prop_assert!(!directives.contains(['"', '\'', '$', '\\', '#']));

        let haproxy = all(Format::HaproxyBackend);
        prop_assert_eq!(haproxy.lines().count(), 3 + expected);
        let server = haproxy.lines().nth(3).unwrap_or_default();
        prop_assert!(server.split_whitespace().count() <= 8, "{}", server);

        let json: serde_json::Value = serde_json::from_str(&all(Format::Json)).expect("JSON");
        prop_assert_eq!(json.as_array().expect("an array").len(), 1);
    }
}

#[test]
fn a_go_template_is_refused_with_a_word_that_helps() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("list.tmpl");
    std::fs::write(&path, "{{ range .Containers }}x{{ end }}").expect("a file");
    let error = renderer(Content::Template(path), &[]).check().expect_err("it is another language");
    assert!(one_line(&error).contains("line 1: this is a Go template"), "{}", one_line(&error));
}
