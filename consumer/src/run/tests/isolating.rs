//! Where a check refuses a file, the instances that are to blame are left out, named, and tried again once they change.

use super::{checking::*, *};

/// Refuses a file that has one of these ports.
fn isolating(ports: &str) -> String {
    format!(
        "format = \"citus-workers\"\ncheck_isolates = true\ncheck = \"sh -c '! grep -E \\\" ({ports})$\\\" {{file}}'\"\n"
    )
}

#[tokio::test]
async fn the_instances_that_the_check_refuses_are_left_out_and_named_and_the_others_are_installed() {
    let scene = Scene::new();
    for number in 1..=40 {
        scene.put(number).await;
    }
    let running = scene.start(&isolating("8007|8031")).await;
    scene.file_has("10.0.0.40 8040").await;
    running.is_ready().await;
    let file = scene.file();
    assert_eq!(file.lines().count(), 38);
    assert!(!file.contains("8007") && !file.contains("8031"), "{file}");
    let noted = running.condition("target web");
    for (number, port) in [(7, 8007), (31, 8031)] {
        let offender = format!(
            "leaves out service web, container web-{number} on node h1 (10.0.0.{number}:{port}): the check refuses the new \
             file: sh ended with exit code 1"
        );
        assert!(noted.contains(&offender), "{noted}");
    }
    // Others come and go beside it.
    scene.put(41).await;
    scene.file_has("10.0.0.41 8041").await;
    assert_eq!(scene.file().lines().count(), 39);
    // It is tried again once it is another.
    let mended = Instance { port: 9000, ..testing::instance(7, "web") };
    scene.commit(&[Op::Put { key: testing::key(7), value: codec::encode(&mended) }]).await;
    scene.file_has("10.0.0.7 9000").await;
    let noted =
        until(async || Some(running.condition("target web")).filter(|noted| !noted.contains("web-7 ")));
    assert!(noted.await.contains("web-31 "));
    scene.delete(31).await;
    until(async || (!running.condition("target web").contains("leaves out")).then_some(())).await;
}

#[tokio::test]
async fn a_file_that_fails_without_any_instance_and_one_without_the_setting_stay_as_they_are() {
    let scene = Scene::new();
    fs::write(scene.path("file"), "good\n").expect("a file");
    scene.put(1).await;
    let running =
        scene.start("format = \"citus-workers\"\ncheck_isolates = true\ncheck = \"test ! -e {file}\"").await;
    running.is_not_ready("target web", "the check refuses the new file: test ended with exit code 1").await;
    assert_eq!(scene.file(), "good\n");
    running.end().await;
    let running = scene.start(&isolating("8001").replace("true", "false")).await;
    running.is_not_ready("target web", "the check refuses the new file: sh ended with exit code 1").await;
    assert_eq!(scene.file(), "good\n");
}

#[tokio::test]
async fn a_check_that_refuses_every_instance_empties_no_file() {
    let scene = Scene::new();
    fs::write(scene.path("file"), "good\n").expect("a file");
    for number in 1..=3 {
        scene.put(number).await;
    }
    let running = scene.start(&isolating("80..")).await;
    running.is_not_ready("target web", "the check refuses the new file: sh ended with exit code 1").await;
    assert_eq!(scene.file(), "good\n");
}

#[tokio::test]
async fn an_offender_that_goes_while_the_check_runs_leaves_nobody_else_out() {
    let scene = Scene::new();
    let [begun, may_end] = ["begun", "may-end"].map(|name| scene.path(name));
    for number in [1, 2, 7] {
        scene.put(number).await;
    }
    let script = format!(
        "grep -q 8007 $0 || exit 0; touch {}; while [ ! -e {} ]; do sleep 0.01; done; exit 1",
        begun.display(),
        may_end.display()
    );
    let check = format!("check = {:?}", format!("sh -c '{script}' {{file}}"));
    let running = scene.start(&format!("format = \"citus-workers\"\ncheck_isolates = true\n{check}\n")).await;
    until(async || begun.exists().then_some(())).await;
    scene.delete(7).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    fs::write(&may_end, "").expect("a file");
    scene.file_has("10.0.0.1 8001").await;
    running.is_ready().await;
    assert_eq!(scene.file(), "10.0.0.1 8001\n10.0.0.2 8002\n");
    assert!(!running.condition("target web").contains("leaves out"));
}

#[tokio::test(start_paused = true)]
async fn an_offender_is_found_by_the_program_in_its_container_as_well() {
    let scene = Scene::new();
    for number in 1..=8 {
        scene.put(number).await;
    }
    scene.checkers("h1", &[(1, None)]).await;
    let running = scene.start(&format!("{CHECK}check_isolates = true\n")).await;
    let (mut last, mut tries) = (0, 0);
    while !scene.file().contains("8008") {
        let request = scene.check_after("h1", last).await;
        let staged = fs::read_to_string(&request.file).expect("it lies beside the file");
        let exit_code = i64::from(staged.contains("8005"));
        scene.verdict("h1", &request, ended(exit_code)).await;
        (last, tries) = (request.id, tries + 1);
        until(async || scene.check("h1").await.is_none_or(|check| check.id > last).then_some(())).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(tries <= 6, "{tries} tries");
    running.is_ready().await;
    let noted = running.condition("target web");
    assert!(noted.contains("container web-5 on node h1 (10.0.0.5:8005)"), "{noted}");
    assert!(noted.contains("container proxy refuses it with exit code 1: emerg"), "{noted}");
}
