//! What a user's template can say.

use std::fs;

use rollcall_shared::model::instance::{Address, Instance};

use super::*;
use crate::{roll::Row, testing};

/// The instances of docs/templates.md.
fn rows() -> Vec<Row> {
    let row = |(number, service, node, port, role, hosts): (u8, &str, &str, u16, &str, &str)| {
        let pair = |name: &str, value: &str| (!value.is_empty()).then(|| (name.to_owned(), value.to_owned()));
        let counted = if service == "web" { number } else { 1 };
        let instance = Instance {
            container: format!("{service}-{counted}").parse().expect("a name"),
            address: Address::Ip([10, 0, 0, number].into()),
            port,
            labels: pair("com.example.role", role).into_iter().collect(),
            environment: pair("VIRTUAL_HOST", hosts).into_iter().collect(),
            ..testing::instance(number.into(), service)
        };
        let id = testing::id_on(node, number.into()).into();
        Row { id, endpoint: instance.endpoint(), instance: instance.into(), since: 0 }
    };
    [
        (3, "api", "h2", 9000, "back", "api.example.com,example.com"),
        (4, "db", "h1", 5432, "", ""),
        (1, "web", "h1", 8080, "front", "example.com"),
        (2, "web", "h2", 8080, "front", "example.com"),
    ]
    .map(row)
    .into()
}

fn vars() -> Vars {
    [("domain".to_owned(), "example.com".into()), ("ports".to_owned(), vec![80, 8080].into())].into()
}

/// What the source is rendered to.
fn render(source: &str) -> Result<String, String> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("list.jinja");
    fs::write(&path, source).expect("a file");
    fill_in(&path)
}

fn fill_in(path: &Path) -> Result<String, String> {
    let rows = rows();
    let blocks = rows.chunk_by(|a, b| a.instance.service == b.instance.service);
    let blocks: Vec<_> =
        blocks.map(|rows| (&rows[0].instance.service, block(&rows.iter().collect::<Vec<_>>()))).collect();
    let blocks: Vec<_> = blocks.iter().map(|(service, block)| (*service, block)).collect();
    let filled = fill(
        path,
        Facts { target: &"web".parse().expect("a name"), vars: &vars(), revision: Revision(42) },
        &blocks,
    );
    filled.map(|bytes| String::from_utf8(bytes).expect("text")).map_err(|error| error.to_string())
}

fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/templates.md");
    fs::read_to_string(path).expect("the page")
}

#[test]
fn every_example_of_the_page_is_rendered_to_what_stands_beside_it() {
    let page = page();
    let mut examples = 0;
    for example in page.split("```jinja\n").skip(1) {
        let (source, rest) = example.split_once("```").expect("an end");
        let (_, expected) = rest.split_once("```text\n").expect("what it gives");
        let (expected, _) = expected.split_once("```").expect("an end");
        assert_eq!(render(source).expect("it renders"), expected, "{source}");
        examples += 1;
    }
    assert!(examples >= 3, "they are written otherwise");
}

#[test]
fn every_idiom_of_the_page_is_rendered() {
    let page = page();
    let mut idioms = 0;
    for line in page.lines().filter(|line| line.starts_with("| ") && line.ends_with("` |")) {
        let source =
            line.trim_end_matches("` |").rsplit_once("| `").expect("a last column").1.replace("\\|", "|");
        if source.contains("{{") || source.contains("{%") {
            render(&source).unwrap_or_else(|error| panic!("{source}: {error}"));
            idioms += 1;
        }
    }
    assert!(idioms > 40, "they are written otherwise: {idioms}");
}

#[test]
fn every_filter_test_and_function_does_what_the_page_says() {
    for (source, expected) in [
        ("{% for k, l in instances|group_by('node') %}{{ k }}={{ l|length }} {% endfor %}", "h1=2 h2=2 "),
        (
            "{% for k, l in instances|group_by('labels', 'com.example.role', default='-') %}{{ k }}={{ l|length }} {% endfor %}",
            "-=1 back=1 front=2 ",
        ),
        (
            "{% for k, l in instances|group_by('environment', 'VIRTUAL_HOST', split=',') %}{{ k }}={{ l|length }} {% endfor %}",
            "api.example.com=1 example.com=3 ",
        ),
        (
            "{{ instances|where('labels', 'com.example.role', equals='front')|map(attribute='container')|join(' ') }}",
            "web-1 web-2",
        ),
        (
            "{{ instances|where('labels', 'com.example.role', matches='^b')|map(attribute='container')|join(' ') }}",
            "api-1",
        ),
        (
            "{{ instances|where('service', any_of=['db', 'api'])|map(attribute='container')|join(' ') }}",
            "api-1 db-1",
        ),
        (
            "{{ instances|where_not('labels', 'com.example.role')|map(attribute='container')|join(' ') }}",
            "db-1",
        ),
        ("{{ instances|where('status', equals='passing')|length }}", "4"),
        ("{{ instances|selectattr('service', 'matching', '^w')|list|length }}", "2"),
        ("{{ 'web-12'|regex_match('[0-9]+$') }}", "True"),
        (
            "{{ 'web-12'|regex_search('[a-z]+-([0-9]+)', 1) }} {{ 'x'|regex_search('y')|default('none') }}",
            "12 none",
        ),
        ("{{ 'web-12'|regex_replace('-([0-9])', '${1}_') }}", "web1_2"),
        ("{{ 'a'|sha1 }}", "86f7e437faa5a7fce15d1ddcb9eaeaea377667b8"),
        ("{{ ('{\"a\": [1, true]}'|fromjson).a[0] }}", "1"),
        ("{{ env('ROLLED_AND_NEVER_SET', 'unset') }}", "unset"),
        ("{{ env('ROLLED_AND_NEVER_SET')|default('unset') }}", "unset"),
        ("{{ revision }}", "42"),
        ("{{ vars.domain }} {{ vars.ports[1] }}", "example.com 8080"),
        (
            "{% for i in instances %}{% if i.service == 'db' %}{% break %}{% endif %}{{ i.container }}{% endfor %}",
            "api-1",
        ),
        ("{{ 'a b'|urlencode }} {{ 'ab'.startswith('a') }}", "a%20b True"),
        ("{{ 5|shell }}", "'5'"),
    ] {
        assert_eq!(render(source).expect("it renders"), expected, "{source}");
    }
    assert_eq!(render("{{ env('PATH') }}").expect("it renders"), std::env::var("PATH").expect("it is set"));
}

#[test]
fn an_error_names_the_file_the_line_and_the_expression() {
    for (source, expected) in [
        ("\n{{ instances[9].node }}", "line 2: `instances[9]` is undefined"),
        ("{{ 'a'|regex_match('(') }}", "line 1: \"(\" is no regular expression: regex parse error"),
        ("{{ '{'|fromjson }}", "line 1: the text is no JSON"),
        (
            "{{ '$x'|nginx }}",
            "line 1: \"$x\" cannot be quoted for nginx: nginx takes what follows a $ for a variable, in {{ '$x'|nginx }}",
        ),
        ("{{ vars.none|shell }}", "line 1: "),
        (
            "{{ env('ROLLCALL_ETCD') }}",
            "line 1: ROLLCALL_ETCD is not shown to templates, as it may hold a secret, in {{ env(",
        ),
        ("{{ env('etcdctl_user') }}", "etcdctl_user is not shown to templates"),
        ("{{ instances|group_by }}", "line 1: group_by has no key"),
        ("{{ instances|where('a', equal='x') }}", "line 1: "),
        ("{% include 'none.jinja' %}", "line 1: "),
    ] {
        let error = render(source).expect_err("it fails");
        assert!(
            error.contains("list.jinja fails: ") && error.contains(expected) && !error.contains('\n'),
            "{error}"
        );
    }
}

#[test]
fn an_error_in_an_included_template_names_that_one() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("main.jinja"), "{% include 'part.jinja' %}").expect("a file");
    fs::write(dir.path().join("part.jinja"), "\n\n{{ nobody }}").expect("a file");
    let error = fill_in(&dir.path().join("main.jinja")).expect_err("it fails");
    assert!(error.contains("part.jinja") && error.contains('3'), "{error}");
}
