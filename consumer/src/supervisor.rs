//! The tasks of a consumer: they end together, in order, and one that ends by itself ends them all.

use std::time::Duration;

use rollcall_shared::process::cli::Failure;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long the tasks may take to end when they are asked to.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// Tasks that are dropped at the end.
    background: Tasks,
    /// The embedded agent. It ends last: its registrations go with it, and no target may see that.
    agent: Tasks,
}

impl Supervisor {
    /// A supervisor without tasks.
    pub fn new(stop: CancellationToken) -> Self {
        let agent_stop = CancellationToken::new();
        Self { stop, agent_stop, ending: Tasks::new(), background: Tasks::new(), agent: Tasks::new() }
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
        drain(&mut self.ending).await;
        self.agent_stop.cancel();
        drain(&mut self.agent).await;
    }
}

async fn drain(tasks: &mut Tasks) {
    let drained = tokio::time::timeout(SHUTDOWN_TIMEOUT, async {
        while let Some(ended) = tasks.join_next().await {
            if let Ok(Ended { task, result: Err(failure), .. }) = ended {
                tracing::warn!(task, reason = %failure, "a task failed at the end");
            }
        }
    });
    if drained.await.is_err() {
        tracing::warn!("some tasks did not end in time");
    }
}
