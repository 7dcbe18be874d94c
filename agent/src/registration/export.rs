//! Which labels and environment variables of a container leave its host.
//!
//! Both often hold secrets. Only these go out: Rollcall's own labels, what Compose, Swarm and the tools that Rollcall
//! replaces select by, and what the operator names. Pure.

use std::collections::BTreeMap;

use rollcall_shared::{
    codec,
    model::stack::{COMPOSE_PROJECT, COMPOSE_SERVICE, SWARM_SERVICE, SWARM_STACK},
};

use super::{
    omission::{MAX_SHOWN_CHARS, Omission, Reason},
    settings::FilterSettings,
};
use crate::inventory::container::Container;

/// How large what is let out of one instance may be, which leaves room for the rest of the value.
pub const MAX_BYTES: usize = codec::MAX_VALUE_BYTES * 3 / 4;
/// How large it may be in all instances of a container.
pub const MAX_CONTAINER_BYTES: usize = 512 << 10;

/// Labels that go out by default: others select by them, and none is a secret.
const PUBLIC_LABELS: [&str; 5] =
    ["com.citusdata.role", COMPOSE_PROJECT, COMPOSE_SERVICE, SWARM_SERVICE, SWARM_STACK];

/// What nginx-proxy reads (<https://github.com/nginx-proxy/nginx-proxy/tree/main/docs>), as variables or labels. It is
/// public by nature: what it says stands in the proxy's configuration.
const VIRTUAL_HOST_NAMES: [&str; 11] = [
    "VIRTUAL_HOST",
    "VIRTUAL_HOST_MULTIPORTS",
    "VIRTUAL_PORT",
    "VIRTUAL_PATH",
    "VIRTUAL_DEST",
    "VIRTUAL_PROTO",
    "VIRTUAL_ROOT",
    "CERT_NAME",
    "HTTPS_METHOD",
    "HSTS",
    "NETWORK_ACCESS",
];

/// What goes out of a container, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exported {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
}

impl Exported {
    /// What goes out of a container that has so many instances, and what is named and stays in: values of several
    /// lines, and the largest where there is no room for all in each of the instances.
    pub fn of(container: &Container, filter: &FilterSettings, instances: usize) -> (Self, Vec<Omission>) {
        let labels = container.labels.iter().filter(|(name, _)| is_public_label(name, filter));
        let labels = labels.map(|(name, value)| (Kind::Label, name, value));
        let environment = container.env.iter().filter(|(name, _)| is_public_variable(name, filter));
        let environment = environment.map(|(name, value)| (Kind::Variable, name, value));
        let mut all: Vec<_> = labels.chain(environment).collect();
        all.sort_by_key(|(_, name, value)| json_bytes(name, value));
        let mut room = MAX_BYTES.min(MAX_CONTAINER_BYTES / instances.max(1));
        let (mut exported, mut kept_in) = (Self::default(), Vec::new());
        for (kind, name, value) in all {
            let shown: String = name.chars().take(MAX_SHOWN_CHARS).collect();
            let what = kind.what();
            if !codec::is_one_line(name) || !codec::is_one_line(value) {
                let text = format!("{what} {shown} has a control character and stays in");
                kept_in.push(Omission::new(Reason::Label, text));
                continue;
            }
            let Some(rest) = room.checked_sub(json_bytes(name, value)) else {
                let text = format!("{what} {shown} has {} bytes: there is room for {room}", value.len());
                kept_in.push(Omission::new(Reason::TooLarge, text));
                continue;
            };
            room = rest;
            let pairs = match kind {
                Kind::Label => &mut exported.labels,
                Kind::Variable => &mut exported.environment,
            };
            pairs.insert(name.clone(), value.clone());
        }
        (exported, kept_in)
    }
}

/// What a name and a value are of.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Label,
    Variable,
}

impl Kind {
    fn what(self) -> &'static str {
        match self {
            Kind::Label => "label",
            Kind::Variable => "variable",
        }
    }
}

fn is_public_label(name: &str, filter: &FilterSettings) -> bool {
    name.starts_with("rollcall.")
        || PUBLIC_LABELS.contains(&name)
        || VIRTUAL_HOST_NAMES.contains(&name)
        || is_named(name, &filter.export_labels)
}

fn is_public_variable(name: &str, filter: &FilterSettings) -> bool {
    VIRTUAL_HOST_NAMES.contains(&name) || is_named(name, &filter.export_env)
}

fn is_named(name: &str, wanted: &[String]) -> bool {
    wanted.iter().any(|wanted| match wanted.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == wanted,
    })
}

/// What a pair takes in JSON: quotes, colon and comma, and a backslash before some characters.
fn json_bytes(name: &str, value: &str) -> usize {
    let escaped = |text: &str| text.len() + text.matches(['"', '\\']).count();
    escaped(name) + escaped(value) + 6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{inventory::container::testing::container, registration::description::tests::policy};

    fn exported(labels: &[(&str, &str)], env: &[(&str, &str)]) -> (Exported, Vec<String>) {
        let own = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let container = Container { labels: own(labels), env: own(env), ..container("web") };
        let (exported, kept_in) = Exported::of(&container, &policy().filter, 1);
        (exported, kept_in.iter().map(Omission::to_string).collect())
    }

    #[test]
    fn only_what_is_public_or_the_operator_names_goes_out() {
        let labels = [
            ("secret", "x"),
            ("team", "blue"),
            ("public.a", "1"),
            ("rollcall.signal", "HUP"),
            ("com.citusdata.role", "Worker"),
            ("com.citusdata.secret", "x"),
            ("com.docker.compose.project", "shop"),
            ("com.docker.compose.project.working_dir", "/home/me"),
            ("VIRTUAL_HOST", "example.com"),
        ];
        let env = [("PGPASSWORD", "x"), ("VIRTUAL_PORT", "80"), ("VIRTUAL_SECRET", "x"), ("ZONE", "a")];
        let (exported, kept_in) = exported(&labels, &env);
        let expected =
            "VIRTUAL_HOST com.citusdata.role com.docker.compose.project public.a rollcall.signal team";
        assert_eq!(Vec::from_iter(exported.labels.keys().map(String::as_str)).join(" "), expected);
        assert_eq!(Vec::from_iter(exported.environment.keys()), ["VIRTUAL_PORT", "ZONE"]);
        assert_eq!(kept_in, [""; 0]);
    }

    #[test]
    fn what_has_several_lines_stays_in_and_is_named_without_its_value() {
        let (exported, kept_in) = exported(&[("public.lines", "a\nb")], &[("VIRTUAL_HOST", "a\nb")]);
        assert_eq!(exported, Exported::default());
        assert_eq!(
            kept_in,
            [
                "label public.lines has a control character and stays in",
                "variable VIRTUAL_HOST has a control character and stays in"
            ]
        );
    }
}
