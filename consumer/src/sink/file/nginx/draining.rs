//! Whether workers that shut down pile up: each reload leaves some that stay until their last connection ends, such as a
//! WebSocket's.

use super::processes::{Master, Workers};

/// How many generations of workers may shut down at a time before that is worth a look.
const MAX_GENERATIONS: usize = 8;

/// What is known of a master's workers that shut down.
#[derive(Debug)]
pub struct Draining {
    master: Master,
    /// The target's name, for metrics.
    target: String,
    note: Option<String>,
}

impl Draining {
    /// Nothing is known yet.
    pub fn new(master: Master, target: String) -> Self {
        metrics::describe_gauge!(
            "rollcall_consumer_draining_workers",
            "Workers of nginx that still shut down after a reload, by target"
        );
        Self { master, target, note: None }
    }

    /// Counts them. What is no nginx has none. Blocks.
    pub fn look(&mut self) {
        let Ok(workers) = self.master.workers() else {
            self.note = None;
            return;
        };
        metrics::gauge!("rollcall_consumer_draining_workers", "target" => self.target.clone())
            .set(workers.draining.len() as f64);
        self.note = note(&workers);
    }

    /// What was worth a look, on one line. The number is not in it: each change would be news.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }
}

impl Drop for Draining {
    fn drop(&mut self) {
        metrics::gauge!("rollcall_consumer_draining_workers", "target" => self.target.clone()).set(0.0);
    }
}

fn note(workers: &Workers) -> Option<String> {
    let generation = workers.serving.len().max(1);
    (workers.draining.len() > MAX_GENERATIONS * generation).then(|| {
        format!(
            "more than {MAX_GENERATIONS} generations of nginx's workers are still shutting down: \
             worker_shutdown_timeout in its configuration bounds that"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::{super::Worker, *};

    #[test]
    fn many_generations_are_noted_however_many_workers_one_has() {
        let some = |count: i32| (0..count).map(|pid| Worker { pid, started: 1 }).collect();
        for (serving, draining, expected) in
            [(1, 8, false), (1, 9, true), (0, 9, true), (64, 128, false), (4, 33, true), (0, 0, false)]
        {
            let workers = Workers { serving: some(serving), draining: some(draining) };
            assert_eq!(note(&workers).is_some(), expected, "{serving} {draining}");
        }
    }
}
