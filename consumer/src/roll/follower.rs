//! Keeps every target's selection up with the roll: a thin shell around [`super::roll`] and [`super::selection`].

use std::{collections::BTreeMap, mem, sync::Arc, time::Duration};

use rollcall_shared::{
    keys::Keys,
    model::{
        instance::{Instance, InstanceId},
        name::TargetName,
    },
    process::{readiness::Part, time::sleep_until},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{Remembered, Roll, RollUpdate, Select, Selection, Shifts};
use crate::{config::TargetConfig, sink::file::render::Content, state_dir::StateDir};

/// How soon after a change the roll is remembered, and how much longer than the last save took it waits at least: a save
/// of many instances is not to keep a processor busy.
const REMEMBER_DELAY: Duration = Duration::from_secs(5);
const MIN_IDLE_PER_SAVE: u32 = 50;
/// How soon a save that failed is tried again.
const RETRY_DELAY: Duration = Duration::from_secs(30);

/// The selections of the targets, in their order.
pub type Selections = Vec<watch::Receiver<Selection>>;

/// Asks a follower to follow for other targets.
#[derive(Debug, Clone)]
pub struct FollowerHandle(mpsc::Sender<Retarget>);

#[derive(Debug)]
struct Retarget {
    targets: Vec<TargetConfig>,
    selections: oneshot::Sender<Selections>,
}

impl FollowerHandle {
    /// Has these targets followed for, instead of those before. A selection that stays as it is, is not disturbed; but
    /// one that a template renders says that it has changed, as the template may have. Gives the selections, or `None`
    /// where the follower has ended.
    pub async fn retarget(&self, targets: &[TargetConfig]) -> Option<Selections> {
        let (selections, retargeted) = oneshot::channel();
        self.0.send(Retarget { targets: targets.to_vec(), selections }).await.ok()?;
        retargeted.await.ok()
    }
}

/// Follows the roll.
#[derive(Debug)]
pub struct Follower {
    roll: Roll,
    selections: Vec<(TargetName, watch::Sender<Selection>)>,
    retargets: mpsc::Receiver<Retarget>,
    /// Where the roll is remembered, if it is.
    state_dir: Option<Arc<StateDir>>,
    /// When the roll is to be remembered, if it has changed since it was.
    remember_at: Option<Instant>,
    /// No save before then.
    save_after: Instant,
    /// The save that is under way, if one is.
    saving: JoinSet<Saved>,
    part: Part,
}

#[derive(Debug)]
struct Saved {
    took: Duration,
    has_worked: bool,
}

impl Follower {
    /// A follower for the targets, which begins with what is remembered in the state folder, if one is given. Gives the
    /// selections, in the order of the targets, and a handle. `ttl` is that of a node whose record is unknown.
    pub fn new(
        targets: &[TargetConfig],
        keys: Keys,
        ttl: Duration,
        state_dir: Option<Arc<StateDir>>,
        part: Part,
    ) -> (Self, Selections, FollowerHandle) {
        let now = Instant::now();
        let remembered = state_dir.as_deref().and_then(Remembered::load);
        let (roll, shifts) = match remembered {
            Some(remembered) => Roll::resume(keys, ttl, remembered),
            None => (Roll::new(keys, ttl), Shifts::default()),
        };
        let selection = |target: &TargetConfig| {
            let mut selection = Selection::new(Arc::new(target.select.clone()), target.guard);
            selection.apply(&shifts, now);
            (target.name.clone(), watch::Sender::new(selection))
        };
        let selections: Vec<_> = targets.iter().map(selection).collect();
        let receivers = selections.iter().map(|(_, selection)| selection.subscribe()).collect();
        part.ready();
        // Whoever asks waits for the answer.
        let (handle, retargets) = mpsc::channel(1);
        let (remember_at, save_after, saving) = (None, now, JoinSet::new());
        let follower = Self { roll, selections, retargets, state_dir, remember_at, save_after, saving, part };
        (follower, receivers, FollowerHandle(handle))
    }

    /// Runs until it is stopped.
    pub async fn run(mut self, mut updates: mpsc::Receiver<RollUpdate>, stop: CancellationToken) {
        loop {
            let next = [self.roll.next_deadline(), self.remember_at].into_iter().flatten().min();
            tokio::select! {
                // Every branch is cancel safe: a token, channels, a set of tasks and a timer.
                biased;
                () = stop.cancelled() => break,
                update = updates.recv() => match update {
                    Some(update) => {
                        let shifts = self.roll.apply(update, Instant::now());
                        self.hand_on(&shifts).await;
                    }
                    None => break,
                },
                Some(Retarget { targets, selections }) = self.retargets.recv() => {
                    // Whoever has asked and gone is about to end.
                    let _ = selections.send(self.retarget(&targets));
                }
                Some(saved) = self.saving.join_next() => self.saved(&saved.expect("saving does not panic")),
                () = sleep_until(next) => {
                    let now = Instant::now();
                    if self.roll.next_deadline().is_some_and(|at| at <= now) {
                        let shifts = self.roll.expire(now);
                        self.hand_on(&shifts).await;
                    }
                    if self.remember_at.is_some_and(|at| at <= now) {
                        self.remember(now);
                    }
                }
            }
        }
        if self.remember_at.is_some() {
            self.save();
        }
        while self.saving.join_next().await.is_some() {}
    }

    async fn hand_on(&mut self, shifts: &Shifts) {
        let now = Instant::now();
        for (_, selection) in &self.selections {
            selection.send_if_modified(|selection| selection.apply(shifts, now));
        }
        // Unblock the targets first; count afterwards.
        tokio::task::yield_now().await;
        if self.state_dir.is_some() {
            self.remember_at.get_or_insert(now + REMEMBER_DELAY);
        }
        metrics::gauge!("rollcall_consumer_roll_instances").set(self.roll.len() as f64);
        metrics::gauge!("rollcall_consumer_roll_unconfirmed").set(shifts.unconfirmed as f64);
        match shifts.unconfirmed {
            0 => self.part.ready(),
            count => self.part.waiting(format!(
                "the store went back: {count} instances are kept until their nodes register again"
            )),
        }
    }

    /// Follows for other targets than before.
    fn retarget(&mut self, targets: &[TargetConfig]) -> Selections {
        let mut known: BTreeMap<_, _> = mem::take(&mut self.selections).into_iter().collect();
        let (all, now) = (self.roll.all(), Instant::now());
        for target in targets {
            let last = known.remove(&target.name);
            let selection = match last {
                Some(last) if last.borrow().is_of(&target.select, target.guard) => {
                    if matches!(target.sink.content(), Some(Content::Template(_))) {
                        last.send_modify(Selection::touch);
                    }
                    last
                }
                last => {
                    let mut selection = Selection::new(Arc::new(target.select.clone()), target.guard);
                    match last {
                        Some(last) => selection.succeed(&last.borrow(), &all, now),
                        None => drop(selection.apply(&all, now)),
                    }
                    watch::Sender::new(selection)
                }
            };
            self.selections.push((target.name.clone(), selection));
        }
        if self.state_dir.is_some() {
            self.remember_at.get_or_insert(now + REMEMBER_DELAY);
        }
        self.selections.iter().map(|(_, selection)| selection.subscribe()).collect()
    }

    /// Has the roll written to the state folder by another thread, as far as a target shows it.
    fn remember(&mut self, now: Instant) {
        if !self.saving.is_empty() {
            self.remember_at = Some(now + REMEMBER_DELAY);
        } else if self.save_after > now {
            self.remember_at = Some(self.save_after);
        } else {
            self.save();
        }
    }

    fn saved(&mut self, Saved { took, has_worked }: &Saved) {
        let now = Instant::now();
        self.save_after = now + *took * MIN_IDLE_PER_SAVE;
        if !has_worked {
            self.remember_at.get_or_insert(now + RETRY_DELAY);
        }
    }

    fn save(&mut self) {
        self.remember_at = None;
        let Some(dir) = self.state_dir.clone() else { return };
        let selects: Vec<_> =
            self.selections.iter().map(|(_, selection)| selection.borrow().select().clone()).collect();
        let is_shown = |id: &InstanceId, instance: &Instance| {
            let shows = |select: &Arc<Select>| {
                select.endpoint(id, instance).is_some() || select.stand_in(id, instance).is_some()
            };
            selects.iter().any(shows)
        };
        let mut remembered = self.roll.remember(is_shown);
        let now = Instant::now();
        for (_, selection) in &self.selections {
            // What a guard holds is to be held after a restart as well.
            for row in selection.borrow().verdict(now).lost() {
                self.roll.remember_lost(&mut remembered, &row.id, &row.instance);
            }
        }
        self.saving.spawn_blocking(move || {
            let began = std::time::Instant::now();
            // The state folder reports what fails.
            let has_worked = remembered.save(&dir).is_ok();
            Saved { took: began.elapsed(), has_worked }
        });
    }
}
