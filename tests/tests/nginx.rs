//! Whatever is registered, a real nginx takes the file that is rendered of it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use rollcall_tests::{Container, DockerHost, Etcd, Program, image, until};

const TIMEOUT: Duration = Duration::from_secs(15);

fn put(etcd: &Etcd, number: u8, service: &str, address: &str) -> Result<()> {
    let id = format!("{number:012x}");
    let value = format!(
        r#"{{"v":1,"service":"{service}","container":"c{number}","id":"{id}","image":"x","address":"{address}","port":8080,"protocol":"tcp","container_port":80,"status":"passing","started_at":"2026-01-01T00:00:00Z"}}"#
    );
    etcd.ctl().put(&format!("/rollcall/instances/h1/{id}/80-tcp"), &value)
}

/// A container with nginx's program and these files in its conf.d.
fn nginx(conf: &Path) -> Result<Container> {
    let volume = format!("{}:/etc/nginx/conf.d:ro", conf.display());
    DockerHost::local()?.run(&["--volume", &volume, image::nginx()?, "sleep", "600"])
}

#[test]
fn neither_a_name_that_does_not_resolve_nor_one_that_differs_in_case_only_makes_nginx_refuse_the_rest()
-> Result<()> {
    let (etcd, dir) = (Etcd::start()?, tempfile::tempdir()?);
    let (conf, dest) = (dir.path().join("conf.d"), dir.path().join("conf.d/rollcall.conf"));
    fs::create_dir(&conf)?;
    put(&etcd, 1, "web", "10.0.0.1")?;
    put(&etcd, 2, "Web", "10.0.0.2")?;
    put(&etcd, 3, "api", "no-such-name.invalid")?;
    put(&etcd, 4, "api", "localhost")?;
    let mut command = Program::consumer()?;
    command.args(["--etcd", &etcd.endpoint(), "--listen", "off", "--format", "nginx-upstream", "--dest"]);
    command.arg(&dest).arg("--state-dir").arg(dir.path());
    let mut consumer = Program::start("consumer", command)?;
    until("it is rendered", TIMEOUT, || Ok(fs::read_to_string(&dest)?.contains("localhost")))?;
    let said = consumer.wait_log("leaves out", TIMEOUT)?;
    assert!(said.contains("no-such-name.invalid:8080, which does not resolve"), "{said}");
    let nginx = nginx(&conf)?;
    nginx.exec(&["nginx", "-t", "-q"])?;
    // What it would say otherwise.
    for (bad, expected) in [
        ("upstream api { server no-such-name.invalid:8080; }", "host not found in upstream"),
        ("upstream web { server 10.0.0.1:1; } upstream Web { server 10.0.0.2:1; }", "duplicate upstream"),
    ] {
        fs::write(&dest, bad)?;
        let error = format!("{:#}", nginx.exec(&["nginx", "-t", "-q"]).expect_err("it is refused"));
        assert!(error.contains(expected), "{error}");
    }
    Ok(())
}
