//! What an agent does after etcd was restored, wiped, filled up or hangs: one real Docker host and a real etcd.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rollcall_tests::{Container, DockerHost, Etcd, EtcdConfig, Program, http, image, port, until};
use rustix::process::Signal;

const TIMEOUT: Duration = Duration::from_secs(20);
const INSTANCES: &str = "/rollcall/instances/";
/// How long after reconnecting everything may take to be as it should be, and how long reconnecting and looking by etcdctl
/// may take on a busy machine. The bench measures it.
const RECOVERY: Duration = Duration::from_millis(1000 + 1500);
/// How long ending a session may take, and a process to end after it.
const SHUTDOWN: Duration = Duration::from_millis(5000 + 1000);

/// An agent of the machine's own engine that registers only containers of this test, named `<test>-...`.
struct Scene {
    etcd: Etcd,
    host: DockerHost,
    test: &'static str,
    listen: String,
}

impl Scene {
    fn new(test: &'static str, extra: &[&str]) -> Result<Self> {
        let extra = extra.iter().map(|flag| (*flag).to_owned()).collect();
        let etcd = Etcd::start_with(EtcdConfig { extra, ..EtcdConfig::default() })?;
        let listen = format!("127.0.0.1:{}", port::free(Ipv4Addr::LOCALHOST.into())?);
        Ok(Self { etcd, host: DockerHost::local()?, test, listen })
    }

    fn agent(&self) -> Result<Program> {
        let mut command = Program::agent()?;
        command.args(["--etcd", &self.etcd.endpoint(), "--node", "h1", "--listen", &self.listen]);
        command.args(["--only-name", &format!("^{}-", self.test), "--advertise", "10.9.8.7"]);
        Program::start("agent", command)
    }

    fn registered_agent(&self, workers: &[&Container]) -> Result<Program> {
        let mut agent = self.agent()?;
        agent.wait_log("claimed the name", TIMEOUT)?;
        until("everything is registered", TIMEOUT, || self.has(workers))?;
        Ok(agent)
    }

    fn worker(&self, number: u32) -> Result<Container> {
        let name = format!("{}-{number}", self.test);
        self.host.run(&["--name", &name, "--publish", "80", image::worker()?])
    }

    fn has(&self, workers: &[&Container]) -> Result<bool> {
        let mut keys: Vec<String> = workers.iter().map(|worker| key_of(worker)).collect();
        keys.sort();
        Ok(self.etcd.ctl().keys(INSTANCES)? == keys)
    }

    fn ready(&self) -> Result<http::Response> {
        http::get(&format!("http://{}/readyz", self.listen))
    }
}

fn key_of(worker: &Container) -> String {
    format!("{INSTANCES}h1/{}/80-tcp", worker.short_id())
}

/// Pushes the revision past one that was read, as other writers do.
fn push_past(etcd: &Etcd, revision: i64) -> Result<()> {
    while etcd.ctl().revision()? <= revision {
        etcd.ctl().put("/other", "x")?;
    }
    Ok(())
}

#[test]
fn what_a_restored_store_lost_is_put_back_within_a_second_though_claim_and_lease_survive_in_it() -> Result<()>
{
    let mut scene = Scene::new("recovery-restores", &[])?;
    let (changed, ended) = (scene.worker(1)?, scene.worker(2)?);
    let mut agent = scene.registered_agent(&[&changed, &ended])?;
    let snapshot = scene.etcd.snapshot()?;
    let late = scene.worker(3)?;
    scene.host.docker(&["pause", changed.id()])?;
    ended.kill("KILL")?;
    let is_failing = |scene: &Scene| {
        let value = scene.etcd.ctl().get(&key_of(&changed))?.context("it is there")?;
        Ok::<_, anyhow::Error>(value.contains(r#""status":"failing""#))
    };
    let is_right = |scene: &Scene| Ok(scene.has(&[&changed, &late])? && is_failing(scene)?);
    until("all of that is registered", TIMEOUT, || is_right(&scene))?;
    let revision = scene.etcd.ctl().revision()?;
    agent.signal(Signal::STOP)?;
    scene.etcd.stop()?;
    scene.etcd.restore(&snapshot)?;
    scene.etcd.start_again()?;
    push_past(&scene.etcd, revision)?;
    ensure!(scene.has(&[&changed, &ended])?, "it is as it was before");
    agent.signal(Signal::CONT)?;
    let begun = Instant::now();
    until("everything is as it should be", TIMEOUT, || is_right(&scene))?;
    ensure!(begun.elapsed() < RECOVERY, "it took {:?}", begun.elapsed());
    until("it is ready", TIMEOUT, || Ok(scene.ready()?.status == 200))
}

#[test]
fn everything_is_back_within_a_second_of_a_wipe_that_others_have_written_over() -> Result<()> {
    let mut scene = Scene::new("recovery-wipes", &[])?;
    let workers = [scene.worker(1)?, scene.worker(2)?];
    let workers = [&workers[0], &workers[1]];
    let mut agent = scene.registered_agent(&workers)?;
    let revision = scene.etcd.ctl().revision()?;
    agent.signal(Signal::STOP)?;
    scene.etcd.stop()?;
    scene.etcd.wipe()?;
    scene.etcd.start_again()?;
    push_past(&scene.etcd, revision)?;
    agent.signal(Signal::CONT)?;
    let begun = Instant::now();
    until("everything is registered", TIMEOUT, || scene.has(&workers))?;
    ensure!(begun.elapsed() < RECOVERY, "it took {:?}", begun.elapsed());
    let (late, started) = (scene.worker(3)?, Instant::now());
    until("it goes on", TIMEOUT, || scene.has(&[workers[0], workers[1], &late]))?;
    ensure!(started.elapsed() < RECOVERY, "it took {:?}", started.elapsed());
    Ok(())
}

#[test]
fn an_etcd_without_space_still_has_what_ended_withdrawn_and_the_rest_follows() -> Result<()> {
    let scene = Scene::new("recovery-fills", &["--quota-backend-bytes", "8000000"])?;
    let (stays, ends) = (scene.worker(1)?, scene.worker(2)?);
    let _agent = scene.registered_agent(&[&stays, &ends])?;
    let filling = "x".repeat(100_000);
    let filled = (0..200).find_map(|number| scene.etcd.ctl().put(&format!("/fill/{number}"), &filling).err());
    let alarm = format!("{:#}", filled.context("it never filled up")?);
    ensure!(alarm.contains("database space exceeded"), "{alarm}");
    let late = scene.worker(3)?;
    until("the agent says why it is not ready", TIMEOUT, || {
        Ok(scene.ready()?.body.contains("database space exceeded"))
    })?;
    ends.kill("KILL")?;
    until("what ended is withdrawn", TIMEOUT, || scene.has(&[&stays]))?;
    ensure!(scene.ready()?.status == 503);
    let ctl = scene.etcd.ctl();
    ctl.run(&["del", "--prefix", "/fill/"])?;
    ctl.run(&["compact", &ctl.revision()?.to_string()])?;
    ctl.run(&["defrag"])?;
    ctl.run(&["alarm", "disarm"])?;
    until("what waited is registered", TIMEOUT, || scene.has(&[&stays, &late]))?;
    until("it is ready", TIMEOUT, || Ok(scene.ready()?.status == 200))
}

#[test]
fn sigterm_ends_an_agent_in_time_however_far_it_had_come_when_etcd_hung() -> Result<()> {
    let mut scene = Scene::new("recovery-hangs", &[])?;
    let worker = scene.worker(1)?;
    let timely = |what: &str, mut agent: Program| -> Result<()> {
        let begun = Instant::now();
        agent.signal(Signal::TERM)?;
        agent.wait(SHUTDOWN).with_context(|| what.to_owned())?;
        ensure!(begun.elapsed() < SHUTDOWN, "{what}: {:?}", begun.elapsed());
        Ok(())
    };
    scene.etcd.hang()?;
    let starting = scene.agent()?;
    // Long enough to be asking for the claim.
    until("it runs", TIMEOUT, || Ok(http::get(&format!("http://{}/healthz", scene.listen))?.status == 200))?;
    timely("while it starts", starting)?;
    scene.etcd.resume()?;
    let steady = scene.registered_agent(&[&worker])?;
    scene.etcd.hang()?;
    timely("in steady state", steady)?;
    scene.etcd.resume()?;
    let mut writing = scene.registered_agent(&[&worker])?;
    scene.etcd.hang()?;
    let _late = scene.worker(2)?;
    writing.wait_log("will try again", TIMEOUT)?;
    timely("while it writes", writing)?;
    scene.etcd.resume()
}
