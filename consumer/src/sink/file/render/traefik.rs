//! The format `traefik`: a dynamic configuration of Traefik for its file provider, with a service of HTTP for each service
//! and, where that is wanted, a router to it.
//!
//! It is JSON, which is YAML as well: Traefik reads files by their names, `.yml` and `.yaml` as YAML. Traefik fills such a
//! file in as a template of Go first; nothing that is registered or that the settings take has `{{` in it.

use rollcall_shared::{model::name::ServiceName, process::setting::SettingError};
use serde::{Deserialize, Serialize};

use super::{RenderError, block::Block, format::servers};
use crate::roll::Row;

/// Stands for the service's name in a rule.
const SERVICE: &str = "{service}";

/// How services are routed to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traefik {
    /// What sends requests to a service, with `{service}` for its name; `None` where the routers are someone else's.
    pub rule: Option<String>,
    /// The entry points that it is for; Traefik's own default where there is none.
    pub entry_points: Vec<String>,
}

/// The settings as they are written: `[target.traefik]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawTraefik {
    domain: Option<String>,
    rule: Option<String>,
    #[serde(default)]
    entry_points: Vec<String>,
}

impl RawTraefik {
    /// What it means.
    ///
    /// # Errors
    /// A domain or a rule that is none, both of them, or entry points for nothing.
    pub fn parse(self) -> Result<Traefik, SettingError> {
        let Self { domain, rule, entry_points } = self;
        // A domain is of the letters of a service's name, and so is an entry point.
        let is_name = |text: &String| text.parse::<ServiceName>().is_ok();
        if let Some(domain) = domain.as_ref().filter(|domain| !is_name(domain)) {
            return Err(SettingError::new("traefik.domain", domain, "a domain such as example.com"));
        }
        if let Some(rule) = &rule {
            check_rule(rule).map_err(|expected| SettingError::new("traefik.rule", rule, expected))?;
        }
        if let Some(name) = entry_points.iter().find(|name| !is_name(name)) {
            return Err(SettingError::new("traefik.entry_points", name, "the name of an entry point"));
        }
        let rule = match (domain, rule) {
            (Some(_), Some(rule)) => {
                return Err(SettingError::new("traefik.rule", rule, "it or traefik.domain, not both"));
            }
            (Some(domain), None) => Some(format!("Host(`{SERVICE}.{domain}`)")),
            (None, rule) => rule,
        };
        if rule.is_none() && !entry_points.is_empty() {
            let expected = "traefik.domain or traefik.rule beside it";
            return Err(SettingError::new("traefik.entry_points", entry_points.join(", "), expected));
        }
        Ok(Traefik { rule, entry_points })
    }
}

/// Checks that a rule is one for each service, and that YAML and Go's templates leave it as it is.
fn check_rule(rule: &str) -> Result<(), String> {
    if !rule.contains(SERVICE) {
        return Err(format!("{SERVICE} in it, for the service's name"));
    }
    if rule.contains("{{") || rule.chars().any(|c| !(' '..='~').contains(&c)) {
        return Err("printable ASCII without {{".to_owned());
    }
    Ok(())
}

/// One service as it stands among the others: its name and its servers.
pub(super) fn block(service: &ServiceName, rows: &[&Row]) -> Result<Block, RenderError> {
    servers(rows, true, |rows| {
        let lines: Vec<String> =
            rows.iter().map(|row| serde_json::to_string(&Server::of(row))).collect::<Result<_, _>>()?;
        let servers = match lines.as_slice() {
            [] => String::new(),
            lines => format!("\n{}\n", lines.join(",\n")),
        };
        let name = serde_json::to_string(service.as_str())?;
        Ok::<_, serde_json::Error>(format!("{name}:{{\"loadBalancer\":{{\"servers\":[{servers}]}}}}"))
    })
}

#[derive(Serialize)]
struct Server {
    url: String,
    #[serde(skip_serializing_if = "is_one")]
    weight: u16,
}

fn is_one(weight: &u16) -> bool {
    *weight == 1
}

impl Server {
    fn of(row: &Row) -> Self {
        Self { url: format!("http://{}", row.endpoint), weight: row.instance.weight }
    }
}

#[derive(Serialize)]
struct Router<'a> {
    rule: String,
    service: &'a ServiceName,
    #[serde(rename = "entryPoints", skip_serializing_if = "<[String]>::is_empty")]
    entry_points: &'a [String],
}

impl Traefik {
    fn router(&self, service: &ServiceName) -> serde_json::Result<Option<String>> {
        let Some(rule) = &self.rule else { return Ok(None) };
        let rule = rule.replace(SERVICE, service.as_str());
        let router = Router { rule, service, entry_points: &self.entry_points };
        let name = serde_json::to_string(service.as_str())?;
        Ok(Some(format!("{name}:{}", serde_json::to_string(&router)?)))
    }

    /// The file of these services. Traefik refuses one with a table that is there and empty.
    pub(super) fn join(&self, services: &[(&ServiceName, &str)]) -> Result<Vec<u8>, RenderError> {
        let routers = services.iter().filter_map(|(service, _)| self.router(service).transpose());
        let routers = routers.collect::<serde_json::Result<Vec<_>>>();
        let routers = routers.map_err(|error| RenderError::Format(error.into()))?;
        let services: Vec<&str> = services.iter().map(|(_, text)| *text).collect();
        let tables = [table("services", &services.join(",\n")), table("routers", &routers.join(",\n"))];
        let tables: Vec<String> = tables.into_iter().flatten().collect();
        Ok(format!("{}{{\"http\":{{{}}}}}\n", super::format::HEADER, tables.join(",")).into_bytes())
    }
}

fn table(name: &str, lines: &str) -> Option<String> {
    (!lines.is_empty()).then(|| format!("\"{name}\":{{\n{lines}\n}}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_cannot_work_is_refused_with_what_was_expected() {
        for (text, expected) in [
            ("domain = \"a b\"", "traefik.domain is a b: expected a domain such as example.com"),
            (
                "rule = \"Host(`a`)\"",
                "traefik.rule is Host(`a`): expected {service} in it, for the service's name",
            ),
            (
                "rule = \"{{{service}}}\"",
                "traefik.rule is {{{service}}}: expected printable ASCII without {{",
            ),
            (
                "rule = \"{service}\"\ndomain = \"a.example\"",
                "traefik.rule is {service}: expected it or traefik.domain, not both",
            ),
            (
                "entry_points = [\"web\", \"a b\"]",
                "traefik.entry_points is a b: expected the name of an entry point",
            ),
            (
                "entry_points = [\"web\"]",
                "traefik.entry_points is web: expected traefik.domain or traefik.rule beside it",
            ),
        ] {
            let raw: RawTraefik = toml::from_str(text).expect("it can be read");
            assert_eq!(raw.parse().expect_err("it cannot work").to_string(), expected);
        }
    }
}
