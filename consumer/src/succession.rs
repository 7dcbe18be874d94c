//! Targets that come while the consumer runs: each is opened once those have ended whose name or file it takes over, and
//! waits for no other.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use rollcall_shared::{
    model::name::TargetName,
    process::{
        readiness::{Part, Readiness},
        time,
    },
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{config::TargetConfig, roll::Selection, sink::Sink};

/// Opens a sink, on a thread that may block.
pub type Open = Box<dyn FnOnce() -> Box<dyn Sink> + Send>;

/// How long what a stopped target has under way may take before its successor says that it waits for that. It goes on
/// waiting: two must not install one file.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// A target that comes.
#[derive(Debug)]
pub struct Successor {
    /// What it is to be.
    pub config: TargetConfig,
    /// What it shows.
    pub selection: watch::Receiver<Selection>,
    /// Stops it.
    pub stop: CancellationToken,
    /// What it has under way.
    pub tasks: TaskTracker,
    /// How it fares until it is set to work. It shares that with a successor of its own.
    pub part: Arc<Part>,
}

/// A target that can be set to work.
#[derive(Debug)]
pub struct Arrived {
    /// The target.
    pub successor: Successor,
    /// Its sink, opened.
    pub sink: Box<dyn Sink>,
}

/// The targets that come. Dropping them ends that.
#[derive(Debug, Default)]
pub struct Coming {
    tasks: JoinSet<Option<Arrived>>,
    parts: BTreeMap<TargetName, Weak<Part>>,
}

impl Coming {
    /// Has one more come, once these have ended.
    pub fn push(&mut self, successor: Successor, before: Vec<TaskTracker>, open: Open) {
        self.tasks.spawn(successor.arrive(before, open));
    }

    /// How the target of a name fares until it is set to work.
    pub fn part(&mut self, name: &TargetName, readiness: &Readiness) -> Arc<Part> {
        if let Some(part) = self.parts.get(name).and_then(Weak::upgrade) {
            return part;
        }
        let part = Arc::new(readiness.part(format!("reload {name}")));
        self.parts.insert(name.clone(), Arc::downgrade(&part));
        part
    }

    /// Waits until one can be set to work. Cancel safe.
    pub async fn next(&mut self) -> Arrived {
        while let Some(arrived) = self.tasks.join_next().await {
            let arrived = arrived.expect("opening does not panic");
            if let Some(arrived) = arrived.filter(|arrived| !arrived.successor.stop.is_cancelled()) {
                return arrived;
            }
        }
        std::future::pending().await
    }
}

impl Successor {
    /// Gives nothing where it was stopped before.
    async fn arrive(self, before: Vec<TaskTracker>, open: Open) -> Option<Arrived> {
        let sink = tokio::select! {
            // What is opened by a thread that hangs counts among its tasks.
            biased;
            () = self.stop.cancelled() => return None,
            sink = self.open(&before, open) => sink,
        };
        Some(Arrived { successor: self, sink })
    }

    async fn open(&self, before: &[TaskTracker], open: Open) -> Box<dyn Sink> {
        self.wait(before).await;
        let at_work = self.tasks.token();
        let opening = tokio::task::spawn_blocking(move || {
            let _at_work = at_work;
            open()
        });
        opening.await.expect("opening does not panic")
    }

    async fn wait(&self, before: &[TaskTracker]) {
        let ended = async {
            for tasks in before {
                tasks.wait().await;
            }
        };
        tokio::pin!(ended);
        if tokio::time::timeout(END_TIMEOUT, &mut ended).await.is_err() {
            self.part.failed(format!(
                "the target before it has not ended within {}: what it has under way, such as its notify command, is \
                 waited for",
                time::show(END_TIMEOUT)
            ));
            ended.await;
        }
    }
}
