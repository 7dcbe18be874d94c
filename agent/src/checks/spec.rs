//! What a port is asked and how often, as its container's labels say.
//!
//! A value that cannot be leaves its port out: to register it as if it had no check would send requests to a port that
//! its author wants checked.

use std::{fmt, str::FromStr, time::Duration};

use http::uri::PathAndQuery;
use rollcall_shared::{model::instance::Protocol, process::time};

use super::Ready;
use crate::{
    inventory::container::{Check, Container, Port},
    registration::{
        labels::{self, Found},
        omission::Omission,
    },
};

/// The label that asks for a check.
pub const CHECK: &str = "check";

const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
const MIN_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_secs(3600);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);
const MIN_TIMEOUT: Duration = Duration::from_millis(1);
const MAX_TIMEOUT: Duration = Duration::from_secs(60);
const DEFAULT_RISE: u32 = 2;
const DEFAULT_FALL: u32 = 3;
/// The most of rise and fall.
const MAX_COUNT: u32 = 100;
/// The longest path, in bytes.
const MAX_PATH: usize = 1024;

/// What a port is asked, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// What is asked.
    pub method: Method,
    /// The time from one probe's start to the next one's.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How many probes in a row must pass before a port passes that has failed.
    pub rise: u32,
    /// How many probes in a row must fail before a port fails that has passed.
    pub fall: u32,
    /// Whether nothing is asked any more once it has passed.
    pub is_once: bool,
    /// The label, variable or flag that asks for it.
    pub source: String,
}

/// What a port is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// To take a connection.
    Tcp,
    /// To answer a GET of this path with one of these statuses.
    Http {
        /// The path, with its query.
        path: PathAndQuery,
        /// The statuses.
        statuses: Statuses,
    },
}

/// A range of HTTP statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statuses {
    first: u16,
    last: u16,
}

impl Default for Statuses {
    fn default() -> Self {
        Self { first: 200, last: 399 }
    }
}

impl Statuses {
    /// Whether the status is one of them.
    pub fn contain(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

impl FromStr for Statuses {
    type Err = ();

    /// Takes `200` or `200-399`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.trim().parse().ok().filter(|status| (100..=599).contains(status));
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, interval, timeout, rise, fall, is_once, source } = self;
        match method {
            Method::Tcp => write!(f, "a TCP connection within {}", time::show(*timeout))?,
            Method::Http { path, statuses } => {
                write!(f, "GET {path} answered with {statuses} within {}", time::show(*timeout))?;
            }
        }
        match is_once {
            true => write!(f, ", once")?,
            false => write!(f, ", each {}, rise {rise}, fall {fall}", time::show(*interval))?,
        }
        write!(f, " (from {source})")
    }
}

impl Spec {
    /// The check of a port, if it has one.
    ///
    /// # Errors
    /// The label or variable whose value cannot be.
    pub fn of(container: &Container, port: Port, ready: Ready) -> Result<Option<Self>, Omission> {
        if port.protocol == Protocol::Udp {
            return refuse_udp(container, port).map(|()| None);
        }
        let Some((asked, source)) = asked(container, port)? else { return Ok(held(container, ready)) };
        let find = |ours: &str, registrators: &str| labels::find(container, Some(port), ours, registrators);
        let method = match asked {
            Asked::Nothing => return Ok(None),
            Asked::Tcp => Method::Tcp,
            Asked::Http => Method::Http {
                path: path(find("check.path", "CHECK_HTTP"))?,
                statuses: statuses(labels::ours(container, Some(port), "check.status"))?,
            },
        };
        let interval = duration(find("check.interval", "CHECK_INTERVAL"), MIN_INTERVAL, MAX_INTERVAL)?;
        let interval = interval.unwrap_or(DEFAULT_INTERVAL);
        let max_timeout = MAX_TIMEOUT.min(interval);
        let timeout = duration(find("check.timeout", "CHECK_TIMEOUT"), MIN_TIMEOUT, max_timeout)?;
        let count = |name: &str| count(labels::ours(container, Some(port), name));
        Ok(Some(Self {
            method,
            interval,
            timeout: timeout.unwrap_or(DEFAULT_TIMEOUT.min(interval)),
            rise: count("check.rise")?.unwrap_or(DEFAULT_RISE),
            fall: count("check.fall")?.unwrap_or(DEFAULT_FALL),
            is_once: false,
            source,
        }))
    }
}

/// What a container asks for.
enum Asked {
    Nothing,
    Tcp,
    Http,
}

fn asked(container: &Container, port: Port) -> Result<Option<(Asked, String)>, Omission> {
    if let Some((value, source)) = labels::ours(container, Some(port), CHECK) {
        let asked = match value {
            "none" => Asked::Nothing,
            "tcp" => Asked::Tcp,
            "http" => Asked::Http,
            _ => return Err(Omission::of_value(&source, value, "tcp, http or none")),
        };
        return Ok(Some((asked, source)));
    }
    let registrators = |name| labels::registrators(container, Some(port), name);
    let asked = match (registrators("CHECK_HTTP"), registrators("CHECK_TCP")) {
        (Some((_, source)), _) => Some((Asked::Http, source)),
        (None, Some((value, source))) if labels::is_yes(value) => Some((Asked::Tcp, source)),
        (None, _) => None,
    };
    match asked {
        None => refuse_alone(container, port).map(|()| None),
        asked => Ok(asked),
    }
}

/// What `--ready` asks of a container that has no check.
fn held(container: &Container, ready: Ready) -> Option<Spec> {
    let is_held = ready == Ready::Tcp && container.check == Check::None;
    is_held.then(|| Spec {
        method: Method::Tcp,
        interval: DEFAULT_INTERVAL,
        timeout: DEFAULT_TIMEOUT,
        rise: 1,
        fall: DEFAULT_FALL,
        is_once: true,
        source: "--ready".to_owned(),
    })
}

/// Refuses a check that a port of UDP is asked for by a label of its own: it takes no connection. A label for all ports
/// means those of TCP.
fn refuse_udp(container: &Container, port: Port) -> Result<(), Omission> {
    let label = format!("rollcall.{port}.{CHECK}");
    match container.labels.get(&label) {
        Some(value) if value != "none" => {
            Err(Omission::of_value(&label, value, "none, as only ports of tcp are checked"))
        }
        _ => Ok(()),
    }
}

/// Refuses labels of a check where there is none: whoever wrote them wants one.
fn refuse_alone(container: &Container, port: Port) -> Result<(), Omission> {
    let names = ["path", "status", "interval", "timeout", "rise", "fall"];
    let alone = names.iter().find_map(|name| labels::ours(container, Some(port), &format!("{CHECK}.{name}")));
    match alone {
        None => Ok(()),
        Some((value, source)) => {
            Err(Omission::of_value(&source, value, "rollcall.check=tcp or rollcall.check=http beside it"))
        }
    }
}

fn path(found: Option<Found<'_>>) -> Result<PathAndQuery, Omission> {
    let Some((text, source)) = found else { return Ok(PathAndQuery::from_static("/")) };
    let is_plain =
        text.starts_with('/') && text.len() <= MAX_PATH && text.bytes().all(|b| b.is_ascii_graphic());
    let path = is_plain.then(|| text.parse().ok()).flatten();
    path.ok_or_else(|| {
        let expected = format!("a path such as /health, of up to {MAX_PATH} visible ASCII characters");
        Omission::of_value(&source, text, expected)
    })
}

fn statuses(found: Option<Found<'_>>) -> Result<Statuses, Omission> {
    let Some((text, source)) = found else { return Ok(Statuses::default()) };
    let expected = "an HTTP status or a range of them, such as 200 or 200-399";
    text.parse().map_err(|()| Omission::of_value(&source, text, expected))
}

fn duration(found: Option<Found<'_>>, min: Duration, max: Duration) -> Result<Option<Duration>, Omission> {
    let Some((text, source)) = found else { return Ok(None) };
    let read = time::parse(text).ok().filter(|time| (min..=max).contains(time));
    let read = read.ok_or_else(|| {
        Omission::of_value(&source, text, format!("a time from {} to {}", time::show(min), time::show(max)))
    });
    read.map(Some)
}

fn count(found: Option<Found<'_>>) -> Result<Option<u32>, Omission> {
    let Some((text, source)) = found else { return Ok(None) };
    let read = text.parse().ok().filter(|count| (1..=MAX_COUNT).contains(count));
    read.map(Some).ok_or_else(|| Omission::of_value(&source, text, format!("1 to {MAX_COUNT}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::inventory::container::testing::container;

    fn with(labels: &[(&str, &str)]) -> Container {
        let own = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Container { labels: own.collect(), ..container("web") }
    }

    fn spec(port: &str, labels: &[(&str, &str)]) -> Result<Option<Spec>, String> {
        let port = port.parse().expect("a port");
        Spec::of(&with(labels), port, Ready::None).map_err(|omission| omission.to_string())
    }

    fn shown(port: &str, labels: &[(&str, &str)]) -> String {
        spec(port, labels).expect("good labels").map_or_else(String::new, |spec| spec.to_string())
    }

    #[test]
    fn a_port_has_the_check_that_its_nearest_label_asks_for() {
        let labels = [
            ("rollcall.check", "http"),
            ("rollcall.check.path", "/health?deep=1"),
            ("rollcall.check.status", "200"),
            ("rollcall.check.interval", "5s"),
            ("rollcall.check.timeout", "500ms"),
            ("rollcall.check.rise", "3"),
            ("rollcall.check.fall", "1"),
            ("rollcall.81.check", "tcp"),
            ("rollcall.82/tcp.check", "none"),
        ];
        let expected = "GET /health?deep=1 answered with 200 within 500ms, each 5s, rise 3, fall 1 \
                        (from rollcall.check)";
        assert_eq!(shown("80", &labels), expected);
        let expected = "a TCP connection within 500ms, each 5s, rise 3, fall 1 (from rollcall.81.check)";
        assert_eq!(shown("81", &labels), expected);
        assert_eq!(shown("82", &labels), "");
        assert_eq!(shown("80/udp", &labels), "", "a port of udp takes no connection");
        let expected =
            "GET / answered with 200-399 within 2s, each 10s, rise 2, fall 3 (from rollcall.check)";
        assert_eq!(shown("80", &[("rollcall.check", "http")]), expected);
        let hasty = [("rollcall.check", "tcp"), ("rollcall.check.interval", "1s")];
        assert!(shown("80", &hasty).starts_with("a TCP connection within 1s, each 1s"));
    }

    #[test]
    fn a_value_that_cannot_be_is_named_with_what_was_expected() {
        for (name, value, expected) in [
            ("rollcall.check", "ping", "tcp, http or none"),
            ("rollcall.53/udp.check", "tcp", "none, as only ports of tcp are checked"),
            (
                "rollcall.check.path",
                "health",
                "a path such as /health, of up to 1024 visible ASCII characters",
            ),
            ("rollcall.check.path", "/a b", "a path such as /health, of up to 1024 visible ASCII characters"),
            (
                "rollcall.check.path",
                "/ HTTP/1.1\r\nHost: elsewhere",
                "a path such as /health, of up to 1024 visible ASCII characters",
            ),
            ("rollcall.check.status", "600", "an HTTP status or a range of them, such as 200 or 200-399"),
            ("rollcall.check.status", "399-200", "an HTTP status or a range of them, such as 200 or 200-399"),
            ("rollcall.check.interval", "10ms", "a time from 1s to 1h"),
            ("rollcall.check.interval", "soon", "a time from 1s to 1h"),
            ("rollcall.check.timeout", "11s", "a time from 1ms to 10s"),
            ("rollcall.check.timeout", "0s", "a time from 1ms to 10s"),
            ("rollcall.check.rise", "0", "1 to 100"),
            ("rollcall.check.fall", "-1", "1 to 100"),
        ] {
            let port = if name.contains("udp") { "53/udp" } else { "80" };
            let mut labels = vec![("rollcall.check", "http")];
            labels.retain(|(label, _)| *label != name);
            let error = spec(port, &[&labels[..], &[(name, value)]].concat()).expect_err(name);
            assert_eq!(error, format!("{name} is {value:?}: expected {expected}"));
        }
    }

    #[test]
    fn labels_of_a_check_that_nobody_asks_for_are_refused() {
        let expected =
            "rollcall.check.path is \"/x\": expected rollcall.check=tcp or rollcall.check=http beside it";
        assert_eq!(spec("80", &[("rollcall.check.path", "/x")]), Err(expected.to_owned()));
        assert_eq!(spec("80", &[("rollcall.check", "none"), ("rollcall.check.path", "/x")]), Ok(None));
    }

    #[test]
    fn registrators_variables_are_understood() {
        let labels = [
            ("SERVICE_80_CHECK_HTTP", "/up"),
            ("SERVICE_80_CHECK_INTERVAL", "15s"),
            ("SERVICE_CHECK_TIMEOUT", "1s"),
            ("SERVICE_81_CHECK_TCP", "true"),
            ("SERVICE_82_CHECK_TCP", "false"),
        ];
        let expected =
            "GET /up answered with 200-399 within 1s, each 15s, rise 2, fall 3 (from SERVICE_80_CHECK_HTTP)";
        assert_eq!(shown("80", &labels), expected);
        assert!(shown("81", &labels).starts_with("a TCP connection within 1s, each 10s"));
        assert_eq!(shown("82", &labels), "");
        let error = spec("80", &[("SERVICE_CHECK_HTTP", "secret")]).expect_err("no path");
        assert!(error.starts_with("SERVICE_CHECK_HTTP is something else: expected a path"), "{error}");
        let own = [("SERVICE_CHECK_HTTP", "/up"), ("rollcall.check", "tcp")];
        assert!(shown("80", &own).starts_with("a TCP connection"), "ours come first");
    }

    #[test]
    fn a_container_without_a_check_is_held_until_it_is_ready_where_that_is_asked_for() {
        let held = |container: &Container, port: &str| {
            let port = port.parse().expect("a port");
            Spec::of(container, port, Ready::Tcp).expect("good labels").map(|spec| spec.is_once)
        };
        assert_eq!(held(&with(&[]), "80"), Some(true));
        assert_eq!(held(&with(&[]), "80/udp"), None);
        assert_eq!(held(&with(&[("rollcall.check", "none")]), "80"), None);
        assert_eq!(held(&with(&[("rollcall.check", "tcp")]), "80"), Some(false));
        assert_eq!(held(&Container { check: Check::Starting, ..with(&[]) }, "80"), None);
    }

    proptest! {
        #[test]
        fn whatever_a_container_says_is_refused_or_within_the_bounds(
            name in proptest::sample::select(vec!["", ".path", ".status", ".interval", ".timeout", ".rise", ".fall"]),
            value in prop_oneof![any::<String>(), "/[ -~]{0,40}", "[0-9]{1,5}(ms|s|m|h|-[0-9]{1,4})?"],
        ) {
            let label = format!("rollcall.check{name}");
            let labels = [("rollcall.check", "http"), (&*label, &*value)];
            let Ok(Some(Spec { method, interval, timeout, rise, fall, .. })) = spec("80", &labels) else {
                return Ok(());
            };
            prop_assert!((MIN_INTERVAL..=MAX_INTERVAL).contains(&interval));
            prop_assert!((MIN_TIMEOUT..=interval).contains(&timeout));
            prop_assert!((1..=MAX_COUNT).contains(&rise) && (1..=MAX_COUNT).contains(&fall));
            if let Method::Http { path, .. } = method {
                prop_assert!(path.as_str().starts_with('/') && path.as_str().bytes().all(|b| b.is_ascii_graphic()));
            }
        }
    }
}
