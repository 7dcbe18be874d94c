//! Asks a resolver for several host names at once, on threads of their own and within a time: one that hangs holds nobody
//! up for longer. All of this blocks.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use dns_lookup::LookupErrorKind;
use rollcall_shared::model::name::ContainerName;

/// How long all names are waited for.
pub(super) const TIMEOUT: Duration = Duration::from_secs(2);
/// How many threads ask, with those that hang since an earlier time.
pub(super) const MAX_THREADS: usize = 16;

/// What a resolver says of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It has an address.
    Found,
    /// There is no such name.
    NotFound,
    /// Nobody knows now.
    Unknown,
}

type Resolve = dyn Fn(&str) -> Answer + Send + Sync;
type Queue = Arc<Mutex<VecDeque<ContainerName>>>;

/// A resolver, and the threads that ask it.
pub(super) struct Lookups {
    resolve: Arc<Resolve>,
    /// Each thread holds a copy until it ends.
    thread: Arc<()>,
}

/// What became of the names that were to be asked for.
pub(super) struct Asked {
    /// Names that were answered.
    pub answers: BTreeMap<ContainerName, Answer>,
    /// Names that no thread came to; those that are in neither list hang.
    pub not_begun: VecDeque<ContainerName>,
}

impl Lookups {
    pub fn new(resolve: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        Self { resolve: Arc::new(resolve), thread: Arc::default() }
    }

    /// How many threads may still be started.
    pub fn free(&self) -> usize {
        MAX_THREADS.saturating_sub(Arc::strong_count(&self.thread) - 1)
    }

    /// Asks for the names in their order, within [`TIMEOUT`].
    pub fn ask(&self, names: VecDeque<ContainerName>) -> Asked {
        let deadline = Instant::now() + TIMEOUT;
        let threads = names.len().min(self.free());
        let queue = Queue::new(Mutex::new(names));
        let (answers, answered) = mpsc::channel();
        for _ in 0..threads {
            self.start(queue.clone(), answers.clone());
        }
        drop(answers);
        let next = || answered.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok();
        let answers = std::iter::from_fn(next).collect();
        // The threads find nothing more to do.
        let not_begun = std::mem::take(&mut *queue.lock().unwrap_or_else(PoisonError::into_inner));
        Asked { answers, not_begun }
    }

    /// A thread that takes names until there is none left, or nobody waits any more. Without it, the others take them.
    fn start(&self, queue: Queue, answers: mpsc::Sender<(ContainerName, Answer)>) {
        let (resolve, thread) = (self.resolve.clone(), self.thread.clone());
        let next = move || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let work = move || {
            let _thread = thread;
            while let Some(name) = next() {
                let answer = resolve(name.as_str());
                if answers.send((name, answer)).is_err() {
                    return;
                }
            }
        };
        if let Err(error) = thread::Builder::new().name("lookup".to_owned()).spawn(work) {
            tracing::debug!(%error, "cannot start a thread that looks names up");
        }
    }
}

/// Asks by the C library. The binary that is shipped has its own, which reads /etc/hosts and asks the servers of
/// /etc/resolv.conf: nginx's may have other sources of names besides.
pub(super) fn ask(name: &str) -> Answer {
    match dns_lookup::lookup_host(name) {
        Ok(_) => Answer::Found,
        Err(error) if matches!(error.kind(), LookupErrorKind::NoName | LookupErrorKind::NoData) => {
            Answer::NotFound
        }
        Err(_) => Answer::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ContainerName {
        text.parse().expect("a name")
    }

    #[test]
    fn lookups_that_hang_are_waited_for_so_long_and_no_more_are_begun_than_threads_are_left() {
        let (release, hold) = mpsc::channel::<()>();
        let hold = Mutex::new(hold);
        let lookups = Lookups::new(move |_| {
            let _ = hold.lock().expect("no panic").recv();
            Answer::Found
        });
        let names: VecDeque<_> = (0..MAX_THREADS + 3).map(|number| name(&format!("n{number}"))).collect();
        let begun = Instant::now();
        let Asked { answers, not_begun } = lookups.ask(names.clone());
        assert!(begun.elapsed() >= TIMEOUT && begun.elapsed() < 3 * TIMEOUT);
        assert_eq!((answers.len(), not_begun.len(), lookups.free()), (0, 3, 0));
        let Asked { answers, not_begun } = lookups.ask(names.clone());
        assert_eq!((answers.len(), not_begun.len()), (0, names.len()), "there is no thread left");
        drop(release);
        while lookups.free() < MAX_THREADS {
            thread::yield_now();
        }
        assert_eq!(lookups.ask(names.clone()).answers.len(), names.len());
    }

    #[test]
    fn the_systems_own_resolver_knows_this_host() {
        assert_eq!(ask("localhost"), Answer::Found);
        assert_ne!(ask("no-such-name.invalid"), Answer::Found);
    }
}
