//! What a notify command is told of a change: which endpoints came, and which went, since the last change that was acked.
//!
//! ```text
//! sink: on_applied(all endpoints) ─┐
//!                                  ├─> attempt: difference() -> the command -> on_acked
//! sink: on_found_acked ────────────┘
//! ```

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use rollcall_shared::model::instance::Endpoint;

/// The variable with the endpoints that came, with a space between two.
pub const ADDED: &str = "ROLLCALL_ADDED";
/// The variable with those that went.
pub const REMOVED: &str = "ROLLCALL_REMOVED";

/// The longest value: Linux takes 128 KiB for a variable with its name (MAX_ARG_STRLEN).
const MAX_BYTES: usize = 100 * 1024;

/// The endpoints of one content.
pub type Endpoints = Arc<BTreeSet<Endpoint>>;

/// What was applied, and what of that was acked. Clones share it: the sink says the one, the notifier the other.
#[derive(Debug, Clone, Default)]
pub struct Told(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// What there is now; `None` where it is not known, such as after a file was taken back.
    applied: Option<Endpoints>,
    /// What was acked last that is known; `None` where that was in an earlier run.
    acked: Option<Endpoints>,
    /// Whether something that is not known was acked after that.
    is_unsure: bool,
}

/// What a command is told, and what is acked once it has succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What it is about.
    now: Option<Endpoints>,
    /// The values of [`ADDED`] and [`REMOVED`]; `None` where they would be too long.
    values: Option<[String; 2]>,
}

impl Told {
    /// The sink has these endpoints now, or others that it does not know.
    pub fn on_applied(&self, endpoints: Option<BTreeSet<Endpoint>>) {
        self.change(|state| state.applied = endpoints.map(Arc::new));
    }

    /// What the sink has was acked in an earlier run.
    pub fn on_found_acked(&self) {
        self.change(|state| (state.acked, state.is_unsure) = (state.applied.clone(), false));
    }

    /// The command has taken what it was told.
    pub fn on_acked(&self, difference: Difference) {
        self.change(|state| {
            state.is_unsure = difference.now.is_none();
            state.acked = difference.now.or(state.acked.take());
        });
    }

    /// What a command is to be told now.
    pub fn difference(&self) -> Difference {
        self.change(|State { applied, acked, is_unsure }| {
            Difference::between(acked.as_ref(), *is_unsure, applied.as_ref())
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Difference {
    /// All came where it is not known what there was. What was known before that has gone all the same.
    fn between(before: Option<&Endpoints>, is_unsure: bool, now: Option<&Endpoints>) -> Self {
        let none = Endpoints::default();
        let (from, to) = (before.unwrap_or(&none), now.unwrap_or(&none));
        let known = if is_unsure { &none } else { from };
        let values = [to.difference(known), from.difference(to)].map(join);
        // Nothing is known to have gone where nobody knows what there is.
        let values = if now.is_some() { values } else { Default::default() };
        let fits = values.iter().all(|value| value.len() <= MAX_BYTES);
        Self { now: now.cloned(), values: fits.then_some(values) }
    }

    /// The variables and their values. There are none where a value would be longer than Linux takes.
    pub fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        let values = self.values.iter().flatten().map(String::as_str);
        [ADDED, REMOVED].into_iter().zip(values)
    }
}

fn join<'e>(endpoints: impl Iterator<Item = &'e Endpoint>) -> String {
    endpoints.map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(ports: &[u16]) -> BTreeSet<Endpoint> {
        let address = || "10.0.0.1".to_owned().try_into().expect("an address");
        ports.iter().map(|port| Endpoint { address: address(), port: *port }).collect()
    }

    fn values(difference: &Difference) -> Vec<(&str, &str)> {
        difference.variables().collect()
    }

    #[test]
    fn a_command_is_told_what_changed_since_it_succeeded_last() {
        let told = Told::default();
        told.on_applied(Some(endpoints(&[1, 2])));
        let all = told.difference();
        assert_eq!(values(&all), [(ADDED, "10.0.0.1:1 10.0.0.1:2"), (REMOVED, "")]);
        told.on_applied(Some(endpoints(&[2, 3])));
        assert_eq!(values(&told.difference())[0], (ADDED, "10.0.0.1:2 10.0.0.1:3"), "the first one failed");
        // The first one has succeeded meanwhile, and was not told of the second.
        told.on_acked(all);
        let second = told.difference();
        assert_eq!(values(&second), [(ADDED, "10.0.0.1:3"), (REMOVED, "10.0.0.1:1")]);
        told.on_acked(second);
        assert_eq!(values(&told.difference()), [(ADDED, ""), (REMOVED, "")]);
    }

    #[test]
    fn what_was_acked_in_an_earlier_run_is_not_told_again() {
        let told = Told::default();
        told.on_applied(Some(endpoints(&[1])));
        told.on_found_acked();
        told.on_applied(Some(endpoints(&[])));
        assert_eq!(values(&told.difference()), [(ADDED, ""), (REMOVED, "10.0.0.1:1")]);
    }

    #[test]
    fn after_a_file_whose_instances_are_not_known_all_are_told() {
        let told = Told::default();
        told.on_applied(Some(endpoints(&[1, 2])));
        told.on_acked(told.difference());
        told.on_applied(None);
        let unknown = told.difference();
        assert_eq!(values(&unknown), [(ADDED, ""), (REMOVED, "")]);
        told.on_acked(unknown);
        told.on_applied(Some(endpoints(&[1])));
        let all = told.difference();
        assert_eq!(
            values(&all),
            [(ADDED, "10.0.0.1:1"), (REMOVED, "10.0.0.1:2")],
            "nobody was told that 2 went"
        );
        told.on_acked(all);
        assert_eq!(values(&told.difference()), [(ADDED, ""), (REMOVED, "")]);
    }

    #[test]
    fn more_than_a_variable_takes_is_not_told() {
        let told = Told::default();
        told.on_applied(Some(endpoints(&(1..=10_000).collect::<Vec<_>>())));
        assert_eq!(values(&told.difference()), []);
    }
}
