use tokio::sync::watch;

use super::*;
use crate::{roll::Select, target::loss_guard::GuardSettings, testing};

/// A target of a file in this folder.
fn target(dir: &std::path::Path, rest: &str) -> TargetConfig {
    let config = dir.join("config.toml");
    let dest = dir.join("file");
    let text = format!("[[target]]\nname = \"web\"\ndest = {dest:?}\nformat = \"citus-workers\"\n{rest}");
    std::fs::write(&config, text).expect("a file");
    crate::config::toml::read(&config).expect("a target").remove(0)
}

#[test]
fn a_search_for_offenders_that_is_broken_off_leaves_nothing_out() {
    let dir = tempfile::tempdir().expect("a folder");
    let target = target(dir.path(), "check = \"true {file}\"\n");
    let mut worker =
        Worker::open(&target, target.sink.file().expect("a file"), testing::state_dir(dir.path()));
    let mut selection = Selection::new(Arc::new(Select::default()), GuardSettings::default());
    let now = Instant::now();
    selection.apply(&testing::come([1, 2].map(|n| (testing::id(n), testing::instance(n, "web")))), now);
    let selection = watch::Sender::new(selection).subscribe();
    let (_, rows) = worker.suspects(&selection, now);
    let mut all = Isolated::default();
    rows.iter().for_each(|row| all.insert(row, String::new()));
    let _ = worker.make_without(all, &selection, now).expect("it renders");
    // Nobody said that this was the end of it.
    let Made::Staged(draft, staged) = worker.make(&selection, now).expect("it renders") else {
        panic!("it is to be checked")
    };
    assert_eq!(draft.instances, 2);
    worker.install(draft, staged).expect("a folder");
    let file = std::fs::read_to_string(dir.path().join("file")).expect("a file");
    assert_eq!(file, "10.0.0.1 8001\n10.0.0.2 8002\n");
}

#[test]
fn an_ack_of_the_change_before_is_not_taken_for_that_of_one_that_was_installed_since() {
    let dir = tempfile::tempdir().expect("a folder");
    let target = target(dir.path(), "[target.notify]\ncommand = \"true\"\n");
    let state_dir = testing::state_dir(dir.path());
    let mut worker = Worker::open(&target, target.sink.file().expect("a file"), state_dir.clone());
    let mut selection = Selection::new(Arc::new(Select::default()), GuardSettings::default());
    let mut generations = vec![];
    for number in [1, 2] {
        selection
            .apply(&testing::come([(testing::id(number), testing::instance(number, "web"))]), Instant::now());
        let receiver = watch::Sender::new(selection.clone()).subscribe();
        let Made::Done(Applied::Written(content)) = worker.make(&receiver, Instant::now()).expect("a folder")
        else {
            panic!("it is new")
        };
        generations.push(content.generation);
    }
    let acked = Acked { is_complete: true, ..Acked::default() };
    worker.remember(Some((generations[0], acked))).expect("a folder");
    let state = worker.state.as_ref().expect("there is somebody to notify");
    assert!(!state.acked(generations[1]).expect("it is remembered").is_complete);
}
