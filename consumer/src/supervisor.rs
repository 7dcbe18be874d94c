//! The tasks of a consumer: they end together, in order, and one that ends by itself ends them all.

use std::time::Duration;

use rollcall_shared::process::{cli::Failure, time};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long the tasks may take to end when they are asked to, unless another time is said.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

type Tasks = JoinSet<Ended>;

/// How a task has ended.
#[derive(Debug)]
struct Ended {
    task: &'static str,
    result: Result<(), Failure>,
    /// Whether it was asked to, by a token of its own.
    was_asked: bool,
}

/// Runs tasks.
#[derive(Debug)]
pub struct Supervisor {
    /// Asks the process to stop.
    pub stop: CancellationToken,
    /// Asks the embedded agent to stop, once everything else has.
    pub agent_stop: CancellationToken,
    /// Tasks that end by themselves when they are asked to stop.
    ending: Tasks,
    /// Tasks that do so as well, each within a time of its own.
    bounded: Tasks,
    /// Tasks that are dropped at the end.
    background: Tasks,
    /// The embedded agent. It ends last: its registrations go with it, and no target may see that.
    agent: Tasks,
}

impl Supervisor {
    /// A supervisor without tasks.
    pub fn new(stop: CancellationToken) -> Self {
        let agent_stop = CancellationToken::new();
        let (ending, bounded, background, agent) = (Tasks::new(), Tasks::new(), Tasks::new(), Tasks::new());
        Self { stop, agent_stop, ending, bounded, background, agent }
    }

    /// Runs a task that ends when [`Supervisor::stop`] is cancelled.
    pub fn spawn_ending(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), Failure>> + Send + 'static,
    ) {
        self.spawn_until(name, CancellationToken::new(), task);
    }

    /// Runs a task that ends when [`Supervisor::stop`] is cancelled, and may end once its own token is.
    pub fn spawn_until(
        &mut self,
        name: &'static str,
        own_stop: CancellationToken,
        task: impl Future<Output = Result<(), Failure>> + Send + 'static,
    ) {
        self.ending.spawn(async move {
            let result = task.await;
            Ended { task: name, result, was_asked: own_stop.is_cancelled() }
        });
    }

    /// Runs a task that ends when [`Supervisor::stop`] is cancelled, and may end once its own token is. At the process's
    /// end it is dropped after this time, and not before.
    pub fn spawn_bounded(
        &mut self,
        name: &'static str,
        own_stop: CancellationToken,
        end_timeout: Duration,
        task: impl Future<Output = Result<(), Failure>> + Send + 'static,
    ) {
        let stop = self.stop.clone();
        let is_late = async move {
            stop.cancelled().await;
            tokio::time::sleep(end_timeout).await;
        };
        self.bounded.spawn(async move {
            let result = tokio::select! {
                // What has not ended in time is broken off.
                biased;
                result = task => result,
                () = is_late => {
                    Err(Failure::failed(format!("it did not end within {}", time::show(end_timeout))))
                }
            };
            Ended { task: name, result, was_asked: own_stop.is_cancelled() }
        });
    }

    /// Runs a task that is dropped at the end.
    pub fn spawn_background(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.background.spawn(async move {
            task.await;
            Ended { task: name, result: Ok(()), was_asked: false }
        });
    }

    /// Runs the embedded agent, which ends when [`Supervisor::agent_stop`] is cancelled.
    pub fn spawn_agent(&mut self, task: impl Future<Output = Result<(), Failure>> + Send + 'static) {
        self.agent.spawn(async move { Ended { task: "agent", result: task.await, was_asked: false } });
    }

    /// Waits until the process is asked to stop, which is no failure, or one of the tasks ends, which is.
    ///
    /// # Errors
    /// Which task has ended, or why.
    pub async fn watch(&mut self) -> Result<(), Failure> {
        loop {
            let ended = tokio::select! {
                // Every branch is cancel safe.
                biased;
                () = self.stop.cancelled() => return Ok(()),
                Some(ended) = self.ending.join_next() => ended,
                Some(ended) = self.bounded.join_next() => ended,
                Some(ended) = self.background.join_next() => ended,
                Some(ended) = self.agent.join_next() => ended,
            };
            match ended {
                Ok(Ended { result: Ok(()), was_asked: true, .. }) => {}
                Ok(Ended { task, result: Ok(()), .. }) => {
                    return Err(Failure::failed(format!("the {task} has ended unasked")));
                }
                Ok(Ended { result: Err(failure), .. }) => return Err(failure),
                Err(error) => return Err(Failure::failed(error)),
            }
        }
    }

    /// Ends everything: first the tasks that end by themselves, then the agent, and then the rest.
    pub async fn end(mut self) {
        self.stop.cancel();
        tokio::join!(within_timeout(drain(&mut self.ending)), drain(&mut self.bounded));
        self.agent_stop.cancel();
        within_timeout(drain(&mut self.agent)).await;
    }
}

async fn drain(tasks: &mut Tasks) {
    while let Some(ended) = tasks.join_next().await {
        if let Ok(Ended { task, result: Err(failure), .. }) = ended {
            tracing::warn!(task, reason = %failure, "a task failed at the end");
        }
    }
}

async fn within_timeout(drained: impl Future<Output = ()>) {
    if tokio::time::timeout(SHUTDOWN_TIMEOUT, drained).await.is_err() {
        tracing::warn!("some tasks did not end in time");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use super::*;

    /// Whether a task that takes this long ends where the end waits `end_timeout` for it.
    async fn ends(takes: Duration, end_timeout: Duration) -> bool {
        let mut supervisor = Supervisor::new(CancellationToken::new());
        let has_ended = Arc::new(AtomicBool::new(false));
        let ended = has_ended.clone();
        supervisor.spawn_bounded("notifier", CancellationToken::new(), end_timeout, async move {
            tokio::time::sleep(takes).await;
            ended.store(true, Ordering::Relaxed);
            Ok(())
        });
        supervisor.end().await;
        has_ended.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_with_a_time_of_its_own_has_all_of_it_at_the_end_and_no_more() {
        let [less, time, more] = [SHUTDOWN_TIMEOUT * 2, SHUTDOWN_TIMEOUT * 3, SHUTDOWN_TIMEOUT * 4];
        assert!(ends(less, time).await);
        let begun = tokio::time::Instant::now();
        assert!(!ends(more, time).await);
        assert_eq!(begun.elapsed().as_secs(), time.as_secs());
    }
}
