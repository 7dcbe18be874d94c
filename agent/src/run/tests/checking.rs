//! What is registered follows what the checks of ports find, and nothing is written while they find the same.

use rollcall_shared::process::readiness::Conditions;

use super::*;
use crate::{checks::Ready, inventory::container::Check};

const INTERVAL: Duration = Duration::from_secs(10);
/// Where the container of [`checked`] is asked.
const PORT: &str = "172.17.0.2:80";

/// A container whose port is checked as these labels say.
fn checked(labels: &[(&str, &str)]) -> Container {
    let own = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Container { labels: own.collect(), ..web("web") }
}

fn start(store: &MemoryStore, engine: &ScriptedEngine, ports: &ScriptedPorts, ready: Ready) -> Running {
    let mut agent = Running::agent(store.clone(), OnExit::Keep);
    agent.settings.checks.ready = ready;
    let (policy, finder) = agent.policy().expect("it can work");
    Running::spawn_with(agent, engine, ports.clone(), policy, finder)
}

async fn status(store: &MemoryStore) -> Status {
    registered_instances(store).await[0].status
}

#[tokio::test(start_paused = true)]
async fn a_container_passes_at_most_a_moment_after_its_port_answers() {
    let (store, engine, ports) = (MemoryStore::new(), engine(), ScriptedPorts::default());
    let _agent = start(&store, &engine, &ports, Ready::None);
    pass(AT_ONCE).await;
    engine.start(&checked(&[("rollcall.check", "tcp")]));
    pass(Duration::from_millis(500)).await;
    assert_eq!(status(&store).await, Status::Starting);
    ports.set(PORT, Answers::Well);
    pass(Duration::from_millis(60)).await;
    assert_eq!(status(&store).await, Status::Passing);
}

#[tokio::test(start_paused = true)]
async fn a_port_that_fails_leaves_after_as_many_intervals_as_fall_says_and_comes_back_after_rise() {
    let (store, engine, ports) = (MemoryStore::new(), engine(), ScriptedPorts::default());
    ports.set(PORT, Answers::Well);
    let agent = start(&store, &engine, &ports, Ready::None);
    pass(AT_ONCE).await;
    engine.start(&checked(&[("rollcall.check", "http")]));
    pass(Duration::from_secs(1)).await;
    assert_eq!(status(&store).await, Status::Passing);
    ports.set(PORT, Answers::Status(503));
    pass(INTERVAL * 2).await;
    assert_eq!(status(&store).await, Status::Passing, "two of three");
    pass(INTERVAL).await;
    assert_eq!(status(&store).await, Status::Failing);
    assert_eq!(agent.condition(registration::PART), Condition::Ready, "the agent is well");
    ports.set(PORT, Answers::Well);
    pass(INTERVAL * 2).await;
    assert_eq!(status(&store).await, Status::Passing);
}

#[tokio::test(start_paused = true)]
async fn only_a_change_of_status_is_written_and_of_that_port_alone() {
    let (store, engine, ports) = (MemoryStore::new(), engine(), ScriptedPorts::default());
    let mut container = checked(&[("rollcall.check", "tcp")]);
    let to = "81".parse().expect("a port");
    container.bindings.push(Binding { to, port: 8081, ..container.bindings[0] });
    ["172.17.0.2:80", "172.17.0.2:81"].iter().for_each(|port| ports.set(port, Answers::Well));
    let _agent = start(&store, &engine, &ports, Ready::None);
    pass(AT_ONCE).await;
    engine.start(&container);
    pass(Duration::from_secs(1)).await;
    let mut watched = watch(&store, &instances()).await;
    pass(Duration::from_secs(600)).await;
    assert!(is_quiet(&mut watched).await, "it passes all the time");
    let asked = ports.asked(PORT);
    assert!((60..=68).contains(&asked), "{asked} probes in ten minutes");
    let before = entries(&store, &instances()).await;
    ports.set("172.17.0.2:81", Answers::Refuses);
    pass(INTERVAL * 3).await;
    let after = entries(&store, &instances()).await;
    let changed: Vec<&str> =
        after.iter().zip(&before).filter(|(a, b)| a.revision != b.revision).map(|(a, _)| &*a.key).collect();
    assert!(matches!(changed[..], [key] if key.ends_with("81-tcp")), "{changed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_container_that_is_paused_or_told_to_stop_is_not_asked() {
    let (store, engine, ports) = (MemoryStore::new(), engine(), ScriptedPorts::default());
    ports.set(PORT, Answers::Well);
    let _agent = start(&store, &engine, &ports, Ready::None);
    pass(AT_ONCE).await;
    let web = checked(&[("rollcall.check", "tcp")]);
    engine.start(&web);
    pass(AT_ONCE).await;
    let paused = Container { paused: true, ..web.clone() };
    engine.put(&paused);
    engine.tell(&web.id, Action::Change);
    pass(AT_ONCE).await;
    let (asked, _) = (ports.asked(PORT), ports.set(PORT, Answers::Never));
    pass(INTERVAL * 5).await;
    assert_eq!((ports.asked(PORT), status(&store).await), (asked, Status::Failing));
    ports.set(PORT, Answers::Well);
    engine.put(&web);
    engine.tell(&web.id, Action::Change);
    pass(AT_ONCE).await;
    assert_eq!(status(&store).await, Status::Passing, "as it was before");
    engine.tell(&web.id, Action::Kill(web.stop_signal));
    pass(AT_ONCE).await;
    let asked = ports.asked(PORT);
    pass(INTERVAL * 5).await;
    assert_eq!((ports.asked(PORT), status(&store).await), (asked, Status::Draining));
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_the_agent_takes_nothing_out_and_asks_the_ports_in_the_course_of_an_interval() {
    let (store, engine, ports) = (MemoryStore::new(), engine(), ScriptedPorts::default());
    ports.set(PORT, Answers::Well);
    let agent = start(&store, &engine, &ports, Ready::Tcp);
    pass(AT_ONCE).await;
    engine.start(&checked(&[("rollcall.check", "tcp")]));
    engine.start(&web("held"));
    pass(Duration::from_secs(1)).await;
    agent.stop().await;
    let (asked, mut watched) = (ports.asked(PORT), watch(&store, &instances()).await);
    let _successor = start(&store, &engine, &ports, Ready::Tcp);
    pass(INTERVAL).await;
    assert!(is_quiet(&mut watched).await);
    assert_eq!(ports.asked(PORT), asked + 1, "and the one that was held passed already");
}

#[tokio::test(start_paused = true)]
async fn a_container_without_a_check_is_held_until_its_port_takes_a_connection_and_is_asked_no_more() {
    let (store, engine, ports) = (MemoryStore::new(), engine(), ScriptedPorts::default());
    let _agent = start(&store, &engine, &ports, Ready::Tcp);
    pass(AT_ONCE).await;
    engine.start(&web("web"));
    pass(Duration::from_secs(3)).await;
    assert_eq!(status(&store).await, Status::Starting);
    ports.set(PORT, Answers::Well);
    pass(Duration::from_millis(250)).await;
    assert_eq!(status(&store).await, Status::Passing);
    let asked = ports.asked(PORT);
    ports.set(PORT, Answers::Refuses);
    pass(Duration::from_secs(600)).await;
    assert_eq!((ports.asked(PORT), status(&store).await), (asked, Status::Passing));
}

#[tokio::test(start_paused = true)]
async fn of_a_healthcheck_and_a_check_the_worse_counts() {
    let (store, engine, ports) = (MemoryStore::new(), engine(), ScriptedPorts::default());
    ports.set(PORT, Answers::Well);
    let _agent = start(&store, &engine, &ports, Ready::None);
    pass(AT_ONCE).await;
    let unhealthy = Container { check: Check::Unhealthy, ..checked(&[("rollcall.check", "tcp")]) };
    engine.start(&unhealthy);
    pass(Duration::from_secs(1)).await;
    assert_eq!(status(&store).await, Status::Failing);
    engine.put(&Container { check: Check::Healthy, ..unhealthy.clone() });
    engine.tell(&unhealthy.id, Action::Change);
    pass(AT_ONCE).await;
    assert_eq!(status(&store).await, Status::Passing);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_restarts_begins_anew() {
    let (store, engine, ports) = (MemoryStore::new(), engine(), ScriptedPorts::default());
    ports.set(PORT, Answers::Well);
    let _agent = start(&store, &engine, &ports, Ready::None);
    pass(AT_ONCE).await;
    let web = checked(&[("rollcall.check", "tcp")]);
    engine.start(&web);
    pass(Duration::from_secs(1)).await;
    ports.set(PORT, Answers::Refuses);
    engine.die(&web);
    engine.start(&Container { started_at: web.started_at + SignedDuration::from_secs(5), ..web });
    pass(Duration::from_secs(1)).await;
    assert_eq!(status(&store).await, Status::Starting);
}

#[tokio::test(start_paused = true)]
async fn a_greedy_container_whose_ports_never_answer_delays_no_other() {
    let (store, engine, ports) = (MemoryStore::new(), engine(), ScriptedPorts::default());
    let mut greedy = checked(&[("rollcall.check", "tcp")]);
    greedy.bindings = (1..=128_u16)
        .map(|port| Binding { to: port.to_string().parse().expect("a port"), port, ..greedy.bindings[0] })
        .collect();
    (1..=128).for_each(|port| ports.set(&format!("172.17.0.2:{port}"), Answers::Never));
    let _agent = start(&store, &engine, &ports, Ready::None);
    pass(AT_ONCE).await;
    engine.start(&greedy);
    pass(Duration::from_secs(60)).await;
    assert_eq!(ports.most_under_way(), 4);
    let mut other = Container { labels: greedy.labels.clone(), ..web("other") };
    let network = other.networks.get_mut("bridge").expect("it is on one");
    network.v4 = Some("172.17.0.3".parse().expect("an address"));
    ports.set("172.17.0.3:80", Answers::Well);
    engine.start(&other);
    pass(AT_ONCE * 5).await;
    let passing = registered_instances(&store).await.into_iter().filter(|i| i.status == Status::Passing);
    assert_eq!(passing.map(|instance| instance.container.to_string()).collect::<Vec<_>>(), ["other"]);
}

#[tokio::test(start_paused = true)]
async fn the_registration_is_ready_once_every_port_was_asked_or_has_had_time_to_answer() {
    let (store, engine, ports) = (MemoryStore::new(), engine(), ScriptedPorts::default());
    ports.set(PORT, Answers::Well);
    engine.put(&checked(&[("rollcall.check", "tcp")]));
    let agent = start(&store, &engine, &ports, Ready::None);
    let mut conditions = agent.readiness.subscribe();
    let is_ready =
        |conditions: &Conditions| conditions.get(registration::PART).is_some_and(Condition::is_ready);
    conditions.wait_for(is_ready).await.expect("the agent runs");
    assert_eq!(status(&store).await, Status::Passing, "whoever waited finds it passing");
    agent.stop().await;
    let slow = [("rollcall.check", "tcp"), ("rollcall.check.timeout", "10s")];
    engine.put(&Container { name: "slow".parse().expect("a name"), ..checked(&slow) });
    ports.set(PORT, Answers::Never);
    let agent = start(&MemoryStore::new(), &engine, &ports, Ready::None);
    pass(Duration::from_secs(2)).await;
    assert!(matches!(agent.condition(registration::PART), Condition::Waiting(_)));
    pass(Duration::from_secs(2)).await;
    assert_eq!(agent.condition(registration::PART), Condition::Ready);
}

#[tokio::test(start_paused = true)]
async fn what_the_checks_of_many_containers_find_at_once_is_written_at_once() {
    let (store, engine, ports) = (MemoryStore::new(), engine(), ScriptedPorts::default());
    for number in 2..202 {
        let named = container(&format!("web-{number}"));
        let mut web = checked(&[("rollcall.check", "tcp")]);
        (web.id, web.short_id, web.name) = (named.id, named.short_id, named.name);
        let ip = std::net::Ipv4Addr::new(172, 17, 0, number);
        web.networks.values_mut().for_each(|addresses| addresses.v4 = Some(ip));
        ports.set(&format!("{ip}:80"), Answers::Well);
        engine.put(&web);
    }
    let _agent = start(&store, &engine, &ports, Ready::None);
    pass(Duration::from_secs(5)).await;
    let instances = registered_instances(&store).await;
    assert_eq!(instances.iter().filter(|found| found.status == Status::Passing).count(), 200);
    let entries = entries(&store, &self::instances()).await;
    let commits: std::collections::BTreeSet<_> = entries.iter().map(|entry| entry.revision).collect();
    assert!(commits.len() <= 10, "{} commits", commits.len());
}
