//! Formats that are a whole configuration, of all services at once.

use super::{
    super::super::{RawRenderSettings, haproxy::RawHaproxy, nginx_proxy::settings::RawNginxProxy},
    *,
};

fn settings(format: Format, text: &str) -> RenderSettings {
    let mut raw = RawRenderSettings::default();
    match format {
        Format::NginxProxy => raw.nginx_proxy = Some(toml::from_str::<RawNginxProxy>(text).expect("a table")),
        _ => raw.haproxy = Some(toml::from_str::<RawHaproxy>(text).expect("a table")),
    }
    raw.parse(&Content::Format(format)).expect("settings")
}

fn whole(format: Format, text: &str) -> Renderer {
    renderer(Content::Format(format), &[]).with(settings(format, text))
}

/// An instance that declares a virtual host.
fn declaring(number: usize, host: &str) -> (InstanceId, Instance) {
    let environment = [("VIRTUAL_HOST".to_owned(), host.to_owned())].into();
    (testing::id(number), Instance { environment, ..testing::instance(number, "web") })
}

#[test]
fn haproxy_has_a_frontend_and_a_backend_for_each_service() {
    let mut haproxy =
        whole(Format::Haproxy, "port = 8080\ndomain = \"example.com\"\ndefault_service = \"web\"");
    let rendered = rendered(&mut haproxy, &selection(three())).expect("it renders");
    let (_, frontend) = text(&rendered).split_once("frontend").expect("a frontend");
    insta::assert_snapshot!(frontend, @r"
     http
        bind :8080
        use_backend api if { req.hdr(host),field(1,:) -i api api.example.com }
        use_backend web if { req.hdr(host),field(1,:) -i web web.example.com }
        default_backend web

    backend api
        server h1:api-3:80:000000000003 api-3:8003 weight 1 check init-addr libc,none

    backend web
        server h1:web-1:80:000000000001 10.0.0.1:8001 weight 1 check
        server h1:web-2:80:000000000002 [fd00::2]:8002 weight 256 check
    ");
    assert_eq!(rendered.instances, 3);
}

#[test]
fn requests_to_haproxy_that_are_for_no_service_go_to_the_only_one_or_nowhere() {
    let frontend = |instances| {
        let mut haproxy = whole(Format::Haproxy, "default_service = \"gone\"");
        text(&rendered(&mut haproxy, &selection(instances)).expect("it renders")).contains("default_backend")
    };
    assert!(!frontend(three()));
    assert!(frontend(three().into_iter().take(1).collect()));
}

#[test]
fn hosts_has_a_line_for_each_container_and_names_what_has_no_address() {
    let mut instances = three();
    instances.push((testing::id(4), testing::instance(4, "localhost")));
    let other_port = InstanceId { port: 81, ..testing::id(1) };
    instances.push((other_port, Instance { port: 9001, ..testing::instance(1, "web") }));
    let mut hosts = renderer(Content::Format(Format::Hosts), &[]);
    let rendered = rendered(&mut hosts, &selection(instances)).expect("it renders");
    insta::assert_snapshot!(text(&rendered), @r"
    # Rendered by Rollcall; do not edit.
    10.0.0.4 localhost-4
    10.0.0.1 web-1 web
    fd00::2 web-2 web
    ");
    assert_eq!(rendered.left_out, ["api-3 of h1 at api-3:8003, which is known by name only"]);
}

#[test]
fn virtual_hosts_are_counted_by_their_containers_and_others_are_not_named() {
    let mut instances = three();
    instances.extend([declaring(4, "a.example, b.example"), declaring(5, "a b")]);
    let mut nginx = whole(Format::NginxProxy, "");
    let rendered = rendered(&mut nginx, &selection(instances)).expect("it renders");
    assert_eq!(rendered.instances, 1);
    assert!(
        rendered.left_out.len() == 1 && rendered.left_out[0].starts_with("web-5 of h1, whose VIRTUAL_HOST")
    );
}

#[test]
fn a_virtual_host_whose_name_does_not_resolve_after_a_restart_keeps_the_server_that_the_file_has() {
    let address = Address::Name("app-1".parse().expect("a name"));
    let (id, instance) = declaring(1, "a.example");
    let instances = vec![(id, Instance { address, ..instance })];
    for (file, expected) in [(&b"upstream a.example {\n    server app-1:8001;\n}\n"[..], true), (b"", false)]
    {
        let mut nginx = whole(Format::NginxProxy, "");
        nginx.hosts = Hosts::new(|_| Answer::NotFound);
        nginx.seed(file);
        let rendered = rendered(&mut nginx, &selection(instances.clone())).expect("it renders");
        assert_eq!(text(&rendered).contains("server app-1:8001;"), expected);
        assert_eq!(rendered.left_out.is_empty(), expected, "{:?}", rendered.left_out);
        assert_eq!(rendered.keeps_hosts, expected);
    }
}

#[test]
fn a_certificate_that_appears_is_among_the_next_changes() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut nginx = whole(Format::NginxProxy, &format!("certs_dir = {:?}", dir.path()));
    let selection = selection(vec![declaring(1, "a.example")]);
    let is_same = |nginx: &Renderer| nginx.changes(&selection, &selection.verdict(Instant::now())).is_empty();
    let first = rendered(&mut nginx, &selection).expect("it renders");
    assert!(text(&first).contains("ssl_reject_handshake on;") && !text(&first).contains("a.example.crt"));
    nginx.look_again(Instant::now());
    assert!(is_same(&nginx));
    for ending in ["crt", "key"] {
        fs::write(dir.path().join(format!("a.example.{ending}")), "").expect("a file");
    }
    nginx.look_again(Instant::now());
    assert!(!is_same(&nginx));
    let second = rendered(&mut nginx, &selection).expect("it renders");
    assert!(text(&second).contains("a.example.crt"));
    nginx.look_again(Instant::now());
    assert!(is_same(&nginx));
}

#[test]
fn a_table_of_another_format_is_refused() {
    let refused = |raw: RawRenderSettings, content: Content| {
        raw.parse(&content).expect_err("it is refused").to_string()
    };
    let json = Content::Format(Format::Json);
    let nginx =
        RawRenderSettings { nginx_proxy: Some(RawNginxProxy::default()), ..RawRenderSettings::default() };
    assert_eq!(
        refused(nginx, Content::Template("/x".into())),
        "nginx_proxy is given: expected format = \"nginx-proxy\" beside it"
    );
    let haproxy = RawRenderSettings { haproxy: Some(RawHaproxy::default()), ..RawRenderSettings::default() };
    assert_eq!(refused(haproxy, json.clone()), "haproxy is given: expected format = \"haproxy\" beside it");
    let vars = RawRenderSettings { vars: Some([].into()), ..RawRenderSettings::default() };
    assert_eq!(refused(vars, json), "vars is given: expected template beside it");
}
