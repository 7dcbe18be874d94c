//! Which containers are meant: what a target signals, and what an agent allows to be signalled.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::{label::LabelSelector, name::ContainerName, stack};

/// Which containers are meant: those that meet every criterion that is given. One without any means none.
///
/// A criterion that is not known makes the record unreadable: to ignore it would mean more containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Selector {
    /// The container of this name, or whose ID starts with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerName>,
    /// The Compose or Swarm service, or that of the label `rollcall.service`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The Compose project or Swarm stack, or that of the label `rollcall.stack`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<String>,
    /// Labels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<LabelSelector>,
}

impl Selector {
    /// The container of this name or ID.
    pub fn container(name: ContainerName) -> Self {
        Self { container: Some(name), ..Self::default() }
    }

    /// The containers of this service.
    pub fn service(name: impl Into<String>) -> Self {
        Self { service: Some(name.into()), ..Self::default() }
    }

    /// The containers with this label.
    pub fn label(label: LabelSelector) -> Self {
        Self { labels: vec![label], ..Self::default() }
    }

    /// Whether a container is meant.
    pub fn matches(&self, id: &str, name: &ContainerName, labels: &BTreeMap<String, String>) -> bool {
        /// Shorter texts are names, never the start of an ID: as short as Docker prints IDs.
        const MIN_ID_LENGTH: usize = 12;
        let is_named = |wanted: &ContainerName| {
            wanted == name || (wanted.as_str().len() >= MIN_ID_LENGTH && id.starts_with(wanted.as_str()))
        };
        let Self { container, service, stack, labels: wanted } = self;
        let is_empty = container.is_none() && service.is_none() && stack.is_none() && wanted.is_empty();
        !is_empty
            && container.as_ref().is_none_or(is_named)
            && service.as_ref().is_none_or(|service| stack::is_of_service(labels, service))
            && stack.as_ref().is_none_or(|wanted| stack::stack(labels) == Some(wanted))
            && wanted.iter().all(|label| label.matches(labels))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { container, service, stack, labels } = self;
        let container = container.iter().map(|name| format!("container {name}"));
        let service = service.iter().map(|name| format!("service {name}"));
        let labels = labels.iter().map(|label| format!("label {label}"));
        let stack = stack.iter().map(|name| format!("stack {name}"));
        let all: Vec<String> = container.chain(service).chain(labels).chain(stack).collect();
        f.write_str(&all.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_means_what_meets_all_of_its_criteria() {
        let id = "0123456789abcdef".repeat(4);
        let name: ContainerName = "citus_master".parse().expect("a name");
        let labels =
            [("role", "proxy"), (stack::COMPOSE_SERVICE, "master"), (stack::COMPOSE_PROJECT, "shop")];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let container = |text: &str| Selector::container(text.parse().expect("a name"));
        let label = |text: &str| Selector::label(text.parse().expect("a label"));
        let in_stack =
            |stack: &str| Selector { stack: Some(stack.to_owned()), ..Selector::service("master") };
        for (selector, expected) in [
            (container("citus_master"), true),
            (container("citus"), false),
            (container("0123456789ab"), true),
            (container("0123"), false),
            (label("role=proxy"), true),
            (label("role=other"), false),
            (Selector::service("master"), true),
            (Selector::service("worker"), false),
            (in_stack("shop"), true),
            (in_stack("other"), false),
            (Selector { container: container("other").container, ..in_stack("shop") }, false),
            (Selector { labels: label("role=other").labels, ..in_stack("shop") }, false),
            (Selector::default(), false),
        ] {
            assert_eq!(selector.matches(&id, &name, &labels), expected, "{selector}");
        }
        assert_eq!(in_stack("shop").to_string(), "service master, stack shop");
    }

    #[test]
    fn one_with_a_criterion_that_is_not_known_is_refused() {
        let read = |json: &str| serde_json::from_str::<Selector>(json).is_ok();
        assert!(read(r#"{"container":"proxy"}"#));
        assert!(!read(r#"{"container":"proxy","image":"nginx"}"#));
    }
}
