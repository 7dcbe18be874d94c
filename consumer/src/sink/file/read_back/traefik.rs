//! What Traefik has, by its API: `GET /api/rawdata`, which has every router and service with its provider and its errors.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Mismatch, comparison::Listing};

/// Where all of its dynamic configuration is, in one answer.
pub(super) const RAW: &str = "/api/rawdata";
/// What follows the name of what came from a file.
const PROVIDER: &str = "@file";

/// The file, as far as it counts.
#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    http: Tables,
}

/// Routers and services by name; in an answer, there are those of all providers.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Tables {
    routers: BTreeMap<String, Router>,
    services: BTreeMap<String, Service>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Router {
    rule: String,
    service: String,
    #[serde(default)]
    entry_points: Vec<String>,
    #[serde(flatten)]
    standing: Standing,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Service {
    load_balancer: Option<LoadBalancer>,
    #[serde(flatten)]
    standing: Standing,
}

#[derive(Deserialize)]
struct LoadBalancer {
    #[serde(default)]
    servers: Vec<Server>,
}

#[derive(Deserialize)]
struct Server {
    #[serde(default)]
    url: String,
    weight: Option<i64>,
}

/// What Traefik says of something; a file has nothing of it.
#[derive(Deserialize)]
struct Standing {
    status: Option<String>,
    #[serde(default)]
    error: Vec<String>,
}

/// Compares what is installed with what is there of files. Where `others` are, their routers and services are left alone.
pub(super) fn compare(installed: &[u8], answer: &[u8], others: bool) -> Result<(), Mismatch> {
    let file = file(installed).map_err(Mismatch::Installed)?.http;
    let mut found: Tables = serde_json::from_slice(answer).map_err(Mismatch::Answer)?;
    let is_ours = |tables: &Tables, name: &str| {
        !others || tables.services.contains_key(name) || tables.routers.contains_key(name)
    };
    let local =
        |name: &str| name.strip_suffix(PROVIDER).filter(|name| is_ours(&file, name)).map(str::to_owned);
    found.routers = renamed(found.routers, local);
    found.services = renamed(found.services, local);
    // Traefik fills in its own entry points where a router has none.
    for (name, router) in &mut found.routers {
        if file.routers.get(name).is_some_and(|wanted| wanted.entry_points.is_empty()) {
            router.entry_points.clear();
        }
    }
    listing(&file)
        .difference(&listing(&found))
        .map_or(Ok(()), |difference| Err(Mismatch::Differs(difference)))
}

fn renamed<T>(all: BTreeMap<String, T>, local: impl Fn(&str) -> Option<String>) -> BTreeMap<String, T> {
    all.into_iter().filter_map(|(name, one)| Some((local(&name)?, one))).collect()
}

/// The file without its comments: it is JSON then, as far as it is ours.
fn file(installed: &[u8]) -> serde_json::Result<File> {
    let lines = installed.split_inclusive(|byte| *byte == b'\n');
    let lines: Vec<&[u8]> = lines.filter(|line| !line.starts_with(b"#")).collect();
    serde_json::from_slice(&lines.concat())
}

fn listing(Tables { routers, services }: &Tables) -> Listing {
    let mut listing = Listing::default();
    for (name, Service { load_balancer, standing }) in services {
        listing.add(format!("service {name}"), standing.shown());
        for Server { url, weight } in load_balancer.iter().flat_map(|balancer| &balancer.servers) {
            listing.add(format!("{url} of {name}"), format!("weight {}", weight.unwrap_or(1)));
        }
    }
    for (name, Router { rule, service, entry_points, standing }) in routers {
        let places = if entry_points.is_empty() { String::new() } else { entry_points.join(", ") + " " };
        let state = format!("{}{places}{rule} -> {service}", standing.refusal());
        listing.add(format!("router {name}"), state);
    }
    listing
}

impl Standing {
    fn refusal(&self) -> String {
        let is_refused = self.status.as_deref().is_some_and(|status| status != "enabled");
        match self.error.first() {
            Some(error) => format!("refused ({error}) "),
            None if is_refused => "refused ".to_owned(),
            None => String::new(),
        }
    }

    fn shown(&self) -> String {
        let refusal = self.refusal();
        if refusal.is_empty() { "enabled".to_owned() } else { refusal.trim_end().to_owned() }
    }
}
