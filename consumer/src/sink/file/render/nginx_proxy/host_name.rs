//! The name of a virtual host: one of the kinds that nginx's `server_name` has.

use std::{fmt, str::FromStr};

use sha1::{Digest, Sha1};

use super::regex;
use crate::sink::file::render::quoting;

/// The longest name, in bytes, as DNS has it. The file's hash of names is made for it.
pub(super) const MAX_BYTES: usize = 253;

/// The name of a virtual host. The order is that of the file; expressions are tried in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostName {
    /// A name in small letters, which may begin with `*.` or end with `.*`.
    Plain(String),
    /// A regular expression, without the `~` before it.
    Regex(String),
}

/// A text that is not a virtual host's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {0}")]
pub struct HostNameError(pub(super) &'static str);

const EXPECTED: HostNameError =
    HostNameError("a host name, *.NAME, NAME.* or ~REGEX, without port; xn-- for letters of other scripts");

impl HostName {
    /// The names in a text that stands where nginx-proxy has one: `.NAME` is short for `NAME` and `*.NAME`.
    pub(super) fn parse_one(text: &str) -> Result<Vec<Self>, HostNameError> {
        match text.strip_prefix('.') {
            Some(parent) if !parent.starts_with('*') => {
                let both = [parent.parse()?, format!("*.{parent}").parse()?];
                Ok(both.into())
            }
            _ => Ok(vec![text.parse()?]),
        }
    }

    /// The name without wildcards and expressions, if it is one.
    pub(super) fn exact(&self) -> Option<&str> {
        match self {
            HostName::Plain(name) if !name.contains('*') => Some(name),
            HostName::Plain(_) | HostName::Regex(_) => None,
        }
    }

    /// What the names of the host's own files begin with: an expression's hash, as nginx-proxy has it.
    pub(super) fn file_name(&self) -> String {
        match self {
            HostName::Plain(name) => name.clone(),
            HostName::Regex(_) => sha1(&self.to_string()),
        }
    }

    /// As a parameter of nginx's `server_name`.
    pub(super) fn parameter(&self) -> String {
        match self {
            HostName::Plain(name) => name.clone(),
            HostName::Regex(_) => quoting::nginx(&self.to_string()),
        }
    }
}

/// The hash by which nginx-proxy names files: SHA-1, in hexadecimal digits.
pub(super) fn sha1(text: &str) -> String {
    Sha1::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostName::Plain(name) => f.write_str(name),
            HostName::Regex(pattern) => write!(f, "~{pattern}"),
        }
    }
}

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<Self, HostNameError> {
        if let Some(pattern) = text.strip_prefix('~') {
            let pattern = unescaped(pattern);
            // An empty one is no name at all to nginx.
            let is_safe = !pattern.is_empty() && regex::is_safe(&pattern);
            return if is_safe { Ok(HostName::Regex(pattern)) } else { Err(HostNameError(regex::EXPECTED)) };
        }
        let text = text.strip_suffix('.').unwrap_or(text);
        let name = text.strip_prefix("*.").or_else(|| text.strip_suffix(".*")).unwrap_or(text);
        if text.len() <= MAX_BYTES && name.split('.').all(is_label) {
            Ok(HostName::Plain(text.to_ascii_lowercase()))
        } else {
            Err(EXPECTED)
        }
    }
}

/// One part of a host name. Containers are known by names with underscores.
fn is_label(label: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    (1..=63).contains(&label.len()) && label.chars().all(fits) && label.contains(char::is_alphanumeric)
}

/// A text as nginx reads it where it stands in its file as it is: nginx-proxy writes it so, and containers are used to
/// that.
pub(super) fn unescaped(text: &str) -> String {
    let mut unescaped = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match chars.peek() {
            Some(next @ ('\\' | '"' | '\'')) if c == '\\' => {
                unescaped.push(*next);
                chars.next();
            }
            _ => unescaped.push(c),
        }
    }
    unescaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_name_is_read_and_shown() {
        for (text, expected) in [
            ("Example.COM", "example.com"),
            ("example.com.", "example.com"),
            ("*.example.com", "*.example.com"),
            ("www.example.*", "www.example.*"),
            ("web_1", "web_1"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("10.0.0.1", "10.0.0.1"),
            (r"~^a\\.b\.c$", r"~^a\.b\.c$"),
        ] {
            let name: HostName = text.parse().expect("a name");
            assert_eq!(name.to_string(), expected);
        }
        let regex: HostName = r"~^a\.b$".parse().expect("a name");
        assert_eq!(regex.parameter(), r#""~^a\\.b$""#);
        assert_eq!(regex.file_name(), sha1(r"~^a\.b$"));
        assert_eq!(sha1("/"), "42099b4af021e53fd8fd4e056c2568d7c2e3ffa8");
        let both = HostName::parse_one(".example.com").expect("two names");
        assert_eq!(
            both.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["example.com", "*.example.com"]
        );
    }

    #[test]
    fn what_could_leave_its_place_in_the_file_is_no_name() {
        for bad in [
            "",
            "_",
            "a b",
            "a;b",
            "a}",
            "a{",
            "a\"",
            "a'",
            "$hostname",
            "a\\",
            "a#",
            "a\n",
            "a\0",
            "a..b",
            ".",
            "..",
            "*",
            "*.*",
            "*.a.*",
            "a.*.b",
            "a*",
            "*a.b",
            "-",
            "a:80",
            "[::1]",
            "b\u{fc}cher.example",
            "~",
            "~^(",
            "~^a\n$",
            "~^(?<host>.*)$",
            &"a".repeat(64),
            &["a"; 128].join("."),
        ] {
            assert!(HostName::parse_one(bad).is_err(), "{bad:?} was taken");
        }
    }
}
