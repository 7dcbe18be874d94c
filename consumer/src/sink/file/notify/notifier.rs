//! A target's notifier: it takes orders, one for each change, and tells who has taken them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use rollcall_shared::{
    model::signal::Incarnation,
    process::{backoff::Backoff, error::one_line, readiness::Part},
};
use tokio::sync::watch;

use super::{Told, command::CommandNotifier, pid_file::PidFileNotifier};
use crate::target::generation::Generation;

/// A change that is to be notified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The change.
    pub generation: Generation,
    /// The receivers that have taken it before.
    pub taken: BTreeSet<Incarnation>,
    /// Whether everybody had, by then.
    pub was_complete: bool,
}

/// Who has taken a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// The change.
    pub generation: Generation,
    /// Whether everybody has.
    pub is_complete: bool,
    /// The receivers that have, where containers are signalled.
    pub receivers: BTreeSet<Incarnation>,
}

/// A target's end of its notifier.
#[derive(Debug)]
pub struct NotifierHandle {
    /// Takes the newest change.
    pub orders: watch::Sender<Option<Order>>,
    /// Tells who has taken it: the last word alone counts, and nobody waits until it is heard.
    pub notifications: watch::Receiver<Option<Notification>>,
}

/// A way to notify that is done when one attempt succeeds.
#[derive(Debug)]
pub enum Attempt {
    /// A signal to a process of this host.
    PidFile(Arc<PidFileNotifier>),
    /// A command.
    Command(CommandNotifier),
    /// A command that is told what came and went.
    Told(CommandNotifier, Told),
}

/// Why an attempt failed. It is tried again.
pub type AttemptError = Box<dyn std::error::Error + Send + Sync>;

impl Attempt {
    async fn run(&self) -> Result<(), AttemptError> {
        match self {
            Attempt::PidFile(pid_file) => {
                // A file system that hangs is to hold nothing else up.
                let pid_file = pid_file.clone();
                let attempt = tokio::task::spawn_blocking(move || pid_file.attempt());
                Ok(attempt.await.expect("reading a pid file does not panic")?)
            }
            Attempt::Command(command) => Ok(command.attempt().await?),
            Attempt::Told(command, told) => Ok(command.attempt_told(told).await?),
        }
    }
}

/// Notifies by attempts: the newest change, again and again, until one succeeds or a newer change supersedes it.
#[derive(Debug)]
pub struct Notifier {
    /// The target's name, for metrics.
    pub target: String,
    /// What is attempted.
    pub attempt: Attempt,
    /// What is to be notified.
    pub orders: watch::Receiver<Option<Order>>,
    /// Where to tell that it was.
    pub notifications: watch::Sender<Option<Notification>>,
    /// Its condition.
    pub part: Part,
}

impl Notifier {
    /// Runs until nobody orders any more.
    pub async fn run(mut self) {
        let mut done = None;
        loop {
            let ordered = self.orders.wait_for(|order| generation(order) != done).await;
            let Ok(order) = ordered.map(|order| order.clone()) else { return };
            // What was ordered last is notified after the restart or by the successor: an attempt that is begun now may
            // be broken off.
            if self.orders.has_changed().is_err() {
                return;
            }
            done = generation(&order);
            let Some(Order { generation, was_complete, .. }) = order else { continue };
            if was_complete {
                self.part.ready();
            } else if self.notify(generation).await {
                let receivers = BTreeSet::new();
                let notification = Notification { generation, is_complete: true, receivers };
                if self.notifications.send(Some(notification)).is_err() {
                    return;
                }
            }
        }
    }

    /// Tries until it succeeds; gives whether it did before it was superseded. Nothing but the end of the process breaks
    /// an attempt off, and that only after a while: it would leave a reload half done.
    async fn notify(&mut self, order: Generation) -> bool {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        loop {
            match self.attempt.run().await {
                Ok(()) => {
                    self.part.ready();
                    return true;
                }
                Err(error) => {
                    self.part.failed(one_line(&*error));
                    let target = self.target.clone();
                    metrics::counter!("rollcall_consumer_notification_failures_total", "target" => target)
                        .increment(1);
                }
            }
            tokio::select! {
                // Neither branch has taken anything when it is dropped.
                _ = self.orders.wait_for(|newest| generation(newest) != Some(order)) => return false,
                () = tokio::time::sleep(backoff.next_delay()) => {}
            }
        }
    }
}

fn generation(order: &Option<Order>) -> Option<Generation> {
    order.as_ref().map(|order| order.generation)
}

#[cfg(test)]
mod tests {
    use rollcall_shared::process::readiness::Readiness;

    use super::*;

    #[tokio::test]
    async fn a_command_is_told_what_came_and_went_and_again_until_it_succeeds() {
        use rollcall_shared::model::instance::Endpoint;
        let dir = tempfile::tempdir().expect("a folder");
        let [heard, may] = ["heard", "may"].map(|name| dir.path().join(name));
        let script = format!(
            "sh -c 'echo \"+$ROLLCALL_ADDED -$ROLLCALL_REMOVED\" >> {}; test -e {}'",
            heard.display(),
            may.display()
        );
        let (command, timeout) = (script.parse().expect("a command"), Duration::from_secs(10));
        let told = Told::default();
        let attempt = Attempt::Told(CommandNotifier { command, dest: "/x".into(), timeout }, told.clone());
        let endpoint = |port| Endpoint { address: "h".to_owned().try_into().expect("an address"), port };
        told.on_applied(Some([endpoint(1)].into()));
        attempt.run().await.expect_err("it may not yet");
        std::fs::write(&may, "").expect("a file");
        told.on_applied(Some([endpoint(1), endpoint(2)].into()));
        attempt.run().await.expect("it may");
        told.on_applied(Some([endpoint(2)].into()));
        attempt.run().await.expect("it may");
        let heard = std::fs::read_to_string(&heard).expect("a file");
        assert_eq!(heard, "+h:1 -\n+h:1 h:2 -\n+ -h:1\n");
    }

    fn order(generation: u64) -> Option<Order> {
        Some(Order { generation: Generation(generation), taken: BTreeSet::new(), was_complete: false })
    }

    #[tokio::test]
    async fn nothing_is_attempted_any_more_once_the_target_has_gone() {
        let dir = tempfile::tempdir().expect("a folder");
        let [runs, may_end] = ["runs", "may-end"].map(|name| dir.path().join(name));
        let script = format!(
            "sh -c 'echo >> {}; while [ ! -e {} ]; do sleep 0.01; done'",
            runs.display(),
            may_end.display()
        );
        let (command, timeout) = (script.parse().expect("a command"), Duration::from_secs(60));
        let attempt = Attempt::Command(CommandNotifier { command, dest: "/x".into(), timeout });
        let (orders, ordered) = watch::channel(order(1));
        let (notifications, _notified) = watch::channel(None);
        let part = Readiness::default().part("notify web");
        let notifier = Notifier { target: "web".to_owned(), attempt, orders: ordered, notifications, part };
        let running = tokio::spawn(notifier.run());
        while !runs.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        orders.send(order(2)).expect("it is there");
        drop(orders);
        std::fs::write(&may_end, "").expect("a file");
        running.await.expect("no panic");
        assert_eq!(std::fs::read_to_string(&runs).expect("a file"), "\n", "it ran once");
    }
}
