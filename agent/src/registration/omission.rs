//! What is left out of the registration, and why.

use std::fmt;

use rollcall_shared::process::text::escaped;

/// How much of a value is shown: labels may be megabytes.
pub const MAX_SHOWN_CHARS: usize = 80;

/// What of a container is left out, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Omission {
    /// The kind of reason.
    pub reason: Reason,
    text: String,
}

/// Why something is left out, as metrics have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The container has no port to register, as most of most hosts' have not.
    NoPort,
    /// The container asks for it.
    Ignored,
    /// The operator's filters leave it out.
    Filtered,
    /// There is no address at which its readers would reach it.
    Unreachable,
    /// A protocol other than TCP and UDP.
    Protocol,
    /// A label, or a variable in its place, asks for what cannot be.
    Label,
    /// It asks for more than a container may have.
    TooLarge,
    /// A layout has no place for it.
    Layout,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Reason; 8] = [
        Reason::NoPort,
        Reason::Ignored,
        Reason::Filtered,
        Reason::Unreachable,
        Reason::Protocol,
        Reason::Label,
        Reason::TooLarge,
        Reason::Layout,
    ];

    /// The reason as metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::NoPort => "no_port",
            Reason::Ignored => "ignored",
            Reason::Filtered => "filtered",
            Reason::Unreachable => "unreachable",
            Reason::Protocol => "protocol",
            Reason::Label => "label",
            Reason::TooLarge => "too_large",
            Reason::Layout => "layout",
        }
    }

    /// Whether the container asks for what it does not get, so that someone should look.
    pub fn is_refusal(self) -> bool {
        matches!(self, Reason::Label | Reason::TooLarge)
    }
}

impl Omission {
    /// An omission, in a few words.
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }

    /// The value of a label or variable cannot be. It is shown only of labels that are registered anyway: others, and
    /// variables, often hold secrets.
    pub fn of_value(source: &str, value: &str, expected: impl fmt::Display) -> Self {
        let is_public = source.starts_with("rollcall.");
        let value: String = value.chars().take(MAX_SHOWN_CHARS).collect();
        let shown = if is_public { format!("{value:?}") } else { "something else".to_owned() };
        Self::new(Reason::Label, format!("{source} is {shown}: expected {expected}"))
    }
}

impl fmt::Display for Omission {
    /// On one line, whatever the container's author has written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escaped(&self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_in_part_and_only_of_labels_that_are_registered_anyway() {
        let shown = |source: &str| Omission::of_value(source, &"x".repeat(2 << 20), "a number").to_string();
        let expected = format!("rollcall.weight is \"{}\": expected a number", "x".repeat(80));
        assert_eq!(shown("rollcall.weight"), expected);
        assert_eq!(shown("SERVICE_WEIGHT"), "SERVICE_WEIGHT is something else: expected a number");
    }

    #[test]
    fn an_omission_is_one_line() {
        let forged = Omission::new(Reason::Label, "network a\n  80/tcp registered");
        assert_eq!(forged.to_string(), "network a\\n  80/tcp registered");
    }
}
