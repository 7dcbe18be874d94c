//! Which host names may stand in the file: a program that resolves them when it loads it refuses the whole file for one
//! that does not resolve.
//!
//! A resolver that is away, or is not the one of the file's reader, takes no name out of the file. It is asked where the
//! file is rendered; that blocks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use rollcall_shared::model::name::ContainerName;
use tokio::time::Instant;

use super::lookups::{self, Answer, Asked, Lookups, MAX_THREADS};

/// When a name that is left out is asked for again: it may be there as soon as its container is.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// How long a name that is not left out is taken for one that still need not be.
const MAX_AGE: Duration = Duration::from_secs(30);

/// What follows for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It resolves, or did before its resolver went away: all names would go at once otherwise.
    Resolves,
    /// It stands in the file, and no name at all resolves here: this is not the resolver of the file's reader.
    Kept,
    /// It does not resolve.
    LeftOut,
}

/// The names that were asked for.
pub struct Hosts {
    lookups: Lookups,
    known: BTreeMap<ContainerName, Host>,
    /// The names of the file that was found, until they are asked for.
    installed: BTreeSet<ContainerName>,
    /// Whether no name resolves.
    is_elsewhere: bool,
}

#[derive(Debug, Clone, Copy)]
struct Host {
    answer: Answer,
    /// Whether the file has it.
    is_shown: bool,
    asked_at: Instant,
    /// How many of its lookups hung, since one that did not.
    hung: u32,
}

impl fmt::Debug for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.known.fmt(f)
    }
}

impl Default for Hosts {
    fn default() -> Self {
        Self::new(lookups::ask)
    }
}

impl Hosts {
    /// Names that this resolver knows.
    pub fn new(resolve: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        let (known, installed) = (BTreeMap::new(), BTreeSet::new());
        Self { lookups: Lookups::new(resolve), known, installed, is_elsewhere: false }
    }

    /// Takes in the names of the file that is there: they have resolved for its reader.
    pub fn seed(&mut self, installed: BTreeSet<ContainerName>) {
        self.installed = installed;
    }

    /// What follows for a name that was asked for.
    pub fn standing(&self, name: &ContainerName) -> Standing {
        self.known.get(name).map_or(Standing::LeftOut, |host| self.standing_of(host))
    }

    fn standing_of(&self, host: &Host) -> Standing {
        match host.answer {
            Answer::Found => Standing::Resolves,
            Answer::Unknown if host.is_shown => Standing::Resolves,
            Answer::NotFound if host.is_shown && self.is_elsewhere => Standing::Kept,
            Answer::NotFound | Answer::Unknown => Standing::LeftOut,
        }
    }

    /// When a name that is left out is to be asked for again.
    pub fn next_look(&self) -> Option<Instant> {
        let left_out = self.known.values().filter(|host| self.standing_of(host) == Standing::LeftOut);
        left_out.map(|host| host.asked_at + RETRY_INTERVAL).min()
    }

    /// Asks for the names that nobody has asked for yet.
    pub fn look_up(&mut self, names: impl IntoIterator<Item = ContainerName>, now: Instant) {
        let new: BTreeSet<_> = names.into_iter().filter(|name| !self.known.contains_key(name)).collect();
        self.ask(new.into_iter().collect(), now);
    }

    /// Asks again for the names whose answers are old, and forgets those that are not used any more.
    pub fn look_again(&mut self, is_used: impl Fn(&ContainerName) -> bool, now: Instant) {
        self.known.retain(|name, _| is_used(name));
        let is_due = |host: &Host| {
            let is_left_out = self.standing_of(host) == Standing::LeftOut;
            host.asked_at + if is_left_out { RETRY_INTERVAL } else { MAX_AGE } <= now
        };
        let due = self.known.iter().filter(|(_, host)| is_due(host)).map(|(name, _)| name.clone());
        self.ask(due.collect(), now);
    }

    /// What hung before is asked for last, and leaves half of the threads to the others.
    fn ask(&mut self, names: Vec<ContainerName>, now: Instant) {
        let hung = |name: &ContainerName| self.known.get(name).map_or(0, |host| host.hung);
        let (mut suspects, mut queue): (Vec<_>, Vec<_>) =
            names.iter().cloned().partition(|name| hung(name) > 0);
        queue.sort_by_key(|name| self.known.contains_key(name));
        suspects.sort_by_key(hung);
        suspects.truncate(self.lookups.free().saturating_sub(MAX_THREADS / 2));
        let asked: BTreeSet<_> = queue.iter().chain(&suspects).cloned().collect();
        let Asked { mut answers, not_begun } = self.lookups.ask(queue.into_iter().chain(suspects).collect());
        let not_begun: BTreeSet<_> = not_begun.into_iter().collect();
        for name in names {
            let answer = answers.remove(&name);
            let hangs = answer.is_none() && asked.contains(&name) && !not_begun.contains(&name);
            self.on_answer(name, answer, hangs, now);
        }
        self.settle();
    }

    fn on_answer(&mut self, name: ContainerName, answer: Option<Answer>, hangs: bool, now: Instant) {
        let is_installed = self.installed.remove(&name);
        let new = Host { answer: Answer::Unknown, is_shown: is_installed, asked_at: now, hung: 0 };
        let host = self.known.entry(name).or_insert(new);
        host.asked_at = now;
        host.answer = answer.unwrap_or(Answer::Unknown);
        host.is_shown |= host.answer == Answer::Found;
        host.hung = if answer.is_some() { 0 } else { host.hung + u32::from(hangs) };
    }

    /// A name that does not resolve leaves the file, where others do.
    fn settle(&mut self) {
        self.is_elsewhere = self.known.values().all(|host| host.answer != Answer::Found);
        for host in self.known.values_mut().filter(|host| host.answer == Answer::NotFound) {
            host.is_shown &= self.is_elsewhere;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, mpsc};

    use super::*;

    type Table = Arc<Mutex<BTreeMap<&'static str, Answer>>>;

    fn name(text: &str) -> ContainerName {
        text.parse().expect("a name")
    }

    /// Names that are answered as the table says, which may change.
    fn hosts() -> (Hosts, Table) {
        let table = Table::default();
        let answers = table.clone();
        let resolve = move |name: &str| {
            let answers = answers.lock().expect("nobody panics");
            answers.get(name).copied().unwrap_or(Answer::NotFound)
        };
        (Hosts::new(resolve), table)
    }

    fn set(table: &Table, answers: &[(&'static str, Answer)]) {
        table.lock().expect("no panic").extend(answers.iter().copied());
    }

    #[test]
    fn a_name_that_appears_or_goes_is_found_out_after_a_while() {
        let (mut hosts, table) = hosts();
        let now = Instant::now();
        set(&table, &[("other", Answer::Found)]);
        hosts.look_up([name("a"), name("other")], now);
        assert_eq!(hosts.standing(&name("a")), Standing::LeftOut);
        assert_eq!(hosts.next_look(), Some(now + RETRY_INTERVAL));
        set(&table, &[("a", Answer::Found)]);
        hosts.look_again(|_| true, now + RETRY_INTERVAL / 2);
        assert_eq!(hosts.standing(&name("a")), Standing::LeftOut, "it is too soon");
        hosts.look_again(|_| true, now + RETRY_INTERVAL);
        assert_eq!(hosts.standing(&name("a")), Standing::Resolves);
        assert_eq!(hosts.next_look(), None);
        set(&table, &[("a", Answer::NotFound)]);
        hosts.look_again(|_| true, now + RETRY_INTERVAL + MAX_AGE);
        assert_eq!(hosts.standing(&name("a")), Standing::LeftOut);
    }

    #[test]
    fn a_resolver_that_is_away_takes_no_name_with_it() {
        let (mut hosts, table) = hosts();
        let now = Instant::now();
        set(&table, &[("a", Answer::Found)]);
        hosts.look_up([name("a")], now);
        set(&table, &[("a", Answer::Unknown), ("b", Answer::Unknown)]);
        hosts.look_again(|_| true, now + MAX_AGE);
        hosts.look_up([name("b")], now + MAX_AGE);
        assert_eq!(hosts.standing(&name("a")), Standing::Resolves);
        assert_eq!(hosts.standing(&name("b")), Standing::LeftOut, "it was never there");
    }

    #[test]
    fn what_follows_for_a_name_after_a_restart() {
        use Answer::{Found, NotFound, Unknown};
        use Standing::{Kept, LeftOut, Resolves};
        for (installed, others, answer, expected) in [
            (true, NotFound, Unknown, Resolves),
            (true, NotFound, NotFound, Kept),
            (true, Unknown, NotFound, Kept),
            (true, Found, NotFound, LeftOut),
            (true, Found, Unknown, Resolves),
            (false, NotFound, NotFound, LeftOut),
            (false, Found, Unknown, LeftOut),
            (false, NotFound, Found, Resolves),
        ] {
            let (mut hosts, table) = hosts();
            set(&table, &[("a", answer), ("other", others)]);
            hosts.seed(installed.then(|| name("a")).into_iter().collect());
            hosts.look_up([name("a"), name("other")], Instant::now());
            assert_eq!(hosts.standing(&name("a")), expected, "{installed} {others:?} {answer:?}");
        }
    }

    #[test]
    fn names_that_stay_though_none_resolves_go_once_another_one_does() {
        let (mut hosts, table) = hosts();
        let now = Instant::now();
        hosts.seed([name("a"), name("b")].into());
        hosts.look_up([name("a"), name("b")], now);
        assert_eq!(hosts.standing(&name("a")), Standing::Kept);
        set(&table, &[("b", Answer::Found)]);
        hosts.look_again(|_| true, now + MAX_AGE);
        assert_eq!(hosts.standing(&name("a")), Standing::LeftOut);
        assert_eq!(hosts.standing(&name("b")), Standing::Resolves);
        set(&table, &[("a", Answer::Unknown), ("b", Answer::Unknown)]);
        hosts.look_again(|_| true, now + 2 * MAX_AGE);
        assert_eq!(hosts.standing(&name("a")), Standing::LeftOut, "it is not in the file any more");
    }

    #[test]
    fn names_that_hang_starve_no_other_one() {
        let (_release, hold) = mpsc::channel::<()>();
        let hold = Mutex::new(hold);
        let mut hosts = Hosts::new(move |name| {
            if name.starts_with("a-tarpit") {
                let _ = hold.lock().expect("no panic").recv();
            }
            Answer::Found
        });
        let now = Instant::now();
        hosts.look_up((0..MAX_THREADS / 2).map(|number| name(&format!("a-tarpit-{number}"))), now);
        let tarpits = hosts.known.values().filter(|host| host.hung == 1).count();
        assert_eq!(tarpits, MAX_THREADS / 2);
        // They are due, and hang still: nobody waits for them, nor are more threads lost to them.
        hosts.look_again(|_| true, now + RETRY_INTERVAL);
        assert_eq!(hosts.lookups.free(), MAX_THREADS / 2);
        hosts.look_up([name("works")], now + RETRY_INTERVAL);
        assert_eq!(hosts.standing(&name("works")), Standing::Resolves);
    }

    #[test]
    fn names_that_are_not_used_any_more_are_forgotten() {
        let (mut hosts, _) = hosts();
        hosts.look_up([name("a"), name("b")], Instant::now());
        hosts.look_again(|used| *used == name("a"), Instant::now());
        assert_eq!(hosts.known.len(), 1);
    }
}
