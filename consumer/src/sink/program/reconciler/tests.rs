use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tempfile::TempDir;

use super::*;
use crate::{
    config::RawTarget,
    roll::{Shift, Shifts},
    testing,
};

/// A program that has endpoints by service, in the memory of the test.
#[derive(Debug, Default, Clone)]
struct Table(Arc<Mutex<Inside>>);

#[derive(Debug, Default)]
struct Inside {
    has: BTreeMap<ServiceName, BTreeSet<String>>,
    /// What was asked, in order.
    scopes: Vec<Scope>,
    steps: usize,
    /// Whether it takes steps and forgets them.
    forgets: bool,
    /// Whether it refuses steps.
    refuses: bool,
    /// What it can have only by a reload.
    reloads: Vec<String>,
    /// When it is to be looked at again, as it has steps for later.
    look_again: Option<Duration>,
}

#[derive(Debug, Clone)]
enum Step {
    Add(ServiceName, String),
    Remove(ServiceName, String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Add(service, endpoint) => write!(f, "add {endpoint} to {service}"),
            Step::Remove(service, endpoint) => write!(f, "remove {endpoint} from {service}"),
        }
    }
}

impl Table {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Program for Table {
    type Observed = BTreeMap<ServiceName, BTreeSet<String>>;
    type Step = Step;

    async fn observe(&mut self, scope: &Scope) -> Result<Self::Observed, SinkError> {
        self.inside().scopes.push(scope.clone());
        let mut has = self.inside().has.clone();
        has.retain(|service, _| scope.has(service));
        Ok(has)
    }

    fn plan(&self, desired: &Desired, observed: &Self::Observed) -> Plan<Step> {
        let wanted: BTreeMap<&ServiceName, BTreeSet<String>> = desired
            .services
            .iter()
            .map(|(service, rows)| (service, rows.iter().map(|row| row.endpoint.to_string()).collect()))
            .collect();
        let mut steps = vec![];
        for (service, endpoints) in &wanted {
            let has = observed.get(*service).cloned().unwrap_or_default();
            steps.extend(endpoints.difference(&has).map(|one| Step::Add((*service).clone(), one.clone())));
        }
        for (service, has) in observed {
            let wanted = wanted.get(service).cloned().unwrap_or_default();
            steps.extend(has.difference(&wanted).map(|one| Step::Remove(service.clone(), one.clone())));
        }
        let inside = self.inside();
        Plan { steps, reloads: inside.reloads.clone(), look_again: inside.look_again, ..Plan::default() }
    }

    async fn apply(&mut self, step: &Step) -> Result<(), SinkError> {
        let mut inside = self.inside();
        inside.steps += 1;
        if inside.refuses {
            return Err("it refuses".into());
        }
        if inside.forgets {
            return Ok(());
        }
        match step {
            Step::Add(service, one) => {
                inside.has.entry(service.clone()).or_default().insert(one.clone());
            }
            Step::Remove(service, one) => {
                if let Some(has) = inside.has.get_mut(service) {
                    has.remove(one);
                }
            }
        }
        Ok(())
    }
}

struct Scene {
    table: Table,
    reconciler: Reconciler<Table>,
    selection: watch::Sender<Selection>,
    _dir: TempDir,
}

fn scene(instances: &[(usize, &str)]) -> Scene {
    let (dir, table) = (tempfile::tempdir().expect("a folder"), Table::default());
    let target = RawTarget::json("web", "/x").parse().expect("a target");
    let reconciler = Reconciler::new(table.clone(), &target, testing::state_dir(dir.path()));
    let mut selection = Selection::new(Arc::new(target.select.clone()), target.guard);
    let all =
        instances.iter().map(|(number, service)| (testing::id(*number), testing::instance(*number, service)));
    selection.apply(&testing::come(all), Instant::now());
    Scene { table, reconciler, selection: watch::Sender::new(selection), _dir: dir }
}

impl Scene {
    async fn apply(&mut self) -> Result<Applied, SinkError> {
        self.reconciler.apply(&self.selection.subscribe()).await
    }

    fn come(&self, number: usize, service: &str) {
        let come = testing::come([(testing::id(number), testing::instance(number, service))]);
        self.selection.send_if_modified(|selection| selection.apply(&come, Instant::now()));
    }

    fn go(&self, number: usize, service: &str) {
        let before = Some(Arc::new(testing::instance(number, service)));
        let shift = Shift { id: Arc::new(testing::id(number)), before, after: None, departure: None };
        let shifts = Shifts { shifts: vec![shift], listed: true, ..Shifts::default() };
        self.selection.send_if_modified(|selection| selection.apply(&shifts, Instant::now()));
    }

    fn scopes(&self) -> Vec<Scope> {
        std::mem::take(&mut self.table.inside().scopes)
    }

    fn has(&self, service: &str) -> Vec<String> {
        let inside = self.table.inside();
        inside.has.get(&service_name(service)).into_iter().flatten().cloned().collect()
    }
}

fn service_name(name: &str) -> ServiceName {
    name.parse().expect("a name")
}

fn only(service: &str) -> Scope {
    Scope::Services([service_name(service)].into())
}

#[tokio::test(start_paused = true)]
async fn a_change_asks_for_its_own_service_only_and_the_interval_for_all() {
    let mut scene = scene(&[(1, "web"), (2, "api")]);
    assert!(matches!(scene.apply().await, Ok(Applied::Written(Content { instances: 2, .. }))));
    assert_eq!(scene.scopes(), [Scope::All, Scope::All], "once before, and once to read it back");
    scene.come(3, "web");
    scene.apply().await.expect("it takes it");
    assert_eq!(scene.scopes(), [only("web"), only("web")]);
    assert_eq!(scene.has("web"), ["10.0.0.1:8001", "10.0.0.3:8003"]);
    scene.go(2, "api");
    scene.apply().await.expect("it takes it");
    assert_eq!(scene.scopes(), [only("api"), only("api")]);
    assert!(scene.has("api").is_empty());
    assert!(matches!(scene.apply().await, Ok(Applied::Unchanged(_))));
    assert_eq!(scene.scopes(), [Scope::All], "nobody would ask without a reason");
    tokio::time::advance(Duration::from_secs(30)).await;
    scene.come(4, "web");
    scene.apply().await.expect("it takes it");
    assert_eq!(scene.scopes(), [Scope::All, Scope::All], "changes do not put the comparison off");
}

#[tokio::test(start_paused = true)]
async fn what_is_equal_is_not_written_and_keeps_its_number() {
    let mut scene = scene(&[(1, "web")]);
    let Ok(Applied::Written(first)) = scene.apply().await else { panic!("it is written") };
    let steps = scene.table.inside().steps;
    for _ in 0..100 {
        let Ok(Applied::Unchanged(again)) = scene.apply().await else { panic!("it is there") };
        assert_eq!(again.generation, first.generation);
    }
    assert_eq!(scene.table.inside().steps, steps);
}

#[tokio::test(start_paused = true)]
async fn what_someone_changed_behind_our_back_is_put_right() {
    let mut scene = scene(&[(1, "web")]);
    scene.apply().await.expect("it takes it");
    scene.table.inside().has.clear();
    assert!(matches!(scene.apply().await, Ok(Applied::Written(_))));
    assert_eq!(scene.has("web"), ["10.0.0.1:8001"]);
}

#[tokio::test(start_paused = true)]
async fn a_program_that_says_yes_and_has_nothing_is_not_believed() {
    let mut scene = scene(&[(1, "web")]);
    scene.table.inside().forgets = true;
    let error = scene.apply().await.expect_err("it does not have it").to_string();
    assert!(error.ends_with("still another: add 10.0.0.1:8001 to web"), "{error}");
    scene.table.inside().forgets = false;
    assert!(matches!(scene.apply().await, Ok(Applied::Written(_))));
}

#[tokio::test(start_paused = true)]
async fn after_a_step_that_failed_everything_is_compared() {
    let mut scene = scene(&[(1, "web"), (2, "api")]);
    scene.apply().await.expect("it takes it");
    scene.come(3, "web");
    scene.table.inside().refuses = true;
    scene.apply().await.expect_err("it refuses");
    scene.scopes();
    scene.table.inside().refuses = false;
    scene.apply().await.expect("it takes it");
    assert_eq!(scene.scopes(), [Scope::All, Scope::All]);
}

#[tokio::test(start_paused = true)]
async fn a_selection_that_has_never_matched_empties_no_program() {
    let mut scene = scene(&[]);
    scene.table.inside().has.insert(service_name("web"), ["10.9.9.9:80".to_owned()].into());
    let Ok(Applied::Held { reason, .. }) = scene.apply().await else { panic!("it is held") };
    assert!(reason.starts_with("nothing has matched yet"), "{reason}");
    assert_eq!(scene.has("web"), ["10.9.9.9:80"]);
}

#[tokio::test(start_paused = true)]
async fn a_reload_that_is_needed_is_a_change_to_a_dry_run() {
    let mut scene = scene(&[(1, "web")]);
    scene.apply().await.expect("it takes it");
    let target = RawTarget::json("web", "/x").parse().expect("a target");
    for (reloads, expected) in [(vec![], Outcome::Same), (vec!["web is new".to_owned()], Outcome::Changed)] {
        scene.table.inside().reloads = reloads;
        let (mut program, selection, mut said) = (scene.table.clone(), scene.selection.subscribe(), vec![]);
        let shown = preview(&mut program, &target, &selection, true, &mut |line| said.push(line)).await;
        assert_eq!(shown.expect("it answers"), expected, "{said:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn steps_that_were_left_for_later_or_follow_from_a_change_mend_nothing() {
    let mut scene = scene(&[(1, "web")]);
    let mends = |scene: &Scene| {
        let selection = scene.selection.borrow();
        let (desired, versions) = desired(Scope::All, &selection, &selection.verdict(Instant::now()));
        scene.reconciler.mends(&desired, &versions)
    };
    assert!(!mends(&scene), "it begins");
    scene.apply().await.expect("it is applied");
    assert!(mends(&scene));
    scene.come(2, "web");
    assert!(!mends(&scene), "another is to be there");
    scene.table.inside().look_again = Some(Duration::from_secs(1));
    scene.apply().await.expect("it is applied");
    assert!(!mends(&scene), "a step is still to come");
    scene.table.inside().look_again = None;
    scene.apply().await.expect("it is applied");
    assert!(mends(&scene));
}
