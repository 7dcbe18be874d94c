//! A plan, and what besides it comes to: whether HAProxy needs a reload.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use super::{
    server::{Container, Place},
    step::{Action, Step},
};
use crate::sink::program::Plan;

/// A plan while it is made.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Draft {
    /// The plan.
    pub plan: Plan<Step>,
    /// Which containers are to be at each address, and in which backend.
    pub(super) tenants: BTreeMap<SocketAddr, Vec<(String, Container)>>,
}

impl Draft {
    /// More to do.
    pub fn step(&mut self, place: &Place, action: Action) {
        self.plan.steps.push(Step { place: place.clone(), action });
    }

    /// What cannot be had, unless by a reload.
    pub fn refuse(&mut self, refusal: String) {
        self.plan.refusals.push(refusal);
    }

    /// Has it looked at again by then.
    pub fn look_again(&mut self, pause: Duration) {
        self.plan.look_again = Some(self.plan.look_again.map_or(pause, |known| known.min(pause)));
    }

    /// The first few names, and how many more there are.
    pub fn list<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
        const SHOWN: usize = 5;
        let names: Vec<_> = names.into_iter().collect();
        match names.len().saturating_sub(SHOWN) {
            0 => names.join(", "),
            more => format!("{} and {more} more", names[..SHOWN].join(", ")),
        }
    }

    /// The plan, its steps in the order in which they are done.
    pub fn finish(mut self) -> Self {
        self.plan.steps.sort_by_key(|step| step.action.rank());
        self
    }
}
