//! The targets of a consumer: opened, each with a notifier where there is somebody to notify, and set to work; and
//! changed while the consumer runs, without disturbing those that stay as they are.

mod shared_notifiers;

use std::{collections::BTreeMap, sync::Arc};

use rollcall_shared::{
    model::{
        consumer::{ConsumerHome, ConsumerRecord, TargetRecord},
        name::{ContainerId, TargetName},
    },
    process::{cli::Failure, readiness::Readiness},
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, Span};

use shared_notifiers::SharedNotifiers;

use crate::{
    config::TargetConfig,
    embedded,
    roll::Selection,
    sink::{
        self, Equipment, Sink,
        file::{
            check::{ContainerChecker, Place, container::Surroundings},
            notify::{
                Notifier, NotifierHandle, Notify, Told,
                command::CommandNotifier,
                nodes::{NodeReports, TargetReports},
                notifier::Attempt,
                pid_file::PidFileNotifier,
                requests::{AllChecks, Requested},
                shared::{self, Message, SharedNotifier},
                signal::{AllRequests, SignalNotifier},
            },
        },
        http::Pages,
        settings::SinkKind,
    },
    state_dir::StateDir,
    succession::{Arrived, Coming, Successor},
    supervisor::{SHUTDOWN_TIMEOUT, Supervisor},
    target::{
        Target,
        pacer::{PaceSettings, Pacer},
        reporter::Reporter,
        status::Board,
    },
};

/// The buffer of what targets say to a notifier that they share, which reads it at once.
const MAX_PENDING_MESSAGES: usize = 16;

/// The targets of a consumer.
#[derive(Debug)]
pub struct Targets {
    /// Asks the process to stop, and with it every target.
    stop: CancellationToken,
    readiness: Readiness,
    reports: TargetReports,
    /// Runs once there is a target that has containers signalled or files checked in them, or the consumer's own stack
    /// is asked for.
    node_reports: Option<NodeReports>,
    home: watch::Receiver<Option<ConsumerHome>>,
    requests: watch::Sender<AllRequests>,
    checks: watch::Sender<AllChecks>,
    /// Since when agents can know of this consumer.
    session: watch::Sender<Option<Instant>>,
    /// What the consumer says of itself.
    record: watch::Sender<ConsumerRecord>,
    opened: BTreeMap<TargetName, Opened>,
    /// Those that were stopped and may not have ended.
    stopped: Vec<Opened>,
    coming: Coming,
    shared: SharedNotifiers,
    published: Published,
}

/// What the targets publish by HTTP. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// How they fare.
    pub board: Board,
    /// The answers of those that are served.
    pub pages: Pages,
}

/// A target that is there: it comes, is opened, or is at work.
#[derive(Debug, Clone)]
struct Opened {
    config: TargetConfig,
    stop: CancellationToken,
    /// What it has under way, on other threads as well.
    tasks: TaskTracker,
}

/// What other settings mean for the targets.
#[derive(Debug, PartialEq)]
pub struct Changes {
    /// Those that go, or are others under the same name.
    pub stop: Vec<TargetName>,
    /// Those that come, or are others than before.
    pub start: Vec<TargetConfig>,
}

impl Changes {
    fn between<'c>(before: impl Iterator<Item = &'c TargetConfig>, after: &[TargetConfig]) -> Self {
        let before: Vec<&TargetConfig> = before.collect();
        let gone = before.iter().filter(|target| !after.contains(target));
        let come = after.iter().filter(|target| !before.contains(target));
        Self { stop: gone.map(|target| target.name.clone()).collect(), start: come.cloned().collect() }
    }
}

impl Targets {
    /// No targets yet, of a consumer that says this of itself.
    pub fn new(
        stop: CancellationToken,
        node_reports: NodeReports,
        record: ConsumerRecord,
        readiness: Readiness,
        published: Published,
    ) -> Self {
        Self {
            stop,
            readiness,
            reports: node_reports.targets(),
            home: node_reports.home(),
            node_reports: Some(node_reports),
            requests: watch::Sender::default(),
            checks: watch::Sender::default(),
            session: watch::Sender::default(),
            record: watch::Sender::new(record),
            opened: BTreeMap::new(),
            stopped: Vec::new(),
            coming: Coming::default(),
            shared: SharedNotifiers::default(),
            published,
        }
    }

    /// What is to be requested of the agents.
    pub fn requested(&self) -> Requested {
        Requested {
            signals: self.requests.subscribe(),
            checks: self.checks.subscribe(),
            session: self.session.clone(),
        }
    }

    /// What the consumer says of itself, its targets among it.
    pub fn record(&self) -> watch::Receiver<ConsumerRecord> {
        self.record.subscribe()
    }

    /// Says which targets the consumer has, so that agents look for their receivers.
    pub fn declare(&mut self, targets: &[TargetConfig]) {
        self.shared.retain(targets);
        let mut records = BTreeMap::<TargetName, TargetRecord>::new();
        for target in targets {
            let notifier = target.sink.shared().unwrap_or(&target.name);
            records.entry(notifier.clone()).or_default().delivery = embedded::delivery(target).cloned();
            let check = target.sink.file().and_then(|file| file.check.as_ref()?.rule());
            records.entry(target.name.clone()).or_default().check = check;
        }
        let targets = records;
        self.record.send_if_modified(|record| {
            let is_modified = record.targets != targets;
            record.targets = targets;
            is_modified
        });
    }

    /// Says which container the consumer runs in, so that its agent answers.
    pub fn ask_home(&self, container: ContainerId) {
        self.record.send_modify(|record| record.container = Some(container));
    }

    /// What the agent of this consumer's host says of the container that the consumer runs in, once the record names it.
    pub fn home(&mut self, supervisor: &mut Supervisor) -> watch::Receiver<Option<ConsumerHome>> {
        self.watch_reports(supervisor);
        self.home.clone()
    }

    fn watch_reports(&mut self, supervisor: &mut Supervisor) {
        if let Some(reports) = self.node_reports.take() {
            supervisor.spawn_background("reports of the nodes", reports.run());
        }
    }

    /// How these targets differ from those that are there.
    pub fn changes(&self, targets: &[TargetConfig]) -> Changes {
        Changes::between(self.opened.values().map(|opened| &opened.config), targets)
    }

    /// Opens sinks for targets that were checked.
    pub async fn sinks(&self, state: Arc<StateDir>, targets: Vec<TargetConfig>) -> Vec<Box<dyn Sink>> {
        let pages = self.published.pages.clone();
        let open =
            move || targets.iter().map(|target| sink::open(target, state.clone(), pages.clone())).collect();
        tokio::task::spawn_blocking(open).await.expect("opening does not panic")
    }

    /// Opens a target, and starts its notifier.
    pub fn open(
        &mut self,
        supervisor: &mut Supervisor,
        config: TargetConfig,
        sink: Box<dyn Sink>,
        selection: watch::Receiver<Selection>,
    ) -> Target {
        let opened = self.admit(config);
        self.set_up(supervisor, &opened, sink, selection)
    }

    fn admit(&mut self, config: TargetConfig) -> Opened {
        let name = config.name.clone();
        let opened = Opened { config, stop: self.stop.child_token(), tasks: TaskTracker::new() };
        self.opened.insert(name, opened.clone());
        opened
    }

    fn set_up(
        &mut self,
        supervisor: &mut Supervisor,
        opened: &Opened,
        mut sink: Box<dyn Sink>,
        selection: watch::Receiver<Selection>,
    ) -> Target {
        let config = &opened.config;
        let told = sink.told();
        let notifier = config.sink.notify().map(|notify| self.notifier(supervisor, opened, notify, told));
        let part = self.readiness.part(format!("target {}", config.name));
        // The others pace what costs, if anything does, by themselves.
        let pace = if config.sink.kind() == SinkKind::File { config.pace } else { PaceSettings::none() };
        let (name, pacer) = (config.name.clone(), Pacer::new(pace));
        sink.equip(Equipment { tasks: opened.tasks.clone(), checker: self.checker(supervisor, config) });
        let status = self.published.board.entry(config.name.clone());
        Target::new(name, selection, sink, pacer, config.reconcile, notifier, Reporter::new(part, status))
    }

    /// Sets an opened target to work.
    pub fn start(&self, supervisor: &mut Supervisor, target: Target) {
        let Some(opened) = self.opened.get(target.name()) else { return };
        opened.spawn(supervisor, "target", target.run(opened.stop.clone()));
    }

    /// Stops targets. They end once what they have under way is over, and nobody but their successors waits for that.
    pub fn stop(&mut self, targets: &[TargetName]) {
        self.stopped.retain(|stopped| !stopped.tasks.is_empty());
        for stopped in targets.iter().filter_map(|name| self.opened.remove(name)) {
            stopped.stop.cancel();
            stopped.tasks.close();
            self.stopped.push(stopped);
        }
    }

    /// Has a target come: at once, or when those have ended that had its name or its file.
    pub fn come(
        &mut self,
        state: Arc<StateDir>,
        config: TargetConfig,
        selection: watch::Receiver<Selection>,
    ) {
        let before = self.stopped.iter().filter(|stopped| stopped.precedes(&config));
        let before = before.map(|stopped| stopped.tasks.clone()).collect();
        let part = self.coming.part(&config.name, &self.readiness);
        let Opened { config, stop, tasks } = self.admit(config);
        let (target, pages) = (config.clone(), self.published.pages.clone());
        let open = Box::new(move || sink::open(&target, state, pages));
        self.coming.push(Successor { config, selection, stop, tasks, part }, before, open);
    }

    /// Waits until a target that comes can be set to work. Cancel safe.
    pub async fn next(&mut self) -> Arrived {
        self.coming.next().await
    }

    /// Sets a target to work that has come.
    pub fn begin(&mut self, supervisor: &mut Supervisor, Arrived { successor, sink }: Arrived) {
        let Successor { config, selection, stop, tasks, part } = successor;
        let opened = Opened { config, stop, tasks };
        let target = self.set_up(supervisor, &opened, sink, selection);
        // Only now, so that it is ready at no time in between.
        drop(part);
        opened.spawn(supervisor, "target", target.run(opened.stop.clone()));
    }

    /// What has a target's files checked in containers, where that is wanted.
    fn checker(&mut self, supervisor: &mut Supervisor, config: &TargetConfig) -> Option<ContainerChecker> {
        let check = config.sink.file()?.check.as_ref()?;
        let Place::Containers { to: _, dir } = &check.place else { return None };
        self.follow_nodes(supervisor);
        let surroundings = Surroundings {
            reports: self.reports.subscribe(&config.name),
            checks: self.checks.clone(),
            session: self.session.subscribe(),
        };
        let (name, dir) = (config.name.clone(), dir.clone());
        Some(ContainerChecker::new(name, check.rule()?, dir, check.timeout, surroundings))
    }

    /// Follows what the nodes say, from the first target on that asks them for something.
    fn follow_nodes(&mut self, supervisor: &mut Supervisor) {
        if let Some(reports) = self.node_reports.take() {
            supervisor.spawn_background("reports of the nodes", reports.run());
        }
    }

    /// What notifies of a target's changes: its own notifier, or one that it shares.
    fn notifier(
        &mut self,
        supervisor: &mut Supervisor,
        of: &Opened,
        notify: &Notify,
        told: Option<Told>,
    ) -> NotifierHandle {
        let Some(name) = of.config.sink.shared() else {
            return self.launch(supervisor, of, of.config.name.clone(), notify, (None, told));
        };
        let messages = match self.shared.get(name) {
            Some(messages) => messages,
            None => self.share(supervisor, of, name, notify),
        };
        let (orders, ordered) = watch::channel(None);
        let (notifications, notified) = watch::channel(None);
        let part = shared::take_part(of.config.name.clone(), ordered, notifications, messages);
        of.spawn(supervisor, "part in a shared notifier", part);
        NotifierHandle { orders, notifications: notified }
    }

    /// Starts a notifier that targets share; it ends once none of them does any more.
    fn share(
        &mut self,
        supervisor: &mut Supervisor,
        of: &Opened,
        name: &TargetName,
        notify: &Notify,
    ) -> mpsc::Sender<Message> {
        let (stop, tasks) = (self.stop.child_token(), TaskTracker::new());
        let own = Opened { config: of.config.clone(), stop: stop.clone(), tasks: tasks.clone() };
        let (messages, said) = mpsc::channel(MAX_PENDING_MESSAGES);
        let before = self.shared.insert(name, notify, messages.clone(), stop.clone(), tasks);
        let NotifierHandle { orders, notifications } =
            self.launch(supervisor, &own, name.clone(), notify, (before, None));
        let shared = SharedNotifier { messages: said, orders, notifications, stop };
        own.spawn(supervisor, "shared notifier", shared.run());
        messages
    }

    /// Starts a notifier under this name, once those `before` it have ended. It ends when nobody orders any more and the
    /// attempt that is under way is over.
    fn launch(
        &mut self,
        supervisor: &mut Supervisor,
        of: &Opened,
        target: TargetName,
        notify: &Notify,
        (before, told): (Option<TaskTracker>, Option<Told>),
    ) -> NotifierHandle {
        let config = &of.config;
        let (orders, ordered) = watch::channel(None);
        let (notifications, notified) = watch::channel(None);
        let part = self.readiness.part(format!("notify {target}"));
        let before = async move {
            if let Some(before) = before {
                before.wait().await;
            }
        };
        let attempt = match notify.clone() {
            Notify::Signal(rule) => {
                self.follow_nodes(supervisor);
                let (reports, requests) = (self.reports.subscribe(&target), self.requests.clone());
                let all = self.requests.clone();
                let (name, process_stop) = (target.clone(), self.stop.clone());
                let notifier =
                    SignalNotifier { target, rule, reports, requests, orders: ordered, notifications, part };
                of.spawn(supervisor, "notifier", async move {
                    before.await;
                    notifier.run().await;
                    // What is requested when the process ends still is when it is there again.
                    if !process_stop.is_cancelled() {
                        all.send_if_modified(|all| all.remove(&name).is_some());
                    }
                });
                return NotifierHandle { orders, notifications: notified };
            }
            Notify::PidFile { pid_file, signal, process } => {
                Attempt::PidFile(Arc::new(PidFileNotifier { pid_file, signal, process }))
            }
            Notify::Command { command, timeout } => {
                let dest = config.sink.file().map(|file| file.dest.clone()).unwrap_or_default();
                let command = CommandNotifier { command, dest, timeout };
                match told {
                    Some(told) => Attempt::Told(command, told),
                    None => Attempt::Command(command),
                }
            }
        };
        let target = target.to_string();
        let notifier = Notifier { target, attempt, orders: ordered, notifications, part };
        let end_timeout = notify.end_timeout().unwrap_or(SHUTDOWN_TIMEOUT);
        let running = async {
            before.await;
            notifier.run().await;
        };
        supervisor.spawn_bounded("notifier", of.stop.clone(), end_timeout, of.tracked(running));
        NotifierHandle { orders, notifications: notified }
    }
}

impl Opened {
    /// Whether it is to have ended before the other one begins.
    fn precedes(&self, config: &TargetConfig) -> bool {
        self.config.name == config.name || self.config.sink.overlaps(&config.sink)
    }

    /// Runs one of the target's tasks, which may end once the target is asked to.
    fn spawn(
        &self,
        supervisor: &mut Supervisor,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        supervisor.spawn_until(name, self.stop.clone(), self.tracked(task));
    }

    /// A task that counts among the target's.
    fn tracked(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = Result<(), Failure>> + Send + 'static {
        let task = self.tasks.track_future(task.instrument(target_span(&self.config.name)));
        async {
            task.await;
            Ok(())
        }
    }
}

/// The span that a target's logs are in.
pub fn target_span(name: &TargetName) -> Span {
    tracing::info_span!("target", %name)
}

#[cfg(test)]
mod tests {
    use rollcall_shared::model::instance::Protocol;

    use super::*;
    use crate::config::RawTarget;

    fn target(name: &str, protocol: Protocol) -> TargetConfig {
        let mut raw = RawTarget::json(name, "/x");
        raw.select.protocol = Some(protocol);
        raw.parse().expect("a target")
    }

    #[test]
    fn only_what_differs_is_stopped_and_started() {
        let before =
            [target("same", Protocol::Tcp), target("other", Protocol::Tcp), target("gone", Protocol::Tcp)];
        let after =
            [target("new", Protocol::Udp), target("other", Protocol::Udp), target("same", Protocol::Tcp)];
        let changes = Changes::between(before.iter(), &after);
        let names =
            |targets: &[TargetConfig]| targets.iter().map(|target| target.name.clone()).collect::<Vec<_>>();
        assert_eq!(changes.stop, ["other", "gone"].map(|name| name.parse().expect("a name")));
        assert_eq!(names(&changes.start), ["new", "other"].map(|name| name.parse().expect("a name")));
        assert_eq!(Changes::between(before.iter(), &before), Changes { stop: vec![], start: vec![] });
    }
}
