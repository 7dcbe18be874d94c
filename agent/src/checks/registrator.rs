//! The variables by which registrator has Consul check a service
//! (<https://gliderlabs.github.io/registrator/latest/user/backends/>), as far as this agent does not do the same.

use itertools::Itertools;

use crate::{
    inventory::container::Container,
    registration::omission::{MAX_SHOWN_CHARS, Omission, Reason},
};

/// Those that are understood.
const SUPPORTED: [&str; 4] = ["HTTP", "TCP", "INTERVAL", "TIMEOUT"];

/// What a container asks for by registrator's variables that this agent does not do; the rest of it is registered.
pub fn unsupported(container: &Container) -> Vec<Omission> {
    let names = container.labels.keys().chain(container.env.keys());
    let unsupported = names.filter(|name| is_unsupported(name)).unique().sorted();
    unsupported.map(|name| omission(name)).collect()
}

/// Whether the name asks for a check of another kind: `SERVICE_CHECK_SCRIPT`, `SERVICE_443_CHECK_HTTPS`.
fn is_unsupported(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("SERVICE_") else { return false };
    let rest = match rest.split_once('_') {
        Some((port, rest)) if port.parse::<u16>().is_ok() => rest,
        _ => rest,
    };
    rest.strip_prefix("CHECK_").is_some_and(|kind| !SUPPORTED.contains(&kind))
}

/// Names it, without its value: variables often hold secrets.
fn omission(name: &str) -> Omission {
    let name: String = name.chars().take(MAX_SHOWN_CHARS).collect();
    let expected = "expected SERVICE_CHECK_HTTP, SERVICE_CHECK_TCP or rollcall.check";
    Omission::new(Reason::Label, format!("{name} is not supported: {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::container::testing::container;

    #[test]
    fn what_registrator_checks_and_this_agent_does_not_is_named_and_no_value_is_shown() {
        let mut web = container("web");
        for (name, value) in [("SERVICE_CHECK_SCRIPT", "curl -H secret"), ("SERVICE_80_CHECK_HTTP", "/")] {
            web.labels.insert(name.to_owned(), value.to_owned());
        }
        web.env = web.labels.clone();
        web.env.insert("SERVICE_443_CHECK_HTTPS".to_owned(), "/".to_owned());
        let named: Vec<String> = unsupported(&web).iter().map(Omission::to_string).collect();
        let expected = "is not supported: expected SERVICE_CHECK_HTTP, SERVICE_CHECK_TCP or rollcall.check";
        let names = ["SERVICE_443_CHECK_HTTPS", "SERVICE_CHECK_SCRIPT"];
        assert_eq!(named, names.map(|name| format!("{name} {expected}")));
    }
}
