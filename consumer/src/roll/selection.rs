//! A target's rows by service, in the order in which they are rendered.
//!
//! It is told what shifted in the roll, so that one change among many instances costs the logarithm of their number. It
//! keeps the rows that the target has lost, as far as the loss guard may need them, and knows no store and no file.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rollcall_shared::{
    model::{
        instance::{Endpoint, Instance, InstanceId},
        name::ServiceName,
    },
    store::Revision,
};
use tokio::time::Instant;

use super::{
    fallback::Fallback,
    lost::LostRows,
    mismatch,
    select::Select,
    shift::{Departure, Shift, Shifts},
    verdict::{Verdict, Version},
};
use crate::target::loss_guard::{GuardSettings, Hold, LossGuard, Tally};

/// An instance as a target sees it.
#[derive(Debug, Clone)]
pub struct Row {
    /// Which instance.
    pub id: Arc<InstanceId>,
    /// Where the target reaches it.
    pub endpoint: Endpoint,
    /// The instance.
    pub instance: Arc<Instance>,
    /// The step of the selection with which it came in; 0 for those that were there first.
    pub since: u64,
}

impl PartialEq for Row {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Row {}

impl PartialOrd for Row {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Row {
    fn cmp(&self, other: &Self) -> Ordering {
        (&self.endpoint, &self.id).cmp(&(&other.endpoint, &other.id))
    }
}

/// The rows of one service.
#[derive(Debug, Clone, Default)]
struct Group {
    /// In the order of address and port; never none.
    rows: BTreeSet<Row>,
    /// The step of the selection with which they last changed.
    step: u64,
}

/// A target's rows.
#[derive(Debug, Clone)]
pub struct Selection {
    select: Arc<Select>,
    groups: BTreeMap<ServiceName, Group>,
    len: usize,
    fallback: Fallback,
    guard: LossGuard,
    lost: LostRows,
    /// The step with which a lost row came or went, other than by time.
    lost_step: u64,
    /// Counts what it was told.
    step: u64,
    /// The roll's revision when what is to be rendered may have changed last.
    revision: Revision,
    is_listed: bool,
    has_matched: bool,
    /// What there is instead, while nothing has matched yet.
    others: BTreeMap<Arc<InstanceId>, Arc<Instance>>,
}

/// What a selection has otherwise than is known.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference<'s, 'k> {
    /// The services that are new or have other rows, and their versions.
    pub changed: Vec<(&'s ServiceName, Version)>,
    /// The services that have no rows any more.
    pub gone: Vec<&'k ServiceName>,
}

/// How each service's rows came and went.
type Tallies = BTreeMap<ServiceName, Tally>;

impl Selection {
    /// An empty selection that waits for its first rows.
    pub fn new(select: Arc<Select>, guard: GuardSettings) -> Self {
        Self {
            select,
            groups: BTreeMap::new(),
            len: 0,
            fallback: Fallback::default(),
            guard: LossGuard::new(guard),
            lost: LostRows::default(),
            lost_step: 0,
            step: 0,
            revision: Revision::default(),
            is_listed: false,
            has_matched: false,
            others: BTreeMap::new(),
        }
    }

    /// An empty selection that takes the place of one with other settings: what that one's guard holds is lost to this
    /// one as well, once it has the roll.
    pub fn succeed(&mut self, last: &Selection, all: &Shifts, now: Instant) {
        let verdict = last.verdict(now);
        let shift = |row: &Row, has_come: bool| Shift {
            id: row.id.clone(),
            before: (!has_come).then(|| row.instance.clone()),
            after: has_come.then(|| row.instance.clone()),
            departure: (!has_come).then_some(Departure::Lost),
        };
        let mut come = all.clone();
        come.shifts.extend(verdict.lost().map(|row| shift(row, true)));
        self.apply(&come, now);
        let gone = verdict.lost().map(|row| shift(row, false)).collect();
        self.apply(&Shifts { shifts: gone, ..*all }, now);
    }

    /// Whether it is what these settings make.
    pub fn is_of(&self, select: &Select, guard: GuardSettings) -> bool {
        *self.select == *select && self.guard.settings() == guard
    }

    /// Takes in what shifted, and tells whether what is to be rendered may have changed.
    pub fn apply(&mut self, shifts: &Shifts, now: Instant) -> bool {
        self.step += 1;
        // Those of the first listing, and those that were remembered, were there before we looked.
        let since = if self.is_listed { self.step } else { 0 };
        let is_first = shifts.listed && !self.is_listed;
        self.is_listed |= shifts.listed;
        self.lost.expire(now);
        let mut tallies = Tallies::new();
        let mut has_changed = is_first;
        for shift in &shifts.shifts {
            has_changed |= self.shift(shift, since, &mut tallies, now);
        }
        self.measure(tallies, now);
        self.note_others(shifts);
        if has_changed {
            self.revision = shifts.revision;
        }
        has_changed
    }

    /// Keeps what there is, to tell why nothing of it matches. Once something has, nobody asks for it any more.
    fn note_others(&mut self, shifts: &Shifts) {
        if self.has_matched {
            self.others.clear();
            return;
        }
        for Shift { id, after, .. } in &shifts.shifts {
            match after {
                Some(instance) => drop(self.others.insert(id.clone(), instance.clone())),
                None => drop(self.others.remove(id)),
            }
        }
    }

    /// Why nothing has ever matched, on one line; `None` where something has.
    pub fn mismatch(&self) -> Option<String> {
        let others = self.others.iter().map(|(id, instance)| (&**id, &**instance));
        (!self.has_matched).then(|| mismatch::explain(&self.select, others))
    }

    /// Whether anything has ever matched.
    pub fn has_matched(&self) -> bool {
        self.has_matched
    }

    fn shift(&mut self, shift: &Shift, since: u64, tallies: &mut Tallies, now: Instant) -> bool {
        let Shift { id, before, after, departure } = shift;
        let old = before.as_ref().and_then(|instance| self.row(id, instance)).and_then(|row| self.take(&row));
        let new = after.as_ref().and_then(|instance| self.row(id, instance));
        let was_lost = after.is_some() && self.forget_lost(id);
        let mut has_changed = was_lost || old.is_some() || new.is_some();
        match (old, new) {
            (Some(old), Some(new)) if old.instance.service == new.instance.service => {
                self.insert(Row { since: old.since, ..new });
            }
            (old, new) => {
                if let Some(old) = old {
                    self.leave(old, *departure, tallies, now);
                }
                if let Some(new) = new {
                    self.tally(tallies, &new, |tally| tally.came += 1);
                    self.insert(Row { since, ..new });
                }
            }
        }
        if self.fallback.shift(&self.select, shift, self.step) {
            // It is what was looked for, though it fails: the file has it.
            let stands_in = |instance: &Arc<Instance>| self.select.stand_in(id, instance).is_some();
            self.has_matched = self.has_matched || after.as_ref().is_some_and(stands_in);
            let mut services = [before, after].into_iter().flatten().map(|instance| &instance.service);
            if services.any(|service| !self.groups.contains_key(service)) {
                has_changed = true;
                // As with a group, a step may have gone with the last row.
                self.lost_step = self.step;
            }
        }
        has_changed
    }

    /// A row has left its service.
    fn leave(&mut self, row: Row, departure: Option<Departure>, tallies: &mut Tallies, now: Instant) {
        match departure {
            Some(Departure::Lost) => {
                self.tally(tallies, &row, |tally| tally.lost += 1);
                if self.guard.measures_services() {
                    self.lost_step = self.step;
                    self.lost.insert(row, self.guard.end(now));
                }
            }
            Some(Departure::Withdrawn | Departure::Goodbye) | None => {
                self.tally(tallies, &row, |tally| tally.left += 1);
            }
        }
    }

    fn tally(&self, tallies: &mut Tallies, row: &Row, count: impl FnOnce(&mut Tally)) {
        if !self.guard.measures_services() {
            return;
        }
        let service = &row.instance.service;
        match tallies.get_mut(service) {
            Some(tally) => count(tally),
            None => count(tallies.entry(service.clone()).or_default()),
        }
    }

    /// Tells the guard what came and went.
    fn measure(&mut self, tallies: Tallies, now: Instant) {
        for (service, tally) in tallies {
            let rows = self.groups.get(&service).map_or(0, |group| group.rows.len());
            self.guard.measure(&service, tally, rows, now);
            // Others have made up for those that were lost first.
            if !self.lost.is_empty() && self.lost.truncate(&service, self.guard.missing(&service, now)) {
                self.lost_step = self.step;
            }
        }
        let kept = self.kept().map(|service| self.fallback.len(service)).sum::<usize>();
        self.guard.measure_total(self.len + kept, now);
    }

    /// The services of which no instance is wanted, and others stand in.
    fn kept(&self) -> impl Iterator<Item = &ServiceName> {
        self.fallback.services().filter(|service| !self.groups.contains_key(*service))
    }

    /// Which services keep instances that are not wanted, and which, on one line each.
    pub fn kept_notes(&self) -> Vec<String> {
        self.kept().filter_map(|service| self.fallback.note(service)).collect()
    }

    fn forget_lost(&mut self, id: &InstanceId) -> bool {
        let was_lost = !self.lost.is_empty() && self.lost.remove(id);
        if was_lost {
            self.lost_step = self.step;
        }
        was_lost
    }

    fn row(&self, id: &Arc<InstanceId>, instance: &Arc<Instance>) -> Option<Row> {
        let endpoint = self.select.endpoint(id, instance)?;
        Some(Row { id: id.clone(), endpoint, instance: instance.clone(), since: 0 })
    }

    fn take(&mut self, row: &Row) -> Option<Row> {
        let service = &row.instance.service;
        let group = self.groups.get_mut(service)?;
        let taken = group.rows.take(row)?;
        self.len -= 1;
        group.step = self.step;
        if group.rows.is_empty() {
            self.groups.remove(service);
            // The group's step goes with it; the lost rows of the service may stay, and others stand in.
            self.lost_step = self.step;
            self.fallback.begin(service, self.step);
        }
        Some(taken)
    }

    fn insert(&mut self, row: Row) {
        let group = match self.groups.get_mut(&row.instance.service) {
            Some(group) => group,
            None => self.groups.entry(row.instance.service.clone()).or_default(),
        };
        group.step = self.step;
        self.has_matched = true;
        self.len += usize::from(group.rows.insert(row));
    }

    /// What the loss guard holds now.
    pub fn verdict(&self, now: Instant) -> Verdict {
        let mut verdict = Verdict { floor: self.guard.floor(now), ..Verdict::default() };
        for (service, Hold { until, reason }) in self.guard.services(now) {
            let (rows, ends): (Vec<&Row>, Vec<_>) = self.lost.of(service, now).unzip();
            let until = ends.into_iter().flatten().chain(until).min();
            verdict.lost.insert(service.clone(), rows.into_iter().cloned().collect());
            verdict.services.insert(service.clone(), Hold { until, reason });
        }
        verdict
    }

    /// The services that are rendered of rows, in the order of their names.
    pub fn services<'s>(&'s self, verdict: &'s Verdict) -> Vec<&'s ServiceName> {
        self.versions(verdict).into_iter().map(|(service, _)| service).collect()
    }

    /// The same with the version of each. It looks nothing up by name as long as each service has rows of its own.
    pub fn versions<'s>(&'s self, verdict: &'s Verdict) -> Vec<(&'s ServiceName, Version)> {
        let own = self.groups.iter();
        let mut all: Vec<_> =
            own.map(|(service, group)| (service, self.version_at(group.step, service, verdict))).collect();
        let held = verdict.lost.iter().filter(|(_, rows)| !rows.is_empty()).map(|(service, _)| service);
        let held = held.filter(|service| !self.groups.contains_key(*service));
        let others: BTreeSet<_> = self.kept().chain(held).collect();
        if !others.is_empty() {
            all.extend(others.into_iter().map(|service| (service, self.version(service, verdict))));
            all.sort_by_key(|(service, _)| *service);
        }
        all
    }

    /// What is other than known. What is known of a service, in the order of names, is its version, or `None` where it is
    /// to count as changed.
    pub fn difference<'s, 'k>(
        &'s self,
        verdict: &'s Verdict,
        known: impl Iterator<Item = (&'k ServiceName, Option<Version>)>,
    ) -> Difference<'s, 'k> {
        let mut difference = Difference::default();
        let mut known = known.peekable();
        for (service, version) in self.versions(verdict) {
            while let Some((gone, _)) = known.next_if(|(other, _)| *other < service) {
                difference.gone.push(gone);
            }
            let same = known.next_if(|(other, _)| *other == service);
            if same.is_none_or(|(_, known)| known != Some(version)) {
                difference.changed.push((service, version));
            }
        }
        difference.gone.extend(known.map(|(service, _)| service));
        difference
    }

    /// The rows that a service is rendered of, in the order of address and port.
    pub fn rows<'s>(&'s self, service: &ServiceName, verdict: &'s Verdict) -> Vec<&'s Row> {
        let mut rows: Vec<_> = match self.groups.get(service) {
            Some(group) => group.rows.iter().collect(),
            None => self.fallback.rows(service).collect(),
        };
        if let Some(lost) = verdict.lost.get(service) {
            // A node that came back may have other containers at the same endpoints.
            let taken: BTreeSet<_> = rows.iter().map(|row| &row.endpoint).collect();
            rows.extend(lost.iter().filter(|row| !taken.contains(&row.endpoint)));
            rows.sort();
        }
        rows
    }

    /// Which rows [`Selection::rows`] gives: as long as it is the same, they are.
    pub fn version(&self, service: &ServiceName, verdict: &Verdict) -> Version {
        let step = self.groups.get(service).map_or_else(|| self.fallback.step(service), |group| group.step);
        self.version_at(step, service, verdict)
    }

    fn version_at(&self, step: u64, service: &ServiceName, verdict: &Verdict) -> Version {
        match verdict.lost.get(service) {
            Some(lost) => Version { step: step.max(self.lost_step), lost: Some(lost.len()) },
            None => Version { step, lost: None },
        }
    }

    /// The rows that came in after the step.
    pub fn newer_than(&self, step: u64) -> impl Iterator<Item = &Row> {
        let changed = self.groups.values().filter(move |group| group.step > step);
        changed.flat_map(|group| &group.rows).filter(move |row| row.since > step)
    }

    /// Which instances belong to the target.
    pub fn select(&self) -> &Arc<Select> {
        &self.select
    }

    /// Has whoever shows it look at everything again, though no row has changed: what it is shown by may have.
    pub fn touch(&mut self) {
        self.step += 1;
    }

    /// Counts what it was told; see [`Row::since`].
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The roll's revision when the rows changed last: it is the same for the same rows until the next start.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Whether the store has been listed. Before that, the rows are what was remembered.
    pub fn is_listed(&self) -> bool {
        self.is_listed
    }

    /// How many rows there are, without the lost ones.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::Duration};

    use proptest::prelude::*;
    use rollcall_shared::model::instance::Status;

    use super::*;
    use crate::{roll::fallback::AllFailing, testing};

    const HOLD: Duration = Duration::from_secs(60);

    fn selection(max_loss: Option<&str>, min_instances: usize) -> Selection {
        let max_loss = max_loss.map(|share| share.parse().expect("a share"));
        let guard = GuardSettings { max_loss, min_instances, ..GuardSettings::default() };
        Selection::new(Select::default().into(), guard)
    }

    fn web() -> ServiceName {
        "web".parse().expect("a name")
    }

    fn shifts(shift: Shift) -> Shifts {
        Shifts { shifts: vec![shift], listed: true, ..Shifts::default() }
    }

    fn comes(number: usize) -> Shifts {
        testing::come([(testing::id(number), testing::instance(number, "web"))])
    }

    fn goes(number: usize, departure: Departure) -> Shifts {
        let before = Some(Arc::new(testing::instance(number, "web")));
        shifts(Shift { id: testing::id(number).into(), before, after: None, departure: Some(departure) })
    }

    /// The numbers of the rows that a service is rendered of.
    fn rendered(selection: &Selection, now: Instant) -> Vec<u16> {
        let verdict = selection.verdict(now);
        selection.rows(&web(), &verdict).into_iter().map(|row| row.endpoint.port - 8000).collect()
    }

    /// Instances 1 to `count`.
    fn full(max_loss: Option<&str>, count: usize, now: Instant) -> Selection {
        let mut selection = selection(max_loss, 0);
        selection
            .apply(&testing::come((1..=count).map(|n| (testing::id(n), testing::instance(n, "web")))), now);
        selection
    }

    #[test]
    fn only_what_came_after_the_first_listing_is_new() {
        let now = Instant::now();
        let mut selection = selection(None, 0);
        assert!(selection.apply(&Shifts { listed: false, ..comes(1) }, now), "what was remembered");
        assert!(!selection.is_listed());
        assert!(selection.apply(&comes(2), now));
        assert!(selection.is_listed());
        assert_eq!(selection.newer_than(0).count(), 0);
        let shown = selection.step();
        selection.apply(&comes(3), now);
        assert_eq!(selection.newer_than(shown).count(), 1);
        assert_eq!(selection.newer_than(selection.step()).count(), 0);
        assert_eq!(selection.len(), 3);
    }

    #[test]
    fn the_first_listing_is_a_change_and_what_belongs_to_others_is_none() {
        let now = Instant::now();
        let mut selection = selection(None, 0);
        let nothing = Shifts { listed: true, ..Shifts::default() };
        assert!(selection.apply(&nothing, now));
        assert!(!selection.apply(&nothing, now));
        let starting = Instance { status: Status::Starting, ..testing::instance(1, "web") };
        let none = Shifts { revision: Revision(2), ..testing::come([(testing::id(1), starting)]) };
        assert!(!selection.apply(&none, now));
        assert_eq!(selection.revision(), Revision(0), "that of the last change");
        selection.apply(&Shifts { revision: Revision(3), ..comes(2) }, now);
        assert_eq!(selection.revision(), Revision(3));
    }

    #[test]
    fn a_held_service_keeps_the_rows_that_it_lost_until_the_hold_is_over() {
        let now = Instant::now();
        let mut selection = full(Some("50%"), 3, now);
        assert!(selection.apply(&goes(1, Departure::Lost), now));
        assert_eq!(rendered(&selection, now), [2, 3], "one of three");
        selection.apply(&goes(3, Departure::Lost), now + HOLD / 2);
        assert_eq!(rendered(&selection, now + HOLD / 2), [1, 2, 3], "two of three");
        assert_eq!(selection.len(), 1);
        let verdict = selection.verdict(now + HOLD / 2);
        assert_eq!(verdict.next_change(), Some(now + HOLD), "when the first was lost for so long");
        assert_eq!(rendered(&selection, now + HOLD), [2], "one of two");
        assert!(selection.verdict(now + HOLD).services.is_empty());
    }

    #[test]
    fn a_service_that_has_lost_all_its_rows_is_rendered_still() {
        let now = Instant::now();
        let mut selection = full(Some("0%"), 1, now);
        selection.apply(&goes(1, Departure::Lost), now);
        let verdict = selection.verdict(now);
        assert_eq!(selection.services(&verdict), [&web()]);
        assert_eq!(verdict.lost().count(), 1);
        assert!(selection.services(&selection.verdict(now + HOLD)).is_empty());
    }

    #[test]
    fn what_left_for_a_known_reason_leaves_at_once() {
        for departure in [Departure::Withdrawn, Departure::Goodbye] {
            let now = Instant::now();
            let mut selection = full(Some("0%"), 3, now);
            selection.apply(&goes(1, departure), now);
            assert_eq!(rendered(&selection, now), [2, 3]);
        }
    }

    #[test]
    fn a_lost_row_goes_once_it_is_put_again_wherever_it_belongs_now() {
        let now = Instant::now();
        for (again, expected) in [
            (testing::instance(1, "web"), vec![1, 3]),
            (testing::instance(1, "api"), vec![3]),
            (Instance { status: Status::Draining, ..testing::instance(1, "web") }, vec![3]),
        ] {
            let mut selection = full(Some("0%"), 3, now);
            selection.apply(&goes(1, Departure::Lost), now);
            selection.apply(&goes(2, Departure::Withdrawn), now);
            assert_eq!(rendered(&selection, now), [1, 3]);
            assert!(selection.apply(&testing::come([(testing::id(1), again)]), now));
            assert_eq!(rendered(&selection, now), expected);
        }
    }

    #[test]
    fn others_make_up_for_the_rows_that_were_lost_first() {
        let now = Instant::now();
        let mut selection = full(Some("0%"), 4, now);
        selection.apply(&goes(1, Departure::Lost), now);
        selection.apply(&goes(2, Departure::Lost), now);
        selection.apply(&comes(5), now);
        assert_eq!(rendered(&selection, now), [2, 3, 4, 5]);
        selection.apply(&comes(6), now);
        assert_eq!(rendered(&selection, now), [3, 4, 5, 6]);
        assert!(selection.lost.is_empty());
    }

    #[test]
    fn a_lost_row_makes_room_for_another_instance_at_its_endpoint() {
        let now = Instant::now();
        let mut selection = full(Some("0%"), 3, now);
        selection.apply(&goes(1, Departure::Lost), now);
        selection.apply(&goes(2, Departure::Lost), now);
        selection.apply(&testing::come([(testing::id(9), testing::instance(2, "web"))]), now);
        assert_eq!(rendered(&selection, now), [2, 3], "the one at 1 was made up for");
    }

    #[test]
    fn the_whole_target_is_held_below_its_floor() {
        let now = Instant::now();
        let mut selection = selection(None, 2);
        selection.apply(&testing::come((1..=2).map(|n| (testing::id(n), testing::instance(n, "web")))), now);
        selection.apply(&goes(1, Departure::Withdrawn), now);
        assert_eq!(selection.verdict(now).floor.and_then(|hold| hold.until), Some(now + HOLD));
    }

    /// Has the instance become this, having been that.
    fn becomes(number: usize, before: Status, after: Status) -> Shifts {
        let instance = |status| Some(Arc::new(Instance { status, ..testing::instance(number, "web") }));
        let (id, before, after) = (testing::id(number).into(), instance(before), instance(after));
        shifts(Shift { id, before, after, departure: None })
    }

    #[test]
    fn a_service_of_which_none_passes_keeps_those_that_drain_or_else_those_that_fail() {
        use Status::{Draining, Failing, Passing, Starting};
        let now = Instant::now();
        let mut selection = full(None, 3, now);
        for (shifts, expected) in [
            (becomes(1, Passing, Failing), vec![2, 3]),
            (becomes(2, Passing, Draining), vec![3]),
            (becomes(3, Passing, Failing), vec![2]),
            (goes(9, Departure::Withdrawn), vec![2]),
            (becomes(4, Starting, Starting), vec![2]),
            (becomes(1, Failing, Passing), vec![1]),
            (becomes(1, Passing, Failing), vec![2]),
            (becomes(2, Draining, Starting), vec![1, 3]),
            (becomes(1, Failing, Starting), vec![3]),
        ] {
            selection.apply(&shifts, now);
            assert_eq!(rendered(&selection, now), expected, "{shifts:?}");
            let is_kept = !expected.is_empty() && selection.is_empty();
            assert_eq!(selection.kept_notes().len(), usize::from(is_kept));
        }
        let gone = Shift {
            departure: Some(Departure::Withdrawn),
            after: None,
            ..becomes(3, Failing, Failing).shifts[0].clone()
        };
        assert!(selection.apply(&shifts(gone), now), "its container has ended");
        assert!(selection.services(&selection.verdict(now)).is_empty());
    }

    #[test]
    fn what_is_kept_is_named_and_counts_for_the_floor() {
        let now = Instant::now();
        let mut selection = selection(None, 2);
        selection.apply(&testing::come((1..=2).map(|n| (testing::id(n), testing::instance(n, "web")))), now);
        for number in [1, 2] {
            selection.apply(&becomes(number, Status::Passing, Status::Failing), now);
        }
        assert!(selection.verdict(now).floor.is_none());
        let expected = "service web: none of its instances passes: all 2 failing ones are kept";
        assert_eq!(selection.kept_notes(), [expected]);
    }

    #[test]
    fn where_it_is_said_so_a_service_of_which_none_passes_is_empty() {
        let now = Instant::now();
        let select = Select { all_failing: AllFailing::Drop, ..Select::default() };
        let mut selection = Selection::new(select.into(), GuardSettings::default());
        selection.apply(&comes(1), now);
        assert!(selection.apply(&becomes(1, Status::Passing, Status::Failing), now));
        assert_eq!(rendered(&selection, now), [0; 0]);
    }

    /// What an instance may become: gone, or of this service, at this endpoint, in this status.
    fn fate() -> impl Strategy<Value = Result<Instance, Departure>> {
        let status = proptest::sample::select(&Status::ALL);
        prop_oneof![
            (0usize..3, prop_oneof![Just("web"), Just("api")], status).prop_map(
                |(endpoint, service, status)| Ok(Instance { status, ..testing::instance(endpoint, service) })
            ),
            prop_oneof![Just(Departure::Lost), Just(Departure::Withdrawn)].prop_map(Err),
        ]
    }

    /// Rows without the step with which they came.
    type Rows = Vec<(Arc<InstanceId>, Endpoint, Arc<Instance>)>;

    fn rows(selection: &Selection, now: Instant) -> BTreeMap<ServiceName, (Version, Rows)> {
        let verdict = selection.verdict(now);
        let plain = |row: &Row| (row.id.clone(), row.endpoint.clone(), row.instance.clone());
        let service = |service: &ServiceName| {
            let rows = selection.rows(service, &verdict).into_iter().map(plain).collect();
            (service.clone(), (selection.version(service, &verdict), rows))
        };
        selection.services(&verdict).into_iter().map(service).collect()
    }

    /// What the selection says to have changed and to have gone.
    fn difference(
        selection: &Selection,
        known: &BTreeMap<ServiceName, Version>,
        now: Instant,
    ) -> (BTreeMap<ServiceName, Version>, BTreeSet<ServiceName>) {
        let verdict = selection.verdict(now);
        let known = known.iter().map(|(service, version)| (service, Some(*version)));
        let Difference { changed, gone } = selection.difference(&verdict, known);
        let changed = changed.into_iter().map(|(service, version)| (service.clone(), version)).collect();
        (changed, gone.into_iter().cloned().collect())
    }

    /// What is not in `known`.
    fn missing(
        all: &BTreeMap<ServiceName, Version>,
        known: &BTreeMap<ServiceName, Version>,
    ) -> BTreeMap<ServiceName, Version> {
        all.iter()
            .filter(|(service, version)| known.get(*service) != Some(*version))
            .map(|(service, version)| (service.clone(), *version))
            .collect()
    }

    #[test]
    fn what_is_to_count_as_changed_does_and_what_has_gone_is_named() {
        let now = Instant::now();
        let selection = full(None, 2, now);
        let verdict = selection.verdict(now);
        let (gone, web): (ServiceName, _) = ("other".parse().expect("a name"), web());
        let version = selection.version(&web, &verdict);
        for (known, is_changed) in [(Some(version), false), (None, true)] {
            let difference = selection.difference(&verdict, [(&gone, known), (&web, known)].into_iter());
            assert_eq!(difference.gone, [&gone]);
            assert_eq!(!difference.changed.is_empty(), is_changed);
        }
    }

    proptest! {
        #[test]
        fn following_changes_comes_to_what_a_fresh_start_comes_to_and_equal_versions_have_equal_rows(
            max_loss in proptest::option::of(prop_oneof![Just("0%"), Just("50%")]),
            fates in proptest::collection::vec((0usize..5, fate(), 0u64..30), 0..40),
        ) {
            let mut now = Instant::now();
            let mut followed = selection(max_loss, 0);
            let mut roll: BTreeMap<usize, Arc<Instance>> = BTreeMap::new();
            let mut known: HashMap<(ServiceName, Version), Rows> = HashMap::new();
            let mut last: BTreeMap<ServiceName, Version> = BTreeMap::new();
            for (number, fate, seconds) in fates {
                now += Duration::from_secs(seconds);
                let departure = fate.as_ref().err().copied();
                let after = fate.ok().map(Arc::new);
                let before = match &after {
                    Some(instance) => roll.insert(number, instance.clone()),
                    None => roll.remove(&number),
                };
                followed.apply(&shifts(Shift { id: testing::id(number).into(), before, after, departure }), now);
                for (service, (version, rows)) in rows(&followed, now) {
                    let known = known.entry((service, version)).or_insert_with(|| rows.clone());
                    prop_assert_eq!(&*known, &rows);
                }
                let next = rows(&followed, now).into_iter().map(|(service, (version, _))| (service, version)).collect();
                let (changed, gone) = difference(&followed, &last, now);
                prop_assert_eq!(changed, missing(&next, &last));
                let expected = last.keys().filter(|service| !next.contains_key(*service)).cloned().collect();
                prop_assert_eq!(gone, expected);
                last = next;
            }
            // Nothing is held that long.
            now += HOLD;
            let mut fresh = selection(max_loss, 0);
            let came = roll.into_iter().map(|(number, instance)| (testing::id(number), Arc::unwrap_or_clone(instance)));
            fresh.apply(&testing::come(came), now);
            let plain = |selection: &Selection| -> Vec<_> {
                rows(selection, now).into_iter().map(|(service, (_, rows))| (service, rows)).collect()
            };
            prop_assert_eq!(plain(&followed), plain(&fresh));
            prop_assert_eq!(followed.len(), fresh.len());
        }
    }
}
