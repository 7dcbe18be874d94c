//! Connection strings as libpq reads them, `host=db port=5432` or `postgresql://user@db:5432/app`, taken apart into
//! keywords and values.
//!
//! What they mean is another file's. The formats are PostgreSQL's: "Connection Strings" in its chapter on libpq.

use std::{collections::BTreeMap, fmt};

/// The keywords and their values. A value that is empty is as good as none, as libpq has it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Conninfo(BTreeMap<&'static str, String>);

/// What libpq knows and this takes.
pub const KEYWORDS: [&str; 25] = [
    "application_name",
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "dbname",
    "fallback_application_name",
    "gssencmode",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "options",
    "passfile",
    "password",
    "port",
    "service",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

/// A connection string that cannot be read. It shows no value, as that may be a password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConninfoError {
    /// A keyword that libpq does not know, or that is not supported.
    #[error("{0:?} is no keyword that is supported: expected one of {list}", list = KEYWORDS.join(", "))]
    Keyword(String),
    /// A keyword without a value. It may be a part of a password, so it is not shown.
    #[error("keyword {0} is not followed by \"=\" and a value; values with spaces stand in single quotes")]
    NoValue(usize),
    /// A quote without its end.
    #[error("the value of {0} has no closing quote")]
    Quote(String),
    /// A part of a URI that is not percent-encoded as it should be.
    #[error("a % of the URI is not followed by two hexadecimal digits, other than 00, of UTF-8")]
    Percent,
    /// A port that is none, such as a part of a password.
    #[error("the URI has a port that is no number: in a password, / is written %2F, ? is %3F and @ is %40")]
    Port,
    /// An IPv6 address without its end.
    #[error("the URI has an address with [ and without ]")]
    Bracket,
}

/// The keywords and values, but for the password.
impl fmt::Display for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.iter().filter(|(keyword, _)| **keyword != "password");
        let shown: Vec<_> = shown.map(|(keyword, value)| format!("{keyword}={value}")).collect();
        if shown.is_empty() { f.write_str("libpq's defaults") } else { f.write_str(&shown.join(" ")) }
    }
}

impl Conninfo {
    /// Takes a connection string apart.
    ///
    /// # Errors
    /// It is not one.
    pub fn parse(text: &str) -> Result<Self, ConninfoError> {
        let uri = ["postgresql://", "postgres://"].iter().find_map(|scheme| text.strip_prefix(scheme));
        match uri {
            Some(rest) => Self::of_uri(rest),
            None => Self::of_words(text),
        }
    }

    /// The value of a keyword.
    pub fn get(&self, keyword: &str) -> Option<&str> {
        self.0.get(keyword).map(String::as_str)
    }

    /// Sets a keyword.
    ///
    /// # Errors
    /// There is no such keyword.
    pub fn set(&mut self, keyword: &str, value: String) -> Result<(), ConninfoError> {
        let known = KEYWORDS.into_iter().find(|known| *known == keyword);
        let known = known.ok_or_else(|| ConninfoError::Keyword(keyword.to_owned()))?;
        if value.is_empty() {
            self.0.remove(known);
        } else {
            self.0.insert(known, value);
        }
        Ok(())
    }

    /// Takes from another what it has none of itself.
    pub fn fill(&mut self, other: Conninfo) {
        for (keyword, value) in other.0 {
            self.0.entry(keyword).or_insert(value);
        }
    }

    /// `keyword=value` and `keyword = 'a value'`, separated by spaces.
    fn of_words(text: &str) -> Result<Self, ConninfoError> {
        let mut conninfo = Self::default();
        let mut rest = text.trim_start();
        for number in 1.. {
            if rest.is_empty() {
                break;
            }
            let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
            let (keyword, after) = rest.split_at(end);
            let after = after.trim_start().strip_prefix('=').ok_or(ConninfoError::NoValue(number))?;
            let (value, after) = word(after.trim_start(), keyword)?;
            conninfo.set(keyword, value)?;
            rest = after.trim_start();
        }
        Ok(conninfo)
    }

    /// `[user[:password]@][host[:port],...][/dbname][?keyword=value&...]`, without the scheme.
    fn of_uri(rest: &str) -> Result<Self, ConninfoError> {
        let mut conninfo = Self::default();
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        let (hosts, ports) = hosts_and_ports(hosts)?;
        for (keyword, value) in [
            ("user", decode(user)?),
            ("password", decode(password)?),
            ("host", hosts),
            ("port", ports),
            ("dbname", decode(database)?),
        ] {
            conninfo.set(keyword, value)?;
        }
        for (at, pair) in query.split('&').filter(|pair| !pair.is_empty()).enumerate() {
            let (keyword, value) = pair.split_once('=').ok_or(ConninfoError::NoValue(at + 1))?;
            match (decode(keyword)?.as_str(), decode(value)?) {
                // An alias of JDBC's that libpq takes too.
                ("ssl", value) if value == "true" => conninfo.set("sslmode", "require".to_owned())?,
                (keyword, value) => conninfo.set(keyword, value)?,
            }
        }
        Ok(conninfo)
    }
}

/// The value at the start of a text, and what follows it.
fn word<'t>(text: &'t str, keyword: &str) -> Result<(String, &'t str), ConninfoError> {
    let quoted = text.strip_prefix('\'');
    let text = quoted.unwrap_or(text);
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted.is_some() => return Ok((value, &text[at + 1..])),
            c if c.is_whitespace() && quoted.is_none() => return Ok((value, &text[at..])),
            c => value.push(c),
        }
    }
    if quoted.is_some() { Err(ConninfoError::Quote(keyword.to_owned())) } else { Ok((value, "")) }
}

/// `host:port,host:port` as the lists that libpq has in `host` and `port`.
fn hosts_and_ports(text: &str) -> Result<(String, String), ConninfoError> {
    let mut hosts = vec![];
    let mut ports = vec![];
    for part in text.split(',') {
        let (host, port) = match part.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or(ConninfoError::Bracket)?;
                (host, after.strip_prefix(':').unwrap_or(""))
            }
            None => part.rsplit_once(':').unwrap_or((part, "")),
        };
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(ConninfoError::Port);
        }
        hosts.push(decode(host)?);
        ports.push(port.to_owned());
    }
    let joined = |list: Vec<String>| {
        if list.iter().all(String::is_empty) { String::new() } else { list.join(",") }
    };
    Ok((joined(hosts), joined(ports)))
}

fn decode(text: &str) -> Result<String, ConninfoError> {
    let mut bytes = vec![];
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        let (high, low) = (digit(), digit());
        let byte = high.zip(low).and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
        bytes.push(byte.filter(|byte| *byte != 0).ok_or(ConninfoError::Percent)?);
    }
    String::from_utf8(bytes).map_err(|_| ConninfoError::Percent)
}

impl fmt::Debug for Conninfo {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.iter().map(|(key, value)| (key, if *key == "password" { "***" } else { value }));
        f.debug_map().entries(shown).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(&'static str, String)> {
        Conninfo::parse(text).expect(text).0.into_iter().collect()
    }

    fn pairs(expected: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
        expected.iter().map(|(keyword, value)| (*keyword, (*value).to_owned())).collect()
    }

    #[test]
    fn words_and_quotes_are_read_as_libpq_reads_them() {
        for (text, expected) in [
            ("", vec![]),
            ("host=db port = 5433", vec![("host", "db"), ("port", "5433")]),
            (r"password='it''s' ", vec![]),
            (r"user='a b' password=a\'b\\c", vec![("password", r"a'b\c"), ("user", "a b")]),
            ("host='' user=x", vec![("user", "x")]),
        ] {
            if text.contains("''s") {
                // Two quotes are an end and a start, not one quote.
                assert!(Conninfo::parse(text).is_err());
                continue;
            }
            assert_eq!(parsed(text), pairs(&expected), "{text}");
        }
    }

    #[test]
    fn uris_are_read_as_libpq_reads_them() {
        for (text, expected) in [
            ("postgresql://", vec![]),
            ("postgres://db", vec![("host", "db")]),
            (
                "postgresql://me:se%40cret@db:5433/app?sslmode=verify-full&connect_timeout=3",
                vec![
                    ("connect_timeout", "3"),
                    ("dbname", "app"),
                    ("host", "db"),
                    ("password", "se@cret"),
                    ("port", "5433"),
                    ("sslmode", "verify-full"),
                    ("user", "me"),
                ],
            ),
            ("postgresql://[::1]:5433,b/", vec![("host", "::1,b"), ("port", "5433,")]),
            ("postgresql://%2Fvar%2Frun/x", vec![("dbname", "x"), ("host", "/var/run")]),
            (
                "postgresql:///x?host=/tmp&ssl=true",
                vec![("dbname", "x"), ("host", "/tmp"), ("sslmode", "require")],
            ),
        ] {
            assert_eq!(parsed(text), pairs(&expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named_without_values() {
        for (text, expected) in [
            ("hots=x", "\"hots\" is no keyword that is supported: expected one of application_name,"),
            ("host=db password=my secret", "keyword 3 is not followed by \"=\" and a value"),
            ("password='secret", "the value of password has no closing quote"),
            ("postgresql://me:%zz@db", "a % of the URI is not followed by"),
            ("postgresql://me:secret/x@db/app", "the URI has a port that is no number"),
            ("postgresql://me:secret?x=y@db/app", "the URI has a port that is no number"),
            ("postgresql://[::1/x", "the URI has an address with [ and without ]"),
            ("postgresql://h?sslmode", "keyword 1 is not followed by"),
            ("krbsrvname=x", "\"krbsrvname\" is no keyword that is supported"),
        ] {
            let error = Conninfo::parse(text).expect_err(text).to_string();
            assert!(error.starts_with(expected), "{error}");
            assert!(!error.contains("secret"));
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        let shown = format!("{:?}", Conninfo::parse("user=a password=secret").expect("it is one"));
        assert_eq!(shown, r#"{"password": "***", "user": "a"}"#);
    }
}
