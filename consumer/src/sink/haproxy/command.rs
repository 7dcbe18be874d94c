//! A command on the socket, and what HAProxy answers when it has done it.

/// A command that changes something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The line.
    pub text: String,
    expects: Expects,
}

/// What HAProxy answers when it has done it. It has no other sign of success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expects {
    /// Nothing.
    Silence,
    /// One of these, among others such as warnings.
    OneOf(&'static [&'static str]),
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It is done.
    Done,
    /// HAProxy cannot delete the server yet, as it has connections.
    NotYet,
    /// HAProxy cannot delete the server at all, as its configuration refers to it.
    Never,
    /// HAProxy has refused it, with these words.
    Refused(String),
}

impl Command {
    /// A command that HAProxy does without a word.
    pub fn silent(text: String) -> Self {
        Self { text, expects: Expects::Silence }
    }

    /// `add server`. One that is there already does no harm: whether it is right is seen when it is observed.
    pub fn add(text: String) -> Self {
        Self { text, expects: Expects::OneOf(&["New server registered", "Already exists a server"]) }
    }

    /// `set server ... addr`, which tells what it has changed.
    pub fn address(text: String) -> Self {
        Self { text, expects: Expects::OneOf(&["no need to change", "changed from"]) }
    }

    /// `del server`. One that is gone already does no harm.
    pub fn delete(text: String) -> Self {
        Self { text, expects: Expects::OneOf(&["Server deleted", "No such server"]) }
    }

    /// What the answer means.
    pub fn outcome(&self, answer: &str) -> Reply {
        let is_done = match self.expects {
            Expects::Silence => answer.is_empty(),
            Expects::OneOf(words) => words.iter().any(|word| answer.contains(word)),
        };
        if is_done {
            Reply::Done
        } else if answer.contains("Server still has connections") {
            Reply::NotYet
        } else if answer.contains("cannot be removed at runtime") {
            Reply::Never
        } else {
            let words: Vec<_> = answer.split_whitespace().collect();
            Reply::Refused(words.join(" ").chars().take(200).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_words_of_success_are_a_success() {
        let [silent, add, address, delete] =
            [Command::silent, Command::add, Command::address, Command::delete]
                .map(|make| make(String::new()));
        let refused = |text: &str| Reply::Refused(text.to_owned());
        for (command, answer, expected) in [
            (&silent, "", Reply::Done),
            (&silent, "No such server.", refused("No such server.")),
            (&add, "Keyword 'enabled' is ignored.\nNew server registered.", Reply::Done),
            (&add, "", refused("")),
            (&add, "unknown keyword\n 'bogus'.", refused("unknown keyword 'bogus'.")),
            (
                &address,
                "no need to change the addr, port changed from '1' to '2' by 'stats socket command'",
                Reply::Done,
            ),
            (
                &address,
                "Invalid addr 'x' by 'stats socket command'",
                refused("Invalid addr 'x' by 'stats socket command'"),
            ),
            (&delete, "Server deleted.", Reply::Done),
            (&delete, "Server still has connections attached to it, cannot remove it.", Reply::NotYet),
            (
                &delete,
                "This server cannot be removed at runtime due to other configuration elements pointing to it.",
                Reply::Never,
            ),
        ] {
            assert_eq!(command.outcome(answer), expected, "{answer}");
        }
    }
}
