//! A file is rendered, checked, installed, and put back.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_template_that_fails_keeps_the_last_file_and_is_tried_again() {
    let scene = Scene::new();
    scene.put(1).await;
    let template = scene.path("list.j2");
    fs::write(&template, "{{ instances[0].endpoint }}\n").expect("a file");
    let running = scene.start(&format!("template = \"{}\"", template.display())).await;
    scene.file_has("10.0.0.1:8001").await;
    scene.delete(1).await;
    running.is_not_ready("target web", "line 1: `instances[0]` is undefined").await;
    assert_eq!(scene.file(), "10.0.0.1:8001\n");
    fs::write(&template, "none\n").expect("a file");
    scene.file_has("none").await;
    running.is_ready().await;
}

#[tokio::test]
async fn a_file_that_its_check_refuses_is_not_installed() {
    let scene = Scene::new();
    scene.put(1).await;
    let check = "format = \"citus-workers\"\ncheck = \"sh -c 'grep -q 10.0.0.1 {file} || (echo no one >&2; exit 1)'\"";
    let running = scene.start(check).await;
    scene.file_has("10.0.0.1 8001").await;
    running.is_ready().await;
    scene.delete(1).await;
    let reason = "the check refuses the new file: sh ended with exit code 1: no one";
    running.is_not_ready("target web", reason).await;
    assert_eq!(scene.file(), "10.0.0.1 8001\n");
    let left = fs::read_dir(scene.dir.path()).expect("a folder").flatten();
    assert!(left.map(|entry| entry.file_name()).all(|name| !name.to_string_lossy().contains(".rollcall-")));
    scene.put(1).await;
    running.is_ready().await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_the_format_cannot_express_is_noted_and_the_target_is_ready() {
    let scene = Scene::new();
    let nowhere = Address::Ip([0, 0, 0, 0].into());
    let instance = Instance { address: nowhere, ..testing::instance(1, "web") };
    scene.commit(&[Op::Put { key: testing::key(1), value: codec::encode(&instance) }]).await;
    scene.put(2).await;
    let running = scene.start("format = \"citus-workers\"").await;
    scene.file_has("10.0.0.2 8002").await;
    running.is_ready().await;
    let note = "ok; leaves out what the format cannot express: web-1 of h1 at 0.0.0.0:8001";
    assert_eq!(running.condition("target web"), note);
}

#[tokio::test]
async fn a_file_that_its_check_refuses_is_not_ready_until_it_is_mended() {
    let scene = Scene::new();
    let allowed = scene.path("allowed");
    let check =
        format!("format = \"citus-workers\"\ncheck = \"sh -c 'test -e {} # {{file}}'\"", allowed.display());
    scene.put(1).await;
    let running = scene.start(&check).await;
    running.is_not_ready("target web", "the check refuses the new file").await;
    fs::write(&allowed, "").expect("a file");
    running.is_ready().await;
    scene.file_has("10.0.0.1 8001").await;
}

#[tokio::test(start_paused = true)]
async fn a_file_that_someone_else_changes_or_removes_is_put_back_and_notified_within_the_interval() {
    let scene = Scene::new();
    scene.put(1).await;
    scene.receivers("h1", &[(1, None)]).await;
    let running = scene.start(&format!("reconcile = \"10s\"\n{}", with_signal())).await;
    let first = scene.request_after("h1", None).await;
    scene.ack("h1", &first, None).await;
    running.is_ready().await;
    let mut last = first;
    let edit: [&dyn Fn(); 2] =
        [&|| fs::write(scene.path("file"), "10.0.0.9 8001\n").expect("a file"), &|| {
            fs::remove_file(scene.path("file")).expect("a file")
        }];
    for edit in edit {
        edit();
        let since = tokio::time::Instant::now();
        let request = scene.request_after("h1", None).await;
        assert!(since.elapsed() <= Duration::from_secs(11), "{:?}", since.elapsed());
        assert!(request.generation > last.generation, "it is a change as any other");
        assert_eq!(scene.file(), "10.0.0.1 8001\n");
        scene.ack("h1", &request, None).await;
        running.is_ready().await;
        scene.no_request("h1").await;
        last = request;
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_at_a_file_that_nobody_changed_reads_and_writes_nothing() {
    let scene = Scene::new();
    scene.put(1).await;
    let template = scene.path("list.j2");
    fs::write(&template, "{{ instances[0].endpoint }}\n").expect("a file");
    let running = scene.start(&format!("template = \"{}\"", template.display())).await;
    scene.file_has("10.0.0.1:8001").await;
    running.is_ready().await;
    let left = fs::metadata(scene.path("file")).expect("a file").ctime_nsec();
    // Whoever rendered again would fail.
    fs::remove_file(&template).expect("a file");
    tokio::time::sleep(Duration::from_secs(100)).await;
    running.is_ready().await;
    assert_eq!(fs::metadata(scene.path("file")).expect("a file").ctime_nsec(), left);
}

#[tokio::test(start_paused = true)]
async fn a_look_at_the_file_leaves_a_change_that_waits_for_its_pace_alone() {
    let scene = Scene::new();
    scene.put(1).await;
    let running = scene.start("format = \"citus-workers\"\nreconcile = \"2s\"\nheartbeat = \"60s\"").await;
    scene.file_has("10.0.0.1 8001").await;
    running.is_ready().await;
    let since = tokio::time::Instant::now();
    scene.put(2).await;
    scene.file_has("10.0.0.2 8002").await;
    assert!(since.elapsed() > Duration::from_secs(50), "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_backup_that_cannot_be_kept_is_noted_and_the_file_is_installed() {
    let scene = Scene::new();
    scene.put(1).await;
    let blocked = scene.path("blocked");
    fs::write(&blocked, "a file is no folder").expect("a file");
    let running =
        scene.start(&format!("format = \"citus-workers\"\nbackups = {{ dir = {blocked:?} }}")).await;
    scene.file_has("10.0.0.1 8001").await;
    scene.put(2).await;
    scene.file_has("10.0.0.2 8002").await;
    let noted =
        async || running.condition("target web").contains("cannot make the backup folder").then_some(());
    until(noted).await;
    running.is_ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_linked_destination_is_written_through_its_link() {
    let scene = Scene::new();
    scene.put(1).await;
    fs::create_dir(scene.path("real")).expect("a folder");
    symlink("real/workers", scene.path("file")).expect("a link");
    let _running = scene.start("format = \"citus-workers\"").await;
    scene.file_has("10.0.0.1 8001").await;
    assert!(fs::symlink_metadata(scene.path("file")).expect("a link").is_symlink());
    assert!(scene.path("real/workers").is_file());
}
