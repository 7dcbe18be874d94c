//! What is lost with a host, a store or a state folder neither empties a file nor loses a reload.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_makes_each_part_that_needs_it_unready_until_it_is_back() {
    let scene = Scene::new();
    scene.put(1).await;
    scene.receivers("h1", &[(1, None)]).await;
    let running = scene.start(&with_signal()).await;
    let request = scene.request_after("h1", None).await;
    scene.ack("h1", &request, None).await;
    running.is_ready().await;
    scene.no_request("h1").await;
    scene.store.set_down(true);
    for part in ["roll", "claim", "watch of the claim", "receivers", "acks of h1"] {
        running.is_not_ready(part, "").await;
    }
    assert_eq!(scene.file(), "10.0.0.1 8001\n");
    scene.store.set_down(false);
    running.is_ready().await;
}

#[tokio::test(start_paused = true)]
async fn after_the_store_went_back_a_file_stays_until_the_nodes_have_registered_again() {
    let scene = Scene::new();
    let empty = scene.store.backup();
    scene.node("h1", 1).await;
    scene.node("h2", 2).await;
    let running = scene.start("format = \"citus-workers\"").await;
    scene.file_has("10.0.0.1 8001\n10.0.0.2 8002\n").await;
    scene.store.restore(empty);
    running.is_not_ready("retention", "the store went back: 2 instances are kept").await;
    pass().await;
    assert_eq!(scene.file().lines().count(), 2);
    // One node registers again, with another instance than before; the other one never does.
    scene.node("h1", 3).await;
    scene.file_has("10.0.0.3 8003").await;
    until(async || (!scene.file().contains("10.0.0.1 ")).then_some(())).await;
    assert!(scene.file().contains("10.0.0.2 "));
    until(async || (scene.file() == "10.0.0.3 8003\n").then_some(())).await;
    running.is_ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_after_the_store_was_wiped_empties_no_file() {
    let scene = Scene::new();
    let empty = scene.store.backup();
    scene.node("h1", 1).await;
    let running = scene.start("format = \"citus-workers\"").await;
    scene.file_has("10.0.0.1 8001").await;
    pass().await;
    running.end().await;
    scene.store.restore(empty);
    let running = scene.start("format = \"citus-workers\"").await;
    running.is_not_ready("retention", "the store went back: 1 instances are kept").await;
    assert_eq!(scene.file(), "10.0.0.1 8001\n");
    until(async || scene.file().is_empty().then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn the_last_instance_that_goes_while_it_is_watched_empties_the_file_at_once() {
    let scene = Scene::new();
    scene.put(1).await;
    let _running = scene.start("format = \"citus-workers\"").await;
    scene.file_has("10.0.0.1 8001").await;
    scene.delete(1).await;
    until(async || scene.file().is_empty().then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn hosts_that_are_lost_at_once_are_held_for_the_guards_time_and_a_withdrawal_is_not() {
    let scene = Scene::new();
    let mut leases = Vec::new();
    for number in 1..=4 {
        leases.push(scene.node(&format!("h{number}"), number).await);
    }
    let guard = "format = \"citus-workers\"\nguard = { max_loss = \"50%\", hold = \"60s\" }";
    let running = scene.start(guard).await;
    scene.file_has("10.0.0.4").await;
    for lease in &leases[1..] {
        scene.store.revoke(*lease).await.expect("it lives");
    }
    running.is_not_ready("target web", "max_loss").await;
    let held_since = tokio::time::Instant::now();
    assert!(scene.file().lines().count() >= 3, "{}", scene.file());
    until(async || (scene.file().lines().count() == 1).then_some(())).await;
    assert!(held_since.elapsed() >= Duration::from_secs(50));
    running.is_ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_second_consumer_in_the_same_state_folder_is_refused_and_that_is_no_matter_of_settings() {
    let scene = Scene::new();
    let _running = scene.start(&with_signal()).await;
    let opened = scene.open(&scene.plan(&with_signal()), &scene.consumer()).await;
    let error = opened.map(drop).expect_err("the folder is in use");
    assert!(matches!(error, Failure::Failed(_)), "{error}");
    assert!(error.to_string().contains("another consumer that runs uses it"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_state_folder_that_cannot_be_written_stops_no_file_and_nobody_is_signalled_twice() {
    let scene = Scene::new();
    scene.put(1).await;
    scene.receivers("h1", &[(1, None)]).await;
    let running = scene.start(&with_signal()).await;
    let first = scene.request_after("h1", None).await;
    scene.ack("h1", &first, None).await;
    running.is_ready().await;
    // A file in its place: nothing can be written, and it cannot be made again.
    fs::remove_dir_all(scene.path("state")).expect("a folder");
    fs::write(scene.path("state"), "").expect("a file");
    scene.put(2).await;
    scene.file_has("10.0.0.2 8002").await;
    let second = scene.request_after("h1", Some(&first)).await;
    scene.ack("h1", &second, None).await;
    running.is_not_ready("state", "cannot write --state-dir").await;
    scene.no_request("h1").await;
    for _ in 0..10 {
        pass().await;
        assert_eq!(scene.request("h1").await, None, "it was acked");
    }
    // Going back to what may be remembered as acked is no reason not to install either.
    scene.delete(2).await;
    let third = scene.request_after("h1", None).await;
    assert_eq!(scene.file(), "10.0.0.1 8001\n");
    scene.ack("h1", &third, None).await;
    fs::remove_file(scene.path("state")).expect("a file");
    running.is_ready().await;
    for file in ["state/id", "state/web.state.json", "state/roll.json"] {
        until(async || scene.path(file).exists().then_some(())).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_someone_changes_while_it_is_held_is_told_of_and_put_back_afterwards() {
    let scene = Scene::new();
    scene.put(1).await;
    let guard = "format = \"citus-workers\"\nguard = { min_instances = 1, hold = \"forever\" }";
    let running = scene.start(guard).await;
    scene.file_has("10.0.0.1 8001").await;
    scene.delete(1).await;
    running.is_not_ready("target web", "keeps what it has: ").await;
    fs::write(scene.path("file"), "other\n").expect("a file");
    running.is_not_ready("target web", "someone else changed the file meanwhile").await;
    assert_eq!(scene.file(), "other\n");
    scene.put(1).await;
    scene.file_has("10.0.0.1 8001").await;
    running.is_ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_selection_that_has_never_matched_empties_no_file_and_says_what_it_looks_for() {
    let scene = Scene::new();
    fs::write(scene.path("file"), "10.9.9.9 5432\n").expect("a file");
    scene.put(1).await;
    let wrong = "format = \"citus-workers\"\n[target.select]\nservice = \"wbe\"";
    for _ in 0..2 {
        let running = scene.start(wrong).await;
        let reason = "it is not emptied without allow_empty: no instance has the service wbe; there are: web";
        running.is_not_ready("target web", reason).await;
        assert_eq!(scene.file(), "10.9.9.9 5432\n");
        running.end().await;
    }
    let running = scene.start(&wrong.replace("wbe", "web")).await;
    scene.file_has("10.0.0.1 8001").await;
    running.is_ready().await;
    pass().await;
    running.end().await;
    // What went while nobody looked, and had matched, empties it.
    scene.delete(1).await;
    let running = scene.start(&wrong.replace("wbe", "web")).await;
    until(async || scene.file().is_empty().then_some(())).await;
    running.is_ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_file_may_be_emptied_at_once_where_that_is_allowed_and_one_without_content_is_written() {
    let scene = Scene::new();
    fs::write(scene.path("file"), "10.9.9.9 5432\n").expect("a file");
    let running = scene.start("format = \"citus-workers\"\nallow_empty = true").await;
    until(async || scene.file().is_empty().then_some(())).await;
    running.is_ready().await;
    running.end().await;
    let running = scene.start("format = \"json\"").await;
    scene.file_has("[]").await;
    running.is_ready().await;
}

#[tokio::test(start_paused = true)]
async fn once_and_a_dry_run_say_that_nothing_has_matched() {
    let scene = Scene::new();
    fs::write(scene.path("file"), "10.9.9.9 5432\n").expect("a file");
    let (mut consumer, targets) = scene.ready("format = \"citus-workers\"").await;
    let configs = scene.configs();
    let failed = consumer.once(&configs, targets).await.expect_err("nothing matches").to_string();
    assert!(failed.contains("no instance is registered at all"), "{failed}");
    let (selections, _follower) = consumer.follow(&configs, None).await.expect("a store").expect("rows");
    let Preview { text, outcome } = preview::preview(&configs[0], &selections[0], false).await;
    assert_eq!(outcome.expect("it is held"), Outcome::Same);
    assert!(text.contains("stays as it is: nothing has matched yet"), "{text}");
    let Preview { outcome, .. } = preview::preview(&configs[0], &selections[0], true).await;
    assert_eq!(outcome.expect("it has matched before"), Outcome::Changed);
    assert_eq!(scene.file(), "10.9.9.9 5432\n");
}

#[tokio::test(start_paused = true)]
async fn a_service_of_which_none_passes_stays_in_the_file_and_readyz_says_so_until_one_passes() {
    let scene = Scene::new();
    let put = async |number: usize, status: Status| {
        let instance = Instance { status, ..testing::instance(number, "web") };
        scene.commit(&[Op::Put { key: testing::key(number), value: codec::encode(&instance) }]).await;
    };
    scene.put(1).await;
    scene.put(2).await;
    let running = scene.start("format = \"citus-workers\"").await;
    scene.file_has("10.0.0.2 8002").await;
    put(1, Status::Failing).await;
    until(async || (scene.file() == "10.0.0.2 8002\n").then_some(())).await;
    put(2, Status::Failing).await;
    until(async || (scene.file() == "10.0.0.1 8001\n10.0.0.2 8002\n").then_some(())).await;
    let expected = "ok; service web: none of its instances passes: all 2 failing ones are kept";
    until(async || (running.condition("target web") == expected).then_some(())).await;
    running.is_ready().await;
    put(2, Status::Passing).await;
    until(async || (scene.file() == "10.0.0.2 8002\n").then_some(())).await;
    assert_eq!(running.condition("target web"), "ok");
    put(2, Status::Draining).await;
    pass().await;
    assert_eq!(scene.file(), "10.0.0.2 8002\n", "it still serves");
    scene.delete(2).await;
    scene.delete(1).await;
    until(async || scene.file().is_empty().then_some(())).await;
}

/// Registers an instance that fails.
async fn put_failing(scene: &Scene, number: usize) {
    let failing = Instance { status: Status::Failing, ..testing::instance(number, "web") };
    scene.commit(&[Op::Put { key: testing::key(number), value: codec::encode(&failing) }]).await;
}

#[tokio::test(start_paused = true)]
async fn those_that_stand_in_are_remembered_over_a_restart_as_well() {
    let scene = Scene::new();
    let empty = scene.store.backup();
    scene.node("h1", 1).await;
    put_failing(&scene, 1).await;
    let running = scene.start("format = \"citus-workers\"").await;
    scene.file_has("10.0.0.1 8001").await;
    pass().await;
    running.end().await;
    scene.store.restore(empty);
    let running = scene.start("format = \"citus-workers\"").await;
    running.is_not_ready("retention", "the store went back: 1 instances are kept").await;
    assert_eq!(scene.file(), "10.0.0.1 8001\n");
}

#[tokio::test(start_paused = true)]
async fn those_that_stand_in_from_the_start_on_have_matched() {
    let scene = Scene::new();
    fs::write(scene.path("file"), "old\n").expect("a file");
    put_failing(&scene, 1).await;
    let running = scene.start("format = \"citus-workers\"").await;
    scene.file_has("10.0.0.1 8001").await;
    running.is_ready().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_held_after_a_restart_is_notified_if_it_was_not() {
    let scene = Scene::new();
    for number in 1..=3 {
        scene.put(number).await;
    }
    scene.receivers("h1", &[(1, None)]).await;
    let held =
        format!("format = \"citus-workers\"\nguard = {{ min_instances = 3, hold = \"forever\" }}\n{SIGNAL}");
    let running = scene.start(&held).await;
    scene.request_after("h1", None).await;
    pass().await;
    running.end().await;
    // What the first run has requested is not to be taken for the second one's.
    let key = testing::keys().format(&Key::Signal(name("h1"), target_id()));
    scene.commit(&[Op::Delete { key }]).await;
    scene.delete(3).await;
    let running = scene.start(&held).await;
    running.is_not_ready("target web", "fewer than guard.min_instances").await;
    let request = scene.request_after("h1", None).await;
    assert_eq!(scene.file().lines().count(), 3);
    scene.ack("h1", &request, None).await;
    scene.no_request("h1").await;
    pass().await;
    assert_eq!(scene.request("h1").await, None, "it is notified once");
}
