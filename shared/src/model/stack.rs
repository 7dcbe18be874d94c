//! What belongs together on several hosts: a Compose project or a Swarm stack, and the services in it, as labels tell.

use std::collections::BTreeMap;

/// The label by which Compose names a container's project.
pub const COMPOSE_PROJECT: &str = "com.docker.compose.project";
/// The label by which Compose names a container's service.
pub const COMPOSE_SERVICE: &str = "com.docker.compose.service";
/// The label by which Swarm names a container's service: in a stack, `<stack>_<service>`.
pub const SWARM_SERVICE: &str = "com.docker.swarm.service.name";
/// The label by which Swarm names a container's stack.
pub const SWARM_STACK: &str = "com.docker.stack.namespace";
/// The label by which a container names its stack that neither made.
pub const STACK: &str = "rollcall.stack";
/// The label by which a container names the service of its ports.
pub const SERVICE: &str = "rollcall.service";

/// Labels by name.
type Labels = BTreeMap<String, String>;

/// The stack that a container belongs to.
pub fn stack(labels: &Labels) -> Option<&str> {
    [STACK, SWARM_STACK, COMPOSE_PROJECT].iter().find_map(|name| labels.get(*name)).map(String::as_str)
}

/// Whether a container is of the service, by the name that its stack's file has for it or by its full one.
pub fn is_of_service(labels: &Labels, service: &str) -> bool {
    let named = [SERVICE, SWARM_SERVICE, COMPOSE_SERVICE]
        .iter()
        .any(|name| labels.get(*name).is_some_and(|found| found == service));
    let in_stack = || {
        let found = labels.get(SWARM_SERVICE)?.strip_prefix(labels.get(SWARM_STACK)?)?;
        Some(found.strip_prefix('_')? == service)
    };
    named || in_stack().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_stack_is_what_compose_swarm_or_the_container_itself_says() {
        for (pairs, expected) in [
            (&[(COMPOSE_PROJECT, "shop")][..], Some("shop")),
            (&[(SWARM_STACK, "shop")], Some("shop")),
            (&[(COMPOSE_PROJECT, "shop"), (STACK, "mine")], Some("mine")),
            (&[("other", "shop")], None),
        ] {
            assert_eq!(stack(&labels(pairs)), expected, "{pairs:?}");
        }
    }

    #[test]
    fn a_service_is_known_by_its_short_and_its_full_name() {
        let swarm = labels(&[(SWARM_SERVICE, "shop_master"), (SWARM_STACK, "shop")]);
        let compose = labels(&[(COMPOSE_SERVICE, "master"), (COMPOSE_PROJECT, "shop")]);
        for (labels, service, expected) in [
            (&swarm, "master", true),
            (&swarm, "shop_master", true),
            (&swarm, "shop", false),
            (&swarm, "_master", false),
            (&compose, "master", true),
            (&compose, "shop_master", false),
            (&labels(&[(SERVICE, "master")]), "master", true),
            (&labels(&[(SWARM_SERVICE, "master")]), "master", true),
        ] {
            assert_eq!(is_of_service(labels, service), expected, "{labels:?} {service}");
        }
    }
}
