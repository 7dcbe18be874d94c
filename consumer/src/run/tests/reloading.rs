//! Settings that are read anew while the consumer runs.

use rollcall_shared::store::Entry;

use super::*;

impl Scene {
    /// Writes a file of targets: each has a name, which its file has as well, and the rest of its table.
    fn targets(&self, targets: &[(&str, &str)]) {
        let table = |(name, rest): &(&str, &str)| {
            let dest = self.path(name).display().to_string();
            format!("[[target]]\nname = \"{name}\"\ndest = \"{dest}\"\n{rest}\n")
        };
        fs::write(self.path("config.toml"), targets.iter().map(table).collect::<String>()).expect("a file");
    }

    fn has(&self, name: &str, text: &str) -> bool {
        fs::read_to_string(self.path(name)).unwrap_or_default().contains(text)
    }

    async fn record(&self) -> Option<(Entry, ConsumerRecord)> {
        let key = testing::keys().format(&Key::Consumer("c1".parse().expect("a name")));
        let entry = self.store.get(&key).await.expect("the memory store answers")?;
        let record = codec::decode(&entry.value).expect("a record");
        Some((entry, record))
    }

    /// A consumer of the target `web`, which signals a proxy that has acked.
    async fn acked(&self) -> Running {
        self.put(1).await;
        self.receivers("h1", &[(1, None)]).await;
        let running = self.start(&with_signal()).await;
        let request = self.request_after("h1", None).await;
        self.ack("h1", &request, None).await;
        running.is_ready().await;
        self.no_request("h1").await;
        running
    }
}

#[tokio::test(start_paused = true)]
async fn targets_come_and_go_and_the_others_are_neither_written_nor_signalled_again() {
    let scene = Scene::new();
    let mut running = scene.acked().await;
    let inode = fs::metadata(scene.path("file")).expect("a file").ino();
    let rendered = fs::metadata(scene.path("file")).expect("a file").modified().expect("a time");
    let before = fs::read_to_string(scene.path("config.toml")).expect("a file");
    let more = format!(
        "[[target]]\nname = \"more\"\ndest = \"{}\"\nformat = \"json\"\n",
        scene.path("more").display()
    );
    fs::write(scene.path("config.toml"), before.clone() + &more).expect("a file");
    running.reload().await.expect("good settings");
    until(async || scene.has("more", "10.0.0.1:8001").then_some(())).await;
    running.is_ready().await;
    fs::write(scene.path("config.toml"), before).expect("a file");
    running.reload().await.expect("good settings");
    assert_eq!(running.consumer.readiness.conditions().get("target more"), None);
    pass().await;
    assert_eq!(scene.request("h1").await, None, "it has taken the change already");
    assert_eq!(fs::metadata(scene.path("file")).expect("a file").ino(), inode);
    assert_eq!(fs::metadata(scene.path("file")).expect("a file").modified().expect("a time"), rendered);
    scene.put(2).await;
    scene.file_has("10.0.0.2 8002").await;
    assert!(!scene.has("more", "10.0.0.2"), "it is nobody's target any more");
    let ended = tokio::time::timeout(LEASE.ttl, running.consumer.supervisor.watch()).await;
    assert!(ended.is_err(), "a target that was stopped does not end the process: {ended:?}");
}

#[tokio::test(start_paused = true)]
async fn settings_that_cannot_work_are_refused_in_one_line_and_the_old_ones_stay() {
    let scene = Scene::new();
    let mut running = scene.acked().await;
    let good = fs::read_to_string(scene.path("config.toml")).expect("a file");
    let template = scene.path("bad.j2");
    fs::write(&template, "{% for %}").expect("a file");
    let bad_template =
        good.replace("format = \"citus-workers\"", &format!("template = \"{}\"", template.display()));
    for (bad, expected) in [
        ("[[target".to_owned(), "line 1"),
        (good.replace("citus-workers", "nonsense"), "nonsense"),
        (good.replace(&scene.path("file").display().to_string(), "/no/such/folder/file"), "/no/such/folder"),
        (bad_template, "bad.j2"),
    ] {
        fs::write(scene.path("config.toml"), &bad).expect("a file");
        let refused = running.reload().await.expect_err(&bad);
        assert!(refused.contains(expected) && !refused.contains('\n'), "{refused}");
    }
    scene.put(2).await;
    scene.file_has("10.0.0.2 8002").await;
}

#[tokio::test(start_paused = true)]
async fn what_the_consumer_says_of_itself_follows_under_the_same_claim() {
    let scene = Scene::new();
    let mut running = scene.acked().await;
    let (first, record) = scene.record().await.expect("it is claimed");
    let changed = fs::read_to_string(scene.path("config.toml")).expect("a file").replace("proxy", "other");
    fs::write(scene.path("config.toml"), changed).expect("a file");
    running.reload().await.expect("good settings");
    let renewed = until(async || {
        let (entry, renewed) = scene.record().await.expect("the name is never given up");
        (renewed.targets != record.targets).then_some((entry, renewed))
    });
    let (entry, renewed) = renewed.await;
    assert_eq!(entry.lease, first.lease);
    assert_eq!(renewed.claim.holder, record.claim.holder);
    // The new receiver has read nobody knows which file.
    scene.receivers("h1", &[(2, None)]).await;
    let is_for_it = |request: &SignalRequest| request.receivers[0].incarnation == incarnation(2);
    let request = until(async || scene.request("h1").await.filter(is_for_it)).await;
    scene.ack("h1", &request, None).await;
    running.is_ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_target_that_goes_takes_its_requests_along() {
    let scene = Scene::new();
    scene.receivers("h1", &[(1, None)]).await;
    let mut running = scene.start(&with_signal()).await;
    scene.request_after("h1", None).await;
    scene.targets(&[("other", "format = \"json\"")]);
    running.reload().await.expect("good settings");
    scene.no_request("h1").await;
    until(async || scene.has("other", "[]").then_some(())).await;
    running.is_ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_template_is_read_anew() {
    let scene = Scene::new();
    scene.put(1).await;
    let template = scene.path("list.j2");
    fs::write(&template, "old {{ instances[0].endpoint }}\n").expect("a file");
    let mut running = scene.start(&format!("template = \"{}\"", template.display())).await;
    scene.file_has("old 10.0.0.1:8001").await;
    fs::write(&template, "new {{ instances[0].endpoint }}\n").expect("a file");
    running.reload().await.expect("good settings");
    scene.file_has("new 10.0.0.1:8001").await;
}

#[tokio::test(start_paused = true)]
async fn what_a_loss_guard_holds_is_held_over_a_reload_also_by_a_target_that_has_changed() {
    let scene = Scene::new();
    let mut leases = Vec::new();
    for number in 1..=4 {
        leases.push(scene.node(&format!("h{number}"), number).await);
    }
    let rest = |select: &str| {
        format!("format = \"citus-workers\"\nguard = {{ max_loss = \"50%\", hold = \"60s\" }}\n{select}")
    };
    scene.targets(&[("same", &rest("")), ("changed", &rest(""))]);
    let mut running = scene.start(&rest("")).await;
    scene.targets(&[("same", &rest("")), ("changed", &rest(""))]);
    running.reload().await.expect("good settings");
    until(async || (scene.has("same", "10.0.0.4") && scene.has("changed", "10.0.0.4")).then_some(())).await;
    for lease in &leases[1..] {
        scene.store.revoke(*lease).await.expect("it lives");
    }
    running.is_not_ready("target same", "max_loss").await;
    running.is_not_ready("target changed", "max_loss").await;
    let lines = |name: &str| fs::read_to_string(scene.path(name)).expect("a file").lines().count();
    let (same, changed) = (lines("same"), lines("changed"));
    assert!(same >= 3 && changed >= 3);
    scene.targets(&[("same", &rest("")), ("changed", &rest("select = { service = \"web\" }"))]);
    running.reload().await.expect("good settings");
    running.is_not_ready("target changed", "max_loss").await;
    pass().await;
    assert_eq!((lines("same"), lines("changed")), (same, changed));
}

/// What is under way for as long as a file is not there.
struct UnderWay(PathBuf);

impl UnderWay {
    /// A command that is begun, and ends once it may.
    fn of(scene: &Scene) -> (Self, String) {
        let (begun, may_end) = (scene.path("begun"), scene.path("may-end"));
        let script =
            format!("touch {}; while [ ! -e {} ]; do sleep 0.01; done", begun.display(), may_end.display());
        let notify =
            format!("[target.notify]\ncommand = [\"sh\", \"-c\", {script:?}]\ntimeout = \"1000000s\"");
        (Self(may_end), notify)
    }

    fn end(&self) {
        fs::write(&self.0, "").expect("a file");
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let _ = fs::write(&self.0, "");
    }
}

/// The targets `slow`, whose notify command is under way, and `quick`.
async fn notifying(scene: &Scene) -> (Running, UnderWay) {
    scene.put(1).await;
    let (under_way, notify) = UnderWay::of(scene);
    let mut running = scene.start("format = \"json\"").await;
    scene.targets(&[("slow", &format!("format = \"json\"\n{notify}")), ("quick", "format = \"json\"")]);
    running.reload().await.expect("good settings");
    until(async || scene.path("begun").exists().then_some(())).await;
    (running, under_way)
}

#[tokio::test(start_paused = true)]
async fn a_target_with_something_under_way_is_waited_for_by_its_successor_alone_which_says_so() {
    let scene = Scene::new();
    let (mut running, under_way) = notifying(&scene).await;
    let citus = "format = \"citus-workers\"";
    scene.targets(&[("slow", citus), ("quick", citus), ("new", citus)]);
    running.reload().await.expect("good settings");
    until(async || (scene.has("quick", "10.0.0.1 8001") && scene.has("new", "10.0.0.1 8001")).then_some(()))
        .await;
    running.is_not_ready("reload slow", "has not ended within 10s").await;
    // What comes in its stead once more, and a later reload, change nothing in that.
    scene.targets(&[("slow", citus), ("quick", "format = \"json\"")]);
    running.reload().await.expect("good settings");
    scene.targets(&[
        ("slow", "format = \"citus-workers\"\nreconcile = \"7s\""),
        ("quick", "format = \"json\""),
    ]);
    running.reload().await.expect("good settings");
    until(async || scene.has("quick", "\"address\"").then_some(())).await;
    running.is_not_ready("reload slow", "has not ended within 10s").await;
    assert!(!scene.has("slow", "10.0.0.1 8001"), "two would keep one file");
    under_way.end();
    let arrived = running.reloader.targets.next().await;
    running.reloader.targets.begin(&mut running.consumer.supervisor, arrived);
    until(async || scene.has("slow", "10.0.0.1 8001").then_some(())).await;
    running.is_ready().await;
    assert_eq!(running.condition("reload slow"), "");
}

#[tokio::test(start_paused = true)]
async fn a_target_that_takes_over_the_file_of_another_name_waits_for_its_end() {
    let scene = Scene::new();
    let (mut running, under_way) = notifying(&scene).await;
    let renamed = format!(
        "[[target]]\nname = \"renamed\"\ndest = {:?}\nformat = \"citus-workers\"\n",
        scene.path("slow")
    );
    fs::write(scene.path("config.toml"), renamed).expect("a file");
    running.reload().await.expect("good settings");
    running.is_not_ready("reload renamed", "has not ended within 10s").await;
    assert!(!scene.has("slow", "10.0.0.1 8001"), "two would keep one file");
    under_way.end();
    let arrived = running.reloader.targets.next().await;
    running.reloader.targets.begin(&mut running.consumer.supervisor, arrived);
    until(async || scene.has("slow", "10.0.0.1 8001").then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn a_task_that_fails_ends_the_process_while_a_reload_waits_and_another_reload_is_taken() {
    let scene = Scene::new();
    let (running, _under_way) = notifying(&scene).await;
    let Running { mut consumer, reloader } = running;
    scene.targets(&[("slow", "format = \"citus-workers\"")]);
    let (ask, mut asked) = tokio::sync::mpsc::channel(1);
    let lost = CancellationToken::new();
    let loss = lost.clone();
    consumer.supervisor.spawn_ending("session", async move {
        loss.cancelled().await;
        Err(Failure::failed("the name was taken over"))
    });
    let readiness = consumer.readiness.clone();
    let work = consumer.work(vec![], reloader, async || asked.recv().await.expect("somebody asks"));
    let story = async {
        ask.send(()).await.expect("it works");
        until(async || readiness.conditions().reason("reload slow").map(drop)).await;
        scene.targets(&[("slow", "format = \"citus-workers\""), ("new", "format = \"json\"")]);
        ask.send(()).await.expect("it works");
        until(async || scene.has("new", "10.0.0.1").then_some(())).await;
        lost.cancel();
        std::future::pending::<()>().await
    };
    let ended = tokio::select! {
        ended = work => ended.expect_err("it ends").to_string(),
        () = story => unreachable!("it tells no more"),
    };
    assert!(ended.contains("taken over"), "{ended}");
}

#[tokio::test(start_paused = true)]
async fn settings_on_a_file_system_that_hangs_are_refused_after_a_while() {
    let scene = Scene::new();
    let mut running = scene.acked().await;
    fs::remove_file(scene.path("config.toml")).expect("a file");
    let mode = 0o600.into();
    rustix::fs::mkfifoat(rustix::fs::CWD, scene.path("config.toml"), mode).expect("a pipe");
    // The clock stands still while another thread is at work, unless it is told to go on.
    let (refused, ()) = tokio::join!(running.reload(), tokio::time::advance(Duration::from_secs(10)));
    let refused = refused.expect_err("nobody writes");
    assert_eq!(refused, "reading the settings and templates takes more than 10s");
    fs::File::options().write(true).open(scene.path("config.toml")).expect("a pipe");
}
