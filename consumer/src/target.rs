//! One target at work: waits for its rows to change, has its file made, and has what reads it notified.
//!
//! A thin shell around what decides (debounce, guard, select) and what does (press, check, courier). One
//! task a target; it never blocks a thread of the runtime.

use jiff::Timestamp;
use rollcall_shared::{health::Health, name::TargetName, retry::Retry};
use std::time::Duration;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    condition::Condition,
    config::{Check, TargetSettings},
    debounce::Debounce,
    generation::Generation,
    ledger::Digest,
    press::{Edition, Made, Press},
    select::Selection,
};

/// The line to a target's courier.
#[derive(Debug)]
pub struct Line {
    /// Takes the installations that are to be told.
    pub orders: watch::Sender<Option<Generation>>,
    /// Gives those that were.
    pub acks: mpsc::Receiver<Generation>,
}

/// One target.
#[derive(Debug)]
pub struct Target {
    name: TargetName,
    check: Option<Check>,
    selection: watch::Receiver<Selection>,
    /// Away only while it is at work on a blocking thread.
    press: Option<Press>,
    debounce: Debounce,
    line: Option<Line>,
    /// The installation whose ack is waited for.
    awaited: Option<Awaited>,
    last_generation: Option<Generation>,
    /// When the containers started that no ack has covered yet.
    started: Vec<Timestamp>,
    /// When to try again, or look again at what is held.
    again: Option<Instant>,
    retry: Retry,
    condition: Condition,
}

#[derive(Debug)]
struct Awaited {
    generation: Generation,
    digest: Digest,
    instances: usize,
}

/// How many started containers are remembered for the histogram while no ack comes.
const MOST_STARTED: usize = 10_000;

/// Why a target has not what the roll calls for: a sentence.
type Reason = String;

impl Target {
    /// A target that has done nothing yet.
    pub fn new(
        settings: &TargetSettings,
        selection: watch::Receiver<Selection>,
        press: Press,
        line: Option<Line>,
        health: Health,
    ) -> Self {
        let TargetSettings { name, check, debounce, .. } = settings;
        let part = format!("target {name}");
        health.ill(&part, "not rendered yet");
        let condition = Condition::new(health, part);
        Self {
            name: name.clone(),
            check: check.clone(),
            selection,
            press: Some(press),
            debounce: Debounce::new(*debounce),
            line,
            awaited: None,
            last_generation: None,
            started: Vec::new(),
            again: None,
            retry: Retry::new(Duration::from_secs(1), Duration::from_secs(30)),
            condition,
        }
    }

    /// Its name.
    pub fn name(&self) -> &TargetName {
        &self.name
    }

    /// Follows its rows until it is stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let due = [self.debounce.due(), self.again].into_iter().flatten().min();
            // The timer's own steps are a millisecond: what is due now does not wait for one.
            if due.is_some_and(|due| due <= Instant::now()) && !stop.is_cancelled() {
                // A failure is in the condition, and tried again.
                let _ = self.turn().await;
                continue;
            }
            tokio::select! {
                // Every branch is cancel safe: a token, channels and a timer.
                biased;
                () = stop.cancelled() => return,
                changed = self.selection.changed() => match changed {
                    Ok(()) => self.debounce.change(Instant::now()),
                    Err(_) => return,
                },
                Some(generation) = next_ack(&mut self.line) => self.acked(generation).await,
                () = sleep_until(due) => {}
            }
        }
    }

    /// Makes the file once, and waits for its ack.
    ///
    /// # Errors
    /// Why the target has not what the roll calls for.
    pub async fn once(&mut self, wait: Duration) -> Result<(), Reason> {
        self.turn().await?;
        while self.awaited.is_some() {
            match tokio::time::timeout(wait, next_ack(&mut self.line)).await {
                Ok(Some(generation)) => self.acked(generation).await,
                Ok(None) => return Err("its courier has ended".to_owned()),
                Err(_) => {
                    let waited = humantime::format_duration(wait);
                    return Err(format!("its notification was not acked within --wait ({waited})"));
                }
            }
        }
        Ok(())
    }

    /// Brings the file up to the rows as they are now.
    async fn turn(&mut self) -> Result<(), Reason> {
        let begun = Instant::now();
        self.debounce.rendered();
        self.again = None;
        self.selection.mark_unchanged();
        self.count("rollcall_consumer_renders_total");
        match self.print().await {
            Ok(Made::Held { until, reason }) => {
                self.again = Some(until);
                let left = humantime::format_duration(Duration::from_secs((until - begun).as_secs()));
                let reason = format!("keeps the last file for up to {left}: {reason}");
                self.condition.ill(reason.clone());
                Err(reason)
            }
            Ok(Made::Unchanged(edition)) => {
                self.count("rollcall_consumer_unchanged_total");
                self.show(edition, false).await;
                Ok(())
            }
            Ok(Made::Installed(edition)) => {
                let now = Instant::now();
                let instances = edition.instances;
                self.debounce.reloaded(now);
                self.show(edition, true).await;
                self.count("rollcall_consumer_installs_total");
                let name = self.name.to_string();
                metrics::histogram!("rollcall_consumer_install_duration_seconds", "target" => name)
                    .record(now - begun);
                tracing::info!(target = %self.name, instances, "installed");
                Ok(())
            }
            Ok(Made::Staged(..)) => unreachable!("what is staged was checked and installed"),
            Err(reason) => {
                self.count("rollcall_consumer_failures_total");
                self.again = Some(Instant::now() + self.retry.next_delay());
                self.condition.ill(reason.clone());
                Err(reason)
            }
        }
    }

    /// Makes the file, with the user's check in between.
    async fn print(&mut self) -> Result<Made, Reason> {
        let selection = self.selection.clone();
        let now = Instant::now();
        let made = self.at_press(move |press| press.make(&selection, now)).await;
        match (made.map_err(|error| error.to_string())?, self.check.clone()) {
            (Made::Staged(edition, staged), Some(Check { command, timeout })) => {
                let checked = command.run(staged.path(), timeout).await;
                checked.map_err(|error| format!("the check refuses the new file: {error}"))?;
                let installed = self.at_press(move |press| press.install(edition, staged)).await;
                installed.map(Made::Installed).map_err(|error| error.to_string())
            }
            (made, _) => Ok(made),
        }
    }

    /// The file shows the rows. Orders a notification if one is owed and not under way.
    async fn show(&mut self, edition: Edition, is_new: bool) {
        self.retry.reset();
        let press = self.press.as_ref().expect("it is back after every visit");
        let is_owed = press.owes(&edition);
        let Edition { digest, instances, started, left_out, .. } = edition;
        if let (Some(line), Some(digest)) = (&self.line, digest) {
            let room = MOST_STARTED - self.started.len();
            self.started.extend(started.into_iter().take(room));
            if is_new || (is_owed && self.awaited.is_none()) {
                let generation = Generation::after(self.last_generation, Timestamp::now());
                self.last_generation = Some(generation);
                self.awaited = Some(Awaited { generation, digest, instances });
                line.orders.send_replace(Some(generation));
                // The order goes out before anything is said of it.
                tokio::task::yield_now().await;
            }
        }
        metrics::gauge!("rollcall_consumer_instances", "target" => self.name.to_string())
            .set(instances as f64);
        match left_out.first() {
            None => self.condition.well(),
            Some(first) => {
                let more = match left_out.len() - 1 {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                self.condition.ill(format!("leaves out what the format cannot express: {first}{more}"));
            }
        }
    }

    /// The target has taken an installation up.
    async fn acked(&mut self, generation: Generation) {
        let Some(awaited) = self.awaited.take_if(|awaited| awaited.generation == generation) else { return };
        let Awaited { generation: _, digest, instances } = awaited;
        let now = Timestamp::now();
        for started in self.started.drain(..) {
            // Clocks of two hosts may differ by more than it took.
            let took = now.duration_since(started).max(jiff::SignedDuration::ZERO);
            metrics::histogram!("rollcall_start_to_ack_seconds", "target" => self.name.to_string())
                .record(took.as_secs_f64());
        }
        tracing::info!(target = %self.name, generation = generation.0, "acked");
        if let Err(error) = self.at_press(move |press| press.settle(digest, instances)).await {
            tracing::warn!(target = %self.name, %error, "cannot note the ack, it will be asked for again after a restart");
        }
    }

    /// Visits a blocking thread with the press.
    async fn at_press<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Press) -> T + Send + 'static,
    ) -> T {
        let mut press = self.press.take().expect("it is back after every visit");
        let visit = tokio::task::spawn_blocking(move || {
            let done = work(&mut press);
            (press, done)
        });
        match visit.await {
            Ok((press, done)) => {
                self.press = Some(press);
                done
            }
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is going down, and this task with it.
                Err(_) => std::future::pending().await,
            },
        }
    }

    fn count(&self, what: &'static str) {
        metrics::counter!(what, "target" => self.name.to_string()).increment(1);
    }
}

async fn next_ack(line: &mut Option<Line>) -> Option<Generation> {
    match line {
        Some(line) => line.acks.recv().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
