//! A target at work: waits for its selection to change, has its sink apply it at the target's pace, and has the change
//! notified.
//!
//! A thin shell around what decides (pacer, loss guard) and what does (sink, notifier). One task a target.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rollcall_shared::{
    model::name::TargetName,
    process::{
        backoff::Backoff,
        error::one_line,
        time::{self, sleep_until},
    },
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    generation::Generation,
    pacer::Pacer,
    reporter::{Reporter, Standing},
    state::Acked,
};
use crate::{
    roll::Selection,
    sink::{
        Applied, Content, Question, Sink, SinkError,
        file::notify::{Notification, NotifierHandle, Order},
    },
};

/// One target.
#[derive(Debug)]
pub struct Target {
    name: TargetName,
    selection: watch::Receiver<Selection>,
    sink: Box<dyn Sink>,
    pacer: Pacer,
    /// How often to look whether the sink still has what was applied.
    reconcile: Duration,
    notifier: Option<NotifierHandle>,
    /// The change that was ordered last to be notified.
    current: Option<Current>,
    /// Whether the sink has what it has without anybody being notified.
    is_quiet: bool,
    /// When the containers started that no ack has covered yet.
    started: Vec<Timestamp>,
    /// When to try again, or to look again at what is held.
    again: Option<Instant>,
    /// When to look whether the sink still has what was applied.
    reconcile_at: Option<Instant>,
    /// When to remember what was applied and acked, if that is not remembered yet.
    remember_at: Option<Instant>,
    backoff: Backoff,
    /// Why what was applied last does not work, if it does not.
    unverified: Option<String>,
    /// What the sink cannot have of what was applied last, if there is any.
    refused: Option<String>,
    /// The program behind the sink is asked whether it has what was applied.
    reading: Option<Question>,
    /// When to ask it again.
    read_at: Option<Instant>,
    read_backoff: Backoff,
    /// Whether it has said of what was written last that it has it.
    is_read: bool,
    stop: CancellationToken,
    reporter: Reporter,
}

#[derive(Debug)]
struct Current {
    generation: Generation,
    acked: Acked,
}

/// Why a target is not as the roll calls for.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The sink keeps what it has for now, or could not apply the selection.
    #[error("{0}")]
    NotApplied(String),
    /// The change was not acked in time.
    #[error("its notification was not acked within {}", time::show(*waited))]
    NotAcked {
        /// How long it was waited for.
        waited: Duration,
    },
    /// Its notifier has ended, as the process does.
    #[error("its notifier has ended")]
    Ended,
}

/// How many started containers are remembered for the histogram while no ack comes.
const MAX_STARTED: usize = 10_000;
/// How long after a change it is remembered at the latest, acked or not.
const REMEMBER_DELAY: Duration = Duration::from_secs(1);
/// How soon what could not be remembered is tried again.
const REMEMBER_RETRY_DELAY: Duration = Duration::from_secs(30);
/// How long nodes may take to say which receivers they have, before a single run ends.
const RECEIVERS_DELAY: Duration = Duration::from_secs(1);
/// Why a target is not synced until the program behind it has answered.
const UNANSWERED: &str = "the program has not said yet whether it has it";
/// How often a single run looks whether a reload has brought what could not be had without.
const REFUSED_INTERVAL: Duration = Duration::from_millis(100);

impl Target {
    /// A target that has done nothing yet.
    pub fn new(
        name: TargetName,
        selection: watch::Receiver<Selection>,
        sink: Box<dyn Sink>,
        pacer: Pacer,
        reconcile: Duration,
        notifier: Option<NotifierHandle>,
        reporter: Reporter,
    ) -> Self {
        Self {
            name,
            selection,
            sink,
            pacer,
            reconcile,
            notifier,
            current: None,
            is_quiet: false,
            started: Vec::new(),
            again: None,
            reconcile_at: None,
            remember_at: None,
            backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(30)),
            unverified: None,
            refused: None,
            reading: None,
            read_at: None,
            read_backoff: Backoff::new(Duration::from_millis(20), Duration::from_secs(5)),
            is_read: false,
            stop: CancellationToken::new(),
            reporter,
        }
    }

    /// Its name.
    pub fn name(&self) -> &TargetName {
        &self.name
    }

    /// Follows its selection until it is stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        self.stop = stop.clone();
        loop {
            let turn_at = self.turn_at();
            let now = Instant::now();
            // The timer's own steps are a millisecond: what is due now does not wait for one.
            if turn_at.is_some_and(|at| at <= now) && !stop.is_cancelled() {
                // A failure is in the condition, and tried again.
                let _ = self.turn().await;
                continue;
            }
            if self.remember_at.is_some_and(|at| at <= now) {
                self.remember().await;
                continue;
            }
            if self.read_at.is_some_and(|at| at <= now) {
                self.begin_reading();
            }
            let next = [turn_at, self.remember_at, self.read_at].into_iter().flatten().min();
            tokio::select! {
                // Every branch is cancel safe: a token, channels and a timer.
                biased;
                () = stop.cancelled() => break,
                changed = self.selection.changed() => match changed {
                    Ok(()) => self.pacer.changed(Instant::now()),
                    Err(_) => break,
                },
                Some(notification) = next_notification(&mut self.notifier) => self.notified(notification).await,
                read = next_answer(&mut self.reading) => self.on_read(read.map_err(|error| one_line(&*error))),
                () = self.sink.disturbed() => self.again = Some(Instant::now()),
                () = sleep_until(next) => {}
            }
        }
        if self.remember_at.is_some() {
            self.remember().await;
        }
    }

    /// When to apply the selection. What has changed waits for its pace, and so does what would be looked at meanwhile.
    fn turn_at(&self) -> Option<Instant> {
        let look_at = || [self.again, self.reconcile_at].into_iter().flatten().min();
        self.pacer.due().or_else(look_at)
    }

    /// Applies the selection once, and waits until everybody has taken it.
    ///
    /// # Errors
    /// Why the target is not as the roll calls for.
    pub async fn once(&mut self, wait: Duration) -> Result<(), TargetError> {
        self.turn().await?;
        let until = Instant::now() + wait;
        let settled_at = Instant::now() + RECEIVERS_DELAY;
        let was_complete = self.is_acked();
        let notifies = self.notifier.is_some() && !self.is_quiet;
        while notifies && !(self.is_acked() && (was_complete || Instant::now() >= settled_at)) {
            let look_at = if self.is_acked() { settled_at.min(until) } else { until };
            match tokio::time::timeout_at(look_at, next_notification(&mut self.notifier)).await {
                Ok(Some(notification)) => self.notified(notification).await,
                Ok(None) => return Err(TargetError::Ended),
                Err(_) if self.is_acked() => break,
                Err(_) => return Err(TargetError::NotAcked { waited: wait }),
            }
        }
        self.remember().await;
        if notifies {
            self.look_until_had(until).await;
        }
        self.read_until(until).await?;
        let failure = self.unverified.take().or_else(|| self.refused.take());
        failure.map_or(Ok(()), |reason| Err(TargetError::NotApplied(reason)))
    }

    /// What the sink could not have may be there now that everybody has taken the change, such as after a reload: looks
    /// until it is.
    async fn look_until_had(&mut self, until: Instant) {
        while self.refused.is_some() {
            // A program that starts anew may not answer at once.
            let _ = self.turn().await;
            if Instant::now() >= until {
                break;
            }
            tokio::time::sleep(REFUSED_INTERVAL).await;
        }
    }

    /// Waits until the program behind the sink has what was applied.
    async fn read_until(&mut self, until: Instant) -> Result<(), TargetError> {
        while let Some(reading) = &mut self.reading {
            match tokio::time::timeout_at(until, reading).await {
                Ok(read) => self.on_read(read.map_err(|error| one_line(&*error))),
                Err(_) => break,
            }
            if let Some(at) = self.read_at.filter(|at| *at < until) {
                tokio::time::sleep_until(at).await;
                self.begin_reading();
            }
        }
        match self.reporter.unread_reason() {
            Some(reason) => Err(TargetError::NotApplied(reason.to_owned())),
            None => Ok(()),
        }
    }

    fn is_acked(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.acked.is_complete)
    }

    /// Brings the sink up to the selection as it is now.
    async fn turn(&mut self) -> Result<(), TargetError> {
        let begun = Instant::now();
        self.pacer.taken();
        self.again = None;
        self.reconcile_at = None;
        self.selection.mark_unchanged();
        match self.sink.apply(&self.selection).await {
            Ok(Applied::Held { until, reason, due }) => {
                if let Some((generation, acked)) = due {
                    self.order(generation, acked).await;
                }
                self.again = until;
                self.reconcile_at = Some(Instant::now() + self.reconcile);
                let reason = match until {
                    Some(until) => {
                        format!("keeps what it has for up to {}: {reason}", whole_seconds(until - begun))
                    }
                    None => format!("keeps what it has: {reason}"),
                };
                self.reporter.set(Standing::Held(reason.clone()));
                Err(TargetError::NotApplied(reason))
            }
            Ok(Applied::Unchanged(content)) => {
                self.take(content).await;
                self.count("rollcall_consumer_unchanged_total");
                Ok(())
            }
            Ok(Applied::Written(content)) => {
                let (instances, now) = (content.instances, Instant::now());
                self.pacer.reloaded(now);
                self.remember_at = Some(now + REMEMBER_DELAY);
                // What is under way is about what was.
                (self.reading, self.read_at, self.is_read) = (None, None, false);
                self.take(content).await;
                self.count("rollcall_consumer_installs_total");
                let name = self.name.to_string();
                metrics::histogram!("rollcall_consumer_install_duration_seconds", "target" => name)
                    .record(now - begun);
                tracing::info!(instances, "installed");
                Ok(())
            }
            Err(error) => {
                let now = Instant::now();
                // Whatever failed, such as a check, costs as much as a reload.
                self.pacer.reloaded(now);
                self.again = Some(now + self.backoff.next_delay());
                let reason = one_line(&*error);
                self.reporter.set(Standing::Failed(reason.clone()));
                self.count("rollcall_consumer_failures_total");
                Err(TargetError::NotApplied(reason))
            }
        }
    }

    /// The sink has this content now: has it notified, if that is not done.
    async fn take(&mut self, content: Content) {
        self.backoff.reset();
        let Content { generation, acked, instances, held, refused, notes, started, is_quiet, look_again } =
            content;
        self.again = look_again;
        self.reconcile_at = Some(Instant::now() + self.reconcile);
        self.is_quiet = is_quiet;
        let room = MAX_STARTED - self.started.len();
        self.started.extend(started.into_iter().take(room));
        if !is_quiet {
            self.order(generation, acked.unwrap_or_default()).await;
        }
        self.count("rollcall_consumer_renders_total");
        metrics::gauge!("rollcall_consumer_instances", "target" => self.name.to_string())
            .set(instances as f64);
        self.reporter.has(instances, self.is_taken());
        if self.is_taken() {
            self.await_answer();
        }
        self.refused = Some(refused.join("; ")).filter(|reasons| !reasons.is_empty());
        self.reporter.set(match (refused.is_empty(), held.is_empty()) {
            (true, true) => Standing::Good(notes),
            (true, false) => Standing::Held([held, notes].concat().join("; ")),
            (false, _) => Standing::Failed([refused, held, notes].concat().join("; ")),
        });
        if self.is_taken() {
            self.count_started();
            self.settle().await;
        }
    }

    /// Has a change notified, unless that was ordered before.
    async fn order(&mut self, generation: Generation, acked: Acked) {
        let Some(notifier) = &self.notifier else { return };
        if self.current.as_ref().is_some_and(|current| current.generation == generation) {
            return;
        }
        let order = Order { generation, taken: acked.receivers.clone(), was_complete: acked.is_complete };
        notifier.orders.send_replace(Some(order));
        self.current = Some(Current { generation, acked });
        // Unblock the notifier first; log and count afterwards.
        tokio::task::yield_now().await;
    }

    /// Whether everybody who is to be notified has taken what was applied.
    fn is_taken(&self) -> bool {
        self.is_quiet || self.notifier.is_none() || self.is_acked()
    }

    /// What was applied is taken: looks whether it works, and whether the program behind has it.
    async fn settle(&mut self) {
        self.verify().await;
        self.read_backoff.reset();
        self.begin_reading();
    }

    /// Has the target count as stale until the program behind the sink has said that it has what was written.
    fn await_answer(&mut self) {
        if !self.is_read && self.reporter.unread_reason().is_none() && self.sink.read_back().is_some() {
            self.reporter.unread(Some(UNANSWERED.to_owned()));
        }
    }

    /// Asks the program behind the sink whether it has what was applied. A question that is under way is about what was.
    fn begin_reading(&mut self) {
        self.read_at = None;
        self.reading = self.sink.read_back();
    }

    /// The program behind the sink has answered.
    fn on_read(&mut self, read: Result<(), String>) {
        self.reading = None;
        if let Err(reason) = read {
            self.read_at = Some(Instant::now() + self.read_backoff.next_delay());
            self.reporter.unread(Some(reason));
        } else {
            self.is_read = true;
            self.reporter.unread(None);
        }
    }

    /// Has what everybody has taken verified; where it does not work, what was verified last is put back and notified.
    async fn verify(&mut self) {
        let verified = tokio::select! {
            // What is not verified by then is after the restart.
            biased;
            () = self.stop.cancelled() => return,
            verified = self.sink.verify() => verified,
        };
        if let Err(error) = verified {
            let reason = one_line(&*error);
            tracing::error!(reason, "what was installed does not work");
            self.count("rollcall_consumer_rollbacks_total");
            self.unverified = Some(reason);
            // A failure is in the condition, and tried again.
            let _ = Box::pin(self.turn()).await;
        }
    }

    /// Somebody has taken a change.
    async fn notified(&mut self, notification: Notification) {
        let Notification { generation, is_complete, receivers } = notification;
        let Some(current) = self.current.as_mut().filter(|current| current.generation == generation) else {
            return;
        };
        let was_complete = current.acked.is_complete;
        current.acked = Acked { is_complete, receivers };
        let now = Instant::now();
        self.remember_at =
            Some(self.remember_at.map_or(now + REMEMBER_DELAY, |at| at.min(now + REMEMBER_DELAY)));
        if is_complete && !was_complete {
            self.acked(generation);
            self.remember().await;
            self.await_answer();
            self.reporter.taken();
            self.settle().await;
        }
    }

    /// What has started is served.
    fn count_started(&mut self) {
        let now = Timestamp::now();
        for started in self.started.drain(..) {
            // Clocks of two hosts may differ by more than it took.
            let took = now.duration_since(started).max(SignedDuration::ZERO);
            metrics::histogram!("rollcall_start_to_ack_seconds", "target" => self.name.to_string())
                .record(took.as_secs_f64());
        }
    }

    fn acked(&mut self, generation: Generation) {
        self.count_started();
        self.count("rollcall_consumer_notifications_total");
        tracing::info!(generation = generation.0, "acked");
    }

    async fn remember(&mut self) {
        self.remember_at = None;
        let acked = self.current.as_ref().map(|current| (current.generation, current.acked.clone()));
        if self.sink.remember(acked).await.is_err() {
            // The state folder reports why.
            self.remember_at = Some(Instant::now() + REMEMBER_RETRY_DELAY);
        }
    }

    fn count(&self, what: &'static str) {
        metrics::counter!(what, "target" => self.name.to_string()).increment(1);
    }
}

fn whole_seconds(time: Duration) -> String {
    time::show(Duration::from_secs(time.as_secs()))
}

async fn next_answer(reading: &mut Option<Question>) -> Result<(), SinkError> {
    match reading {
        Some(reading) => reading.await,
        None => std::future::pending().await,
    }
}

async fn next_notification(notifier: &mut Option<NotifierHandle>) -> Option<Notification> {
    match notifier {
        Some(NotifierHandle { notifications, .. }) => {
            notifications.changed().await.ok()?;
            notifications.borrow_and_update().clone()
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use rollcall_shared::process::readiness::Readiness;

    use super::*;
    use crate::{
        roll::Select,
        target::{
            loss_guard::GuardSettings,
            pacer::PaceSettings,
            status::{Board, State},
        },
        testing,
    };

    /// Applies nothing, and counts how often it was asked to.
    #[derive(Debug, Default, Clone)]
    struct Refusing(Arc<Mutex<usize>>);

    #[async_trait]
    impl Sink for Refusing {
        async fn apply(&mut self, _: &watch::Receiver<Selection>) -> Result<Applied, SinkError> {
            *self.0.lock().expect("no panic") += 1;
            Err("the check refuses the new file".into())
        }

        async fn remember(&mut self, _: Option<(Generation, Acked)>) -> Result<(), SinkError> {
            Ok(())
        }
    }

    /// Has this to say, one after another, and the last of it again and again.
    #[derive(Debug)]
    struct Scripted {
        refused: Vec<&'static str>,
        /// Whether somebody is to be notified.
        is_quiet: bool,
        /// How long the program behind takes to say that it has it.
        answers_in: Option<Duration>,
    }

    #[async_trait]
    impl Sink for Scripted {
        async fn apply(&mut self, _: &watch::Receiver<Selection>) -> Result<Applied, SinkError> {
            let refused = self.refused[0];
            if self.refused.len() > 1 {
                self.refused.remove(0);
            }
            Ok(Applied::Unchanged(Content {
                generation: Generation(1),
                acked: None,
                instances: 1,
                held: vec![],
                refused: Some(refused.to_owned()).filter(|reason| !reason.is_empty()).into_iter().collect(),
                notes: vec![],
                started: vec![],
                is_quiet: self.is_quiet,
                look_again: None,
            }))
        }

        fn read_back(&self) -> Option<Question> {
            let delay = self.answers_in?;
            Some(Question::new(async move {
                tokio::time::sleep(delay).await;
                Ok(())
            }))
        }

        async fn remember(&mut self, _: Option<(Generation, Acked)>) -> Result<(), SinkError> {
            Ok(())
        }
    }

    /// A target, and its selection.
    fn target(
        sink: Scripted,
        notifier: Option<NotifierHandle>,
        board: &Board,
    ) -> (Target, watch::Sender<Selection>) {
        let selection =
            watch::Sender::new(Selection::new(Select::default().into(), GuardSettings::default()));
        let name = testing::target_name("web");
        let reporter = Reporter::new(Readiness::default().part("target web"), board.entry(name.clone()));
        let (pacer, reconcile) = (Pacer::new(PaceSettings::none()), Duration::from_secs(300));
        let receiver = selection.subscribe();
        (Target::new(name, receiver, Box::new(sink), pacer, reconcile, notifier, reporter), selection)
    }

    #[tokio::test(start_paused = true)]
    async fn a_single_run_fails_for_what_the_sink_cannot_have() {
        let sink = Scripted { refused: vec!["no place for it"], is_quiet: true, answers_in: None };
        let done = target(sink, None, &Board::default()).0.once(Duration::from_secs(10)).await;
        assert_eq!(done.expect_err("it is refused").to_string(), "no place for it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_single_run_looks_whether_a_reload_has_brought_what_was_refused() {
        let wait = Duration::from_secs(10);
        for (refused, expected) in [(vec!["new", "new", ""], true), (vec!["new"], false)] {
            let (orders, mut ordered) = watch::channel(None::<Order>);
            let (notifications, notified) = watch::channel(None);
            let notifier = NotifierHandle { orders, notifications: notified };
            tokio::spawn(async move {
                while ordered.changed().await.is_ok() {
                    let Some(order) = ordered.borrow_and_update().clone() else { continue };
                    let receivers = Acked::default().receivers;
                    let taken = Notification { generation: order.generation, is_complete: true, receivers };
                    notifications.send_replace(Some(taken));
                }
            });
            let sink = Scripted { refused, is_quiet: false, answers_in: None };
            let done = target(sink, Some(notifier), &Board::default()).0.once(wait).await;
            assert_eq!(done.is_ok(), expected, "{done:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_does_not_answer_is_not_synced_with() {
        let (minute, board) = (Some(Duration::from_secs(60)), Board::default());
        let sink = || Scripted { refused: vec![""], is_quiet: true, answers_in: minute };
        let done = target(sink(), None, &board).0.once(Duration::from_secs(10)).await;
        assert_eq!(done.expect_err("it was not read back").to_string(), UNANSWERED);
        let stop = CancellationToken::new();
        let (target, selection) = target(sink(), None, &board);
        selection.send_modify(|_| {});
        let state = || board.all().into_values().next().map(|web| web.state);
        let running = tokio::spawn(target.run(stop.clone()));
        for (passed, expected) in [(59, State::Stale), (2, State::Synced)] {
            tokio::time::sleep(Duration::from_secs(passed)).await;
            assert_eq!(state(), Some(expected));
        }
        stop.cancel();
        running.await.expect("no panic");
    }

    #[tokio::test(start_paused = true)]
    async fn changes_that_fail_are_tried_at_the_targets_pace() {
        let selection =
            watch::Sender::new(Selection::new(Select::default().into(), GuardSettings::default()));
        let (sink, stop) = (Refusing::default(), CancellationToken::new());
        let pacer = Pacer::new(PaceSettings::heartbeat(Duration::from_secs(60)));
        let (name, reporter) = (testing::target_name("web"), testing::reporter("web"));
        let (receiver, reconcile) = (selection.subscribe(), Duration::from_secs(30));
        let target = Target::new(name, receiver, Box::new(sink.clone()), pacer, reconcile, None, reporter);
        let running = tokio::spawn(target.run(stop.clone()));
        for _ in 0..590 {
            selection.send_modify(|_| {});
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert_eq!(*sink.0.lock().expect("no panic"), 2, "one in a minute");
        stop.cancel();
        running.await.expect("no panic");
    }
}
