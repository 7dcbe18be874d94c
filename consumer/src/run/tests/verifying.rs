//! What does not work once its reader has it is taken back, and the reader is notified of that.

use super::*;

/// Verified by whether another file is there that is named as a worker's port.
fn verified(scene: &Scene) -> String {
    let flags = scene.path("works").display().to_string();
    let command =
        format!("sh -c 'for port in $(sed s/.*\\ // $0); do test -e {flags}-$port || exit 1; done' {{file}}");
    format!("format = \"citus-workers\"\nverify = {{ command = {command:?}, timeout = \"1s\" }}\n")
}

fn works(scene: &Scene, port: u16) {
    fs::write(scene.path(&format!("works-{port}")), "").expect("a file");
}

const BACK: &str = "did not succeed within 1s: sh ended with exit code 1; the last good file is back";

#[tokio::test]
async fn a_file_that_does_not_work_is_taken_back_and_notified_again_and_stays_away_until_it_differs() {
    let scene = Scene::new();
    let runs = scene.path("runs");
    let notify = format!("notify = {{ command = \"sh -c 'cat {{file}} >> {}'\" }}", runs.display());
    let target = verified(&scene) + &notify;
    works(&scene, 8001);
    scene.put(1).await;
    let running = scene.start(&target).await;
    scene.file_has("10.0.0.1 8001").await;
    running.is_ready().await;
    until(async || scene.path("state/web.good").exists().then_some(())).await;
    scene.put(2).await;
    running.is_not_ready("target web", BACK).await;
    assert_eq!(scene.file(), "10.0.0.1 8001\n");
    let three = ["10.0.0.1 8001", "10.0.0.1 8001", "10.0.0.2 8002", "10.0.0.1 8001"];
    until(async || (fs::read_to_string(&runs).expect("a file").lines().eq(three)).then_some(())).await;
    // Neither a look at the file nor a restart tries it again.
    running.end().await;
    let running = scene.start(&target).await;
    running.is_not_ready("target web", BACK).await;
    fs::write(scene.path("file"), "someone else's").expect("a file");
    works(&scene, 8009);
    works(&scene, 8002);
    scene
        .commit(&[Op::Put { key: testing::key(9), value: codec::encode(&testing::instance(9, "web")) }])
        .await;
    scene.file_has("10.0.0.1 8001\n10.0.0.2 8002\n10.0.0.9 8009\n").await;
    running.is_ready().await;
    // Once bad, once good.
    let told = || fs::read_to_string(&runs).expect("a file").matches("8002").count();
    until(async || (told() >= 2).then_some(())).await;
    running.is_ready().await;
    assert_eq!(told(), 2);
}

#[tokio::test]
async fn before_anything_was_verified_the_file_that_was_there_is_the_good_one() {
    let scene = Scene::new();
    fs::write(scene.path("file"), "as it was\n").expect("a file");
    scene.put(2).await;
    let running = scene.start(&verified(&scene)).await;
    running.is_not_ready("target web", BACK).await;
    assert_eq!(scene.file(), "as it was\n");
}

#[tokio::test]
async fn where_there_is_no_good_file_the_new_one_stays_and_is_said_not_to_work() {
    let scene = Scene::new();
    scene.put(2).await;
    let running = scene.start(&verified(&scene)).await;
    running.is_not_ready("target web", "exit code 1; there is no good file to go back to").await;
    assert_eq!(scene.file(), "10.0.0.2 8002\n");
}

#[tokio::test]
async fn an_answer_of_the_right_status_verifies_and_another_does_not() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let scene = Scene::new();
    let answers = scene.path("file");
    let serving = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let _ = stream.read(&mut [0; 1024]).await;
            let is_bad = fs::read_to_string(&answers).is_ok_and(|file| file.contains("8002"));
            let status = if is_bad { "502 Bad Gateway" } else { "200 OK" };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    scene.put(1).await;
    let verify = format!("verify = {{ http = \"http://{address}/health\", timeout = \"1s\" }}\n");
    let running = scene.start(&format!("format = \"citus-workers\"\n{verify}")).await;
    scene.file_has("10.0.0.1 8001").await;
    running.is_ready().await;
    until(async || scene.path("state/web.good").exists().then_some(())).await;
    scene.put(2).await;
    running.is_not_ready("target web", "the answer has status 502; the last good file is back").await;
    assert_eq!(scene.file(), "10.0.0.1 8001\n");
    serving.abort();
}

#[tokio::test]
async fn containers_are_signalled_again_for_the_file_that_is_put_back() {
    let scene = Scene::new();
    works(&scene, 8001);
    scene.put(1).await;
    scene.receivers("h1", &[(1, None)]).await;
    let running = scene.start(&(verified(&scene) + SIGNAL)).await;
    let first = scene.request_after("h1", None).await;
    scene.ack("h1", &first, None).await;
    running.is_ready().await;
    scene.put(2).await;
    let second = scene.request_after("h1", Some(&first)).await;
    assert!(scene.file().contains("8002"), "it is notified before it is verified");
    scene.ack("h1", &second, None).await;
    let third = scene.request_after("h1", Some(&second)).await;
    assert!(third.generation > second.generation);
    assert_eq!(scene.file(), "10.0.0.1 8001\n");
    scene.ack("h1", &third, None).await;
    running.is_not_ready("target web", "the last good file is back").await;
}

#[tokio::test]
async fn a_single_run_fails_where_it_had_to_take_its_file_back() {
    let scene = Scene::new();
    fs::write(scene.path("file"), "as it was\n").expect("a file");
    scene.put(2).await;
    let (mut consumer, targets) = scene.ready(&verified(&scene)).await;
    let failed = consumer.once(&scene.configs(), targets).await.expect_err("it does not work").to_string();
    assert!(failed.starts_with("target web: ") && failed.contains("did not succeed within 1s"), "{failed}");
    assert_eq!(scene.file(), "as it was\n");
}

#[tokio::test]
async fn what_has_failed_is_not_kept_as_the_good_file_of_the_next_one() {
    let scene = Scene::new();
    scene.put(2).await;
    let running = scene.start(&verified(&scene)).await;
    running.is_not_ready("target web", "there is no good file to go back to").await;
    scene.put(3).await;
    scene.file_has("10.0.0.3 8003").await;
    running.is_not_ready("target web", "there is no good file to go back to").await;
    assert!(!scene.path("state/web.good").exists());
}

#[tokio::test]
async fn what_does_not_work_is_taken_back_also_while_the_file_is_held() {
    let scene = Scene::new();
    for number in 1u16..=3 {
        works(&scene, 8000 + number);
        scene.put(usize::from(number)).await;
    }
    let guarded = verified(&scene) + "guard = { min_instances = 3, hold = \"forever\" }\n";
    let running = scene.start(&guarded).await;
    until(async || scene.path("state/web.good").exists().then_some(())).await;
    let good = scene.file();
    scene.put(4).await;
    scene.file_has("10.0.0.4 8004").await;
    // While that is verified.
    scene.commit(&[2, 3].map(|number| Op::Delete { key: testing::key(number) })).await;
    until(async || (scene.file() == good).then_some(())).await;
    running.is_not_ready("target web", "fewer than guard.min_instances").await;
    assert_eq!(scene.file(), good);
}
