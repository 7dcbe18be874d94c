//! Quotes texts for the programs that read what is rendered. A text that a program has no way to write is refused: none
//! is changed in silence.

use std::fmt;

/// A text that cannot be quoted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} cannot be quoted for {program}: {flaw}")]
pub(super) struct QuoteError {
    text: String,
    program: Program,
    flaw: &'static str,
}

/// The longest parameter: nginx reads its file by 4 KiB, and refuses one that does not fit in.
const MAX_NGINX_BYTES: usize = 4000;

/// Whose language a text is quoted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    /// A parameter of a directive of nginx.
    Nginx,
    /// An argument in HAProxy's configuration.
    Haproxy,
    /// A string of standard SQL, as PostgreSQL reads it.
    Sql,
    /// A word of a POSIX shell.
    Shell,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Program::Nginx => "nginx",
            Program::Haproxy => "HAProxy",
            Program::Sql => "SQL",
            Program::Shell => "a shell",
        })
    }
}

impl Program {
    /// The text in quotes.
    ///
    /// # Errors
    /// The program has no way to write the text.
    pub fn quote(self, text: &str) -> Result<String, QuoteError> {
        if let Some(flaw) = self.flaw(text) {
            let text = text.chars().take(80).collect();
            return Err(QuoteError { text, program: self, flaw });
        }
        Ok(match self {
            Program::Nginx => nginx(text),
            Program::Haproxy | Program::Shell => format!("'{}'", text.replace('\'', r"'\''")),
            Program::Sql => sql(text),
        })
    }

    fn flaw(self, text: &str) -> Option<&'static str> {
        let has = |found: &[char]| text.contains(found);
        match self {
            _ if has(&['\0']) => Some("it has a NUL"),
            Program::Nginx if has(&['$']) => Some("nginx takes what follows a $ for a variable"),
            Program::Nginx if text.chars().any(char::is_control) => Some("it has a control character"),
            Program::Nginx if nginx(text).len() > MAX_NGINX_BYTES => Some("nginx takes 4,000 bytes at most"),
            Program::Haproxy if has(&['\n', '\r']) => Some("it has several lines"),
            Program::Nginx | Program::Haproxy | Program::Sql | Program::Shell => None,
        }
    }
}

/// A parameter of a directive of nginx, for a text without control characters. A `$` in it stays what it is to the
/// directive: a variable, or the end of a regular expression.
pub(super) fn nginx(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""))
}

/// As PostgreSQL's `quote_literal`, which writes backslashes so that no setting changes their meaning.
fn sql(text: &str) -> String {
    let text = text.replace('\'', "''");
    if text.contains('\\') { format!(" E'{}'", text.replace('\\', r"\\")) } else { format!("'{text}'") }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_program_has_its_quotes() {
        for (program, text, expected) in [
            (Program::Nginx, r#"a "b" \c;{}"#, r#""a \"b\" \\c;{}""#),
            (Program::Haproxy, "it's 100% $HOME", r"'it'\''s 100% $HOME'"),
            (Program::Sql, "it's", "'it''s'"),
            (Program::Sql, r"it's\n", r" E'it''s\\n'"),
            (Program::Shell, "it's $(x)\n", "'it'\\''s $(x)\n'"),
        ] {
            assert_eq!(program.quote(text).expect("it can"), expected);
        }
    }

    #[test]
    fn what_a_program_has_no_way_to_write_is_refused() {
        for (program, text, expected) in [
            (Program::Nginx, "$host", "nginx: nginx takes what follows a $ for a variable"),
            (Program::Nginx, "a\nb", "nginx: it has a control character"),
            (Program::Haproxy, "a\nb", "HAProxy: it has several lines"),
            (Program::Sql, "a\0", "SQL: it has a NUL"),
            (Program::Shell, "a\0", "a shell: it has a NUL"),
        ] {
            let error = program.quote(text).expect_err("it cannot").to_string();
            assert!(error.ends_with(&format!("cannot be quoted for {expected}")), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_shell_reads_back_what_was_quoted(text in r#"([ -~]|['"$`\\\n\t ]|\PC){0,40}"#) {
            let script = format!("printf %s {}", Program::Shell.quote(&text).expect("it has no NUL"));
            let output = Command::new("sh").args(["-c", &script]).output().expect("there is a shell");
            prop_assert_eq!(String::from_utf8_lossy(&output.stdout), text);
        }
    }
}
