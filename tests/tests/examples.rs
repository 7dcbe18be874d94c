//! What deploy/examples has works with the programs that it is for, as Debian installs them.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rollcall_tests::{Container, DockerHost, Etcd, image, program, tool};

/// What binds a container as the consumer's unit binds the consumer: what it may write, and what root may do.
fn restrictions() -> Result<Vec<String>> {
    let unit = fs::read_to_string(tool::workspace().join("deploy/systemd/rollcall-consumer.service"))?;
    let setting = |name: &str| -> Result<Vec<String>> {
        let value = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let words = value.with_context(|| format!("the unit has no {name}"))?.split_whitespace();
        Ok(words.map(str::to_owned).collect())
    };
    anyhow::ensure!(setting("ProtectSystem")? == ["strict"] && setting("NoNewPrivileges")? == ["yes"]);
    let paths = setting("ReadWritePaths")?;
    // A volume has what the image has there.
    let paths = paths.iter().map(|path| format!("--volume={}", path.trim_start_matches('-')));
    let capabilities = setting("CapabilityBoundingSet")?;
    let capabilities =
        capabilities.iter().map(|name| format!("--cap-add={}", name.trim_start_matches("CAP_")));
    let fixed = [
        "--read-only",
        "--tmpfs=/tmp",
        "--tmpfs=/var/lib/rollcall",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--init",
    ];
    Ok(fixed.map(str::to_owned).into_iter().chain(paths).chain(capabilities).collect())
}

fn examples() -> PathBuf {
    tool::workspace().join("deploy/examples")
}

/// A host with nginx, HAProxy, the consumer and the examples.
fn host(options: &[&str]) -> Result<Container> {
    let volumes = [
        format!("--volume={}:/etc/rollcall:ro", examples().display()),
        format!("--volume={}:/usr/local/bin:ro", program::built()?.display()),
    ];
    let volumes = volumes.each_ref().map(String::as_str);
    let rest = ["--network=host", image::proxies()?, "sleep", "600"];
    DockerHost::local()?.run(&[&volumes[..], options, &rest[..]].concat())
}

/// Registers an instance of each service that the examples select.
fn register(etcd: &Etcd) -> Result<()> {
    for (number, service) in ["web", "api", "hello"].into_iter().enumerate() {
        let id = format!("{number:012x}");
        let value = serde_json::json!({
            "v": 1, "service": service, "container": service, "id": id, "image": "x",
            "address": "10.0.0.1", "port": 8080 + number, "protocol": "tcp", "container_port": 5432,
            "status": "passing", "started_at": "2026-01-01T00:00:00Z", "tags": ["web"],
            "labels": {"com.citusdata.role": "Worker"},
            "environment": {"VIRTUAL_HOST": format!("{service}.example.com")},
        });
        etcd.ctl().put(&format!("/rollcall/instances/h1/{id}/5432-tcp"), &value.to_string())?;
    }
    Ok(())
}

/// Runs a shell's command in a container; gives its exit code and what it said.
fn shell(host: &Container, command: &str) -> Result<(i32, String)> {
    let said = host.exec(&["sh", "-c", &format!("({command}) 2>&1; code=$?; echo; echo $code")])?;
    let (said, code) = said.rsplit_once('\n').context("it has an exit code")?;
    Ok((code.parse()?, said.to_owned()))
}

/// Whether a test beside this one names an example.
fn is_in_another_test(example: &str) -> Result<bool> {
    for entry in fs::read_dir(tool::workspace().join("tests/tests"))? {
        let path = entry?.path();
        if path.is_file() && !path.ends_with("examples.rs") && fs::read_to_string(path)?.contains(example) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn consumer(etcd: &Etcd, example: &str, option: &str) -> String {
    let etcd = etcd.endpoint();
    format!("rollcall-consumer --etcd {etcd} --listen off --config /etc/rollcall/{example} {option}")
}

#[test]
fn every_example_is_rendered_and_checked_by_its_own_program_under_the_units_restrictions() -> Result<()> {
    let etcd = Etcd::start()?;
    register(&etcd)?;
    let restrictions = restrictions()?;
    let host = host(&restrictions.iter().map(String::as_str).collect::<Vec<_>>())?;
    let mut seen = 0;
    for entry in fs::read_dir(examples())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.ends_with(".toml") {
            continue;
        }
        seen += 1;
        if fs::read_to_string(examples().join(&name))?.contains("\nsink = ") {
            // Without its program, nothing can be said of what is told directly.
            assert!(is_in_another_test(&name)?, "{name} is run by no test");
            continue;
        }
        let (code, said) = shell(&host, &consumer(&etcd, &name, "--dry-run"))?;
        assert_eq!(code, 2, "{name}: {said}");
        assert!(said.contains("10.0.0.1"), "{name}: {said}");
    }
    assert!(seen >= 5, "they are somewhere else");
    // The checks are no formality.
    for (check, bad) in [
        ("/etc/rollcall/nginx-check $f /etc/nginx/conf.d/rollcall.conf", "upstream web {"),
        ("haproxy -c -f /etc/haproxy/haproxy.cfg -f $f", "backend web\\n server"),
    ] {
        let (code, said) = shell(&host, &format!("f=/tmp/.bad.cfg; printf '{bad}\\n' >$f; {check}"))?;
        assert_ne!(code, 0, "{check}: {said}");
    }
    Ok(())
}

#[test]
fn an_nginx_of_the_host_is_reloaded_by_its_pid_file() -> Result<()> {
    let etcd = Etcd::start()?;
    register(&etcd)?;
    let host = host(&[])?;
    let (code, said) =
        shell(&host, "rm /etc/nginx/sites-enabled/default; nginx -g 'error_log /tmp/log notice;'")?;
    assert_eq!(code, 0, "{said}");
    let (code, said) = shell(&host, &consumer(&etcd, "nginx-host.toml", "--once"))?;
    assert_eq!(code, 0, "{said}");
    let waited = "for i in $(seq 100); do grep -q reconfiguring /tmp/log && exit 0; sleep 0.1; done; exit 1";
    let (code, said) = shell(&host, waited)?;
    assert_eq!(code, 0, "{said}");
    Ok(())
}

#[test]
fn the_check_of_nginx_sees_the_whole_configuration_and_leaves_the_host_as_it_was() -> Result<()> {
    let host = host(&[])?;
    let own = "proxy_cache_path /var/cache/one keys_zone=one:1m; proxy_cache_path /var/cache/two keys_zone=two:1m;\n\
               upstream api { server 10.0.0.1:1; }\n\
               server { listen 8080; access_log /var/log/nginx/own.log; proxy_temp_path /var/cache/temp; }\n";
    shell(
        &host,
        &format!(
            "printf '%s' '{own}' >/etc/nginx/conf.d/own.conf; echo old >/etc/nginx/conf.d/rollcall.conf"
        ),
    )?;
    let state = || -> Result<BTreeSet<String>> {
        let (_, found) = shell(&host, "find /etc/* /run /var -printf '%p %u %g %m %s %t\\n'")?;
        Ok(found.lines().map(str::to_owned).collect())
    };
    let before = state()?;
    let check = |file: &str| {
        let command = "/etc/rollcall/nginx-check /tmp/.new.conf /etc/nginx/conf.d/rollcall.conf";
        shell(&host, &format!("printf '%s' '{file}' >/tmp/.new.conf; {command}"))
    };
    let (code, said) = check("upstream web { server 10.0.0.1:1; }")?;
    assert_eq!((code, said.trim()), (0, ""));
    for (file, expected) in [
        ("upstream web {", "unexpected end of file"),
        (
            "upstream Api { server 10.0.0.1:1; }",
            "duplicate upstream \"Api\" in /etc/nginx/conf.d/rollcall.conf:1",
        ),
        ("proxy_cache three;", "\"proxy_cache\" zone \"three\" is unknown"),
    ] {
        let (code, said) = check(file)?;
        assert!(code == 1 && said.contains(expected), "{file}: {code}: {said}");
    }
    let after = state()?;
    assert_eq!(after.symmetric_difference(&before).collect::<Vec<_>>(), [""; 0]);
    assert_eq!(shell(&host, "ls -A /tmp")?.1.trim(), ".new.conf", "it clears what it made");
    // Without this line, nginx opens a log whose name is compiled in.
    shell(&host, "sed -i /access_log/d /etc/nginx/nginx.conf; rm -f /var/log/nginx/access.log")?;
    let (code, said) = check("upstream web { server 10.0.0.1:1; }")?;
    assert_eq!((code, said.trim()), (0, ""));
    assert_ne!(shell(&host, "test -e /var/log/nginx/access.log")?.0, 0, "it was opened");
    Ok(())
}

#[test]
fn a_check_of_nginx_that_is_told_to_end_clears_what_it_made() -> Result<()> {
    let host = host(&[])?;
    let (code, said) = shell(
        &host,
        "mkdir /bin/slow; cd /bin/slow; export PATH=/bin/slow:$PATH TMPDIR=/tmp\n\
         printf '#!/bin/sh\ncase $* in *-t*) touch /run/begun; exec sleep 60;; esac\nexec /usr/sbin/nginx \"$@\"\n' >nginx\n\
         chmod +x nginx; echo >/run/new.conf\n\
         setsid /etc/rollcall/nginx-check /run/new.conf /etc/nginx/conf.d/rollcall.conf 2>/dev/null & check=$!\n\
         for i in $(seq 100); do test -e /run/begun && break; sleep 0.1; done; ls -A /tmp | wc -l\n\
         kill -TERM -$check; wait $check; echo $?; ls -A /tmp",
    )?;
    assert_eq!((code, said.split_whitespace().collect::<Vec<_>>()), (0, vec!["1", "143"]), "{said}");
    Ok(())
}

#[test]
fn a_mounted_file_that_nothing_can_be_staged_for_is_refused_at_the_start() -> Result<()> {
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("list"), "old\n")?;
    let list = format!("--volume={}:/etc/list", dir.path().join("list").display());
    let command = "rollcall-consumer --etcd http://127.0.0.1:1 --listen off --dest /etc/list --format json --once \
                   --state-dir /state --wait 100ms";
    let (code, said) = shell(&host(&["--read-only", "--tmpfs=/state", &list])?, command)?;
    assert_eq!(code, 2, "{said}");
    let expected = "dest is /etc/list: expected permission to write in /etc or, to stage it there, in /tmp";
    assert!(said.contains(expected), "{said}");
    let (code, said) = shell(&host(&["--read-only", "--tmpfs=/state", "--tmpfs=/tmp", &list])?, command)?;
    assert!(code == 1 && said.contains("http://127.0.0.1:1"), "there is only no etcd: {code}: {said}");
    Ok(())
}
