//! What a run under traffic found, beside what was asked for.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};

use super::arrivals::Arrival;
use super::load::Outcome;
use super::proxy::{ProxyKind, Sample};
use crate::event::{Action, Event};
use crate::figures::{Figures, heading};

/// What was asked of HAProxy: the first request within so many times the file and the socket's round trip.
const MOST_RATIO: f64 = 1.5;

/// What a run found.
#[derive(Debug)]
pub struct Report {
    /// How long the changes took.
    pub took: Duration,
    /// How many reloads there were.
    pub reloads: usize,
    /// The proxy before the first change, at its most, and after the last one.
    pub samples: [Sample; 3],
    /// What the proxy said of itself before and after.
    pub accounts: [Option<String>; 2],
    /// What became of the requests.
    pub outcome: Outcome,
    /// What became of the workers that came.
    pub arrivals: BTreeMap<String, Arrival>,
    /// The socket's round trips, where there is a socket.
    pub round_trips: Figures,
}

impl Report {
    /// Prints it, for these workers that came, by their full IDs.
    pub fn print(&self, kind: ProxyKind, come: &[String], events: &[Event]) -> Result<()> {
        self.print_requests();
        self.print_proxy();
        let (to_file, to_served) = self.times(come, events)?;
        let unserved = come.len() - to_served.len();
        heading(&format!("{} workers that came", come.len()));
        to_file.print("start -> file", None);
        if kind == ProxyKind::Haproxy {
            self.round_trips.print("the socket's round trip (show info)", None);
        }
        let floor = to_file.median() + self.round_trips.median_or_zero();
        to_served.print("start -> first request served", Some(floor));
        let late =
            self.arrivals.values().filter_map(|arrival| Some(arrival.took?.saturating_sub(arrival.in_file)));
        let late: Figures = late.collect();
        late.print("  of it: the worker itself takes connections after the file by", None);
        println!(
            "    (asked for from the file on, one request after another, until the worker itself has answered: {} \
             requests for {} workers)",
            self.arrivals.values().map(|arrival| arrival.asked).sum::<usize>(),
            self.arrivals.len()
        );
        self.outcome.latencies.iter().copied().collect::<Figures>().print("a request", None);
        self.print_asked(kind, unserved, to_served.median() / floor);
        Ok(())
    }

    fn print_requests(&self) {
        let outcome = &self.outcome;
        println!(
            "  {:.0} s; {} requests, {} failed; of those that ask for new workers {}",
            self.took.as_secs_f64(),
            outcome.requests(),
            outcome.failed(),
            self.failed_first()
        );
        for (reason, count) in &outcome.failures {
            println!("    {count} x {reason}");
        }
        println!(
            "  connections: {} cut while a request was on its way, {} cut while idle, {} ended as announced",
            outcome.cut_busy, outcome.cut_idle, outcome.ended
        );
    }

    fn print_proxy(&self) {
        let [first, most, last] = &self.samples;
        println!(
            "  {} reloads; at most {} worker processes, {} of them shutting down; memory {:.1} MB before, {:.1} at \
             most, {:.1} after",
            self.reloads, most.workers, most.draining, first.memory, most.memory, last.memory
        );
        for (account, when) in self.accounts.iter().zip(["before", "after"]) {
            account.iter().for_each(|account| println!("  {when}: {account}"));
        }
    }

    /// From the start, as Docker tells it, to the file, and to the first request that a worker has answered.
    fn times(&self, come: &[String], events: &[Event]) -> Result<(Figures, Figures)> {
        let (mut to_file, mut to_served) = (Figures::default(), Figures::default());
        for id in come {
            let start = events.iter().find(|event| event.id == *id && event.action == Action::Start);
            let start = start.with_context(|| format!("no start of {id} was told"))?.at;
            let (host, arrival) = (&id[..12], self.arrivals.get(&id[..12]));
            arrival.iter().for_each(|arrival| to_file.add(arrival.in_file.saturating_sub(start)));
            let asked = arrival.and_then(|arrival| arrival.served);
            // The other clients may have been served by it before.
            let served = asked.into_iter().chain(self.outcome.first_served.get(host).copied()).min();
            served.iter().for_each(|served| to_served.add(served.saturating_sub(start)));
        }
        Ok((to_file, to_served))
    }

    fn failed_first(&self) -> usize {
        self.arrivals.values().map(|arrival| arrival.failed).sum()
    }

    fn print_asked(&self, kind: ProxyKind, unserved: usize, ratio: f64) {
        let Self { outcome, reloads, samples: [first, most, last], .. } = self;
        let (failed, cut) = (outcome.failed() + self.failed_first(), outcome.cut_busy + outcome.cut_idle);
        println!("\nbeside what was asked for");
        println!("  failed requests            {failed} (0), and workers that never served {unserved} (0)");
        if kind == ProxyKind::Nginx {
            println!("  reloads, worker processes  {reloads}, {} at most (counted)", most.workers);
            return println!("  connections cut            {cut} (counted)");
        }
        println!("  connections cut            {cut} (0)");
        println!("  reloads, worker processes  {reloads}, {} (0, 1)", most.workers);
        println!("  start -> first request     {ratio:.2}x of file and round trip ({MOST_RATIO}x at most)");
        println!("  memory                     {:+.1} % (flat)", (last.memory / first.memory - 1.0) * 100.0);
    }
}
