//! Which host names resolve now: a program that resolves them when it loads its file refuses the whole file for one that
//! does not.
//!
//! They are asked for where the file is rendered, on threads of their own and within a time: a resolver that hangs holds
//! nobody up for longer. All of this blocks.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use dns_lookup::LookupErrorKind;
use rollcall_shared::model::name::ContainerName;
use tokio::time::Instant;

/// How long a rendering waits for all its names.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How many names are asked for at once.
const MAX_CONCURRENT_LOOKUPS: usize = 16;
/// When a name that does not resolve is asked for again: it may be there as soon as its container is.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// How long a name that resolves is taken for one that still does.
const MAX_AGE: Duration = Duration::from_secs(30);

/// What a resolver says of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It has an address.
    Found,
    /// There is no such name.
    NotFound,
    /// Nobody knows now. A name that was there before is taken to be there still: if the resolver is away, all names
    /// would go at once.
    Unknown,
}

type Resolve = dyn Fn(&str) -> Answer + Send + Sync;

/// The names that were asked for.
#[derive(Clone)]
pub struct Hosts {
    resolve: Arc<Resolve>,
    known: BTreeMap<ContainerName, Host>,
}

#[derive(Debug, Clone, Copy)]
struct Host {
    resolves: bool,
    asked_at: Instant,
}

impl fmt::Debug for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.known.fmt(f)
    }
}

impl Default for Hosts {
    fn default() -> Self {
        Self::new(ask)
    }
}

impl Hosts {
    /// Names that this resolver knows.
    pub fn new(resolve: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        Self { resolve: Arc::new(resolve), known: BTreeMap::new() }
    }

    /// Whether a name that was asked for resolves.
    pub fn resolves(&self, name: &ContainerName) -> bool {
        self.known.get(name).is_some_and(|host| host.resolves)
    }

    /// When a name that does not resolve is to be asked for again.
    pub fn next_look(&self) -> Option<Instant> {
        self.known.values().filter(|host| !host.resolves).map(|host| host.asked_at + RETRY_INTERVAL).min()
    }

    /// Asks for the names that nobody has asked for yet.
    pub fn look_up(&mut self, names: impl IntoIterator<Item = ContainerName>, now: Instant) {
        let new: BTreeSet<_> = names.into_iter().filter(|name| !self.known.contains_key(name)).collect();
        self.ask(new.into_iter().collect(), now);
    }

    /// Asks again for the names whose answers are old, and forgets those that are not used any more.
    pub fn look_again(&mut self, is_used: impl Fn(&ContainerName) -> bool, now: Instant) {
        self.known.retain(|name, _| is_used(name));
        let is_due =
            |host: &Host| host.asked_at + if host.resolves { MAX_AGE } else { RETRY_INTERVAL } <= now;
        let due = self.known.iter().filter(|(_, host)| is_due(host)).map(|(name, _)| name.clone());
        self.ask(due.collect(), now);
    }

    fn ask(&mut self, names: VecDeque<ContainerName>, now: Instant) {
        let mut answers = if names.is_empty() { BTreeMap::new() } else { ask_all(&self.resolve, &names) };
        for name in names {
            let resolves = match answers.remove(&name).unwrap_or(Answer::Unknown) {
                Answer::Found => true,
                Answer::NotFound => false,
                Answer::Unknown => self.resolves(&name),
            };
            self.known.insert(name, Host { resolves, asked_at: now });
        }
    }
}

/// Asks for several names at once, within [`TIMEOUT`].
fn ask_all(resolve: &Arc<Resolve>, names: &VecDeque<ContainerName>) -> BTreeMap<ContainerName, Answer> {
    let queue = Arc::new(Mutex::new(names.clone()));
    let (answers, answered) = mpsc::channel();
    for _ in 0..names.len().min(MAX_CONCURRENT_LOOKUPS) {
        let (resolve, queue, answers) = (resolve.clone(), queue.clone(), answers.clone());
        let next = move || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        thread::spawn(move || {
            while let Some(name) = next() {
                let answer = resolve(name.as_str());
                if answers.send((name, answer)).is_err() {
                    // Nobody waits any more.
                    return;
                }
            }
        });
    }
    drop(answers);
    let deadline = std::time::Instant::now() + TIMEOUT;
    let next = || answered.recv_timeout(deadline.saturating_duration_since(std::time::Instant::now()));
    std::iter::from_fn(|| next().ok()).collect()
}

/// Asks as nginx does: the C library, with all its sources of names.
fn ask(name: &str) -> Answer {
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

    /// Names that are answered as the table says, which may change.
    fn hosts() -> (Hosts, Arc<Mutex<BTreeMap<&'static str, Answer>>>) {
        let table = Arc::new(Mutex::new(BTreeMap::new()));
        let answers = table.clone();
        let resolve = move |name: &str| {
            let answers = answers.lock().expect("nobody panics");
            answers.get(name).copied().unwrap_or(Answer::NotFound)
        };
        (Hosts::new(resolve), table)
    }

    #[test]
    fn a_name_that_appears_or_goes_is_found_out_after_a_while() {
        let (mut hosts, table) = hosts();
        let now = Instant::now();
        hosts.look_up([name("a")], now);
        assert!(!hosts.resolves(&name("a")));
        assert_eq!(hosts.next_look(), Some(now + RETRY_INTERVAL));
        table.lock().expect("no panic").insert("a", Answer::Found);
        hosts.look_again(|_| true, now + RETRY_INTERVAL / 2);
        assert!(!hosts.resolves(&name("a")), "it is too soon");
        hosts.look_again(|_| true, now + RETRY_INTERVAL);
        assert!(hosts.resolves(&name("a")));
        assert_eq!(hosts.next_look(), None);
        table.lock().expect("no panic").clear();
        hosts.look_again(|_| true, now + RETRY_INTERVAL + MAX_AGE);
        assert!(!hosts.resolves(&name("a")));
    }

    #[test]
    fn a_resolver_that_is_away_takes_no_name_with_it() {
        let (mut hosts, table) = hosts();
        let now = Instant::now();
        table.lock().expect("no panic").insert("a", Answer::Found);
        hosts.look_up([name("a")], now);
        table.lock().expect("no panic").extend([("a", Answer::Unknown), ("b", Answer::Unknown)]);
        hosts.look_again(|_| true, now + MAX_AGE);
        hosts.look_up([name("b")], now + MAX_AGE);
        assert!(hosts.resolves(&name("a")));
        assert!(!hosts.resolves(&name("b")), "it was never there");
    }

    #[test]
    fn a_resolver_that_hangs_is_waited_for_so_long_and_no_longer() {
        let (_release, hold) = mpsc::channel::<()>();
        let hold = Mutex::new(hold);
        let mut hosts = Hosts::new(move |name| match name {
            "hangs" => {
                let _ = hold.lock().expect("no panic").recv();
                Answer::Found
            }
            _ => Answer::Found,
        });
        let begun = std::time::Instant::now();
        hosts.look_up([name("hangs"), name("works")], Instant::now());
        assert!(begun.elapsed() >= TIMEOUT && begun.elapsed() < 3 * TIMEOUT);
        assert!(hosts.resolves(&name("works")) && !hosts.resolves(&name("hangs")));
    }

    #[test]
    fn the_systems_own_resolver_knows_this_host() {
        assert_eq!(ask("localhost"), Answer::Found);
        assert_ne!(ask("no-such-name.invalid"), Answer::Found);
    }

    #[test]
    fn names_that_are_not_used_any_more_are_forgotten() {
        let (mut hosts, _) = hosts();
        hosts.look_up([name("a"), name("b")], Instant::now());
        hosts.look_again(|used| *used == name("a"), Instant::now());
        assert_eq!(hosts.known.len(), 1);
    }
}
