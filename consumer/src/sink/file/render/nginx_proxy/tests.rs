//! What comes of what containers declare.

use std::{fs, path::PathBuf};

use jiff::Timestamp;
use rollcall_shared::model::instance::{Address, Instance, InstanceId};

use super::{folders::Folders, settings::RawNginxProxy, *};
use crate::{roll::Row, testing};

/// An instance of the number's own container and age that declares this.
fn declaring(number: usize, port: u16, variables: &[(&str, &str)]) -> Row {
    let environment =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let started_at = Timestamp::from_second(i64::try_from(number).expect("a small one")).expect("a time");
    let instance = testing::instance(number, "web");
    row(
        InstanceId { port, ..testing::id(number) },
        Instance { environment, started_at, container_port: port, ..instance },
    )
}

fn row(id: InstanceId, instance: Instance) -> Row {
    Row { id: id.into(), endpoint: instance.endpoint(), instance: instance.into(), since: 0 }
}

fn hosts(names: &str) -> [(&str, &str); 1] {
    [("VIRTUAL_HOST", names)]
}

fn settings(text: &str) -> NginxProxy {
    let raw: RawNginxProxy = toml::from_str(text).expect("it can be read");
    raw.parse().expect("settings")
}

fn folders(certs: &[&str], vhosts: &[&str]) -> Folders {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Folders { certs: names(certs), vhosts: names(vhosts), ..Folders::default() }
}

/// What is rendered after the header, and what is left out.
fn file(text: &str, folders: &Folders, rows: &[Row]) -> (String, Vec<String>) {
    let candidates: Vec<_> = rows.iter().filter_map(|row| candidate(row, None)).collect();
    let File { bytes, left_out, .. } = render(&settings(text), folders, &candidates).expect("it renders");
    let file = String::from_utf8(bytes).expect("text");
    let body = file.find("proxy_set_header Proxy \"\";\n").expect("a header");
    (file[body..].split_once('\n').expect("lines").1.to_owned(), left_out)
}

/// Of rows without settings and files: the file without its fallback, and what is left out.
fn served(rows: &[Row]) -> (String, Vec<String>) {
    let (file, left_out) =
        file("access_log = \"off\"\nhttps_method = \"nohttps\"", &Folders::default(), rows);
    let (_fallback, hosts) = file.split_once("\n}\n").expect("a fallback");
    (hosts.to_owned(), left_out)
}

fn lines(text: &str, word: &str) -> Vec<String> {
    text.lines().map(str::trim).filter(|line| line.starts_with(word)).map(str::to_owned).collect()
}

#[test]
fn containers_of_one_host_and_path_share_an_upstream() {
    let two = [("VIRTUAL_HOST", "B.example.com,a.example.com")];
    let api = [
        ("VIRTUAL_HOST", "a.example.com"),
        ("VIRTUAL_PATH", "/api/"),
        ("VIRTUAL_DEST", "/"),
        ("VIRTUAL_PROTO", "https"),
    ];
    let rows = [declaring(1, 80, &two), declaring(2, 80, &hosts("a.example.com")), declaring(3, 80, &api)];
    let (text, left_out) = served(&rows);
    assert!(left_out.is_empty(), "{left_out:?}");
    insta::assert_snapshot!(text);
}

#[test]
fn a_host_with_a_certificate_is_redirected_to_https_unless_it_says_otherwise() {
    let folders = folders(
        &[
            "example.com.crt",
            "example.com.key",
            "own.crt",
            "own.key",
            "own.dhparam.pem",
            "a.example.com.ca.crt",
        ],
        &["default", "a.example.com", "default_location", "b.example.com_location"],
    );
    let with = |host, name, value| [("VIRTUAL_HOST", host), (name, value)];
    let rows = [
        declaring(1, 80, &hosts("a.example.com")),
        declaring(2, 80, &with("b.example.com", "HTTPS_METHOD", "noredirect")),
        declaring(3, 80, &with("c.example.com", "HTTPS_METHOD", "nohttp")),
        declaring(4, 80, &with("d.example.com", "CERT_NAME", "own")),
        declaring(5, 80, &hosts("none.example.org")),
    ];
    let (text, left_out) = file("default_host = \"c.example.com\"\nipv6 = true", &folders, &rows);
    assert!(left_out.is_empty(), "{left_out:?}");
    insta::assert_snapshot!(text);
}

#[test]
fn www_is_redirected_for_each_name_that_has_no_server_of_its_own() {
    let rows = [declaring(1, 80, &hosts("a.example,b.example,www.b.example,c.example,*.c.example,~^d"))];
    let (text, _) = file("www_redirect = true", &Folders::default(), &rows);
    assert_eq!(
        lines(&text, "server_name www."),
        ["server_name www.a.example;", "server_name www.b.example;"]
    );
    assert!(text.contains("return 301 $scheme://a.example$host_port$request_uri;"), "{text}");
    let folders = folders(&["a.example.crt", "a.example.key"], &[]);
    let (text, _) =
        file("www_redirect = true\nhttps_port = 8443", &folders, &[declaring(1, 80, &hosts("a.example"))]);
    assert!(text.contains("return 301 https://a.example:8443$request_uri;"), "{text}");
}

#[test]
fn wildcards_and_expressions_are_servers_as_well() {
    let (text, left_out) =
        served(&[declaring(1, 80, &hosts(r"*.example.com,mail.*,~^www\.\d+$,.example.org"))]);
    assert!(left_out.is_empty(), "{left_out:?}");
    let expected = ["*.example.com;", "*.example.org;", "example.org;", "mail.*;", r#""~^www\\.\\d+$";"#];
    assert_eq!(lines(&text, "server_name"), expected.map(|name| format!("server_name {name}")));
}

#[test]
fn the_port_is_the_declared_one_or_the_only_one_or_80() {
    let of = |ports: &[u16], variables: &[(&str, &str)]| {
        let rows: Vec<_> = ports
            .iter()
            .map(|port| {
                let row = declaring(1, *port, variables);
                let instance = Instance { port: 10_000 + port, ..(*row.instance).clone() };
                self::row((*row.id).clone(), instance)
            })
            .collect();
        let (text, left_out) = served(&rows);
        (lines(&text, "server 10").concat(), left_out.concat())
    };
    let at = |port| [("VIRTUAL_HOST", "a"), ("VIRTUAL_PORT", port)];
    let server = |port: u16| (format!("server 10.0.0.1:{port};"), String::new());
    assert_eq!(of(&[8080], &hosts("a")), server(18080));
    assert_eq!(of(&[80, 8080], &hosts("a")), server(10080));
    assert_eq!(of(&[80, 8080], &at("8080")), server(18080));
    let left_out = |text: &str| (String::new(), format!("web-1 of h1, whose {text}"));
    assert_eq!(of(&[81, 8080], &hosts("a")), left_out("VIRTUAL_PORT is not given: expected one of 81, 8080"));
    assert_eq!(of(&[80], &at("81")), left_out("VIRTUAL_PORT is 81: expected a registered one, of 80"));
    for bad in ["0", "65536", "http", "-1"] {
        assert_eq!(
            of(&[80], &at(bad)),
            left_out(&format!("VIRTUAL_PORT is {bad:?}: expected a port, 1 to 65535"))
        );
    }
}

#[test]
fn a_container_may_serve_several_hosts_on_ports_of_their_own() {
    let multiports =
        r#"{"a": {"/": {"port": 80}, "/x": {"port": 81}, "/bad": {"port": 0}}, "b": {"/": {"port": 82}}}"#;
    let variables = [("VIRTUAL_HOST_MULTIPORTS", multiports), ("VIRTUAL_HOST", "ignored")];
    let rows: Vec<_> = [80, 81]
        .into_iter()
        .map(|port| {
            let row = declaring(1, port, &variables);
            self::row((*row.id).clone(), Instance { port, ..(*row.instance).clone() })
        })
        .collect();
    let (text, left_out) = served(&rows);
    assert_eq!(lines(&text, "server_name"), ["server_name a;"]);
    assert_eq!(lines(&text, "server 10"), ["server 10.0.0.1:80;", "server 10.0.0.1:81;"]);
    assert_eq!(lines(&text, "location"), ["location / {", "location /x {"]);
    assert_eq!(
        left_out,
        [
            "web-1 of h1, whose VIRTUAL_HOST_MULTIPORTS says that VIRTUAL_PORT is \"0\": expected a port, 1 to 65535",
            "web-1 of h1, whose VIRTUAL_PORT is 82: expected a registered one, of 80, 81",
        ]
    );
}

#[test]
fn what_cannot_be_served_is_named_and_stops_nobody_else() {
    let good = declaring(1, 80, &hosts("good.example"));
    let (expected, _) = served(std::slice::from_ref(&good));
    for (name, value) in [
        ("VIRTUAL_HOST", "a; } server { listen 81"),
        ("VIRTUAL_HOST", "a\"b"),
        ("VIRTUAL_HOST", "~^(unclosed"),
        ("VIRTUAL_HOST", "$host"),
        ("VIRTUAL_HOST_MULTIPORTS", "a: {}"),
        ("VIRTUAL_PATH", "/../etc"),
        ("VIRTUAL_PATH", "/a { }"),
        ("VIRTUAL_PATH", "~ ^/(a"),
        ("VIRTUAL_DEST", "/;"),
        ("VIRTUAL_PROTO", "gopher"),
        ("VIRTUAL_PORT", "0"),
        ("VIRTUAL_ROOT", "/a b"),
        ("NETWORK_ACCESS", "intern"),
    ] {
        let bad = declaring(2, 80, &[("VIRTUAL_HOST", "bad.example"), (name, value)]);
        let (text, left_out) = served(&[good.clone(), bad]);
        assert_eq!(text, expected, "{name}={value}");
        assert!(
            left_out.len() == 1
                && left_out[0].starts_with("web-2 of h1, whose ")
                && left_out[0].contains(name),
            "{left_out:?}"
        );
    }
}

#[test]
fn of_several_names_only_those_that_are_none_are_left_out() {
    let (text, left_out) = served(&[declaring(1, 80, &hosts("a b,good.example, ,x}"))]);
    assert_eq!(lines(&text, "server_name"), ["server_name good.example;"]);
    assert_eq!(left_out.len(), 2, "{left_out:?}");
}

#[test]
fn settings_that_have_a_default_are_left_out_alone() {
    let bad = [("VIRTUAL_HOST", "a"), ("CERT_NAME", "../x"), ("HTTPS_METHOD", "no"), ("HSTS", "\"; x")];
    let (text, left_out) = served(&[declaring(1, 80, &bad)]);
    assert_eq!(lines(&text, "server_name"), ["server_name a;"]);
    assert_eq!(left_out.len(), 3, "{left_out:?}");
}

#[test]
fn the_oldest_container_decides_how_a_host_is_served() {
    let with = |name, value| [("VIRTUAL_HOST", "a"), (name, value)];
    for (name, ours, theirs) in
        [("VIRTUAL_PROTO", "http", "https"), ("VIRTUAL_DEST", "/a", "/b"), ("VIRTUAL_PATH", "/x", "^~ /x")]
    {
        let (older, younger) = (declaring(1, 80, &with(name, ours)), declaring(2, 80, &with(name, theirs)));
        let (expected, _) = served(std::slice::from_ref(&older));
        // In whatever order they come.
        let (text, left_out) = served(&[younger, older]);
        assert_eq!(text, expected, "{name}");
        assert!(left_out.len() == 1 && left_out[0].starts_with("web-2 of h1 for a at "), "{left_out:?}");
    }
    let [one, two] = [(1, "nohttps"), (2, "noredirect")]
        .map(|(number, method)| declaring(number, 80, &with("HTTPS_METHOD", method)));
    let (text, left_out) = served(&[two, one]);
    assert_eq!(lines(&text, "server 10").len(), 2, "both serve it");
    assert_eq!(left_out, ["HTTPS_METHOD of web-2 of h1 for a, as web-1 of h1 has another one"]);
}

#[test]
fn an_internal_host_is_never_served_to_all() {
    let internal = [("VIRTUAL_HOST", "a"), ("NETWORK_ACCESS", "internal")];
    let rows = [declaring(1, 80, &hosts("a")), declaring(2, 80, &internal)];
    let (text, _) = served(&rows);
    assert_eq!(lines(&text, "deny"), ["deny all;"]);
    let folders = Folders { conf: ["network_internal.conf".to_owned()].into(), ..Folders::default() };
    let (text, _) = file("", &folders, &rows);
    assert!(text.contains("include \"/etc/nginx/network_internal.conf\";"), "{text}");
}

#[test]
fn passwords_and_included_files_are_found_by_host_and_path() {
    let folders = Folders {
        htpasswd: ["*.a.example".to_owned()].into(),
        vhosts: ["*.a.example".to_owned(), "b_location_override".to_owned()].into(),
        ..Folders::default()
    };
    let (text, _) = file("vhost_path = \"/v\"", &folders, &[declaring(1, 80, &hosts("*.a.example,b"))]);
    assert_eq!(
        lines(&text, "auth_basic_user_file"),
        ["auth_basic_user_file \"/etc/nginx/htpasswd/*.a.example\";"]
    );
    assert_eq!(
        lines(&text, "include"),
        [r#"include "/v/\\*.a.example";"#, "include \"/v/b_location_override\";"]
    );
}

#[test]
fn a_host_whose_name_looks_like_anothers_upstream_has_one_of_its_own() {
    let api = [("VIRTUAL_HOST", "a"), ("VIRTUAL_PATH", "/api")];
    let thief = format!("a-{}", host_name::sha1("/api"));
    let (text, _) = served(&[declaring(1, 80, &api), declaring(2, 80, &hosts(&thief))]);
    assert_eq!(lines(&text, "upstream"), [format!("upstream {thief} {{"), format!("upstream {thief}_ {{")]);
}

#[test]
fn a_host_whose_only_server_cannot_be_reached_answers_502() {
    let nowhere = Instance {
        address: Address::Ip([0, 0, 0, 0].into()),
        ..(*declaring(1, 80, &hosts("a")).instance).clone()
    };
    let lost =
        candidate(&row(testing::id(1), nowhere), Some("which nobody can reach")).expect("it declares a host");
    let File { bytes, served, left_out } =
        render(&NginxProxy::default(), &Folders::default(), [&lost]).expect("it renders");
    assert!(String::from_utf8_lossy(&bytes).contains("server 127.0.0.1:9 down;"));
    assert_eq!(
        (served, left_out),
        (0, vec!["web-1 of h1 at 0.0.0.0:8001, which nobody can reach".to_owned()])
    );
}

#[test]
fn a_label_is_as_good_as_a_variable_which_comes_first() {
    let row = declaring(1, 80, &hosts("a"));
    let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let labels = [label("VIRTUAL_HOST", "b"), label("VIRTUAL_PATH", "/x")].into();
    let row = self::row((*row.id).clone(), Instance { labels, ..(*row.instance).clone() });
    let (text, _) = served(&[row]);
    assert_eq!(lines(&text, "server_name"), ["server_name a;"]);
    assert!(text.contains("location /x {"), "{text}");
}

#[test]
fn every_folder_of_the_settings_is_looked_at() {
    let dir = tempfile::tempdir().expect("a folder");
    let of = |name: &str| -> PathBuf {
        let path = dir.path().join(name);
        fs::create_dir(&path).expect("a folder");
        fs::write(path.join(name), "").expect("a file");
        path
    };
    let text =
        ["certs", "vhost", "htpasswd", "conf"].map(|name| format!("{name}_dir = {:?}\n", of(name))).concat();
    let expected = Folders {
        certs: ["certs".to_owned()].into(),
        vhosts: ["vhost".to_owned()].into(),
        htpasswd: ["htpasswd".to_owned()].into(),
        conf: ["conf".to_owned()].into(),
    };
    assert_eq!(Folders::look(&settings(&text)).expect("they can be read"), expected);
}
