//! `--once`, `--dry-run` and what is refused at the start.

use super::*;

#[tokio::test(start_paused = true)]
async fn once_is_done_with_the_ack_and_fails_without() {
    let scene = Scene::new();
    scene.put(1).await;
    let (mut consumer, targets) = scene.ready(&with_signal()).await;
    let failed = consumer.once(&scene.configs(), targets).await.expect_err("nobody acks").to_string();
    assert_eq!(
        failed,
        "target web: its notification was not acked within 10s: waiting for a container to signal: \
         container proxy"
    );
    consumer.supervisor.end().await;
    scene.receivers("h1", &[(1, None)]).await;
    let (mut consumer, targets) = scene.ready(&with_signal()).await;
    let agent = async {
        let request = scene.request_after("h1", None).await;
        scene.ack("h1", &request, None).await;
    };
    let configs = scene.configs();
    let (done, ()) = tokio::join!(consumer.once(&configs, targets), agent);
    done.expect("it was acked");
    consumer.supervisor.end().await;
    let (mut consumer, targets) = scene.ready(&with_signal()).await;
    consumer.once(&scene.configs(), targets).await.expect("there is nothing left to do");
}

#[tokio::test]
async fn once_waits_for_a_command_as_long_as_that_may_take() {
    let scene = Scene::new();
    let notify = "format = \"json\"\nnotify = { command = \"sleep 0.3\", timeout = \"30s\" }";
    let (mut consumer, targets) = scene.ready(notify).await;
    consumer.wait = Duration::from_millis(50);
    consumer.once(&scene.configs(), targets).await.expect("the command ends within its own time");
}

#[tokio::test(start_paused = true)]
async fn once_tells_of_every_target_that_failed_and_of_a_name_that_is_held() {
    let scene = Scene::new();
    scene.put(1).await;
    let key = testing::keys().format(&Key::Consumer("c1".parse().expect("a name")));
    let claim = Claim::new("another state folder".to_owned(), 60);
    let record = ConsumerRecord { v: V1, claim, container: None, targets: BTreeMap::new() };
    let lease = scene.store.grant(LEASE.ttl * 10).await.expect("a lease");
    let put = [Op::Put { key, value: codec::encode(&record) }];
    scene.store.commit(&put, Some(lease), None).await.expect("a claim");
    let template = scene.path("list.j2");
    fs::write(&template, "{{ nobody.there }}").expect("a file");
    let more = format!("[[target]]\nname = \"b\"\ndest = \"{}\"\n", scene.path("b").display());
    let more = format!("{}{more}template = \"{}\"\n", with_signal(), template.display());
    let (mut consumer, targets) = scene.ready(&more).await;
    let failed = consumer.once(&scene.configs(), targets).await.expect_err("both fail").to_string();
    let (first, second) = failed.split_once("; target b: ").unwrap_or_else(|| panic!("{failed}"));
    assert!(first.contains("not acked within") && first.contains("held by another state folder"), "{first}");
    assert!(second.contains("line 1"), "{second}");
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_at_the_start_is_said_before_anything_is_touched() {
    let scene = Scene::new();
    let dest = scene.path("file");
    for (rest, is_folder, expected) in [
        ("format = \"json\"", true, format!("dest is {}: expected a file", dest.display())),
        ("template = \"/no/such.j2\"", false, "template is /no/such.j2: ".to_owned()),
    ] {
        if is_folder {
            fs::create_dir(&dest).expect("a folder");
        }
        let opened = scene.open(&scene.plan(rest), &scene.consumer()).await;
        let error = opened.map(drop).expect_err(rest);
        assert!(matches!(error, Failure::Usage(_)), "{error}");
        let error = error.to_string();
        assert!(error.starts_with("target web: ") && error.contains(&expected), "{error}");
        if is_folder {
            fs::remove_dir(&dest).expect("a folder");
        }
    }
    fs::write(scene.path("state"), "").expect("a file");
    let opened = scene.open(&scene.plan(&with_signal()), &scene.consumer()).await;
    let error = opened.map(drop).expect_err("a file is no folder");
    assert!(
        matches!(error, Failure::Usage(_)) && error.to_string().starts_with("--state-dir is "),
        "{error}"
    );
    assert!(!dest.exists());
}

#[tokio::test]
async fn a_dry_run_shows_what_would_change_checks_it_elsewhere_and_touches_nothing() {
    let scene = Scene::new();
    scene.put(1).await;
    let seen = scene.path("seen");
    let check = format!(
        "sh -c 'cp {{file}} {}; echo {{dest}}; test ! -e {}'",
        seen.display(),
        scene.path("bad").display()
    );
    let plan = scene.plan(&format!("format = \"citus-workers\"\ncheck = {check:?}"));
    let mut consumer = scene.consumer();
    let (selections, _follower) = consumer.follow(&plan.targets, None).await.expect("a store").expect("rows");
    let preview = async || preview::preview(&plan.targets[0], &selections[0], false).await;
    let Preview { text, outcome } = preview().await;
    assert_eq!(outcome.expect("it is checked"), Outcome::Changed);
    assert!(text.starts_with("--- /dev/null\n+++ ") && text.ends_with("\n+10.0.0.1 8001\n"), "{text}");
    assert_eq!(fs::read_to_string(&seen).expect("it was checked"), "10.0.0.1 8001\n");
    assert!(!scene.path("file").exists());
    fs::write(scene.path("bad"), "").expect("a file");
    let Preview { text, outcome } = preview().await;
    let refused = one_line(&*outcome.expect_err("it is refused"));
    assert!(refused.starts_with("the check refuses the new file: sh ended with exit code 1: "));
    assert!(refused.ends_with("/file") && text.contains("+10.0.0.1 8001"), "{refused}\n{text}");
    fs::write(scene.path("file"), "10.0.0.1 8001\n").expect("a file");
    assert_eq!(preview().await.outcome.expect("nobody checks it"), Outcome::Same);
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_counts_the_loss_guard_in() {
    let scene = Scene::new();
    let plan = scene.plan("format = \"citus-workers\"\nguard = { min_instances = 1, hold = \"forever\" }");
    scene.put(1).await;
    let mut consumer = scene.consumer();
    let (selections, _follower) = consumer.follow(&plan.targets, None).await.expect("a store").expect("rows");
    scene.delete(1).await;
    until(async || selections[0].borrow().is_empty().then_some(())).await;
    fs::write(scene.path("file"), "10.0.0.1 8001\n").expect("a file");
    let Preview { text, outcome } = preview::preview(&plan.targets[0], &selections[0], false).await;
    assert_eq!(outcome.expect("it is held"), Outcome::Same);
    assert!(text.starts_with("target web: ") && text.contains(" stays as it is: "), "{text}");
}
