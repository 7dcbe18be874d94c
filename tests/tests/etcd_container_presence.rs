//! etcd-container-presence, from its page: the same command lines with the agent in its place, and what its readers find
//! in etcd; the other layouts beside.
//!
//! Its page runs it in a container of its own network, with Docker's socket at /run/docker.sock, beside an etcd that is
//! reached at the bridge's address.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rollcall_tests::{Container, DockerHost, Etcd, EtcdConfig, Program, docs, image, until};

const TIMEOUT: Duration = Duration::from_secs(15);
/// The page's own fallback where a port is published on every address.
const FALLBACK: &str = "172.17.42.1";

/// The address at which containers reach this machine.
fn bridge(host: &DockerHost) -> Result<IpAddr> {
    let probe = host.run(&["--name", "presence-probe", image::worker()?])?;
    let gateway = probe.inspect("{{.NetworkSettings.Gateway}}")?;
    gateway.parse().with_context(|| format!("a gateway, not {gateway:?}"))
}

fn etcd_on(ip: IpAddr) -> Result<Etcd> {
    Etcd::start_with(EtcdConfig { listen_ip: ip, ..EtcdConfig::default() })
}

/// The agent on this machine's own network.
fn agent(etcd: &Etcd, flags: &[&str]) -> Result<Program> {
    let mut command = Program::agent()?;
    command.args(["--etcd", &etcd.endpoint(), "--listen", "off", "--advertise", "10.9.8.7"]).args(flags);
    Program::start("agent", command)
}

fn worker(host: &DockerHost, name: &str, publish: &[&str]) -> Result<Container> {
    let mut args = vec!["--name", name];
    args.extend(publish.iter().flat_map(|port| ["--publish", *port]));
    args.push(image::worker()?);
    host.run(&args)
}

/// The revision and the lease of a key.
fn written(etcd: &Etcd, key: &str) -> Result<(i64, i64)> {
    let printed = etcd.etcdctl(&["get", "--write-out", "json", "--", key])?;
    let answer: serde_json::Value = serde_json::from_str(&printed)?;
    let found = &answer["kvs"][0];
    let number = |name: &str| found[name].as_i64().with_context(|| format!("no {name} in {printed}"));
    Ok((number("mod_revision")?, number("lease")?))
}

fn granted_ttl(etcd: &Etcd, lease: i64) -> Result<i64> {
    let printed = etcd.etcdctl(&["lease", "timetolive", &format!("{lease:x}"), "--write-out", "json"])?;
    let answer: serde_json::Value = serde_json::from_str(&printed)?;
    answer["granted-ttl"].as_i64().with_context(|| format!("no TTL in {printed}"))
}

fn layout_keys(etcd: &Etcd) -> Result<Vec<String>> {
    etcd.ctl().keys("/containers/")
}

#[test]
fn the_pages_command_line_keeps_the_pages_keys_while_both_run() -> Result<()> {
    let host = DockerHost::local()?;
    let gateway = bridge(&host)?;
    let etcd = etcd_on(gateway)?;
    let everywhere = worker(&host, "presence-main", &["80", &format!("{gateway}::81")])?;
    // As the page on moving over has it, "docker run" and what follows.
    let (image, _) = image::rollcall()?;
    let (endpoint, line) = (etcd.endpoint(), docs::now("etcd-container-presence")?.remove(0));
    let replaced = [
        ("http://172.17.42.1:2379", endpoint.as_str()),
        ("rollcall/agent", image),
        ("my_container", "presence-main"),
    ];
    let words = docs::words(&line, &replaced)?;
    assert_eq!(words[..2], ["docker", "run"]);
    let agent = host.run(&words[2..].iter().map(String::as_str).collect::<Vec<_>>())?;
    let key = |port: u16, name: &str| format!("/containers/presence-main/{port}/{name}");
    let keys = [key(80, "host"), key(80, "port"), key(81, "host"), key(81, "port")];
    until("the page's keys are there", TIMEOUT, || Ok(layout_keys(&etcd)? == keys))
        .with_context(|| agent.logs().unwrap_or_default())?;
    let value = |key: &str| -> Result<String> { etcd.ctl().get(key)?.context("it is there") };
    assert_eq!(value(&keys[0])?, FALLBACK, "the fallback, as it is published on every address");
    assert_eq!(value(&keys[1])?, everywhere.published(80)?.port().to_string());
    assert_eq!(value(&keys[2])?, gateway.to_string(), "the interface that it is published on");
    assert_eq!(value(&keys[3])?, everywhere.published(81)?.port().to_string());
    let (revision, lease) = written(&etcd, &keys[0])?;
    for key in &keys {
        assert_eq!(written(&etcd, key)?, (revision, lease), "one transaction and one lease");
    }
    assert_eq!(granted_ttl(&etcd, lease)?, 60);
    let warning = "is that of container";
    until("it warns of the address that it has found", TIMEOUT, || Ok(agent.logs()?.contains(warning)))?;
    let explained = agent.exec(&["/rollcall-agent", "explain", "presence-main"])?;
    for expected in [warning, &format!("key {}", keys[0]), &format!("value {FALLBACK}")] {
        assert!(explained.contains(expected), "{explained}");
    }

    everywhere.kill("KILL")?;
    until("its keys go with the container", TIMEOUT, || Ok(layout_keys(&etcd)?.is_empty()))?;
    everywhere.start()?;
    until("and come with it", TIMEOUT, || Ok(layout_keys(&etcd)? == keys))?;
    let asked = Instant::now();
    agent.kill("TERM")?;
    until("SIGTERM removes them", Duration::from_secs(1), || Ok(layout_keys(&etcd)?.is_empty()))?;
    println!("removed {:?} after SIGTERM", asked.elapsed());
    Ok(())
}

#[test]
fn without_etcd_one_line_says_what_is_missing() -> Result<()> {
    let host = DockerHost::local()?;
    let (image, _) = image::rollcall()?;
    let volume = ["-v", "/run/docker.sock:/run/docker.sock"];
    let agent = host.run(&[&volume[..], &[image, "--container", "presence-main"]].concat())?;
    until("it ends", TIMEOUT, || Ok(agent.inspect("{{.State.Status}}")? == "exited"))?;
    assert_eq!(agent.inspect("{{.State.ExitCode}}")?, "2");
    let expected = "rollcall-agent: error: --etcd (ETCDCTL_ENDPOINTS) is not given: expected etcd's client URLs, such \
                    as http://10.0.0.1:2379";
    assert_eq!(agent.logs()?.trim(), expected);
    Ok(())
}

#[test]
fn two_agents_of_one_host_each_with_its_own_container_run_side_by_side() -> Result<()> {
    let (etcd, host) = (Etcd::start()?, DockerHost::local()?);
    let _workers = [worker(&host, "presence-a", &["80"])?, worker(&host, "presence-b", &["80"])?];
    let of = |name: &str| agent(&etcd, &["--layout", "containers", "--container", name]);
    let (mut a, mut b) = (of("presence-a")?, of("presence-b")?);
    let keys = |names: &[&str]| -> Vec<String> {
        let key = |name: &&str| ["host", "port"].map(|end| format!("/containers/{name}/80/{end}"));
        names.iter().flat_map(key).collect()
    };
    until("both are there", TIMEOUT, || Ok(layout_keys(&etcd)? == keys(&["presence-a", "presence-b"])))?;
    let watch = etcd.ctl().watch("/")?;
    let mut second = of("presence-a")?;
    assert_eq!(second.wait(TIMEOUT)?.code(), Some(1));
    let refused = second.wait_log("error: ", TIMEOUT)?;
    for way in ["by --node; or one agent for both, by --container NAME,NAME", ".presence-a is held by"] {
        assert!(refused.contains(way), "{refused}");
    }
    thread::sleep(Duration::from_secs(2));
    assert!(watch.events()?.len() <= 2, "it is asked and answers, and no more: {:?}", watch.events()?);
    assert_eq!((a.exited()?, b.exited()?), (None, None));
    assert_eq!(b.terminate(TIMEOUT)?.code(), Some(0));
    assert_eq!(layout_keys(&etcd)?, keys(&["presence-a"]));
    assert_eq!(a.terminate(TIMEOUT)?.code(), Some(0));
    assert_eq!(etcd.ctl().keys("/")?, [""; 0]);
    Ok(())
}

#[test]
fn registrators_and_skydns_keys_are_there_beside_and_all_are_put_back_after_etcd_lost_its_data() -> Result<()>
{
    let (mut etcd, host) = (Etcd::start()?, DockerHost::local()?);
    let worker = worker(&host, "presence-beside", &["80", "45353:53/udp"])?;
    let layouts = ["--layout", "containers,registrator,skydns", "--node", "h1"];
    let _agent = agent(&etcd, &[&layouts[..], &["--only-name", "^presence-beside$"]].concat())?;
    let (port, id) = (worker.published(80)?.port().to_string(), worker.short_id());
    let service = "rollcall-test-worker";
    let record =
        |port: &str| format!(r#"{{"host":"10.9.8.7","port":{port},"priority":10,"weight":1,"ttl":5}}"#);
    let expected = [
        ("/containers/presence-beside/53/host".to_owned(), "10.9.8.7".to_owned()),
        ("/containers/presence-beside/53/port".to_owned(), "45353".to_owned()),
        ("/containers/presence-beside/80/host".to_owned(), "10.9.8.7".to_owned()),
        ("/containers/presence-beside/80/port".to_owned(), port.clone()),
        (format!("/services/{service}-53/h1:presence-beside:53:udp"), "10.9.8.7:45353".to_owned()),
        (format!("/services/{service}-80/h1:presence-beside:80"), format!("10.9.8.7:{port}")),
        (format!("/skydns/local/rollcall/{service}-53/{id}-53-udp"), record("45353")),
        (format!("/skydns/local/rollcall/{service}-80/{id}-80-tcp"), record(&port)),
    ];
    let is_there = |etcd: &Etcd| -> Result<bool> {
        for (key, value) in &expected {
            if etcd.ctl().get(key)?.as_ref() != Some(value) {
                return Ok(false);
            }
        }
        let keys = etcd.ctl().keys("/")?;
        Ok(keys.iter().filter(|key| !key.starts_with("/rollcall/")).count() == expected.len())
    };
    until("all of them are there", TIMEOUT, || is_there(&etcd))
        .with_context(|| format!("{:?}", etcd.ctl().run(&["get", "--prefix", "/"])))?;
    etcd.stop()?;
    etcd.wipe()?;
    etcd.start_again()?;
    until("all of them are there again", TIMEOUT, || is_there(&etcd))?;
    etcd.ctl().put("/containers/presence-beside/80/port", "1")?;
    until("a key that someone took over goes on being theirs, and the pair is not mixed", TIMEOUT, || {
        Ok(etcd.ctl().get("/containers/presence-beside/80/host")?.is_none())
    })?;
    etcd.ctl().del("/containers/presence-beside/80/port")?;
    until("once it goes, ours are back", TIMEOUT, || is_there(&etcd))
}
