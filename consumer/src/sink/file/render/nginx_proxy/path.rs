//! Where on a virtual host a container serves, and where in the container: nginx's `location`, and the path of
//! `proxy_pass`.

use std::{fmt, str::FromStr};

use super::{
    host_name::{sha1, unescaped},
    regex,
};
use crate::sink::file::render::quoting;

/// The longest path, in bytes.
const MAX_BYTES: usize = 1000;

/// How nginx compares a request's path. The order is that of the file; expressions are tried in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Location {
    /// It begins so: `/path`, or `^~ /path`, which nginx takes for the same place.
    Prefix(String),
    /// It is so: `= /path`.
    Exact(String),
    /// It contains this, in any case: `~* regex`.
    RegexAnyCase(String),
    /// It contains this: `~ regex`.
    Regex(String),
}

impl Location {
    /// The whole host.
    pub fn root() -> Self {
        Location::Prefix("/".to_owned())
    }

    /// Where certificate authorities look for an answer (RFC 8555, section 8.3).
    pub fn acme() -> Self {
        Location::Prefix("/.well-known/acme-challenge/".to_owned())
    }

    /// Whether it is an expression. nginx refuses a destination's path there.
    pub fn is_regex(&self) -> bool {
        matches!(self, Location::Regex(_) | Location::RegexAnyCase(_))
    }
}

/// A `VIRTUAL_PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VirtualPath {
    pub location: Location,
    /// Whether expressions are not tried where it fits: `^~`.
    pub is_final: bool,
    /// As it was written.
    text: String,
}

impl VirtualPath {
    /// The hash that names the path's own files, as nginx-proxy has it.
    pub fn hash(&self) -> String {
        sha1(&self.text)
    }

    /// As the parameters of nginx's `location`.
    pub fn parameters(&self) -> String {
        match &self.location {
            Location::Prefix(path) if self.is_final => format!("^~ {path}"),
            Location::Prefix(path) => path.clone(),
            Location::Exact(path) => format!("= {path}"),
            Location::Regex(pattern) => format!("~ {}", quoting::nginx(pattern)),
            Location::RegexAnyCase(pattern) => format!("~* {}", quoting::nginx(pattern)),
        }
    }
}

impl Default for VirtualPath {
    fn default() -> Self {
        Self { location: Location::root(), is_final: false, text: "/".to_owned() }
    }
}

impl fmt::Display for VirtualPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What was expected of a path.
const PATH: &str = "/ and letters, digits and any of /_.~-+@:=,* after it, no part of it '..'";

impl FromStr for VirtualPath {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (modifier, rest) = ["^~", "~*", "~", "="]
            .into_iter()
            .find_map(|modifier| Some((modifier, text.strip_prefix(modifier)?.trim())))
            .unwrap_or(("", text));
        let location = match modifier {
            "~" | "~*" => {
                let pattern = unescaped(rest);
                if pattern.is_empty() || !regex::is_safe(&pattern) {
                    return Err(regex::EXPECTED);
                }
                if modifier == "~" { Location::Regex(pattern) } else { Location::RegexAnyCase(pattern) }
            }
            "=" => Location::Exact(parse_path(rest)?),
            _ => Location::Prefix(parse_path(rest)?),
        };
        Ok(Self { location, is_final: modifier == "^~", text: text.to_owned() })
    }
}

/// A plain path, which needs no quotes.
pub(super) fn parse_path(text: &str) -> Result<String, &'static str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "/_.~-+@:=,*".contains(c);
    let is_path = text.starts_with('/') && text.len() <= MAX_BYTES && text.chars().all(fits);
    if is_path && text.split('/').all(|part| part != "..") { Ok(text.to_owned()) } else { Err(PATH) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_path_is_read_and_shown() {
        for (text, expected) in [
            ("/", "/"),
            ("/app1/", "/app1/"),
            ("= /exact", "= /exact"),
            ("=/exact", "= /exact"),
            ("^~ /static", "^~ /static"),
            ("~^/(app1|alternative1)/", r#"~ "^/(app1|alternative1)/""#),
            (r"~* \.php$", r#"~* "\\.php$""#),
        ] {
            let path: VirtualPath = text.parse().expect("a path");
            assert_eq!(path.parameters(), expected);
            assert_eq!(path.hash(), sha1(text));
        }
        let of = |text: &str| text.parse::<VirtualPath>().expect("a path").location;
        assert_eq!(of("/a"), of("^~ /a"), "nginx refuses one beside the other");
        assert_ne!(of("/a"), of("= /a"));
    }

    #[test]
    fn what_could_leave_its_place_in_the_file_is_no_path() {
        for bad in [
            "",
            "a",
            "/a b",
            "/a;",
            "/a{",
            "/}",
            "/\"",
            "/'",
            "/$uri",
            "/a#b",
            "/a\\",
            "/../x",
            "/a/..",
            "/\n",
            "/\0",
            "/%2e",
            "@named",
            "= a",
            "~",
            "~ (",
            "~* (?<uri>.)",
            "/a = /b",
            &format!("/{}", "a".repeat(1000)),
        ] {
            assert!(bad.parse::<VirtualPath>().is_err(), "{bad:?} was taken");
        }
    }
}
