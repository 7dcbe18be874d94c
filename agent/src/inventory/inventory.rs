//! Which containers run, pieced together from Docker's events, lists and inspections. Pure: it says what to ask, and is
//! told the answers.
//!
//! Docker's answers lag behind its events (a list forgets a container for 1.5 ms after its start and keeps it for 90 ms
//! after its end), so they do not count the same:
//! - An event is the truth: `die` removes a container at once, `start` raises a question. One that is older than the run
//!   that is known raises a question too: it is about a former run, unless the clock went back.
//! - An inspection is the truth unless an event about that container came after it was asked for.
//! - A list only raises questions: a container that it adds, misses or shows differently is inspected.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rollcall_shared::model::{
    name::ContainerId,
    signal::{Incarnation, Signal},
};

use super::container::{Action, Container, Event, FullId, Summary};

/// A container to inspect. The answer counts only if nothing happened to it in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The container.
    pub id: FullId,
    asked: Epoch,
}

/// Counts events and questions: a later one is greater.
type Epoch = u64;

/// A running container and whether it has been told to stop.
#[derive(Debug, Clone)]
pub struct Running {
    /// The container.
    pub container: Arc<Container>,
    /// Whether it has been told to stop.
    pub is_draining: bool,
}

/// The containers that run, by full ID.
pub type RunningContainers = BTreeMap<FullId, Running>;

impl Running {
    /// Whether nothing has changed between the two.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.container, &other.container) && self.is_draining == other.is_draining
    }
}

#[derive(Debug)]
struct Known {
    /// The newest event or question about it.
    epoch: Epoch,
    /// Whether an inspection of that epoch is awaited.
    awaited: bool,
    container: Option<Arc<Container>>,
    /// The signals that it was sent while an inspection is awaited, which tells what they mean.
    signals: BTreeSet<Signal>,
}

impl Known {
    /// Takes an inspection.
    fn take(&mut self, container: Container) {
        self.awaited = false;
        if self.container.as_deref() != Some(&container) {
            self.container = Some(Arc::new(container));
        }
    }

    /// The run that was told to stop, if one was.
    fn stopped(&mut self) -> Option<Incarnation> {
        let container = self.container.as_ref()?;
        let is_stopped = self.signals.iter().any(|signal| container.is_stopped_by(*signal));
        if !self.awaited {
            self.signals.clear();
        }
        is_stopped.then(|| container.incarnation())
    }

    /// Whether a list that shows the container like this raises no question.
    fn agrees(&self, summary: &Summary) -> bool {
        self.awaited || self.container.as_ref().is_some_and(|known| !summary.differs(known))
    }
}

/// The containers of a host.
#[derive(Debug, Default)]
pub struct Inventory {
    epoch: Epoch,
    known: BTreeMap<FullId, Known>,
    /// The runs that were told to stop, until they have ended: Docker says it once.
    draining: BTreeSet<Incarnation>,
}

impl Inventory {
    /// One of which nothing is known but the runs that were told to stop.
    pub fn new(draining: BTreeSet<Incarnation>) -> Self {
        Self { draining, ..Self::default() }
    }

    /// Takes an event; gives the question that it raises.
    pub fn on_event(&mut self, event: &Event) -> Option<Question> {
        let id = &event.id;
        match event.action {
            // A container that is known stays until it was inspected: the event may be one that was read before.
            Action::Start => Some(self.ask(id)),
            Action::Die if self.is_former(event) => {
                self.resume(id);
                Some(self.ask(id))
            }
            Action::Die => {
                self.forget(id);
                None
            }
            Action::Kill(signal) => {
                let is_former = self.is_former(event);
                let question = (is_former || !self.known.contains_key(id)).then(|| self.ask(id));
                if let Some(known) = self.known.get_mut(id) {
                    known.signals.insert(signal);
                    // The former run's end, which follows, takes it back.
                    self.draining.extend(known.stopped().filter(|_| !is_former));
                }
                question
            }
            Action::Change => self.known.contains_key(id).then(|| self.ask(id)),
        }
    }

    /// Whether an event is older than the run that is known.
    fn is_former(&self, event: &Event) -> bool {
        let known = self.known.get(&event.id).and_then(|known| known.container.as_ref());
        known.is_some_and(|container| event.at < container.started_at)
    }

    /// The signals that it was sent were a former run's.
    fn resume(&mut self, id: &FullId) {
        let Some(known) = self.known.get_mut(id) else { return };
        known.signals.clear();
        if let Some(container) = &known.container {
            self.draining.remove(&container.incarnation());
        }
    }

    /// Takes the answer to a question: the container, or that it does not run.
    pub fn on_inspected(&mut self, question: &Question, answer: Option<Container>) {
        if !self.is_open(question) {
            return;
        }
        match answer {
            None => self.forget(&question.id),
            Some(container) => {
                if let Some(known) = self.known.get_mut(&question.id) {
                    known.take(container);
                    self.draining.extend(known.stopped());
                }
            }
        }
    }

    /// Takes note that a question got no answer; the next list raises it again.
    pub fn on_unanswered(&mut self, question: &Question) {
        if self.is_open(question)
            && let Some(known) = self.known.get_mut(&question.id)
        {
            known.awaited = false;
        }
    }

    /// Whether the question still matters: nothing has happened to its container since.
    pub fn is_open(&self, question: &Question) -> bool {
        self.known.get(&question.id).is_some_and(|known| known.awaited && known.epoch == question.asked)
    }

    /// Takes a list of the running containers; gives the questions that it raises.
    pub fn on_list(&mut self, list: &[Summary]) -> Vec<Question> {
        let listed: BTreeSet<&FullId> = list.iter().map(|summary| &summary.id).collect();
        let differs =
            |summary: &&Summary| !self.known.get(&summary.id).is_some_and(|known| known.agrees(summary));
        let shown = list.iter().filter(differs).map(|summary| summary.id.clone());
        let missing = self.known.iter().filter(|(id, known)| !known.awaited && !listed.contains(id));
        let doubtful: BTreeSet<FullId> = shown.chain(missing.map(|(id, _)| id.clone())).collect();
        doubtful.iter().map(|id| self.ask(id)).collect()
    }

    /// Everything that is known may have changed unnoticed: the events broke off.
    pub fn on_events_lost(&mut self) -> Vec<Question> {
        let ids: Vec<FullId> = self.known.keys().cloned().collect();
        ids.iter().map(|id| self.ask(id)).collect()
    }

    /// Forgets what runs, but not which runs were told to stop: Docker is out of reach, and they may go on.
    pub fn withdraw(&mut self) {
        self.known.clear();
    }

    /// Forgets the runs of containers that have ended unseen, now that it is known what runs.
    pub fn on_complete(&mut self) {
        let known: BTreeSet<ContainerId> = self.known.keys().filter_map(|id| id.parse().ok()).collect();
        self.draining.retain(|run| known.contains(&run.container));
    }

    /// Forgets a container that has ended.
    fn forget(&mut self, id: &FullId) {
        self.known.remove(id);
        if let Ok(ended) = id.parse::<ContainerId>() {
            self.draining.retain(|run| run.container != ended);
        }
    }

    fn ask(&mut self, id: &FullId) -> Question {
        self.epoch += 1;
        let asked = self.epoch;
        let known = self.known.entry(id.clone()).or_insert(Known {
            epoch: asked,
            awaited: true,
            container: None,
            signals: BTreeSet::new(),
        });
        (known.epoch, known.awaited) = (asked, true);
        Question { id: id.clone(), asked }
    }

    /// The containers that run, as far as they are known.
    pub fn running(&self) -> RunningContainers {
        let running = |container: &Arc<Container>| Running {
            is_draining: self.draining.contains(&container.incarnation()),
            container: container.clone(),
        };
        let running = |known: &Known| known.container.as_ref().map(running);
        self.known.iter().filter_map(|(id, known)| Some((id.clone(), running(known)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::inventory::container::testing::container;

    fn web() -> Container {
        container("web")
    }

    fn event(action: Action) -> Event {
        Event { id: web().id, action, at: Timestamp::UNIX_EPOCH }
    }

    fn names(inventory: &Inventory) -> Vec<String> {
        inventory.running().values().map(|running| running.container.name.to_string()).collect()
    }

    fn is_draining(inventory: &Inventory) -> bool {
        inventory.running()[&web().id].is_draining
    }

    fn started() -> Inventory {
        let mut inventory = Inventory::default();
        let question = inventory.on_event(&event(Action::Start)).expect("a question");
        inventory.on_inspected(&question, Some(web()));
        inventory
    }

    #[test]
    fn a_started_container_runs_once_it_is_inspected() {
        let mut inventory = Inventory::default();
        let question = inventory.on_event(&event(Action::Start)).expect("a question");
        assert!(names(&inventory).is_empty());
        inventory.on_inspected(&question, Some(web()));
        assert_eq!(names(&inventory), ["web"]);
    }

    #[test]
    fn an_inspection_does_not_undo_the_end_that_came_after_it_was_asked() {
        let mut inventory = Inventory::default();
        let question = inventory.on_event(&event(Action::Start)).expect("a question");
        assert_eq!(inventory.on_event(&event(Action::Die)), None);
        inventory.on_inspected(&question, Some(web()));
        assert!(names(&inventory).is_empty());
    }

    #[test]
    fn a_start_that_is_read_twice_withdraws_nothing() {
        let mut inventory = started();
        assert!(inventory.on_event(&event(Action::Start)).is_some());
        assert_eq!(names(&inventory), ["web"]);
    }

    #[test]
    fn a_list_that_still_has_a_dead_container_only_raises_a_question() {
        let mut inventory = started();
        inventory.on_event(&event(Action::Die));
        let questions = inventory.on_list(&[Summary::of(&web())]);
        assert!(names(&inventory).is_empty(), "the list brought it back");
        inventory.on_inspected(&questions[0], None);
        assert!(names(&inventory).is_empty());
    }

    #[test]
    fn a_list_that_lacks_a_new_container_only_raises_a_question() {
        let mut inventory = started();
        let questions = inventory.on_list(&[]);
        assert_eq!(names(&inventory), ["web"]);
        inventory.on_inspected(&questions[0], Some(web()));
        assert_eq!(names(&inventory), ["web"]);
    }

    #[test]
    fn a_list_that_agrees_raises_no_question() {
        assert_eq!(started().on_list(&[Summary::of(&web())]), []);
    }

    #[test]
    fn a_question_without_an_answer_is_asked_again_at_the_next_list() {
        let mut inventory = Inventory::default();
        let question = inventory.on_event(&event(Action::Start)).expect("a question");
        assert_eq!(inventory.on_list(&[Summary::of(&web())]), [], "it is still awaited");
        inventory.on_unanswered(&question);
        assert_eq!(inventory.on_list(&[Summary::of(&web())]).len(), 1);
    }

    #[test]
    fn the_stop_signal_makes_it_drain_and_another_does_not() {
        let mut inventory = started();
        inventory.on_event(&event(Action::Kill(Signal::HUP)));
        assert!(!is_draining(&inventory));
        inventory.on_event(&event(Action::Kill(Signal::TERM)));
        assert!(is_draining(&inventory));
    }

    #[test]
    fn its_own_stop_signal_and_those_that_ask_any_process_to_end_ask_it_to_stop() {
        let signal = |text: &str| text.parse::<Signal>().expect("a signal");
        for (own, sent, expected) in [
            ("QUIT", "QUIT", true),
            ("QUIT", "TERM", true),
            ("TERM", "INT", true),
            ("TERM", "KILL", false),
            ("RTMIN+3", "37", true),
            ("TERM", "QUIT", false),
            ("TERM", "USR1", false),
        ] {
            let web = Container { stop_signal: signal(own), ..web() };
            assert_eq!(web.is_stopped_by(signal(sent)), expected, "{sent} to one that is stopped by {own}");
        }
    }

    #[test]
    fn a_signal_to_a_container_that_is_not_known_yet_is_not_lost() {
        let mut inventory = Inventory::default();
        let question = inventory.on_event(&event(Action::Kill(Signal::TERM))).expect("a question");
        inventory.on_inspected(&question, Some(web()));
        assert!(is_draining(&inventory));
    }

    #[test]
    fn what_was_told_to_stop_drains_after_docker_was_away_and_after_a_restart_of_the_agent() {
        let mut inventory = started();
        inventory.on_event(&event(Action::Kill(Signal::TERM)));
        inventory.withdraw();
        let remembered = inventory.draining.clone();
        for mut inventory in [inventory, Inventory::new(remembered)] {
            let questions = inventory.on_list(&[Summary::of(&web())]);
            inventory.on_inspected(&questions[0], Some(web()));
            assert!(is_draining(&inventory));
            inventory.on_event(&event(Action::Die));
            assert!(inventory.draining.is_empty(), "it has ended");
        }
    }

    #[test]
    fn a_container_that_is_stopped_before_it_was_inspected_drains() {
        let mut inventory = Inventory::default();
        let question = inventory.on_event(&event(Action::Start)).expect("a question");
        inventory.on_event(&event(Action::Kill(Signal::TERM)));
        inventory.on_inspected(&question, Some(web()));
        assert!(is_draining(&inventory));
    }

    #[test]
    fn neither_a_list_nor_a_break_ends_draining_and_a_new_start_does() {
        let mut inventory = started();
        inventory.on_event(&event(Action::Kill(Signal::TERM)));
        inventory.on_list(&[Summary::of(&web())]);
        let questions = inventory.on_events_lost();
        inventory.on_inspected(&questions[0], Some(web()));
        assert!(is_draining(&inventory));
        let questions = inventory.on_events_lost();
        let started_at = web().started_at + SignedDuration::from_secs(1);
        inventory.on_inspected(&questions[0], Some(Container { started_at, ..web() }));
        assert!(!is_draining(&inventory));
    }

    #[test]
    fn what_a_former_run_went_through_neither_withdraws_the_present_one_nor_has_it_drain() {
        let [earlier, start, later] = [9, 10, 11].map(|at| Timestamp::from_second(at).expect("a time"));
        let at = |at: Timestamp, action: Action| Event { at, ..event(action) };
        let now = || Some(Container { started_at: start, ..web() });
        let (stop, end) = (at(earlier, Action::Kill(Signal::TERM)), at(earlier, Action::Die));
        // Whether the run is known before the events are repeated, between them, or after.
        for known_before in [0, 1, 2] {
            let mut inventory = Inventory::default();
            let mut questions = inventory.on_list(&[Summary::of(&web())]);
            for (n, event) in [&stop, &end, &at(start, Action::Start)].into_iter().enumerate() {
                if n == known_before {
                    questions.drain(..).for_each(|question| inventory.on_inspected(&question, now()));
                }
                let before = names(&inventory);
                questions.extend(inventory.on_event(event));
                assert_eq!(names(&inventory), before, "event {n}, known before {known_before}");
            }
            questions.drain(..).for_each(|question| inventory.on_inspected(&question, now()));
            assert!(!is_draining(&inventory), "known before {known_before}");
            inventory.on_event(&at(later, Action::Kill(Signal::TERM)));
            assert!(is_draining(&inventory));
        }
    }

    #[test]
    fn after_the_clock_went_back_a_stop_and_an_end_still_count_once_they_were_asked_about() {
        let started_at = Timestamp::from_second(3600).expect("a time");
        let mut inventory = Inventory::default();
        let question = inventory.on_event(&event(Action::Start)).expect("a question");
        inventory.on_inspected(&question, Some(Container { started_at, ..web() }));
        let question = inventory.on_event(&event(Action::Kill(Signal::TERM))).expect("a question");
        inventory.on_inspected(&question, Some(Container { started_at, ..web() }));
        assert!(is_draining(&inventory));
        let question = inventory.on_event(&event(Action::Die)).expect("a question");
        inventory.on_inspected(&question, None);
        assert!(names(&inventory).is_empty());
    }

    #[test]
    fn what_was_told_to_stop_and_has_ended_unseen_is_forgotten_once_all_that_runs_is_known() {
        let ended = container("ended").incarnation();
        let mut inventory = Inventory::new([ended, web().incarnation()].into());
        let questions = inventory.on_list(&[Summary::of(&web())]);
        inventory.on_inspected(&questions[0], Some(web()));
        inventory.on_complete();
        assert_eq!(inventory.draining, [web().incarnation()].into());
    }
}
