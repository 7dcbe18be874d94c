//! What is registered follows what runs, whatever breaks in between.

use super::*;
use crate::registration::finder;

#[tokio::test(start_paused = true)]
async fn a_start_registers_at_once_and_an_end_withdraws_by_its_event_alone() {
    let (store, engine) = (MemoryStore::new(), engine());
    let agent = Running::start(store.clone(), &engine);
    pass(AT_ONCE).await;
    engine.start(&web("web"));
    pass(AT_ONCE).await;
    assert_eq!(registered(&store).await, ["web"]);
    assert_eq!(agent.condition(registration::PART), Condition::Ready);
    engine.hang(Call::List);
    engine.hang(Call::Inspect);
    engine.tell(&web("web").id, Action::Die);
    pass(AT_ONCE).await;
    assert_eq!(registered(&store).await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_runs_already_is_registered_once_all_of_it_is_known() {
    let (store, engine) = (MemoryStore::new(), engine());
    let names: Vec<String> = (0..20).map(|number| format!("web-{number:02}")).collect();
    names.iter().for_each(|name| engine.put(&web(name)));
    engine.hang(Call::Inspect);
    let agent = Running::start(store.clone(), &engine);
    pass(Duration::from_secs(1)).await;
    assert!(engine.calls(&Call::Inspect) < names.len(), "they are not all asked for at once");
    assert!(matches!(agent.condition(registration::PART), Condition::Waiting(_)));
    engine.release(&Call::Inspect);
    pass(AT_ONCE).await;
    assert_eq!(registered(&store).await, names);
    let revisions: Vec<Revision> =
        entries(&store, &instances()).await.iter().map(|entry| entry.revision).collect();
    assert!(revisions.iter().all(|revision| *revision == revisions[0]), "they are written together");
}

#[tokio::test(start_paused = true)]
async fn when_asked_it_lists_docker_at_once_and_finds_what_no_event_has_told() {
    let (store, engine) = (MemoryStore::new(), engine());
    let agent = Running::start(store.clone(), &engine);
    pass(AT_ONCE).await;
    engine.put(&web("web"));
    pass(AT_ONCE).await;
    assert_eq!(registered(&store).await, [""; 0]);
    agent.relist.notify_one();
    pass(AT_ONCE).await;
    assert_eq!(registered(&store).await, ["web"]);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_is_told_to_stop_drains() {
    let (store, engine) = (MemoryStore::new(), engine());
    let _agent = Running::start(store.clone(), &engine);
    pass(AT_ONCE).await;
    let web = web("web");
    engine.start(&web);
    pass(AT_ONCE).await;
    engine.tell(&web.id, Action::Kill(web.stop_signal));
    pass(AT_ONCE).await;
    assert_eq!(registered_instances(&store).await[0].status, Status::Draining);
    pass(LEASE.refresh * 3).await;
    assert_eq!(registered_instances(&store).await[0].status, Status::Draining, "for as long as it runs");
}

#[tokio::test(start_paused = true)]
async fn a_container_that_was_told_to_stop_drains_over_a_break_an_outage_and_a_restart_of_the_agent() {
    let (store, engine) = (MemoryStore::new(), engine());
    let agent = Running::start_with(store.clone(), &engine, OnExit::Keep);
    pass(AT_ONCE).await;
    let web = web("web");
    engine.start(&web);
    pass(AT_ONCE).await;
    let is_draining = async || registered_instances(&store).await[0].status == Status::Draining;
    engine.break_events();
    engine.tell(&web.id, Action::Kill(web.stop_signal));
    pass(Duration::from_secs(5)).await;
    assert!(is_draining().await, "the engine repeats what was missed");
    engine.set_down(true);
    engine.forget_events();
    pass(Duration::from_secs(90)).await;
    assert_eq!(registered(&store).await, [""; 0], "Docker is away for longer than the grace time");
    engine.set_down(false);
    pass(Duration::from_secs(20)).await;
    assert!(is_draining().await);
    agent.stop().await;
    let mut watched = watch(&store, &instances()).await;
    let _successor = Running::start(store.clone(), &engine);
    pass(LEASE.refresh * 3).await;
    assert!(is_draining().await && is_quiet(&mut watched).await, "the store has remembered");
    engine.die(&web);
    let restarted = Container { started_at: web.started_at + SignedDuration::from_secs(400), ..web };
    engine.start(&restarted);
    pass(AT_ONCE).await;
    assert!(!is_draining().await);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_was_told_to_stop_drains_over_an_ordinary_restart_of_the_agent() {
    let (store, engine) = (MemoryStore::new(), engine());
    let agent = Running::start(store.clone(), &engine);
    pass(AT_ONCE).await;
    let web = web("web");
    engine.start(&web);
    engine.set_clock_ahead(-SignedDuration::from_mins(10));
    engine.tell(&web.id, Action::Kill(web.stop_signal));
    pass(AT_ONCE).await;
    agent.stop().await;
    assert_eq!(registered(&store).await, [""; 0], "the store remembers nothing");
    let mut watched = watch(&store, &instances()).await;
    let _successor = Running::start(store.clone(), &engine);
    pass(AT_ONCE).await;
    assert_eq!(registered_instances(&store).await[0].status, Status::Draining);
    watched.next().await.expect("the watch goes on").expect("it is whole");
    assert!(is_quiet(&mut watched).await, "it was never anything else");
}

#[tokio::test(start_paused = true)]
async fn an_engine_whose_clock_goes_back_or_ahead_repeats_nothing_and_delays_nothing() {
    let hour = SignedDuration::from_hours(1);
    for (before, after) in [(hour, SignedDuration::ZERO), (SignedDuration::ZERO, hour), (hour, -hour)] {
        let (store, engine) = (MemoryStore::new(), engine());
        engine.set_clock_ahead(before);
        let _agent = Running::start(store.clone(), &engine);
        pass(AT_ONCE).await;
        engine.start(&web("web"));
        engine.die(&web("web"));
        engine.start(&web("web"));
        pass(AT_ONCE).await;
        let mut watched = watch(&store, &instances()).await;
        engine.set_clock_ahead(after);
        engine.break_events();
        pass(Duration::from_secs(5)).await;
        assert!(is_quiet(&mut watched).await, "from {before} to {after}: it repeats what it remembers");
        engine.start(&web("other"));
        pass(AT_ONCE).await;
        assert_eq!(registered(&store).await, ["other", "web"], "from {before} to {after}");
        engine.tell(&web("web").id, Action::Die);
        pass(AT_ONCE).await;
        assert_eq!(registered(&store).await, ["other"], "from {before} to {after}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_happened_while_the_events_were_broken_is_found_by_the_list() {
    let (store, engine) = (MemoryStore::new(), engine());
    engine.put(&web("old"));
    let agent = Running::start(store.clone(), &engine);
    pass(AT_ONCE).await;
    engine.set_down(true);
    engine.remove(&web("old"));
    engine.put(&web("new"));
    pass(Duration::from_secs(5)).await;
    assert_eq!(registered(&store).await, ["old"], "what is known stays for the grace time");
    assert!(matches!(agent.condition("docker"), Condition::Failed(_)));
    engine.set_down(false);
    pass(Duration::from_secs(20)).await;
    assert_eq!(registered(&store).await, ["new"]);
    assert_eq!(agent.condition("docker"), Condition::Ready);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_was_restarted_while_the_events_were_broken_is_registered_as_it_is_now() {
    let (store, engine) = (MemoryStore::new(), engine());
    engine.start(&web("web"));
    let _agent = Running::start(store.clone(), &engine);
    pass(AT_ONCE).await;
    engine.break_events();
    let restarted =
        Container { bindings: vec![Binding { port: 9090, ..web("web").bindings[0] }], ..web("web") };
    engine.put(&restarted);
    pass(Duration::from_secs(1)).await;
    assert_eq!(registered_instances(&store).await[0].port, 9090, "though a list shows no difference");
}

#[tokio::test(start_paused = true)]
async fn what_no_event_told_is_found_at_the_next_refresh() {
    let (store, engine) = (MemoryStore::new(), engine());
    engine.put(&web("old"));
    let _agent = Running::start(store.clone(), &engine);
    pass(AT_ONCE).await;
    engine.remove(&web("old"));
    engine.put(&web("new"));
    pass(AT_ONCE).await;
    assert_eq!(registered(&store).await, ["old"]);
    pass(LEASE.refresh).await;
    assert_eq!(registered(&store).await, ["new"]);
}

#[tokio::test(start_paused = true)]
async fn everything_is_withdrawn_when_docker_is_away_for_longer_than_the_grace_time() {
    let (store, engine) = (MemoryStore::new(), engine());
    engine.put(&web("web"));
    let _agent = Running::start(store.clone(), &engine);
    pass(AT_ONCE).await;
    let grace = Duration::from_secs(60);
    engine.hang(Call::Agree);
    engine.break_events();
    pass(grace - AT_ONCE).await;
    assert_eq!(registered(&store).await, ["web"]);
    pass(AT_ONCE * 3).await;
    assert_eq!(registered(&store).await, [""; 0], "though Docker does not even answer");
    engine.release(&Call::Agree);
    pass(LEASE.refresh).await;
    assert_eq!(registered(&store).await, ["web"]);
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_hangs_is_named_within_a_refresh_and_the_grace_time_counts_from_then() {
    let (store, engine) = (MemoryStore::new(), engine());
    engine.put(&web("web"));
    let agent = Running::start(store.clone(), &engine);
    pass(AT_ONCE).await;
    let calls = [Call::Agree, Call::List, Call::Inspect];
    calls.iter().for_each(|call| engine.hang(call.clone()));
    pass(LEASE.refresh).await;
    let failed = Condition::Failed("Docker has answered nothing for 10s".to_owned());
    assert_eq!(agent.condition("docker"), failed);
    let grace = Duration::from_secs(60);
    pass(grace - AT_ONCE * 5).await;
    assert_eq!((registered(&store).await, agent.condition("docker")), (vec!["web".to_owned()], failed));
    pass(AT_ONCE * 10).await;
    assert_eq!(registered(&store).await, [""; 0]);
    engine.put(&web("new"));
    calls.iter().for_each(|call| engine.release(call));
    pass(LEASE.refresh).await;
    assert_eq!(registered(&store).await, ["new", "web"]);
    assert_eq!(agent.condition("docker"), Condition::Ready);
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_is_slow_is_not_one_that_hangs() {
    let (store, engine) = (MemoryStore::new(), engine());
    let agent = Running::start(store.clone(), &engine);
    pass(AT_ONCE).await;
    engine.hang(Call::List);
    for number in 0..10 {
        engine.start(&web(&format!("web-{number}")));
        pass(Duration::from_secs(9)).await;
        assert_eq!(agent.condition("docker"), Condition::Ready);
    }
    assert_eq!(registered(&store).await.len(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_container_whose_inspection_hangs_holds_nobody_else_up() {
    let (store, engine) = (MemoryStore::new(), engine());
    let agent = Running::start(store.clone(), &engine);
    pass(AT_ONCE).await;
    engine.hang(Call::Inspect);
    engine.start(&web("stuck"));
    pass(AT_ONCE).await;
    engine.let_through(&Call::Inspect);
    engine.start(&web("other"));
    pass(Duration::from_secs(9)).await;
    assert_eq!(registered(&store).await, ["other"]);
    pass(Duration::from_secs(3)).await;
    assert_eq!(registered(&store).await, ["other", "stuck"], "it is asked about again");
    assert_eq!(agent.condition("docker"), Condition::Ready);
}

#[tokio::test(start_paused = true)]
async fn at_the_start_a_container_whose_inspection_hangs_holds_the_others_up_for_ten_seconds_at_most() {
    let (store, engine) = (MemoryStore::new(), engine());
    ["stuck", "other"].iter().for_each(|name| engine.put(&web(name)));
    engine.hang_inspect(&web("stuck"));
    let _agent = Running::start(store.clone(), &engine);
    pass(Duration::from_secs(10) + AT_ONCE).await;
    assert_eq!(registered(&store).await, ["other"]);
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_never_lists_and_answers_other_things_is_not_away() {
    let (store, engine) = (MemoryStore::new(), engine());
    let _agent = Running::start(store.clone(), &engine);
    pass(AT_ONCE).await;
    engine.hang(Call::List);
    for number in 0..10 {
        engine.start(&web(&format!("web-{number}")));
        pass(Duration::from_secs(20)).await;
    }
    assert_eq!(registered(&store).await.len(), 10);
    [Call::Agree, Call::Inspect].into_iter().for_each(|call| engine.hang(call));
    pass(LEASE.refresh + Duration::from_secs(60)).await;
    assert_eq!(registered(&store).await, [""; 0], "it is silent for longer than the grace time");
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_was_away_for_long_is_asked_again_within_a_third_of_a_refresh() {
    let (store, engine) = (MemoryStore::new(), engine());
    let _agent = Running::start(store.clone(), &engine);
    pass(AT_ONCE).await;
    for number in 0..5 {
        engine.set_down(true);
        pass(Duration::from_secs(40 + number)).await;
        engine.put(&web(&format!("web-{number}")));
        engine.set_down(false);
        pass(LEASE.refresh / 3 + AT_ONCE).await;
        assert_eq!(registered(&store).await.len() as u64, number + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_breaks_between_a_start_and_its_first_answer_misses_nothing() {
    let (store, engine) = (MemoryStore::new(), engine());
    let _agent = Running::start(store.clone(), &engine);
    pass(AT_ONCE).await;
    engine.hang(Call::Inspect);
    engine.start(&web("web"));
    pass(AT_ONCE).await;
    engine.set_down(true);
    engine.forget_events();
    engine.release(&Call::Inspect);
    pass(Duration::from_secs(5)).await;
    assert_eq!(registered(&store).await, [""; 0]);
    engine.set_down(false);
    pass(LEASE.refresh).await;
    assert_eq!(registered(&store).await, ["web"]);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_is_not_there_yet_is_waited_for_and_one_that_changes_is_followed() {
    let (store, engine) = (MemoryStore::new(), engine());
    let bound = Binding { ip: "192.168.7.5".parse().expect("an address"), ..web("bound").bindings[0] };
    engine.put(&Container { bindings: vec![bound], ..web("bound") });
    engine.put(&web("web"));
    let here: watch::Sender<Option<&str>> = watch::Sender::new(None);
    let (host, none) = (here.clone(), || vec!["eth0 has no address".to_owned()]);
    let agent = Running::start_on(store.clone(), &engine, move || {
        let v4 = host.borrow().map(|ip| ip.parse().expect("an address"));
        Found { missing: if v4.is_none() { none() } else { vec![] }, advertised: Advertised { v4, v6: None } }
    });
    pass(AT_ONCE).await;
    assert_eq!(registered(&store).await, ["bound"], "what does not need it");
    let reason = "this host has no address yet: eth0 has no address".to_owned();
    assert_eq!(agent.condition(finder::PART), Condition::Waiting(reason));
    let address = async || {
        let instances = registered_instances(&store).await;
        let web = instances.iter().find(|instance| instance.container.as_str() == "web");
        web.map(|web| web.address.to_string())
    };
    here.send_replace(Some("10.0.0.5"));
    pass(Duration::from_secs(1) + AT_ONCE).await;
    assert_eq!(address().await.as_deref(), Some("10.0.0.5"));
    assert_eq!(agent.condition(finder::PART), Condition::Ready);
    here.send_replace(Some("10.0.0.6"));
    pass(LEASE.refresh).await;
    assert_eq!(address().await.as_deref(), Some("10.0.0.6"));
    here.send_replace(None);
    pass(LEASE.refresh).await;
    assert_eq!(address().await.as_deref(), Some("10.0.0.6"), "it may be back in a moment");
    assert!(matches!(agent.condition(finder::PART), Condition::Waiting(_)));
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_puts_every_instance_back() {
    let (store, engine) = (MemoryStore::new(), engine());
    engine.put(&web("web"));
    let _agent = Running::start(store.clone(), &engine);
    pass(AT_ONCE).await;
    let lease = entries(&store, &instances()).await[0].lease.expect("it is leased");
    store.revoke(lease).await.expect("it lives");
    assert_eq!(registered(&store).await, [""; 0]);
    pass(Duration::from_secs(2)).await;
    assert_eq!(registered(&store).await, ["web"]);
    assert_ne!(entries(&store, &instances()).await[0].lease, Some(lease));
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_is_noticed_by_a_write_that_fails() {
    let (store, engine) = (MemoryStore::new(), engine());
    engine.put(&web("old"));
    let silent = GatedStore { is_claim_silent: true, ..GatedStore::new(&store) };
    let _agent = Running::start(silent, &engine);
    pass(AT_ONCE).await;
    let lease = entries(&store, &instances()).await[0].lease.expect("it is leased");
    store.revoke(lease).await.expect("it lives");
    engine.start(&web("new"));
    pass(Duration::from_secs(2)).await;
    assert_eq!(registered(&store).await, ["new", "old"], "long before the lease would be refreshed");
}

#[tokio::test(start_paused = true)]
async fn what_changed_while_the_store_was_down_is_written_when_it_is_back() {
    for outage in [Duration::from_secs(10), LEASE.ttl * 3] {
        let (store, engine) = (MemoryStore::new(), engine());
        engine.put(&web("old"));
        let agent = Running::start(store.clone(), &engine);
        pass(AT_ONCE).await;
        store.set_down(true);
        engine.die(&web("old"));
        engine.start(&web("new"));
        pass(AT_ONCE).await;
        let Condition::Failed(reason) = agent.condition(registration::PART) else {
            panic!("it cannot write")
        };
        assert!(reason.contains("is not available"), "{reason}");
        pass(outage).await;
        store.set_down(false);
        pass(Duration::from_secs(20)).await;
        assert_eq!(registered(&store).await, ["new"]);
        assert_eq!(agent.condition(registration::PART), Condition::Ready);
    }
}

#[tokio::test(start_paused = true)]
async fn after_the_store_was_restored_it_has_what_runs_and_nothing_else() {
    let (store, engine) = (MemoryStore::new(), engine());
    let empty = store.backup();
    let _agent = Running::start(store.clone(), &engine);
    pass(AT_ONCE).await;
    engine.start(&web("old"));
    pass(AT_ONCE).await;
    let with_old = store.backup();
    engine.die(&web("old"));
    engine.start(&web("new"));
    pass(AT_ONCE).await;
    for backup in [empty, with_old] {
        store.restore(backup);
        pass(Duration::from_secs(10)).await;
        assert_eq!(registered(&store).await, ["new"]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_someone_else_deletes_changes_or_adds_is_put_right() {
    let (store, engine) = (MemoryStore::new(), engine());
    engine.put(&web("web"));
    let _agent = Running::start(store.clone(), &engine);
    pass(AT_ONCE).await;
    let ours = entries(&store, &instances()).await.remove(0);
    let (foreign, scribble) = ("/rollcall/instances/h1/ffffffffffff/80-tcp".to_owned(), b"scribble".to_vec());
    for op in [
        Op::Delete { key: ours.key.clone() },
        Op::Put { key: ours.key.clone(), value: scribble.clone() },
        Op::Put { key: ours.key.clone(), value: ours.value.clone() },
        Op::Put { key: foreign, value: scribble },
    ] {
        store.commit(std::slice::from_ref(&op), None, None).await.expect("the store is up");
        pass(AT_ONCE).await;
        let entries = entries(&store, &instances()).await;
        let same =
            |entry: &Entry| (&entry.key, &entry.value, entry.lease) == (&ours.key, &ours.value, ours.lease);
        assert!(entries.len() == 1 && entries.iter().all(same), "after {op:?}: {entries:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_while_a_commit_is_under_way_is_committed_together() {
    let (store, engine) = (MemoryStore::new(), engine());
    let gated = GatedStore::new(&store);
    let _agent = Running::start(gated.clone(), &engine);
    pass(AT_ONCE).await;
    gated.set_commit(Gate::Hangs);
    for name in ["a", "b", "c", "d"] {
        engine.start(&web(name));
        pass(AT_ONCE).await;
    }
    gated.set_commit(Gate::Open);
    pass(AT_ONCE).await;
    assert_eq!(registered(&store).await, ["a", "b", "c", "d"]);
    assert_eq!(gated.commits.load(Ordering::Relaxed), 2, "the first one's, and that of the rest");
}

#[tokio::test(start_paused = true)]
async fn a_write_that_fails_is_retried_with_backoff_whatever_else_changes() {
    let (store, engine) = (MemoryStore::new(), engine());
    let gated = GatedStore::new(&store);
    let agent = Running::start(gated.clone(), &engine);
    pass(AT_ONCE).await;
    gated.set_commit(Gate::Fails);
    let names: Vec<String> = (0..100).map(|number| format!("web-{number:02}")).collect();
    for name in &names {
        engine.start(&web(name));
        pass(Duration::from_millis(100)).await;
    }
    let tries = gated.commits.load(Ordering::Relaxed);
    assert!((4..=10).contains(&tries), "{tries} tries in 10 s");
    assert_eq!(
        agent.condition(registration::PART),
        Condition::Failed("the gate is not available: it is shut".to_owned())
    );
    gated.set_commit(Gate::Open);
    pass(Duration::from_secs(10)).await;
    assert_eq!(registered(&store).await, names);
}

#[tokio::test(start_paused = true)]
async fn a_successor_adopts_what_was_kept_and_writes_only_what_differs() {
    let (store, engine) = (MemoryStore::new(), engine());
    engine.put(&web("same"));
    engine.put(&web("gone"));
    let first = Running::start_with(store.clone(), &engine, OnExit::Keep);
    pass(AT_ONCE).await;
    first.stop().await;
    let mut watched = watch(&store, &instances()).await;
    let second = Running::start_with(store.clone(), &engine, OnExit::Keep);
    pass(Duration::from_secs(5)).await;
    assert_eq!(second.condition(registration::PART), Condition::Ready);
    assert!(is_quiet(&mut watched).await, "nothing has changed");
    second.stop().await;
    engine.remove(&web("gone"));
    let _third = Running::start(store.clone(), &engine);
    pass(Duration::from_secs(5)).await;
    let batch = watched.next().await.expect("the store lives").expect("it is up");
    assert!(matches!(&batch.changes[..], [Change::Delete { .. }]), "{batch:?}");
    assert!(is_quiet(&mut watched).await);
}

#[tokio::test(start_paused = true)]
async fn the_keys_of_a_crashed_agent_are_adopted_as_well() {
    let (store, engine) = (MemoryStore::new(), engine());
    engine.put(&web("web"));
    let first = Running::start(store.clone(), &engine);
    pass(AT_ONCE).await;
    drop(first);
    let mut watched = watch(&store, &instances()).await;
    let _second = Running::start(store.clone(), &engine);
    pass(LEASE.ttl * 3).await;
    assert_eq!(registered(&store).await, ["web"]);
    assert!(is_quiet(&mut watched).await);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_host_writes_nothing_and_lists_docker_three_times_in_two_refreshes() {
    let (store, engine) = (MemoryStore::new(), engine());
    engine.put(&web("web"));
    let _agent = Running::start(store.clone(), &engine);
    pass(AT_ONCE).await;
    let mut watched = watch(&store, &KeyRange::folder("/rollcall/".to_owned())).await;
    let before = [Call::List, Call::Inspect].map(|call| engine.calls(&call));
    pass(LEASE.refresh * 10).await;
    assert!(is_quiet(&mut watched).await);
    let after = [Call::List, Call::Inspect].map(|call| engine.calls(&call));
    assert_eq!(after, [before[0] + 15, before[1]]);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_the_store_refuses_is_named_and_holds_nobody_up() {
    let (store, engine) = (MemoryStore::new(), engine());
    let gated = GatedStore::new(&store);
    gated.refuse(Refused::TooLarge("greedy"));
    engine.put(&web("old"));
    let agent = Running::start(gated.clone(), &engine);
    pass(AT_ONCE).await;
    engine.start(&web("greedy"));
    engine.start(&web("new"));
    engine.die(&web("old"));
    pass(AT_ONCE).await;
    assert_eq!(registered(&store).await, ["new"], "the others come and go");
    let note = agent.condition(registration::PART);
    assert!(agent.readiness.conditions().is_ready(), "{note}");
    assert!(note.to_string().contains("cannot write /rollcall/instances/h1/"), "{note}");
    let before = gated.commits.load(Ordering::Relaxed);
    pass(Duration::from_secs(20)).await;
    let tries = gated.commits.load(Ordering::Relaxed) - before;
    assert!((1..=6).contains(&tries), "{tries} tries in 20 s");
    gated.refuse(Refused::Nothing);
    pass(Duration::from_secs(120)).await;
    assert_eq!(registered(&store).await, ["greedy", "new"]);
    assert_eq!(agent.condition(registration::PART), Condition::Ready);
}

#[tokio::test(start_paused = true)]
async fn a_store_without_space_still_has_what_ended_withdrawn() {
    let (store, engine) = (MemoryStore::new(), engine());
    let gated = GatedStore::new(&store);
    for name in ["a", "b", "c"] {
        engine.put(&web(name));
    }
    let agent = Running::start(gated.clone(), &engine);
    pass(AT_ONCE).await;
    gated.refuse(Refused::NoSpace);
    engine.start(&web("d"));
    engine.start(&web("e"));
    engine.die(&web("a"));
    pass(AT_ONCE).await;
    assert_eq!(registered(&store).await, ["b", "c"]);
    let Condition::Failed(reason) = agent.condition(registration::PART) else { panic!("it cannot write") };
    assert!(reason.contains("database space exceeded"), "{reason}");
    gated.refuse(Refused::Nothing);
    pass(Duration::from_secs(10)).await;
    assert_eq!(registered(&store).await, ["b", "c", "d", "e"]);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_keeps_failing_is_tried_rarely_and_delays_no_keep_alive() {
    for refused in [Refused::Nothing, Refused::NoSpace] {
        let (store, engine) = (MemoryStore::new(), engine());
        let gated = GatedStore::new(&store);
        engine.put(&web("old"));
        let _agent = Running::start(gated.clone(), &engine);
        pass(AT_ONCE).await;
        match refused {
            Refused::Nothing => gated.set_commit(Gate::Fails),
            refused => gated.refuse(refused),
        }
        engine.start(&web("new"));
        let lease = entries(&store, &instances()).await[0].lease;
        let (commits, keep_alives) = (&gated.commits, &gated.keep_alives);
        let before = (commits.load(Ordering::Relaxed), keep_alives.load(Ordering::Relaxed));
        pass(LEASE.ttl * 5).await;
        let tries = commits.load(Ordering::Relaxed) - before.0;
        assert!(tries < 100, "{tries} tries in five minutes");
        assert_eq!(keep_alives.load(Ordering::Relaxed) - before.1, 10, "one each refresh");
        assert_eq!(entries(&store, &instances()).await[0].lease, lease, "the lease was never lost");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_answers_again_is_written_to_at_once_however_long_it_was_away() {
    let (store, engine) = (MemoryStore::new(), engine());
    engine.put(&web("old"));
    let _agent = Running::start(store.clone(), &engine);
    pass(AT_ONCE).await;
    for outage in [Duration::from_secs(50), LEASE.ttl * 10] {
        let empty = MemoryStore::new().backup();
        store.set_down(true);
        engine.start(&web("new"));
        pass(outage).await;
        store.set_down(false);
        // Where the lease was lost, agents come back at random moments within half a second.
        pass(Duration::from_millis(600)).await;
        assert_eq!(registered(&store).await, ["new", "old"], "after {outage:?}");
        store.restore(empty);
        pass(Duration::from_secs(1)).await;
        assert_eq!(registered(&store).await, ["new", "old"], "it was wiped");
    }
}
