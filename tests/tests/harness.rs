//! The harness on itself: its parts start, do what the other tests rely on, and are gone afterwards.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use rollcall_tests::etcdctl::Event;
use rollcall_tests::{
    Bridge, DockerHost, Etcd, EtcdCluster, EtcdConfig, Program, Swarm, Tls, http, image, until,
};

const TIMEOUT: Duration = Duration::from_secs(10);

fn runs(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

#[test]
fn an_etcd_takes_a_put_shows_it_to_a_watcher_and_is_gone_when_dropped() -> Result<()> {
    let etcd = Etcd::start()?;
    let ctl = etcd.ctl();
    let watch = ctl.watch("/a/")?;
    ctl.put("/a/key", "value")?;
    ctl.del("/a/key")?;
    let key = "/a/key".to_owned();
    let expected = [Event::Put { key: key.clone(), value: "value".to_owned() }, Event::Delete { key }];
    until("the watcher sees both", TIMEOUT, || Ok(watch.events()? == expected))?;
    let pids = [etcd.pid(), watch.pid()];
    assert!(pids.into_iter().all(runs));
    drop((watch, etcd));
    assert!(!pids.into_iter().any(runs));
    Ok(())
}

#[test]
fn an_etcd_comes_back_from_a_crash_with_its_data_and_from_a_wipe_without() -> Result<()> {
    let mut etcd = Etcd::start()?;
    etcd.ctl().put("key", "value")?;
    let revision = etcd.ctl().revision()?;
    etcd.kill();
    etcd.start_again()?;
    assert_eq!(etcd.ctl().get("key")?.as_deref(), Some("value"));
    assert_eq!(etcd.ctl().revision()?, revision);
    etcd.stop()?;
    etcd.wipe()?;
    etcd.start_again()?;
    assert_eq!(etcd.ctl().get("key")?, None);
    assert_eq!(etcd.ctl().revision()?, 1);
    Ok(())
}

#[test]
fn an_etcd_with_mutual_tls_and_users_refuses_strangers() -> Result<()> {
    let tls = Arc::new(Tls::generate(&[])?);
    let mut etcd = Etcd::start_with(EtcdConfig { tls: Some(tls), ..EtcdConfig::default() })?;
    etcd.enable_auth("secret")?;
    etcd.ctl().put("key", "value")?;
    let wrong = etcd.ctl().as_user("root", "wrong").get("key").expect_err("the password is wrong");
    assert!(format!("{wrong:#}").contains("invalid user ID or password"), "{wrong:#}");
    let stranger = rollcall_tests::Etcdctl::new(vec![etcd.endpoint()], Some(Arc::new(Tls::generate(&[])?)));
    assert!(stranger.run(&["--dial-timeout", "1s", "--command-timeout", "1s", "get", "key"]).is_err());
    Ok(())
}

#[test]
fn a_cluster_of_three_survives_the_loss_of_a_member() -> Result<()> {
    let mut cluster = EtcdCluster::start(3)?;
    cluster.ctl().put("key", "before")?;
    cluster.member_mut(0).kill();
    let ctl = cluster.member(1).ctl();
    // The killed one may have been the leader.
    until("the others take a put", TIMEOUT, || ctl.put("key", "after").map(|()| true))?;
    cluster.member_mut(0).start_again()?;
    assert_eq!(cluster.member(0).ctl().get("key")?.as_deref(), Some("after"));
    Ok(())
}

#[test]
fn three_hosts_with_a_member_each_keep_their_majority_when_one_is_cut_off() -> Result<()> {
    let bridge = Bridge::start()?;
    let hosts = DockerHost::start_several(3, &bridge)?;
    let cluster = EtcdCluster::start_on(&hosts)?;
    cluster.ctl().put("key", "before")?;
    hosts[1].cut_off()?;
    // The one cut off may have been the leader.
    let ctl = cluster.member(0).ctl();
    until("the others take a put", TIMEOUT, || ctl.put("key", "after").map(|()| true))?;
    hosts[1].heal()?;
    let ctl = cluster.member(1).ctl();
    until("it has caught up", TIMEOUT, || Ok(ctl.get("key")?.as_deref() == Some("after")))
}

#[test]
fn two_docker_hosts_reach_each_other_until_one_is_cut_off() -> Result<()> {
    let bridge = Bridge::start()?;
    let hosts = DockerHost::start_several(2, &bridge)?;
    let [one, two] = &hosts[..] else { panic!("two were asked for") };
    let id = |host: &DockerHost| host.docker(&["info", "--format", "{{.ID}}"]);
    assert_ne!(id(one)?, id(two)?, "each engine has an ID of its own");
    one.load_image(image::worker()?)?;
    let worker = one.run(&["--publish", "80", "--hostname", "w1", image::WORKER])?;
    let address = worker.published(80)?;
    assert_eq!(address.ip(), one.ip());
    let url = format!("http://{address}/");

    until("it answers this machine", TIMEOUT, || Ok(http::get(&url)?.body == "w1\n"))?;
    let curl = || -> Result<String> {
        let mut curl = rollcall_tests::tool::command("curl")?;
        curl.args(["--silent", "--fail", "--max-time", "1", &url]);
        rollcall_tests::tool::run(&mut two.run_in_netns(curl)?)
    };
    assert_eq!(curl()?, "w1");
    one.cut_off()?;
    assert!(curl().is_err(), "host 1 is cut off");
    one.heal()?;
    until("it answers host 2 again", TIMEOUT, || Ok(curl()? == "w1"))?;

    let engine = one.engine_pid()?;
    let netns = one.netns().map(Path::to_owned).expect("it has one");
    drop((worker, hosts));
    assert!(!runs(engine));
    assert!(!netns.exists());
    Ok(())
}

#[test]
fn a_container_outlives_the_crash_of_its_engine_and_goes_with_its_host() -> Result<()> {
    let bridge = Bridge::start()?;
    let mut host = DockerHost::start(1, &bridge)?;
    host.load_image(image::worker()?)?;
    let worker = host.run(&["--publish", "80", image::WORKER])?;
    let pid: u32 = worker.inspect("{{.State.Pid}}")?.parse()?;
    host.kill_engine()?;
    assert!(runs(pid));
    host.start_engine()?;
    until("the new engine has ended it", TIMEOUT, || Ok(worker.inspect("{{.State.Running}}")? == "false"))?;
    worker.start()?;
    let pid: u32 = worker.inspect("{{.State.Pid}}")?.parse()?;
    host.kill_engine()?;
    assert!(runs(pid));
    drop(host);
    until("the container's process is gone", TIMEOUT, || Ok(!runs(pid)))
}

#[test]
fn a_stopped_worker_serves_while_it_drains() -> Result<()> {
    let host = DockerHost::local()?;
    let worker = host.run(&["--publish", "80", "--env", "DRAIN_MS=1000", image::worker()?])?;
    let url = format!("http://{}/", worker.published(80)?);
    until("it answers", TIMEOUT, || Ok(http::get(&url)?.status == 200))?;
    worker.kill("TERM")?;
    assert_eq!(http::get(&url)?.status, 200, "draining");
    until("it has ended", TIMEOUT, || {
        Ok(worker.inspect("{{.State.Status}} {{.State.ExitCode}}")? == "exited 0")
    })
}

#[test]
fn the_images_of_nginx_and_postgresql_run() -> Result<()> {
    let host = DockerHost::local()?;
    let nginx = host.run(&["--publish", "80", image::nginx()?])?;
    nginx.exec(&["nginx", "-t"])?;
    let postgres = host.run(&[image::postgres()?])?;
    until("PostgreSQL is healthy", TIMEOUT, || {
        Ok(postgres.inspect("{{.State.Health.Status}}")? == "healthy")
    })?;
    postgres.kill("HUP")?;
    until("it has reloaded", TIMEOUT, || Ok(postgres.logs()?.contains("reloading configuration files")))?;
    assert_eq!(postgres.exec(&["psql", "--tuples-only", "--no-align", "--command", "select 1"])?, "1");
    Ok(())
}

#[test]
fn rollcalls_images_run() -> Result<()> {
    let host = DockerHost::local()?;
    let (agent, consumer) = image::rollcall()?;
    for (image, name) in [(agent, "rollcall-agent"), (consumer, "rollcall-consumer")] {
        assert!(host.docker(&["run", "--rm", image, "--version"])?.starts_with(name), "{image}");
    }
    Ok(())
}

#[test]
fn the_tasks_of_a_swarm_run_on_all_of_its_hosts() -> Result<()> {
    let (bridge, dir) = (Bridge::start()?, tempfile::tempdir()?);
    let hosts = DockerHost::start_several(2, &bridge)?;
    hosts.iter().try_for_each(|host| host.load_image(image::worker()?))?;
    let file = dir.path().join("stack.yml");
    let service = "{image: rollcall-test-worker, deploy: {mode: global, endpoint_mode: dnsrr}}";
    std::fs::write(&file, format!("version: \"3.8\"\nservices:\n  worker: {service}\n"))?;
    Swarm::start(&hosts)?.deploy("test", &file, &[])?;
    for host in &hosts {
        let tasks = ["ps", "--quiet", "--filter", "label=com.docker.swarm.service.name=test_worker"];
        until("a task runs", Duration::from_secs(60), || Ok(!host.docker(&tasks)?.is_empty()))?;
    }
    Ok(())
}

#[test]
fn a_program_is_heard_signalled_and_killed_when_dropped() -> Result<()> {
    let shell = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    };
    let mut polite = Program::start(
        "polite",
        shell("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.01; done"),
    )?;
    assert_eq!(polite.wait_log("ready", TIMEOUT)?, "ready");
    assert_eq!(polite.terminate(TIMEOUT)?.code(), Some(3));
    assert_eq!(polite.wait_log("bye", TIMEOUT)?, "bye");

    let mut mute = Program::start("mute", shell("echo last words; exit 1"))?;
    let error = mute.wait_log("ready", TIMEOUT).expect_err("it ends without");
    assert!(format!("{error:#}").contains("last words"), "{error:#}");

    let stubborn = Program::start("stubborn", shell("exec sleep 1000"))?;
    let pid = stubborn.pid();
    drop(stubborn);
    assert!(!runs(pid));
    Ok(())
}

#[test]
fn rollcalls_programs_are_built() -> Result<()> {
    for command in [Program::agent()?, Program::consumer()?] {
        assert!(Path::new(command.get_program()).is_file());
    }
    Ok(())
}
