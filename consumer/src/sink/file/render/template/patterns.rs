//! Filters and a test by regular expressions, in the syntax of the `regex` crate.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use minijinja::{Environment, Error, ErrorKind, Value};
use regex::Regex;

/// The expressions of one rendering: each is compiled once.
#[derive(Debug, Clone, Default)]
pub(super) struct Patterns(Arc<Mutex<HashMap<String, Regex>>>);

impl Patterns {
    /// The expression.
    pub fn get(&self, pattern: &str) -> Result<Regex, Error> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(regex) = known.get(pattern) {
            return Ok(regex.clone());
        }
        let regex = Regex::new(pattern).map_err(|error| {
            let text = format!("{pattern:?} is no regular expression");
            Error::new(ErrorKind::InvalidOperation, text).with_source(error)
        })?;
        known.insert(pattern.to_owned(), regex.clone());
        Ok(regex)
    }
}

/// Makes the filters and the test known.
pub(super) fn add_to(environment: &mut Environment<'_>, patterns: &Patterns) {
    let matches = {
        let patterns = patterns.clone();
        move |text: &str, pattern: &str| Ok::<_, Error>(patterns.get(pattern)?.is_match(text))
    };
    environment.add_filter("regex_match", matches.clone());
    environment.add_test("matching", matches);
    let found = patterns.clone();
    environment.add_filter("regex_search", move |text: &str, pattern: &str, group: Option<usize>| {
        let captures = found.get(pattern)?.captures(text).and_then(|found| found.get(group.unwrap_or(0)));
        // An undefined value, so that `default` can take its place.
        Ok::<_, Error>(captures.map_or(Value::UNDEFINED, |found| Value::from(found.as_str())))
    });
    let replaced = patterns.clone();
    environment.add_filter("regex_replace", move |text: &str, pattern: &str, by: &str| {
        Ok::<_, Error>(replaced.get(pattern)?.replace_all(text, by).into_owned())
    });
}
