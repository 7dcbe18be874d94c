//! Several targets share one notifier, which is told once of what changes together.

use super::*;

impl Scene {
    /// Targets `a` and `b` of the services of these names, whose notifier is called as the other tests' target.
    async fn start_shared(&self, notifier: &str) -> Running {
        let plan = self.plan("format = \"json\"");
        fs::write(self.path("config.toml"), self.shared(notifier)).expect("a file");
        self.start_plan(Plan { targets: self.configs(), ..plan }).await
    }

    fn shared(&self, notifier: &str) -> String {
        let target = |name: &str| {
            let settings = "format = \"citus-workers\"\nnotify = \"web\"\npace = \"none\"";
            let dest = self.path(name);
            format!(
                "[[target]]\nname = \"{name}\"\ndest = {dest:?}\n{settings}\nselect = {{ service = \"{name}\" }}\n"
            )
        };
        format!("{}{}[notifier.web]\n{notifier}\n", target("a"), target("b"))
    }
}

const PROXY: &str = "container = \"proxy\"";

#[tokio::test(start_paused = true)]
async fn targets_that_change_together_cause_one_signal_and_its_ack_is_everybodys() {
    let scene = Scene::new();
    scene.receivers("h1", &[(1, None)]).await;
    scene.commit(&[testing::put(1, "a"), testing::put(2, "b")]).await;
    let running = scene.start_shared(PROXY).await;
    let first = scene.request_after("h1", None).await;
    assert!(scene.path("a").exists() && scene.path("b").exists(), "it is signalled once both are there");
    scene.ack("h1", &first, None).await;
    running.is_ready().await;
    scene.no_request("h1").await;
    pass().await;
    assert_eq!(scene.request("h1").await, None, "once");
    for name in ["a", "b"] {
        let state = fs::read_to_string(scene.path(&format!("state/{name}.state.json"))).expect("a state");
        assert!(state.contains("\"is_complete\":true"), "{state}");
    }
    scene.commit(&[testing::put(3, "a"), testing::put(4, "b")]).await;
    let second = scene.request_after("h1", Some(&first)).await;
    assert!(second.generation > first.generation);
    scene.ack("h1", &second, None).await;
    scene.no_request("h1").await;
    scene.put(5).await;
    scene.commit(&[testing::put(6, "b")]).await;
    let third = scene.request_after("h1", Some(&second)).await;
    scene.ack("h1", &third, None).await;
    running.is_ready().await;
    pass().await;
    running.end().await;
    let running = scene.start_shared(PROXY).await;
    running.is_ready().await;
    pass().await;
    assert_eq!(scene.request("h1").await, None, "what was acked is not requested again");
    scene.receivers("h1", &[(1, None), (2, None)]).await;
    let late = scene.request_after("h1", None).await;
    assert_eq!(late.receivers, [RequestedReceiver { incarnation: incarnation(2), attempt: 1 }]);
}

#[tokio::test]
async fn a_command_that_targets_share_runs_once_and_again_by_other_settings_after_a_reload() {
    let scene = Scene::new();
    let runs = scene.path("runs");
    let ran = |what: &str| {
        let command = format!("sh -c 'echo {what} >> {}'", runs.display());
        format!("command = {command:?}")
    };
    let lines =
        || fs::read_to_string(&runs).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
    scene.commit(&[testing::put(1, "a"), testing::put(2, "b")]).await;
    let mut running = scene.start_shared(&ran("first")).await;
    until(async || (!lines().is_empty()).then_some(())).await;
    running.is_ready().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(lines(), ["first"]);
    fs::write(scene.path("config.toml"), scene.shared(&ran("second"))).expect("a file");
    running.reload().await.expect("good settings");
    until(async || (lines() == ["first", "second"]).then_some(())).await;
    scene.commit(&[testing::put(3, "b")]).await;
    until(async || (lines() == ["first", "second", "second"]).then_some(())).await;
    running.is_ready().await;
    running.end().await;
}

#[tokio::test]
async fn once_many_targets_that_share_a_notifier_are_all_acked() {
    let scene = Scene::new();
    scene.put(1).await;
    let target = |number: usize| {
        let dest = scene.path(&format!("file-{number}"));
        format!("[[target]]\nname = \"t{number}\"\ndest = {dest:?}\nformat = \"json\"\nnotify = \"web\"\n")
    };
    let targets: String = (1..=8).map(target).collect();
    let plan = scene.plan("format = \"json\"");
    let notifier = "[notifier.web]\ncommand = \"true\"\ntimeout = \"1s\"\n";
    fs::write(scene.path("config.toml"), format!("{targets}{notifier}")).expect("a file");
    let (mut consumer, targets, _) = scene.open_plan(Plan { targets: scene.configs(), ..plan }).await;
    consumer.wait = Duration::from_secs(2);
    consumer.once(&scene.configs(), targets).await.expect("all are acked");
}

#[test]
fn a_notifier_that_is_not_there_or_not_used_or_has_a_targets_name_is_refused() {
    let target = "[[target]]\nname = \"a\"\ndest = \"/a\"\nformat = \"json\"\nnotify = \"proxy\"\n";
    for (text, expected) in [
        (target.to_owned(), "target a: notify is proxy: expected a table [notifier.proxy]"),
        (
            format!("{target}[notifier.proxy]\n{PROXY}\n[notifier.other]\n{PROXY}\n"),
            "notifier is other: expected a target with notify = \"other\"",
        ),
        (
            format!("{}[notifier.a]\n{PROXY}\n", target.replace("\"proxy\"", "\"a\"")),
            "notifier is a: expected a name that no target has",
        ),
        (
            format!("{target}[notifier.proxy]\ncommand = \"x {{file}}\"\n"),
            "target a: notify.command is \"x {file}\": expected no {file} in it, as several targets share it",
        ),
        (format!("{target}[notifier.proxy]\n"), "target a: notify is not given: expected exactly one of"),
    ] {
        let error = refusal(&text);
        assert!(error.contains(expected), "{error}\n{expected}");
    }
}
