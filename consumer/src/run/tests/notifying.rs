//! Whoever reads a file is notified of each change until it has taken it.

use rollcall_shared::model::consumer::ConsumerHome;

use super::*;
use crate::roll::StackChoice;

#[tokio::test(start_paused = true)]
async fn a_change_is_installed_and_signalled_until_it_is_acked() {
    let scene = Scene::new();
    scene.put(1).await;
    let running = scene.start(&with_signal()).await;
    scene.file_has("10.0.0.1 8001\n").await;
    running.is_not_ready("notify web", "waiting for a container to signal: container proxy").await;
    scene.receivers("h1", &[(1, None)]).await;
    let first = scene.request_after("h1", None).await;
    assert_eq!(first.receivers, [RequestedReceiver { incarnation: incarnation(1), attempt: 1 }]);
    scene.ack("h1", &first, None).await;
    running.is_ready().await;
    scene.no_request("h1").await;
    scene.put(2).await;
    scene.file_has("10.0.0.1 8001\n10.0.0.2 8002\n").await;
    let second = scene.request_after("h1", Some(&first)).await;
    assert!(second.generation > first.generation);
    assert_eq!(second.receivers[0].attempt, 1);
}

#[tokio::test(start_paused = true)]
async fn every_node_with_a_receiver_is_asked_and_one_that_fails_holds_nobody_up() {
    let scene = Scene::new();
    scene.receivers("h1", &[(1, None)]).await;
    scene.receivers("h2", &[(2, None)]).await;
    let running = scene.start(&with_signal()).await;
    let (one, two) = (scene.request_after("h1", None).await, scene.request_after("h2", None).await);
    scene.ack("h1", &one, None).await;
    scene.ack("h2", &two, Some("because")).await;
    scene.no_request("h1").await;
    let reason = "HUP to container proxy: node h2 could not signal container proxy: because";
    running.is_not_ready("notify web", reason).await;
    let again = until(async || {
        let request = scene.request("h2").await?;
        (request.receivers[0].attempt == 2).then_some(request)
    });
    let again = again.await;
    assert_eq!(again.generation, two.generation);
    assert_eq!(scene.request("h1").await, None, "it has taken the change");
    scene.ack("h2", &again, None).await;
    running.is_ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_refuses_is_named_and_signalled_as_soon_as_it_is_allowed() {
    let scene = Scene::new();
    scene.receivers("h1", &[(1, Some("container proxy allows no HUP"))]).await;
    let running = scene.start(&with_signal()).await;
    running.is_not_ready("notify web", "node h1 refuses: container proxy allows no HUP").await;
    assert_eq!(scene.request("h1").await, None);
    pass().await;
    scene.receivers("h1", &[(1, None)]).await;
    let mended = tokio::time::Instant::now();
    let request = scene.request_after("h1", None).await;
    assert!(mended.elapsed() < Duration::from_millis(100), "{:?}", mended.elapsed());
    scene.ack("h1", &request, None).await;
    running.is_ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_appears_later_is_signalled_alone() {
    let scene = Scene::new();
    scene.receivers("h1", &[(1, None)]).await;
    let running = scene.start(&with_signal()).await;
    let first = scene.request_after("h1", None).await;
    scene.ack("h1", &first, None).await;
    running.is_ready().await;
    scene.receivers("h1", &[(1, None), (2, None)]).await;
    let second = scene.request_after("h1", Some(&first)).await;
    assert_eq!(second.generation, first.generation);
    assert_eq!(second.receivers, [RequestedReceiver { incarnation: incarnation(2), attempt: 1 }]);
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_install_and_ack_is_notified_after_the_restart() {
    let scene = Scene::new();
    scene.put(1).await;
    scene.receivers("h1", &[(1, None)]).await;
    let crashed = scene.start(&with_signal()).await;
    let first = scene.request_after("h1", None).await;
    drop(crashed);
    let running = scene.start(&with_signal()).await;
    let second = scene.request_after("h1", Some(&first)).await;
    assert_ne!(second.generation, first.generation, "the file is as it was, and still it is notified");
    scene.ack("h1", &second, None).await;
    running.is_ready().await;
    pass().await;
    drop(running);
    let running = scene.start(&with_signal()).await;
    running.is_ready().await;
    pass().await;
    assert_eq!(scene.request("h1").await, None, "what was acked is not requested again");
    scene.receivers("h1", &[(2, None)]).await;
    let third = scene.request_after("h1", None).await;
    assert_eq!(third.generation, second.generation, "a new receiver takes the change that there is");
}

#[tokio::test(start_paused = true)]
async fn a_restart_goes_on_with_the_change_that_it_finds() {
    let scene = Scene::new();
    scene.receivers("h1", &[(1, None)]).await;
    let running = scene.start(&with_signal()).await;
    let first = scene.request_after("h1", None).await;
    // Remembered, though nobody has acked it.
    pass().await;
    running.end().await;
    let _running = scene.start(&with_signal()).await;
    let second = scene.request_after("h1", None).await;
    assert_eq!(second, first, "an agent that has delivered it will not do so again");
}

#[tokio::test(start_paused = true)]
async fn going_back_to_the_acked_file_is_notified_also_after_a_crash() {
    let scene = Scene::new();
    scene.put(1).await;
    scene.receivers("h1", &[(1, None)]).await;
    let crashed = scene.start(&with_signal()).await;
    let first = scene.request_after("h1", None).await;
    scene.ack("h1", &first, None).await;
    until(async || scene.path("state/web.state.json").exists().then_some(())).await;
    crashed.is_ready().await;
    scene.put(2).await;
    let second = scene.request_after("h1", Some(&first)).await;
    scene.delete(2).await;
    let third = scene.request_after("h1", Some(&second)).await;
    assert_eq!(scene.file(), "10.0.0.1 8001\n", "as it was acked, but the target may run with the second");
    drop(crashed);
    let _running = scene.start(&with_signal()).await;
    let fourth = scene.request_after("h1", Some(&third)).await;
    assert_ne!(fourth.generation, first.generation);
}

#[tokio::test(start_paused = true)]
async fn an_ack_of_an_earlier_change_counts_for_nothing() {
    let scene = Scene::new();
    scene.receivers("h1", &[(1, None)]).await;
    let running = scene.start(&with_signal()).await;
    let first = scene.request_after("h1", None).await;
    scene.put(1).await;
    let second = scene.request_after("h1", Some(&first)).await;
    scene.ack("h1", &first, None).await;
    running.is_not_ready("notify web", "waiting for an agent to signal container proxy").await;
    assert_eq!(scene.request("h1").await.as_ref(), Some(&second));
    scene.ack("h1", &second, None).await;
    running.is_ready().await;
}

#[tokio::test(start_paused = true)]
async fn what_does_not_change_the_file_is_neither_written_nor_signalled() {
    let scene = Scene::new();
    scene.put(1).await;
    scene.receivers("h1", &[(1, None)]).await;
    let running = scene.start(&with_signal()).await;
    let first = scene.request_after("h1", None).await;
    scene.ack("h1", &first, None).await;
    running.is_ready().await;
    let inode = fs::metadata(scene.path("file")).expect("a file").ino();
    let tagged = Instance { tags: vec!["blue".to_owned()], ..testing::instance(1, "web") };
    let failing = Instance { status: Status::Failing, ..testing::instance(2, "web") };
    for (number, instance) in [(1, tagged), (2, failing)] {
        scene.commit(&[Op::Put { key: testing::key(number), value: codec::encode(&instance) }]).await;
        pass().await;
    }
    assert_eq!(fs::metadata(scene.path("file")).expect("a file").ino(), inode);
    assert_eq!(scene.request("h1").await, None);
}

#[tokio::test(start_paused = true)]
async fn under_a_new_session_what_is_still_due_is_requested_again() {
    let scene = Scene::new();
    scene.receivers("h1", &[(1, None)]).await;
    let running = scene.start(&with_signal()).await;
    let request = scene.request_after("h1", None).await;
    let key = testing::keys().format(&Key::Signal(name("h1"), target_id()));
    let lease =
        scene.store.get(&key).await.expect("an answer").and_then(|entry| entry.lease).expect("a lease");
    scene.store.revoke(lease).await.expect("it lives");
    assert_eq!(scene.request("h1").await, None);
    assert_eq!(scene.request_after("h1", None).await, request);
    scene.ack("h1", &request, None).await;
    running.is_ready().await;
    running.end().await;
    let left = scene.store.list(&testing::keys().consumers()).await.expect("a listing").entries;
    assert_eq!(left, [], "at the end the session goes, and its keys with it");
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_goes_or_a_node_that_refuses_another_target_leaves_nobody_unready() {
    let scene = Scene::new();
    scene.receivers("h1", &[(1, None)]).await;
    let running = scene.start(&with_signal()).await;
    let request = scene.request_after("h1", None).await;
    scene.ack("h1", &request, None).await;
    running.is_ready().await;
    // Another consumer's target, on a host whose labels are nothing of ours.
    let other = TargetId { consumer: "c2".parse().expect("a name"), ..target_id() };
    let refused = Receiver {
        incarnation: incarnation(9),
        name: "theirs".parse().expect("a name"),
        refused: Some("container theirs allows no HUP".to_owned()),
    };
    let receivers = Receivers { v: V1, receivers: vec![refused], checkers: vec![] };
    scene.write(Key::Receivers(name("h2"), other), codec::encode(&receivers)).await;
    pass().await;
    running.is_ready().await;
    assert!(running.reason("notify web").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_signals_nobody_goes_on() {
    let scene = Scene::new();
    let mut running = scene.start("format = \"citus-workers\"").await;
    running.is_ready().await;
    let ended = tokio::time::timeout(LEASE.ttl * 2, running.consumer.supervisor.watch()).await;
    assert!(ended.is_err(), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_another_consumer_holds_stops_no_file() {
    let scene = Scene::new();
    let key = testing::keys().format(&Key::Consumer("c1".parse().expect("a name")));
    let mut claim = Claim::new("another state folder".to_owned(), 60);
    claim.host = "elsewhere".to_owned();
    let record = ConsumerRecord { v: V1, claim, container: None, targets: BTreeMap::new() };
    let lease = scene.store.grant(LEASE.ttl).await.expect("a lease");
    let put = [Op::Put { key, value: codec::encode(&record) }];
    scene.store.commit(&put, Some(lease), None).await.expect("a claim");
    scene.put(1).await;
    scene.receivers("h1", &[(1, None)]).await;
    let running = scene.start(&with_signal()).await;
    scene.file_has("10.0.0.1 8001").await;
    running.is_not_ready("claim", "held by another state folder on elsewhere").await;
    assert_eq!(scene.request("h1").await, None);
    let request = scene.request_after("h1", None).await;
    scene.ack("h1", &request, None).await;
    running.is_ready().await;
}

#[tokio::test]
async fn a_command_that_fails_is_run_until_it_works() {
    let scene = Scene::new();
    let (runs, works) = (scene.path("runs"), scene.path("works"));
    let command = format!("sh -c 'echo {{file}} >> {}; test -e {}'", runs.display(), works.display());
    let target = format!("format = \"json\"\nnotify = {{ command = {command:?} }}");
    let running = scene.start(&target).await;
    running.is_not_ready("notify web", "notify: sh ended with exit code 1").await;
    fs::write(&works, "").expect("a file");
    running.is_ready().await;
    let ran = fs::read_to_string(&runs).expect("a file");
    assert!(ran.lines().count() >= 2);
    assert!(ran.lines().all(|line| line.ends_with("/file")), "{ran}");
    running.end().await;
    scene.start(&target).await.is_ready().await;
    assert_eq!(fs::read_to_string(&runs).expect("a file"), ran, "there was nothing left to notify");
}

#[tokio::test(start_paused = true)]
async fn a_command_that_is_under_way_at_the_stop_is_waited_for_within_its_own_time_out() {
    let scene = Scene::new();
    let [begun, may_end, done] = ["begun", "may-end", "done"].map(|name| scene.path(name));
    let [begins, ends, does] = [&begun, &may_end, &done].map(|path| path.display());
    let script = format!("touch {begins}; while [ ! -e {ends} ]; do sleep 0.01; done; touch {does}");
    let notify = format!("notify = {{ command = [\"sh\", \"-c\", {script:?}], timeout = \"1000000s\" }}");
    let running = scene.start(&format!("format = \"json\"\n{notify}")).await;
    until(async || begun.exists().then_some(())).await;
    // The clock stands still while another thread is at work, unless it is told to go on.
    let (release, held) = std::sync::mpsc::channel::<()>();
    let holding = tokio::task::spawn_blocking(move || held.recv());
    tokio::join!(running.consumer.supervisor.end(), async {
        // In steps, so that each task sees the stop before the time has passed.
        for _ in 0..10 {
            tokio::time::advance(SHUTDOWN_TIMEOUT / 5).await;
        }
        fs::write(&may_end, "").expect("a file");
    });
    assert!(done.exists(), "it was broken off");
    drop(release);
    holding.await.expect("no panic").expect_err("nobody sends");
}

#[tokio::test(start_paused = true)]
async fn the_own_stack_is_asked_for_and_until_it_is_told_nothing_is_done() {
    let (scene, own) = (Scene::new(), incarnation(7).container);
    let mut plan = scene.plan("format = \"json\"\n[target.select]\nstack = \"own\"");
    plan.targets[0].notify_stack = Some(StackChoice::OwnIfAny);
    let mut consumer = scene.consumer();
    let state = scene.open(&plan, &consumer).await.expect("a folder");
    let mut targets = consumer.targets(&plan, &state);
    let readiness = consumer.readiness.clone();
    let asking = consumer.ask_own_stack(own, &plan, &mut targets, &state, false);
    let agent = async {
        let key = testing::keys().format(&Key::Consumer("c1".parse().expect("a name")));
        let record = until(async || scene.store.get(&key).await.expect("it answers")).await;
        let record: ConsumerRecord = codec::decode(&record.value).expect("a record");
        assert_eq!(record.container, Some(own));
        let reason = async || readiness.conditions().reason("own stack").map(str::to_owned);
        let expected = "own stack is not known: expected an agent on this host, or --stack NAME";
        until(async || reason().await.filter(|reason| reason == expected)).await;
        let home = |number, stack: &str| ConsumerHome {
            v: V1,
            container: incarnation(number).container,
            stack: Some(stack.to_owned()),
        };
        // One of an earlier run comes first.
        for (node, home) in [("h1", home(6, "old")), ("h2", home(7, "shop"))] {
            let key = Key::Home(name(node), "c1".parse().expect("a name"));
            scene.write(key, codec::encode(&home)).await;
        }
    };
    let (asked, ()) = tokio::join!(asking, agent);
    let own = asked.expect("it is told").expect("nobody has stopped it");
    let plan = plan.with_own_stack(own.as_deref()).expect("there is one");
    assert_eq!(plan.targets[0].select.stack, Some(StackChoice::Named("shop".to_owned())));
    assert!(!readiness.conditions().iter().any(|(part, _)| part == "own stack"), "it is done");
}

#[tokio::test(start_paused = true)]
async fn a_single_run_ends_where_nobody_tells_the_own_stack() {
    let scene = Scene::new();
    let plan = scene.plan("format = \"json\"\n[target.select]\nstack = \"own\"");
    let mut consumer = scene.consumer();
    let state = scene.open(&plan, &consumer).await.expect("a folder");
    let mut targets = consumer.targets(&plan, &state);
    let own = incarnation(7).container;
    let failed = consumer.ask_own_stack(own, &plan, &mut targets, &state, true).await;
    let failed = failed.expect_err("nobody tells").to_string();
    assert_eq!(failed, "own stack is not known: expected an agent on this host, or --stack NAME");
}
