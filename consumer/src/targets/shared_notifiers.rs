//! Which notifiers that targets share run, and which have to end before their successors begin.

use std::collections::BTreeMap;

use rollcall_shared::model::name::TargetName;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::TargetConfig,
    sink::file::notify::{Notify, shared::Message},
};

/// The notifiers that targets share, by their names.
#[derive(Debug, Default)]
pub(super) struct SharedNotifiers {
    running: BTreeMap<TargetName, Shared>,
    /// What those have under way that were asked to end.
    former: BTreeMap<TargetName, TaskTracker>,
}

#[derive(Debug)]
struct Shared {
    notify: Notify,
    messages: mpsc::Sender<Message>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl SharedNotifiers {
    pub(super) fn get(&self, name: &TargetName) -> Option<mpsc::Sender<Message>> {
        self.running.get(name).map(|shared| shared.messages.clone())
    }

    /// Has one more run; gives what has to end before it begins.
    pub(super) fn insert(
        &mut self,
        name: &TargetName,
        notify: &Notify,
        messages: mpsc::Sender<Message>,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> Option<TaskTracker> {
        let shared = Shared { notify: notify.clone(), messages, stop, tasks };
        self.running.insert(name.clone(), shared);
        self.former.remove(name)
    }

    /// Ends those that none of these targets uses as they are.
    pub(super) fn retain(&mut self, targets: &[TargetConfig]) {
        let is_used = |name: &TargetName, notify: &Notify| {
            targets
                .iter()
                .any(|target| target.sink.shared() == Some(name) && target.sink.notify() == Some(notify))
        };
        let former = &mut self.former;
        self.running.retain(|name, Shared { notify, stop, tasks, messages: _ }| {
            let is_used = is_used(name, notify);
            if !is_used {
                stop.cancel();
                tasks.close();
                former.insert(name.clone(), tasks.clone());
            }
            is_used
        });
    }
}
