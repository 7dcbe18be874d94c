//! An error with its causes, on one line.

use std::{error::Error, fmt};

/// Shows an error and the chain of its sources, separated by colons and without control characters. A source that the
/// text before it repeats already is left out.
#[derive(Debug, Clone, Copy)]
pub struct OneLine<'e>(pub &'e (dyn Error + 'static));

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.0.to_string();
        let mut source = self.0.source();
        while let Some(cause) = source {
            let next = cause.to_string();
            if !text.contains(&next) {
                text = format!("{text}: {next}");
            }
            source = cause.source();
        }
        f.write_str(&text.replace(char::is_control, " "))
    }
}

/// As [`OneLine`], as a text.
pub fn one_line(error: &(dyn Error + 'static)) -> String {
    OneLine(error).to_string()
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read\n{0}")]
    struct Outer(&'static str, #[source] io::Error);

    #[test]
    fn causes_follow_on_the_same_line_unless_they_were_said() {
        let error = Outer("file", io::Error::other("no disk"));
        assert_eq!(one_line(&error), "cannot read file: no disk");
        let error = Outer("file: no disk", io::Error::other("no disk"));
        assert_eq!(one_line(&error), "cannot read file: no disk");
    }
}
