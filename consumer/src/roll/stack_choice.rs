//! Which stack a target is narrowed to: a Compose project, a Swarm stack, or what the label `rollcall.stack` says.

use std::{collections::BTreeMap, fmt, str::FromStr};

use rollcall_shared::{model::stack, process::setting::SettingError};

/// The stack that a target is narrowed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StackChoice {
    /// The stack of this name.
    Named(String),
    /// The one that the consumer's own container belongs to.
    Own,
    /// The one that the consumer's own container belongs to, or all where it belongs to none.
    OwnIfAny,
}

/// How a setting names the consumer's own stack.
const OWN: &str = "own";

impl FromStr for StackChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("\"\" is not a stack: expected a name, or own".to_owned()),
            OWN => Ok(StackChoice::Own),
            name => Ok(StackChoice::Named(name.to_owned())),
        }
    }
}

impl fmt::Display for StackChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StackChoice::Named(name) => f.write_str(name),
            StackChoice::Own | StackChoice::OwnIfAny => f.write_str(OWN),
        }
    }
}

impl StackChoice {
    /// The name, where it is given.
    pub fn name(&self) -> Option<&str> {
        match self {
            StackChoice::Named(name) => Some(name),
            StackChoice::Own | StackChoice::OwnIfAny => None,
        }
    }

    /// Whether a container with these labels is of the stack. Before the consumer's own stack is known, none is.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.name().is_some_and(|name| stack::stack(labels) == Some(name))
    }

    /// The name that it comes to, where `own` is the stack of the consumer's own container.
    ///
    /// # Errors
    /// The own stack is wanted, and there is none.
    pub fn resolved(self, own: Option<&str>) -> Result<Option<String>, SettingError> {
        match (self, own) {
            (StackChoice::Named(name), _) => Ok(Some(name)),
            (StackChoice::Own | StackChoice::OwnIfAny, Some(own)) => Ok(Some(own.to_owned())),
            (StackChoice::OwnIfAny, None) => Ok(None),
            (StackChoice::Own, None) => {
                let expected = "a stack's name, as this process runs in no container of a stack";
                Err(SettingError::new("stack", OWN, expected))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_named_or_the_consumers_own() {
        let read = |text: &str| text.parse::<StackChoice>();
        assert_eq!(read("shop"), Ok(StackChoice::Named("shop".to_owned())));
        assert_eq!(read("own"), Ok(StackChoice::Own));
        assert!(read("").is_err());
        let labels = [(stack::COMPOSE_PROJECT.to_owned(), "shop".to_owned())].into();
        for (choice, own, expected) in [
            (read("shop"), None, Ok(Some("shop"))),
            (read("own"), Some("mine"), Ok(Some("mine"))),
            (read("own"), None, Err(())),
            (Ok(StackChoice::OwnIfAny), Some("mine"), Ok(Some("mine"))),
            (Ok(StackChoice::OwnIfAny), None, Ok(None)),
        ] {
            let choice = choice.expect("a choice");
            assert_eq!(choice.matches(&labels), choice.name() == Some("shop"), "{choice:?}");
            let resolved = choice.clone().resolved(own).map_err(drop);
            assert_eq!(resolved, expected.map(|name| name.map(str::to_owned)), "{choice:?}, {own:?}");
        }
    }
}
