//! What a program should have and what it has, and how they differ on one line. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// How many names an operator reads.
const MAX_NAMED: usize = 3;
/// How much of a name, or of a state.
const MAX_CHARS: usize = 80;

/// Things by their names, each in one state, or in several where a program may take them for one.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Listing(BTreeMap<String, BTreeSet<String>>);

impl Listing {
    /// Adds a thing in a state.
    pub fn add(&mut self, name: String, state: String) {
        self.0.entry(name).or_default().insert(state);
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Wants no more what was not found, where so many things may be there that are not shown.
    pub fn forgive(&mut self, found: &Self, hidden: usize) {
        if self.0.keys().filter(|name| !found.0.contains_key(*name)).count() <= hidden {
            self.0.retain(|name, _| found.0.contains_key(name));
        }
    }

    /// How what was found differs from this, on one line; `None` where it does not.
    pub fn difference(&self, found: &Self) -> Option<String> {
        let missing = self.0.keys().filter(|name| !found.0.contains_key(*name));
        let besides = found.0.keys().filter(|name| !self.0.contains_key(*name));
        let others = self.0.iter().filter_map(|(name, states)| {
            let other = found.0.get(name)?.difference(states).next()?;
            let state = states.first().map_or("", String::as_str);
            Some(format!("{} ({} instead of {})", shown(name), shown(other), shown(state)))
        });
        let parts = [
            some(missing.map(|name| shown(name)), |names| format!("lacks {names}")),
            some(others, |names| format!("has {names}")),
            some(besides.map(|name| shown(name)), |names| format!("has {names} besides")),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// Up to a few of them, and how many more there are.
pub(super) fn some(
    names: impl Iterator<Item = String>,
    say: impl FnOnce(String) -> String,
) -> Option<String> {
    let mut names: Vec<String> = names.collect();
    let more = names.len().saturating_sub(MAX_NAMED);
    names.truncate(MAX_NAMED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    (!names.is_empty()).then(|| say(format!("{}{more}", names.join(", "))))
}

/// A text that somebody else chose, on one line and not too long.
pub(super) fn shown(text: &str) -> String {
    let start: String = text.chars().take(MAX_CHARS).collect();
    let dots = if start.len() < text.len() { "..." } else { "" };
    format!("{}{dots}", start.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(things: &[(&str, &str)]) -> Listing {
        let mut listing = Listing::default();
        things.iter().for_each(|(name, state)| listing.add((*name).to_owned(), (*state).to_owned()));
        listing
    }

    #[test]
    fn what_differs_is_named_up_to_a_few_names() {
        let long = "x".repeat(100);
        for (desired, found, expected) in [
            (vec![], vec![], None),
            (vec![("a", "1")], vec![("a", "1")], None),
            (vec![("a", "1"), ("a", "2")], vec![("a", "2")], None),
            (vec![("a", "1")], vec![], Some("lacks a".to_owned())),
            (vec![], vec![("a\n\u{7}\"", "1")], Some("has a\\n\\u{7}\" besides".to_owned())),
            (
                vec![("a", "1")],
                vec![("a", "2"), ("b", "")],
                Some("has a (2 instead of 1); has b besides".to_owned()),
            ),
            (
                vec![("a", ""), ("b", ""), ("c", ""), ("d", ""), ("e", "")],
                vec![],
                Some("lacks a, b, c and 2 more".to_owned()),
            ),
            (vec![(long.as_str(), "")], vec![], Some(format!("lacks {}...", "x".repeat(80)))),
        ] {
            assert_eq!(listing(&desired).difference(&listing(&found)), expected);
        }
    }
}
