//! One template writes a file for each service, together, and removes those of services that have gone.

use super::*;

impl Scene {
    /// A target whose files are named for their services.
    async fn start_many(&self, rest: &str) -> Running {
        fs::create_dir_all(self.path("sites")).expect("a folder");
        let plan = self.plan("format = \"json\"");
        let config = self.path("config.toml");
        let dest = self.path("sites/{service}.conf");
        let target = format!("[[target]]\nname = \"web\"\ndest = {dest:?}\n{rest}");
        fs::write(&config, target).expect("a file");
        self.start_plan(Plan { targets: self.configs(), ..plan }).await
    }

    async fn sites_are(&self, expected: &[(&str, &str)]) {
        let found = || {
            let entries = fs::read_dir(self.path("sites")).expect("a folder").flatten();
            let mut found: Vec<_> = entries
                .map(|entry| {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    (name, fs::read_to_string(entry.path()).unwrap_or_default())
                })
                .collect();
            found.sort();
            found
        };
        let expected: Vec<_> =
            expected.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        until(async || (found() == expected).then_some(())).await;
    }
}

const A: &str = "10.0.0.1 8001\n";
const B: &str = "10.0.0.2 8002\n";

#[tokio::test]
async fn each_service_has_a_file_and_all_of_them_are_notified_once() {
    let scene = Scene::new();
    let runs = scene.path("runs");
    let notify = format!("notify = {{ command = \"sh -c 'echo >> {}'\" }}", runs.display());
    let settings = format!("format = \"citus-workers\"\n{notify}");
    scene.commit(&[testing::put(1, "a"), testing::put(2, "b")]).await;
    let running = scene.start_many(&settings).await;
    scene.sites_are(&[("a.conf", A), ("b.conf", B)]).await;
    running.is_ready().await;
    until(async || fs::read_to_string(&runs).is_ok_and(|runs| runs.lines().count() == 1).then_some(())).await;
    let inode = || fs::metadata(scene.path("sites/b.conf")).expect("a file").ino();
    let before = inode();
    scene.delete(1).await;
    scene.sites_are(&[("b.conf", B)]).await;
    assert_eq!(inode(), before, "it is as it was");
    until(async || fs::read_to_string(&runs).is_ok_and(|runs| runs.lines().count() == 2).then_some(())).await;
    running.end().await;
    // What has gone while nobody looked is removed at the start.
    scene.delete(2).await;
    scene.commit(&[testing::put(1, "a")]).await;
    fs::write(scene.path("sites/mine.conf"), "mine").expect("a file");
    let running = scene.start_many(&settings).await;
    scene.sites_are(&[("a.conf", A), ("mine.conf", "mine")]).await;
    running.is_ready().await;
}

#[tokio::test]
async fn one_file_that_the_check_refuses_keeps_all_of_them_from_being_installed() {
    let scene = Scene::new();
    scene.commit(&[testing::put(1, "a")]).await;
    let check = "format = \"citus-workers\"\ncheck = \"sh -c '! grep 8002 {file}'\"\n";
    let running = scene.start_many(check).await;
    scene.sites_are(&[("a.conf", A)]).await;
    scene.commit(&[testing::put(2, "b"), testing::put(3, "c")]).await;
    running.is_not_ready("target web", "the check refuses the new file").await;
    scene.sites_are(&[("a.conf", A)]).await;
    running.end().await;
    let _running = scene.start_many(&format!("{check}check_isolates = true\n")).await;
    scene.sites_are(&[("a.conf", A), ("b.conf", ""), ("c.conf", "10.0.0.3 8003\n")]).await;
}

#[tokio::test]
async fn a_service_that_is_named_like_somebody_elses_file_takes_nothing() {
    let scene = Scene::new();
    fs::create_dir(scene.path("sites")).expect("a folder");
    fs::write(scene.path("sites/default.conf"), "mine").expect("a file");
    scene.commit(&[testing::put(1, "a"), testing::put(2, "default")]).await;
    let running = scene.start_many("format = \"citus-workers\"\n").await;
    scene.sites_are(&[("a.conf", A), ("default.conf", "mine")]).await;
    running.is_ready().await;
    let noted = running.condition("target web");
    assert!(noted.contains("sites/default.conf as it is: somebody else wrote it"), "{noted}");
}

#[tokio::test(start_paused = true)]
async fn the_file_of_a_service_that_the_operator_names_is_ours_also_where_the_state_was_lost() {
    let scene = Scene::new();
    fs::create_dir(scene.path("sites")).expect("a folder");
    fs::write(scene.path("sites/a.conf"), "of an earlier run").expect("a file");
    scene.commit(&[testing::put(1, "a")]).await;
    let running = scene.start_many("format = \"citus-workers\"\nselect.service = \"a\"\n").await;
    scene.sites_are(&[("a.conf", A)]).await;
    running.is_ready().await;
}

#[test]
fn a_pattern_that_cannot_work_is_refused() {
    let target = |name: &str, dest: &str, rest: &str| {
        format!("[[target]]\nname = \"{name}\"\ndest = \"{dest}\"\nformat = \"json\"\n{rest}\n")
    };
    for (text, expected) in [
        (target("a", "/{service}/x", ""), "expected {service} once, and in the name of the file only"),
        (
            target("a", "/c/{service}{service}", ""),
            "expected {service} once, and in the name of the file only",
        ),
        (
            target("a", "/c/{service}", "verify = \"true\""),
            "expected one file, as {service} cannot go beside verify",
        ),
        (
            target("a", "/c/{service}", "").replace("json", "haproxy"),
            "expected one file, as {service} cannot go beside a format that is a whole configuration",
        ),
        (
            target("a", "/c/{service}.conf", "") + &target("b", "/c/web.conf", ""),
            "expected a file that no other target has",
        ),
    ] {
        let error = refusal(&text);
        assert!(error.ends_with(expected), "{error}");
    }
}

#[tokio::test]
async fn a_selection_that_has_never_matched_empties_none_of_many_files() {
    let scene = Scene::new();
    scene.commit(&[testing::put(1, "a"), testing::put(2, "b")]).await;
    let running = scene.start_many("format = \"citus-workers\"\n").await;
    scene.sites_are(&[("a.conf", A), ("b.conf", B)]).await;
    running.is_ready().await;
    running.end().await;
    // Services that are named have files also while they have no instance.
    let misspelled = "format = \"citus-workers\"\nselect = { service = [\"a\", \"b\"], labels = \"rloe\" }\n";
    let running = scene.start_many(misspelled).await;
    running.is_not_ready("target web", "nothing has matched yet").await;
    scene.sites_are(&[("a.conf", A), ("b.conf", B)]).await;
}
