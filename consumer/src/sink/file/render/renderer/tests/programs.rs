//! The formats of programs that follow their files by themselves.

use rollcall_shared::model::instance::Status;
use serde_json::Value;

use super::*;

fn with(number: usize, service: &str, status: Status) -> (InstanceId, Instance) {
    (testing::id(number), Instance { status, ..testing::instance(number, service) })
}

fn any_status(instances: Vec<(InstanceId, Instance)>) -> Selection {
    let select = Select { statuses: Status::ALL.to_vec(), ..Select::default() };
    let mut selection = Selection::new(select.into(), GuardSettings::default());
    selection.apply(&testing::come(instances), Instant::now());
    selection
}

fn envoy() -> Renderer {
    renderer(Content::Format(Format::EnvoyEds), &[]).per_service(true)
}

fn each(rendered: &Rendered) -> BTreeMap<&str, String> {
    let text = |bytes: &Vec<u8>| String::from_utf8(bytes.clone()).expect("text");
    rendered.each.iter().map(|(service, bytes)| (service.as_str(), text(bytes))).collect()
}

#[test]
fn each_service_of_envoy_has_a_response_of_its_own_and_names_are_left_out() {
    let drains = with(4, "web", Status::Draining);
    let fails = with(5, "web", Status::Failing);
    let rendered =
        rendered(&mut envoy(), &any_status([three(), vec![drains, fails]].concat())).expect("it renders");
    insta::assert_snapshot!(each(&rendered)["web"], @r#"
    {"version_info":"f4ac795804739e1f","resources":[
    {"@type":"type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment","cluster_name":"web","endpoints":[{"lb_endpoints":[
    {"endpoint":{"address":{"socket_address":{"address":"10.0.0.1","port_value":8001}}},"load_balancing_weight":1},
    {"endpoint":{"address":{"socket_address":{"address":"10.0.0.4","port_value":8004}}},"health_status":"DRAINING","load_balancing_weight":1},
    {"endpoint":{"address":{"socket_address":{"address":"10.0.0.5","port_value":8005}}},"health_status":"UNHEALTHY","load_balancing_weight":1},
    {"endpoint":{"address":{"socket_address":{"address":"fd00::2","port_value":8002}}},"load_balancing_weight":300}
    ]}]}
    ]}
    "#);
    insta::assert_snapshot!(each(&rendered)["api"], @r#"
    {"version_info":"9d32ca31da11061a","resources":[
    {"@type":"type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment","cluster_name":"api","endpoints":[]}
    ]}
    "#);
    assert_eq!(rendered.left_out, ["api-3 of h1 at api-3:8003, which is known by name only"]);
    assert_eq!(rendered.instances, 4);
}

#[test]
fn an_endpoint_that_two_instances_have_is_one_and_not_the_draining_one() {
    let (one, other) = (with(1, "web", Status::Draining), with(2, "web", Status::Passing));
    let endpoint = one.1.endpoint();
    let other = (other.0, Instance { address: endpoint.address, port: endpoint.port, ..other.1 });
    let rendered = rendered(&mut envoy(), &any_status(vec![one, other])).expect("it renders");
    let text = &each(&rendered)["web"];
    assert!(text.matches("port_value").count() == 1 && !text.contains("DRAINING"), "{text}");
}

#[test]
fn the_version_is_that_of_the_content() {
    let version = |instances| {
        let rendered = rendered(&mut envoy(), &selection(instances)).expect("it renders");
        let value: Value = serde_json::from_str(&each(&rendered)["web"]).expect("JSON");
        value["version_info"].as_str().expect("a version").to_owned()
    };
    let one = || vec![(testing::id(1), testing::instance(1, "web"))];
    assert_eq!(version(one()), version(one()));
    assert_ne!(version(one()), version(three()));
}

#[test]
fn a_service_that_has_gone_keeps_an_assignment_without_endpoints_over_a_restart_as_well() {
    let mut first = envoy();
    let now = Instant::now();
    let mut selection = selection(three());
    let before = rendered(&mut first, &selection).expect("it renders");
    let installed = before.each.values().flatten().copied().collect::<Vec<u8>>();
    let gone = |(id, instance): (InstanceId, Instance)| crate::roll::Shift {
        id: std::sync::Arc::new(id),
        before: Some(std::sync::Arc::new(instance)),
        after: None,
        departure: Some(crate::roll::Departure::Withdrawn),
    };
    let shifts = three().into_iter().map(gone).collect();
    selection.apply(&crate::roll::Shifts { shifts, ..testing::come([]) }, now);
    let mut second = envoy();
    second.seed(&installed);
    // Somebody broke the files meanwhile: their names tell.
    let mut third = envoy();
    third.seed(b"{");
    third.seed_services(["api", "web"].map(|name| name.parse().expect("a name")).into());
    for renderer in [&mut first, &mut second, &mut third] {
        let after = rendered(renderer, &selection).expect("it renders");
        assert_eq!(each(&after).keys().copied().collect::<Vec<_>>(), ["api", "web"]);
        assert!(each(&after)["web"].contains("\"cluster_name\":\"web\",\"endpoints\":[]"));
    }
    // The next one comes back, and the other one stays as it is.
    selection.apply(&testing::come([(testing::id(1), testing::instance(1, "web"))]), now);
    let back = rendered(&mut second, &selection).expect("it renders");
    assert!(each(&back)["web"].contains("10.0.0.1") && each(&back)["api"].contains("\"endpoints\":[]"));
}

#[test]
fn several_services_in_one_file_of_envoy_are_refused_before_there_is_a_roll() {
    let one = |named: &[&str]| renderer(Content::Format(Format::EnvoyEds), named);
    one(&["web"]).check().expect("Envoy takes one");
    one(&["web", "api"]).per_service(true).check().expect("each has its own");
    let expected =
        "expected one service, or {service} in the name of dest, as Envoy takes one service from each file";
    for (named, found) in [(vec![], "not given"), (vec!["web", "api"], "web, api")] {
        let error = one(&named).check().expect_err("Envoy refuses it");
        assert_eq!(error.to_string(), format!("select.service is {found}: {expected}"));
    }
    assert!(render(Format::EnvoyEds, &["web"], vec![]).contains("\"cluster_name\":\"web\",\"endpoints\":[]"));
}

#[test]
fn traefik_has_services_and_routers_and_no_table_that_is_empty() {
    assert_eq!(render(Format::Traefik, &[], vec![]), "# Rendered by Rollcall; do not edit.\n{\"http\":{}}\n");
    insta::assert_snapshot!(render(Format::Traefik, &["zoo"], three()), @r#"
    # Rendered by Rollcall; do not edit.
    {"http":{"services":{
    "api":{"loadBalancer":{"servers":[
    {"url":"http://api-3:8003"}
    ]}},
    "web":{"loadBalancer":{"servers":[
    {"url":"http://10.0.0.1:8001"},
    {"url":"http://[fd00::2]:8002","weight":300}
    ]}},
    "zoo":{"loadBalancer":{"servers":[]}}
    }}}
    "#);
    let text = "domain = \"example.com\"\nentry_points = [\"web\"]";
    let raw: crate::sink::file::render::traefik::RawTraefik = toml::from_str(text).expect("settings");
    let settings = RenderSettings { traefik: raw.parse().expect("settings"), ..RenderSettings::default() };
    let mut routed = renderer(Content::Format(Format::Traefik), &[]).with(settings);
    let only = vec![(testing::id(1), testing::instance(1, "web"))];
    insta::assert_snapshot!(text_of(&mut routed, only), @r#"
    # Rendered by Rollcall; do not edit.
    {"http":{"services":{
    "web":{"loadBalancer":{"servers":[
    {"url":"http://10.0.0.1:8001"}
    ]}}
    },"routers":{
    "web":{"rule":"Host(`web.example.com`)","service":"web","entryPoints":["web"]}
    }}}
    "#);
}

fn text_of(renderer: &mut Renderer, instances: Vec<(InstanceId, Instance)>) -> String {
    text(&rendered(renderer, &selection(instances)).expect("it renders")).to_owned()
}

#[test]
fn prometheus_has_a_group_for_each_instance_with_the_labels_of_docker_sd() {
    let mut instances = three();
    let labels = [("com.docker.compose.service", "web"), ("1 é", "x")];
    instances[0].1.labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    instances[0].1.tags = vec!["a".to_owned(), "b".to_owned()];
    instances[1].1.network = Some("front".to_owned());
    insta::assert_snapshot!(render(Format::Prometheus, &[], instances), @r#"
    [
    {"targets":["api-3:8003"],"labels":{"__meta_docker_container_id":"000000000003","__meta_docker_container_name":"/api-3","__meta_docker_port_private":"80","__meta_docker_port_public":"8003","__meta_rollcall_endpoint":"api-3:8003","__meta_rollcall_image":"app:1","__meta_rollcall_node":"h1","__meta_rollcall_service":"api","__meta_rollcall_status":"passing","__meta_rollcall_weight":"1"}},
    {"targets":["10.0.0.1:8001"],"labels":{"__meta_docker_container_id":"000000000001","__meta_docker_container_label_1__":"x","__meta_docker_container_label_com_docker_compose_service":"web","__meta_docker_container_name":"/web-1","__meta_docker_port_private":"80","__meta_docker_port_public":"8001","__meta_docker_port_public_ip":"10.0.0.1","__meta_rollcall_endpoint":"10.0.0.1:8001","__meta_rollcall_image":"app:1","__meta_rollcall_node":"h1","__meta_rollcall_service":"web","__meta_rollcall_status":"passing","__meta_rollcall_tags":",a,b,","__meta_rollcall_weight":"1"}},
    {"targets":["[fd00::2]:8002"],"labels":{"__meta_docker_container_id":"000000000002","__meta_docker_container_name":"/web-2","__meta_docker_network_ip":"fd00::2","__meta_docker_network_name":"front","__meta_docker_port_private":"80","__meta_rollcall_endpoint":"[fd00::2]:8002","__meta_rollcall_image":"app:1","__meta_rollcall_node":"h1","__meta_rollcall_service":"web","__meta_rollcall_status":"passing","__meta_rollcall_weight":"300"}}
    ]
    "#);
    assert_eq!(render(Format::Prometheus, &["web"], vec![]), "[]\n");
}

/// Texts of JSON, without the comments that YAML has.
fn json(text: &str) -> Value {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    serde_json::from_str(&lines.join("\n")).expect("JSON")
}

proptest! {
    #[test]
    fn no_value_reaches_a_program_as_anything_but_itself(instance in any_instance()) {
        let all = || vec![(testing::id(1), instance.clone())];
        let expected = usize::from(is_reachable(&instance.address));
        let service = instance.service.as_str();

        let rendered = rendered(&mut envoy(), &selection(all())).expect("it renders");
        let response = json(&each(&rendered)[service]);
        prop_assert_eq!(&response["resources"][0]["cluster_name"], service);
        let endpoints = response["resources"][0]["endpoints"][0]["lb_endpoints"].as_array().map_or(0, Vec::len);
        prop_assert_eq!(endpoints + rendered.left_out.len(), 1);

        let traefik = render(Format::Traefik, &[], all());
        prop_assert!(!traefik.contains("{{"), "{}", traefik);
        let servers = &json(&traefik)["http"]["services"][service]["loadBalancer"]["servers"];
        prop_assert_eq!(servers.as_array().expect("an array").len(), expected);

        let groups = json(&render(Format::Prometheus, &[], all()));
        prop_assert_eq!(groups.as_array().expect("an array").len(), expected);
        for (name, _) in groups[0]["labels"].as_object().into_iter().flatten() {
            prop_assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "{}", name);
        }
    }
}
