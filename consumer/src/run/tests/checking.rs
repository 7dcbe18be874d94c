//! Files are checked in the containers that will read them, and a bad one is not installed.

use rollcall_shared::model::check::{CheckOutcome, CheckRequest, Verdict, Verdicts};

use super::*;

pub(super) const CHECK: &str =
    "format = \"citus-workers\"\ncheck = { container = \"proxy\", command = \"check {file} {dest}\" }\n";

impl Scene {
    /// Says as the agent of a node that these containers can check; one with a reason refuses.
    pub(super) async fn checkers(&self, node: &str, checkers: &[(u8, Option<&str>)]) {
        let receivers = Receivers { v: V1, receivers: vec![], checkers: receivers(checkers) };
        self.write(Key::Receivers(super::name(node), target_id()), codec::encode(&receivers)).await;
    }

    pub(super) async fn check(&self, node: &str) -> Option<CheckRequest> {
        let key = testing::keys().format(&Key::Check(super::name(node), target_id()));
        let entry = self.store.get(&key).await.expect("the memory store answers")?;
        Some(codec::decode(&entry.value).expect("a request"))
    }

    /// The check after the one with the number `last`.
    pub(super) async fn check_after(&self, node: &str, last: u64) -> CheckRequest {
        until(async || self.check(node).await.filter(|request| request.id > last)).await
    }

    pub(super) async fn verdict(&self, node: &str, request: &CheckRequest, outcome: CheckOutcome) {
        let verdict = |incarnation: &Incarnation| Verdict {
            incarnation: *incarnation,
            id: request.id,
            outcome: outcome.clone(),
            at: Timestamp::UNIX_EPOCH,
        };
        let verdicts = Verdicts { v: V1, verdicts: request.checkers.iter().map(verdict).collect() };
        self.write(Key::Verdicts(super::name(node), target_id()), codec::encode(&verdicts)).await;
    }
}

pub(super) fn ended(exit_code: i64) -> CheckOutcome {
    CheckOutcome::Ended { exit_code, said: "emerg: \"x\" is unknown".to_owned() }
}

#[tokio::test(start_paused = true)]
async fn a_file_is_installed_once_its_program_takes_it_and_the_old_one_stays_where_it_does_not() {
    let scene = Scene::new();
    scene.put(1).await;
    scene.checkers("h1", &[(1, None)]).await;
    let running = scene.start(CHECK).await;
    let first = scene.check_after("h1", 0).await;
    assert_eq!(scene.file(), "", "it waits for its check");
    assert_eq!((first.command.join(" ").as_str(), first.timeout_ms), ("check {file} {dest}", 10_000));
    assert_eq!(first.dest, scene.path("file").display().to_string());
    let staged = fs::read_to_string(&first.file).expect("it lies beside the file");
    assert_eq!(staged, "10.0.0.1 8001\n");
    scene.verdict("h1", &first, ended(0)).await;
    scene.file_has("10.0.0.1 8001").await;
    running.is_ready().await;
    until(async || scene.check("h1").await.is_none().then_some(())).await;
    scene.put(2).await;
    let second = scene.check_after("h1", first.id).await;
    scene.verdict("h1", &second, ended(1)).await;
    let reason =
        "the new file is not installed: container proxy refuses it with exit code 1: emerg: \"x\" is unknown";
    running.is_not_ready("target web", reason).await;
    assert_eq!(scene.file(), "10.0.0.1 8001\n");
    assert!(!PathBuf::from(&second.file).exists(), "what was staged has gone");
    let third = scene.check_after("h1", second.id).await;
    scene.verdict("h1", &third, ended(0)).await;
    scene.file_has("10.0.0.2 8002").await;
    running.is_ready().await;
}

#[tokio::test(start_paused = true)]
async fn where_no_program_runs_the_file_is_installed_unchecked_and_that_is_said() {
    let scene = Scene::new();
    scene.put(1).await;
    let running = scene.start(CHECK).await;
    scene.file_has("10.0.0.1 8001").await;
    running.is_ready().await;
    let noted = running.condition("target web");
    assert!(noted.contains("installed unchecked, as container proxy does not run"), "{noted}");
}

#[tokio::test(start_paused = true)]
async fn a_container_that_refuses_the_command_or_dies_or_is_silent_keeps_the_old_file() {
    let scene = Scene::new();
    scene.put(1).await;
    scene.checkers("h1", &[(1, Some("container proxy does not allow the command"))]).await;
    let running = scene.start(CHECK).await;
    let reason = "nobody could check it: node h1 refuses: container proxy does not allow the command";
    running.is_not_ready("target web", reason).await;
    scene.checkers("h1", &[(1, None)]).await;
    let first = scene.check_after("h1", 0).await;
    scene
        .write(
            Key::Receivers(name("h1"), target_id()),
            codec::encode(&Receivers { v: V1, receivers: vec![], checkers: vec![] }),
        )
        .await;
    running.is_not_ready("target web", "container proxy has ended meanwhile").await;
    scene.checkers("h1", &[(1, None)]).await;
    let second = scene.check_after("h1", first.id).await;
    running.is_not_ready("target web", "no agent has answered for container proxy within 20s").await;
    assert_eq!(scene.file(), "");
    let third = scene.check_after("h1", second.id).await;
    scene.verdict("h1", &third, ended(0)).await;
    scene.file_has("10.0.0.1 8001").await;
}
