//! Which containers run, pieced together from Docker's events, lists and inspections. Pure: it says
//! what to ask, and is told the answers.
//!
//! Docker's answers lag behind its events (a list forgets a container for 1.5 ms after its start and
//! keeps it for 90 ms after its end). So they are not equals:
//! - An event is the truth: `die` removes a container at once, `start` makes it worth asking about.
//! - An inspection is the truth unless an event about that container came after it was asked for.
//! - A list only raises questions: whoever it adds, misses or shows differently is inspected.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::container::{Action, Container, Event, FullId, Summary};

/// A container to inspect. The answer counts only if nothing happened to it in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The container.
    pub id: FullId,
    asked: Epoch,
}

/// Counts events and questions: a later one is greater.
type Epoch = u64;

/// How long a container may go on after its stop time-out before it is taken for one that has ignored
/// its stop signal.
const DRAINING_GRACE: Duration = Duration::from_secs(5);

/// A running container and whether it has been told to stop.
#[derive(Debug, Clone)]
pub struct Running {
    /// The container.
    pub container: Arc<Container>,
    /// Whether it has been told to stop.
    pub draining: bool,
}

impl Running {
    /// Whether nothing has changed between the two.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.container, &other.container) && self.draining == other.draining
    }
}

#[derive(Debug)]
struct Known {
    /// The newest event or question about it.
    epoch: Epoch,
    /// Whether an inspection of that epoch is awaited.
    awaited: bool,
    container: Option<Arc<Container>>,
    draining_since: Option<Instant>,
}

/// The containers that run.
#[derive(Debug, Default)]
pub struct Containers {
    epoch: Epoch,
    known: BTreeMap<FullId, Known>,
    /// Containers that Docker has announced to start or end, and when.
    announced: BTreeMap<FullId, Instant>,
}

impl Containers {
    /// Takes an event; gives the question that it raises.
    pub fn on_event(&mut self, event: &Event, now: Instant) -> Option<Question> {
        let id = &event.id;
        match event.action {
            Action::Connect if !self.known.contains_key(id) => {
                self.announced.insert(id.clone(), now);
                None
            }
            Action::Start => {
                self.announced.remove(id);
                self.known.remove(id);
                Some(self.ask(id))
            }
            Action::Die => {
                self.announced.remove(id);
                self.known.remove(id);
                None
            }
            Action::Kill(signal) => {
                if let Some(known) = self.known.get_mut(id) {
                    let stops = known.container.as_ref().is_some_and(|c| c.stop_signal == signal);
                    if stops {
                        known.draining_since.get_or_insert(now);
                    }
                    // One that is asked to stop may take its time; one that is killed ends now.
                    if signal.is_kill() {
                        self.announced.insert(id.clone(), now);
                    }
                }
                None
            }
            Action::Connect | Action::Change => self.known.contains_key(id).then(|| self.ask(id)),
        }
    }

    /// Takes the answer to a question: the container, or that it does not run.
    pub fn on_inspected(&mut self, question: &Question, answer: Option<Container>) {
        if !self.is_open(question) {
            return;
        }
        match answer {
            None => drop(self.known.remove(&question.id)),
            Some(container) => {
                if let Some(known) = self.known.get_mut(&question.id) {
                    known.awaited = false;
                    if known.container.as_deref() != Some(&container) {
                        known.container = Some(Arc::new(container));
                    }
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
    pub fn on_list(&mut self, list: &[Summary], now: Instant) -> Vec<Question> {
        let mut doubtful: BTreeSet<FullId> = BTreeSet::new();
        let listed: BTreeMap<&FullId, &Summary> = list.iter().map(|summary| (&summary.id, summary)).collect();
        for (id, summary) in &listed {
            let settled = self.known.get(*id).is_some_and(|known| {
                known.awaited || known.container.as_ref().is_some_and(|known| !summary.differs(known))
            });
            if !settled {
                doubtful.insert((*id).clone());
            }
        }
        for (id, known) in &mut self.known {
            if !listed.contains_key(id) && !known.awaited {
                doubtful.insert(id.clone());
            }
            let patience =
                known.container.as_ref().map_or(Duration::ZERO, |c| c.stop_timeout) + DRAINING_GRACE;
            known.draining_since = known.draining_since.filter(|since| now.duration_since(*since) < patience);
        }
        doubtful.iter().map(|id| self.ask(id)).collect()
    }

    /// Everything that was known may have changed unseen: the events broke off.
    pub fn on_events_lost(&mut self) -> Vec<Question> {
        self.announced.clear();
        let ids: Vec<FullId> = self.known.keys().cloned().collect();
        ids.iter().map(|id| self.ask(id)).collect()
    }

    fn ask(&mut self, id: &FullId) -> Question {
        self.epoch += 1;
        let asked = self.epoch;
        let known = self.known.entry(id.clone()).or_insert(Known {
            epoch: asked,
            awaited: true,
            container: None,
            draining_since: None,
        });
        (known.epoch, known.awaited) = (asked, true);
        Question { id: id.clone(), asked }
    }

    /// The containers that run, as far as they are known, by ID.
    pub fn running(&self) -> BTreeMap<FullId, Running> {
        let running = |(id, known): (&FullId, &Known)| {
            let container = known.container.clone()?;
            Some((id.clone(), Running { container, draining: known.draining_since.is_some() }))
        };
        self.known.iter().filter_map(running).collect()
    }

    /// Whether Docker has announced another start or end, no longer than `patience` ago, or a
    /// container that has started is not known yet.
    pub fn expects_more(&self, now: Instant, patience: Duration) -> bool {
        self.announced.values().any(|since| now.duration_since(*since) < patience)
            || self.known.values().any(|known| known.awaited && known.container.is_none())
    }
}

#[cfg(test)]
mod tests {
    use rollcall_shared::signal::Signal;

    use super::*;
    use crate::container::testing::container;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn event(action: Action) -> Event {
        Event { id: ID.into(), action }
    }

    fn web() -> Container {
        Container { id: ID.into(), ..container("web") }
    }

    fn summary() -> Summary {
        let web = web();
        Summary {
            id: web.id,
            name: web.name.to_string(),
            paused: false,
            check: web.check,
            networks: web.networks.into_keys().collect(),
        }
    }

    fn names(containers: &Containers) -> Vec<String> {
        containers.running().values().map(|running| running.container.name.to_string()).collect()
    }

    fn started() -> Containers {
        let mut containers = Containers::default();
        let question = containers.on_event(&event(Action::Start), Instant::now()).expect("a question");
        containers.on_inspected(&question, Some(web()));
        containers
    }

    #[test]
    fn a_started_container_runs_once_it_is_inspected() {
        let mut containers = Containers::default();
        let question = containers.on_event(&event(Action::Start), Instant::now()).expect("a question");
        assert!(names(&containers).is_empty());
        containers.on_inspected(&question, Some(web()));
        assert_eq!(names(&containers), ["web"]);
    }

    #[test]
    fn an_inspection_does_not_undo_the_end_that_came_after_it_was_asked() {
        let mut containers = Containers::default();
        let question = containers.on_event(&event(Action::Start), Instant::now()).expect("a question");
        assert_eq!(containers.on_event(&event(Action::Die), Instant::now()), None);
        containers.on_inspected(&question, Some(web()));
        assert!(names(&containers).is_empty());
    }

    #[test]
    fn a_list_that_still_has_a_dead_container_only_raises_a_question() {
        let mut containers = started();
        containers.on_event(&event(Action::Die), Instant::now());
        let questions = containers.on_list(&[summary()], Instant::now());
        assert!(names(&containers).is_empty(), "the list brought it back");
        containers.on_inspected(&questions[0], None);
        assert!(names(&containers).is_empty());
    }

    #[test]
    fn a_list_that_lacks_a_new_container_only_raises_a_question() {
        let mut containers = started();
        let questions = containers.on_list(&[], Instant::now());
        assert_eq!(names(&containers), ["web"]);
        containers.on_inspected(&questions[0], Some(web()));
        assert_eq!(names(&containers), ["web"]);
    }

    #[test]
    fn a_list_that_agrees_raises_no_question() {
        assert_eq!(started().on_list(&[summary()], Instant::now()), []);
    }

    #[test]
    fn a_question_without_an_answer_is_asked_again_at_the_next_list() {
        let mut containers = Containers::default();
        let question = containers.on_event(&event(Action::Start), Instant::now()).expect("a question");
        assert_eq!(containers.on_list(&[summary()], Instant::now()), [], "it is still awaited");
        containers.on_unanswered(&question);
        assert_eq!(containers.on_list(&[summary()], Instant::now()).len(), 1);
    }

    #[test]
    fn the_stop_signal_makes_it_drain_and_another_does_not() {
        let mut containers = started();
        let draining = |containers: &Containers| containers.running()[ID].draining;
        containers.on_event(&event(Action::Kill(Signal::HUP)), Instant::now());
        assert!(!draining(&containers));
        containers.on_event(&event(Action::Kill(Signal::TERM)), Instant::now());
        assert!(draining(&containers));
    }

    #[test]
    fn who_ignores_the_stop_signal_is_back_after_the_stop_time_out() {
        let mut containers = started();
        let start = Instant::now();
        containers.on_event(&event(Action::Kill(Signal::TERM)), start);
        containers.on_list(&[summary()], start + Duration::from_secs(10));
        assert!(containers.running()[ID].draining);
        containers.on_list(&[summary()], start + Duration::from_secs(16));
        assert!(!containers.running()[ID].draining);
    }

    #[test]
    fn an_announced_start_or_end_is_expected_until_it_comes() {
        let (now, patience) = (Instant::now(), Duration::from_secs(1));
        let mut containers = Containers::default();
        containers.on_event(&event(Action::Connect), now);
        assert!(containers.expects_more(now, patience));
        assert!(!containers.expects_more(now + patience, patience), "not for ever");
        let question = containers.on_event(&event(Action::Start), now).expect("a question");
        assert!(containers.expects_more(now, patience), "it is not known yet");
        containers.on_inspected(&question, Some(web()));
        assert!(!containers.expects_more(now, patience));
        let kill = "KILL".parse().expect("a signal");
        containers.on_event(&event(Action::Kill(kill)), now);
        assert!(containers.expects_more(now, patience));
        containers.on_event(&event(Action::Die), now);
        assert!(!containers.expects_more(now, patience));
    }
}
