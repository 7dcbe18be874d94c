use axum::{
    body::{Body, to_bytes},
    http::{Request, StatusCode},
};
use tower::ServiceExt;

use super::*;

const SERVED: &str = "[[target]]\nname = \"web\"\nsink = \"http\"\nformat = \"json\"\n";

/// What the consumer answers at a path.
async fn get(running: &Running, path: &str) -> (StatusCode, String) {
    let Published { board, pages } = running.consumer.published.clone();
    let request = Request::get(path).body(Body::empty()).expect("a path makes a request");
    let answer = answers::routes(board, pages).oneshot(request).await.expect("it answers");
    let status = answer.status();
    let body = to_bytes(answer.into_body(), usize::MAX).await.expect("it has a body");
    (status, String::from_utf8(body.to_vec()).expect("it is a text"))
}

async fn serve(scene: &Scene, rest: &str) -> Running {
    fs::write(scene.path("config.toml"), format!("{SERVED}{rest}")).expect("a file");
    let consumer = "c1".parse().expect("a name");
    let plan = Plan { consumer, targets: scene.configs(), embedded: false, citus: false };
    scene.start_plan(plan).await
}

#[tokio::test(start_paused = true)]
async fn what_is_not_known_is_no_empty_answer() {
    let scene = Scene::new();
    let running = serve(&scene, "").await;
    running.is_not_ready("target web", "nothing has matched yet").await;
    let (status, reason) = get(&running, "/v1/targets/web").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(reason.starts_with("nothing has matched yet"), "{reason}");
    scene.put(1).await;
    let has = async |text: &str| {
        let (status, body) = get(&running, "/v1/targets/web").await;
        (status == StatusCode::OK && body.contains(text)).then_some(())
    };
    until(async || has("10.0.0.1").await).await;
    scene.delete(1).await;
    // It has matched, so that nothing is what there is.
    until(async || has("[]").await).await;
}

#[tokio::test(start_paused = true)]
async fn everybody_may_ask_how_the_targets_fare() {
    let scene = Scene::new();
    scene.put(1).await;
    let (dest, check) = (scene.path("file"), "check = \"false {file}\"");
    let file = format!("[[target]]\nname = \"file\"\ndest = {dest:?}\nformat = \"json\"\n{check}\n");
    let running = serve(&scene, &file).await;
    let listing = until(async || {
        let (_, body) = get(&running, "/v1/targets").await;
        (body.contains("SYNCED") && body.contains("FAILED")).then_some(body)
    });
    let listing: serde_json::Value = serde_json::from_str(&listing.await).expect("it is JSON");
    assert_eq!((&listing[0]["name"], &listing[0]["state"]), (&"file".into(), &"FAILED".into()));
    assert!(
        listing[0]["reason"].as_str().expect("a text").starts_with("the check refuses the new file"),
        "{listing}"
    );
    assert_eq!((&listing[1]["name"], &listing[1]["instances"]), (&"web".into(), &1.into()));
    let (status, hint) = get(&running, "/v1/targets/file").await;
    assert_eq!(
        (status, &*hint),
        (StatusCode::NOT_FOUND, "target file is not served: expected sink = \"http\"\n")
    );
    assert_eq!(get(&running, "/v1/targets/none").await.0, StatusCode::NOT_FOUND);
}

#[test]
fn an_answer_takes_no_setting_of_a_file() {
    assert_eq!(
        refusal(&format!("{SERVED}dest = \"/x\"\n")).split_once(": ").expect("a path before it").1,
        "target web: dest is given: expected none of it beside sink = \"http\""
    );
}
