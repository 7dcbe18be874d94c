//! The format `haproxy`: a whole configuration with a frontend, and a backend for each service.

use askama::Template as _;
use rollcall_shared::{model::name::ServiceName, process::setting::SettingError};
use serde::Deserialize;

use super::RenderError;
use crate::sink::haproxy::{RuntimeConfig, lines::backend};

/// How services are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Haproxy {
    /// Where HTTP is served.
    pub port: u16,
    /// The service that gets the requests that are for none.
    pub default_service: Option<ServiceName>,
    /// What follows a service's name in the host names of its requests.
    pub domain: Option<String>,
}

impl Default for Haproxy {
    fn default() -> Self {
        Self { port: 80, default_service: None, domain: None }
    }
}

/// The settings as they are written: `[target.haproxy]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawHaproxy {
    port: Option<u16>,
    default_service: Option<ServiceName>,
    domain: Option<String>,
}

impl RawHaproxy {
    /// What it means.
    ///
    /// # Errors
    /// A port 0, or a domain that is none.
    pub fn parse(self) -> Result<Haproxy, SettingError> {
        let Self { port, default_service, domain } = self;
        if port == Some(0) {
            return Err(SettingError::new("haproxy.port", 0, "1 to 65535"));
        }
        // A domain is of the letters of a service's name.
        if let Some(domain) = domain.as_ref().filter(|domain| domain.parse::<ServiceName>().is_err()) {
            return Err(SettingError::new("haproxy.domain", domain, "a domain such as example.com"));
        }
        Ok(Haproxy { port: port.unwrap_or(80), default_service, domain })
    }
}

impl Haproxy {
    /// The file of these services and their backends.
    pub(super) fn join(
        &self,
        backends: &[(&ServiceName, &str)],
        runtime: Option<&RuntimeConfig>,
    ) -> Result<Vec<u8>, RenderError> {
        let Self { port, default_service, domain } = self;
        let has = |service: &&ServiceName| backends.iter().any(|(name, _)| name == service);
        let only = || match backends {
            [(service, _)] => Some(*service),
            _ => None,
        };
        let default = default_service.as_ref().filter(has).or_else(only);
        let file = HaproxyFile { port: *port, default, domain: domain.as_deref(), backends, runtime };
        file.render().map(String::into_bytes).map_err(|error| RenderError::Format(error.into()))
    }
}

#[derive(askama::Template)]
#[template(path = "haproxy.txt", escape = "none")]
struct HaproxyFile<'b> {
    port: u16,
    default: Option<&'b ServiceName>,
    domain: Option<&'b str>,
    backends: &'b [(&'b ServiceName, &'b str)],
    runtime: Option<&'b RuntimeConfig>,
}

impl HaproxyFile<'_> {
    fn backend(&self, service: &ServiceName) -> String {
        backend(service, self.runtime)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_cannot_work_is_refused_with_what_was_expected() {
        for (text, expected) in [
            ("port = 0", "haproxy.port is 0: expected 1 to 65535"),
            ("domain = \"a b\"", "haproxy.domain is a b: expected a domain such as example.com"),
        ] {
            let raw: RawHaproxy = toml::from_str(text).expect("it can be read");
            assert_eq!(raw.parse().expect_err("it cannot work").to_string(), expected);
        }
    }
}
