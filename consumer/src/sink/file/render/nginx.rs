//! What the format `nginx-upstream` can be told: `[target.nginx]`. The directives are those of nginx's module
//! ngx_http_upstream_module.

use std::{fmt, net::IpAddr, str::FromStr, time::Duration};

use rollcall_shared::process::{setting::SettingError, time};
use serde::Deserialize;

use crate::config::toml::{self, one_or_many, parsed};

/// A size of memory, in KiB, as nginx writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u32);

impl Size {
    /// Less is refused by nginx: eight pages of memory.
    const MIN: Size = Size(32);
    /// More is surely a slip of the pen.
    const MAX: Size = Size(1024 * 1024);
    /// What nginx 1.22 to 1.31 needs for a server is 1 KiB and somewhat more; measured with 40 to 3,000 servers.
    const OF_SERVER: u32 = 2;

    /// This size, or as much as so many servers need: nginx refuses a file with a zone that is too small, and a service
    /// that grows must not come to that.
    fn for_servers(self, count: usize) -> Size {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.max(Size(Self::MIN.0.saturating_add(count.saturating_mul(Self::OF_SERVER)))).min(Self::MAX)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let factor = |unit| match unit {
            'k' | 'K' => Some(1),
            'm' | 'M' => Some(1024),
            _ => None,
        };
        let unit = text.chars().last().and_then(factor);
        let digits = text.get(..text.len().saturating_sub(1)).filter(|digits| !digits.starts_with('+'));
        let size =
            unit.zip(digits).and_then(|(factor, digits)| digits.parse::<u32>().ok()?.checked_mul(factor));
        size.map(Size)
            .filter(|size| (Self::MIN..=Self::MAX).contains(size))
            .ok_or_else(|| format!("{text:?} is not a size of a zone: expected 32k to 1024m"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}k", self.0)
    }
}

/// How the next server is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// The one with the fewest connections.
    LeastConn,
    /// By the client's address.
    IpHash,
    /// Any.
    Random,
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Balance::LeastConn => "least_conn",
            Balance::IpHash => "ip_hash",
            Balance::Random => "random",
        })
    }
}

/// A server of DNS: an address, and a port other than 53.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolver {
    ip: IpAddr,
    port: Option<u16>,
}

impl FromStr for Resolver {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let with_port = || text.parse().ok().filter(|address: &std::net::SocketAddr| address.port() != 0);
        let alone = text.parse().ok().map(|ip| Self { ip, port: None });
        alone
            .or_else(|| with_port().map(|address| Self { ip: address.ip(), port: Some(address.port()) }))
            .ok_or_else(|| format!("{text:?} is not a server of DNS: expected its IP address, or IP:PORT"))
    }
}

impl fmt::Display for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            IpAddr::V4(ip) => ip.fmt(f)?,
            IpAddr::V6(ip) => write!(f, "[{ip}]")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// What the names of zones begin with: nginx refuses all of a configuration where a zone has the name of one of another
/// kind, such as limit_req_zone's, and services are named by whoever starts containers.
const ZONE: &str = "rollcall_";

/// What stands in each upstream beside its servers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nginx {
    /// The memory that workers share, at least.
    zone: Option<Size>,
    /// How the next server is chosen; round robin where it is not said.
    balance: Option<Balance>,
    /// How many idle connections each worker keeps.
    keepalive: Option<u32>,
    /// How many failures within `fail_timeout` take a server out; 0 for none.
    max_fails: Option<u32>,
    /// That time, and how long the server stays out.
    fail_timeout: Option<Duration>,
    /// Whether nginx resolves host names while it runs.
    resolve: bool,
    /// By whom; nobody where nginx's own configuration has it.
    resolver: Vec<Resolver>,
    /// The tag of instances that get requests only while no other can.
    backup: Option<String>,
}

/// The settings as they are written: `[target.nginx]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawNginx {
    #[serde(default, deserialize_with = "parsed")]
    zone: Option<Size>,
    balance: Option<Balance>,
    keepalive: Option<u32>,
    max_fails: Option<u32>,
    #[serde(default, deserialize_with = "toml::time")]
    fail_timeout: Option<Duration>,
    #[serde(default)]
    resolve: bool,
    #[serde(default, deserialize_with = "one_or_many")]
    resolver: Vec<Resolver>,
    backup: Option<String>,
}

impl RawNginx {
    /// What it means.
    ///
    /// # Errors
    /// Settings that nginx would refuse.
    pub fn parse(self) -> Result<Nginx, SettingError> {
        let Self { zone, balance, keepalive, max_fails, fail_timeout, resolve, resolver, backup } = self;
        if keepalive == Some(0) {
            return Err(SettingError::new("nginx.keepalive", 0, "1 or more"));
        }
        if let Some(time) = fail_timeout.filter(|time| time.as_secs() == 0 || time.subsec_nanos() != 0) {
            return Err(SettingError::new(
                "nginx.fail_timeout",
                time::show(time),
                "whole seconds, 1s or more",
            ));
        }
        if resolve && zone.is_none() {
            return Err(SettingError::new("nginx.resolve", resolve, "zone beside it, such as \"64k\""));
        }
        if let (false, Some(first)) = (resolve, resolver.first()) {
            return Err(SettingError::new("nginx.resolver", first, "resolve = true beside it"));
        }
        if let Some(tag) = backup.as_ref().filter(|tag| tag.trim().is_empty()) {
            return Err(SettingError::new("nginx.backup", format!("{tag:?}"), "the tag of backup servers"));
        }
        if let (Some(tag), Some(Balance::IpHash | Balance::Random)) = (&backup, balance) {
            let expected = "no balance beside it but least_conn, as nginx knows no backups there";
            return Err(SettingError::new("nginx.backup", tag, expected));
        }
        Ok(Nginx { zone, balance, keepalive, max_fails, fail_timeout, resolve, resolver, backup })
    }
}

impl Nginx {
    /// Whether host names may stand in the file whether or not they resolve now.
    pub(super) fn resolves_later(&self) -> bool {
        self.resolve
    }

    /// Whether instances with these tags are backup servers.
    pub(super) fn is_backup(&self, tags: &[String]) -> bool {
        self.backup.as_ref().is_some_and(|backup| tags.contains(backup))
    }

    /// The directives that come first in an upstream of so many servers: nginx wants the balance before `keepalive`.
    pub(super) fn directives(&self, service: &str, servers: usize) -> Vec<String> {
        let resolver = self.resolver.iter().map(|resolver| format!(" {resolver}")).collect::<String>();
        [
            self.zone.map(|size| format!("zone {ZONE}{service} {}", size.for_servers(servers))),
            (!resolver.is_empty()).then(|| format!("resolver{resolver}")),
            self.balance.map(|balance| balance.to_string()),
            self.keepalive.map(|count| format!("keepalive {count}")),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// What follows the address of every server.
    pub(super) fn parameters(&self) -> String {
        let max_fails = self.max_fails.map(|count| format!(" max_fails={count}"));
        let fail_timeout = self.fail_timeout.map(|time| format!(" fail_timeout={}s", time.as_secs()));
        [max_fails, fail_timeout].into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Nginx, String> {
        let raw: RawNginx = ::toml::from_str(text).map_err(|error| error.message().to_owned())?;
        raw.parse().map_err(|error| error.to_string())
    }

    #[test]
    fn a_setting_that_nginx_would_refuse_is_refused_with_what_was_expected() {
        for (text, expected) in [
            ("zone = \"16k\"", "\"16k\" is not a size of a zone: expected 32k to 1024m"),
            ("zone = \"64\"", "\"64\" is not a size of a zone: expected 32k to 1024m"),
            ("zone = \"+64k\"", "\"+64k\" is not a size of a zone: expected 32k to 1024m"),
            ("zone = \"9999999m\"", "\"9999999m\" is not a size of a zone: expected 32k to 1024m"),
            ("zone = \"é\"", "\"é\" is not a size of a zone: expected 32k to 1024m"),
            ("keepalive = 0", "nginx.keepalive is 0: expected 1 or more"),
            (
                "fail_timeout = \"1500ms\"",
                "nginx.fail_timeout is 1s 500ms: expected whole seconds, 1s or more",
            ),
            ("fail_timeout = \"0s\"", "nginx.fail_timeout is 0s: expected whole seconds, 1s or more"),
            ("resolve = true", "nginx.resolve is true: expected zone beside it, such as \"64k\""),
            ("resolver = \"::1\"", "nginx.resolver is [::1]: expected resolve = true beside it"),
            (
                "zone = \"64k\"\nresolve = true\nresolver = [\"dns\"]",
                "\"dns\" is not a server of DNS: expected its IP address, or IP:PORT",
            ),
            ("backup = \" \"", "nginx.backup is \" \": expected the tag of backup servers"),
            (
                "backup = \"b\"\nbalance = \"random\"",
                "nginx.backup is b: expected no balance beside it but least_conn, as nginx knows no backups there",
            ),
        ] {
            assert_eq!(parse(text), Err(expected.to_owned()), "{text}");
        }
        let unknown = parse("balance = \"fair\"").expect_err("there is none");
        assert!(unknown.starts_with("unknown variant `fair`, expected one of `least_conn`"), "{unknown}");
    }

    #[test]
    fn a_zone_grows_with_its_servers() {
        let nginx = parse("zone = \"1m\"").expect("a zone");
        for (servers, expected) in [(0, "1024k"), (496, "1024k"), (497, "1026k"), (usize::MAX, "1048576k")] {
            assert_eq!(nginx.directives("web", servers), [format!("zone rollcall_web {expected}")]);
        }
    }

    #[test]
    fn a_resolver_is_written_as_nginx_reads_it() {
        let text = "zone = \"32K\"\nresolve = true\nresolver = [\"127.0.0.11\", \"::1\", \"[::1]:5353\"]";
        let nginx = parse(text).expect("it can work");
        assert_eq!(
            nginx.directives("web", 0),
            ["zone rollcall_web 32k", "resolver 127.0.0.11 [::1] [::1]:5353"]
        );
    }
}
