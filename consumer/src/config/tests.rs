use std::time::Duration;

use rollcall_shared::instance::{Protocol, Status};

use super::*;
use crate::render::Format;

const TARGET: &str = "[[target]]\nname = \"web\"\ndest = \"/tmp/web.conf\"\n";

fn web(rest: &str) -> Result<TargetSettings, String> {
    let mut targets = parse(&format!("{TARGET}{rest}"))?;
    Ok(targets.remove(0))
}

#[test]
fn a_target_with_every_key_is_read() {
    let target = web(r#"
format = "nginx-upstream"
mode = "0640"
owner = "0:0"
check = "nginx -t -c {file}"
check_timeout = "5s"
heartbeat = "1s"
debounce = { min = "10ms", max = "100ms" }
guard = { min_instances = 1, max_loss = "50%", hold = "30s" }
backups = { dir = "/var/backups", keep = 3 }
[target.select]
service = ["web", "api"]
service_regex = "^w"
container_regex = "1$"
labels = ["role=front", "public"]
node = "h1"
port = [80, 8080]
protocol = "tcp"
tags = ["blue"]
status = ["passing", "starting"]
family = "ipv6"
[target.notify]
label = "role=proxy"
signal = "USR1"
"#)
    .expect("a target");
    assert_eq!(target.content, Content::Format(Format::NginxUpstream));
    assert_eq!(target.select.ports, [80, 8080]);
    assert_eq!(target.select.nodes, ["h1".parse().expect("a name")]);
    assert_eq!(target.select.statuses, [Status::Passing, Status::Starting]);
    assert_eq!(target.debounce.max, Duration::from_millis(100));
    assert_eq!(target.notify.expect("a notifier").to_string(), "USR1 to label role=proxy");
    assert_eq!(target.check.expect("a check").timeout, Duration::from_secs(5));
}

#[test]
fn what_is_not_said_has_its_default() {
    let target = web("format = \"json\"").expect("a target");
    assert_eq!(target.select.statuses, [Status::Passing]);
    assert_eq!(target.select.protocol, None);
    assert_eq!(target.debounce, DebounceSettings::default());
    let target = web("format = \"citus-workers\"").expect("a target");
    assert_eq!(target.select.protocol, Some(Protocol::Tcp));
}

#[test]
fn what_is_wrong_is_named_on_one_line() {
    for (rest, expected) in [
        ("", "target web: expected format or template"),
        (
            "format = \"json\"\ntemplate = \"x\"",
            "target web: format and template are both set: expected one of them",
        ),
        (
            "formt = \"json\"",
            "line 4, \"formt = \\\"json\\\"\": unknown field `formt`, expected one of `name`, `dest`, `format`,",
        ),
        (
            "format = \"json\"\n[target.select]\nservice_regex = \"(\"",
            "line 6, \"service_regex = \\\"(\\\"\": \"(\" is not a regular expression: unclosed group",
        ),
        (
            "format = \"json\"\n[target.select]\nport = 99999",
            "line 6, \"port = 99999\": 99999: number too large",
        ),
        (
            "format = \"json\"\n[target.select]\nservice = \"a b\"",
            "line 6, \"service = \\\"a b\\\"\": \"a b\" is not a service name",
        ),
        (
            "format = \"json\"\n[target.select]\nstatus = \"up\"",
            "line 6, \"status = \\\"up\\\"\": \"up\" is not a status",
        ),
        (
            "format = \"json\"\nheartbeat = \"soon\"",
            "line 5, \"heartbeat = \\\"soon\\\"\": \"soon\" is not a time",
        ),
        ("format = \"json\"\ncheck = \"true\"", "target web: check is \"true\": expected {file} in it"),
        ("format = \"json\"\ncheck_timeout = \"1s\"", "target web: check_timeout is set without check"),
        (
            "format = \"json\"\n[target.notify]\nsignal = \"HUP\"",
            "target web: notify: expected exactly one of",
        ),
        (
            "format = \"json\"\n[target.notify]\ncommand = \"x\"\nsignal = \"HUP\"",
            "target web: notify.signal and notify.command",
        ),
        ("format = \"citus-workers\"\n[target.select]\nprotocol = \"udp\"", "target web: protocol is udp"),
        (
            "format = \"json\"\nguard = { max_loss = \"100%\" }",
            "line 5, \"guard = { max_loss = \\\"100%\\\" }\": \"100%\" is not a share",
        ),
        ("format = \"json\"\nguard = {}", "target web: guard: expected min_instances, max_loss or both"),
    ] {
        let error = web(rest).map(drop).expect_err(rest);
        assert!(error.starts_with(expected), "{error}\n{expected}");
        assert!(!error.contains('\n'), "{error}");
    }
    assert_eq!(parse("").map(drop), Err("it has no [[target]]: expected one or more".to_owned()));
    let twice = format!("{TARGET}format = \"json\"\n{TARGET}format = \"json\"\n");
    assert_eq!(
        parse(&twice).map(drop),
        Err("target web is there twice: expected names of their own".to_owned())
    );
}
