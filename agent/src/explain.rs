//! `explain CONTAINER`: what would be registered of a container, and why, or why not.

use rollcall_shared::{
    instance::{Endpoint, Instance},
    key::{Key, Keys},
    wire,
};

use crate::{
    containers::Running,
    deliveries::SIGNAL_LABEL,
    desired::{self, Described, Policy},
};

/// Explains a running container in a few lines for people.
pub fn explain(running: &Running, policy: &Policy, keys: &Keys, allowed: &[String]) -> String {
    let container = &*running.container;
    let description = desired::describe(running, policy);
    let mut lines = vec![format!("{} ({}), image {}", container.name, container.short_id, container.image)];
    lines.push(format!("  node {}, advertised as {}", policy.node, policy.address.advertised));
    if let Some(reason) = &description.skipped {
        lines.push(format!("  not registered: {reason}"));
    }
    for (port, described) in &description.ports {
        match described {
            Err(reason) => lines.push(format!("  {port} not registered: {reason}")),
            Ok(Described { instance, source }) => {
                lines.push(format!("  {port} registered as {}", endpoints(instance)));
                lines.push(format!("    service {} (from {source})", instance.service));
                lines.push(format!("    status {}, weight {}", instance.status, instance.weight));
            }
        }
    }
    for (id, instance) in description.clone().instances(running, &policy.node) {
        lines.push(format!("  key {}", keys.format(&Key::Instance(id))));
        lines.push(format!("  value {}", String::from_utf8_lossy(&wire::encode(&instance))));
    }
    let by_label = container.labels.get(SIGNAL_LABEL).map_or("none", String::as_str);
    let by_agent = if allowed.is_empty() { "none".to_owned() } else { allowed.join(",") };
    lines.push(format!(
        "  signals allowed: by its label {SIGNAL_LABEL}: {by_label}; by --allow-signal: {by_agent}"
    ));
    lines.push(String::new());
    lines.join("\n")
}

fn endpoints(instance: &Instance) -> String {
    let others = instance.alternatives.iter().map(Endpoint::to_string);
    let all: Vec<String> = [instance.endpoint().to_string()].into_iter().chain(others).collect();
    all.join(", also ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{container::Container, desired::tests};

    #[test]
    fn it_says_where_why_and_why_not() {
        let keys: Keys = "/rollcall".parse().expect("a prefix");
        let text = explain(&tests::web(), &tests::policy(), &keys, &[]);
        assert!(text.contains("80/tcp registered as 10.0.0.5:8080"), "{text}");
        assert!(text.contains("service app (from the image's name)"), "{text}");
        assert!(text.contains("key /rollcall/instances/h1/"), "{text}");
        let closed = Container { bindings: vec![], ..(*tests::web().container).clone() };
        let closed = Running { container: closed.into(), draining: false };
        let text = explain(&closed, &tests::policy(), &keys, &[]);
        assert!(text.contains("not registered: it publishes no port"), "{text}");
    }
}
