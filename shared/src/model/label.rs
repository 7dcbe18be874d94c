//! A selector by label: `NAME` or `NAME=VALUE`. Filters, selections and notifications all use it.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A label that a container must have, and its value where one is given.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct LabelSelector {
    /// The label's name; never empty.
    pub name: String,
    /// The value that it must have; any, where there is none.
    pub value: Option<String>,
}

/// A text that is not a label selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a label: expected NAME or NAME=VALUE")]
pub struct LabelError(String);

impl LabelSelector {
    /// Whether the labels have it.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let found = labels.get(&self.name);
        found.is_some_and(|found| self.value.as_ref().is_none_or(|value| value == found))
    }
}

impl FromStr for LabelSelector {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if name.is_empty() {
            return Err(LabelError(text.to_owned()));
        }
        Ok(Self { name: name.to_owned(), value })
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.value.iter().try_for_each(|value| write!(f, "={value}"))
    }
}

impl From<LabelSelector> for String {
    fn from(selector: LabelSelector) -> String {
        selector.to_string()
    }
}

impl TryFrom<String> for LabelSelector {
    type Error = LabelError;

    fn try_from(text: String) -> Result<Self, LabelError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_alone_matches_any_value_and_a_value_only_itself() {
        let labels = BTreeMap::from([("role".to_owned(), "proxy".to_owned())]);
        for (text, expected) in
            [("role", true), ("role=proxy", true), ("role=other", false), ("rol", false), ("role=", false)]
        {
            let selector: LabelSelector = text.parse().expect("a label");
            assert_eq!(selector.matches(&labels), expected, "{text}");
            assert_eq!(selector.to_string(), text);
        }
        for bad in ["", "=proxy"] {
            assert!(bad.parse::<LabelSelector>().is_err(), "{bad:?} was taken");
        }
    }
}
