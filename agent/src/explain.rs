//! `explain CONTAINER`: what would be registered of a container, and why, or why not.

use std::sync::Arc;

use rollcall_shared::{
    codec,
    keys::{Key, Keys},
    model::instance::{Endpoint, Instance},
    process::setting::SettingError,
};
use tokio::sync::watch;

use crate::{
    Error, Settings,
    docker::{Docker, Engine},
    inventory::Running,
    registration::{
        Policy,
        address::Readers,
        advertise::{self, Found},
        desired::{self, Described},
    },
    signals::{Allowed, policy::SIGNAL_LABEL},
};

/// Explains one running container, by name or ID, in a few lines for people.
///
/// # Errors
/// Settings that cannot work, Docker out of reach, or no such running container.
pub async fn explain(
    settings: &Settings,
    keys: &Keys,
    readers: &Readers,
    container: &str,
) -> Result<String, Error> {
    let Found { advertised, missing: _ } = advertise::find(&settings.node.advertise, readers);
    let policy = Policy::new(&settings.node, &settings.filter, readers, watch::channel(advertised).1)?;
    let docker = Docker::connect(&settings.docker).await?;
    let Some(found) = docker.inspect(container).await? else {
        let expected = "the name or ID of a container that runs on this host";
        return Err(SettingError::new("CONTAINER", format!("{container:?}"), expected).into());
    };
    let running = Running { container: Arc::new(found), is_draining: false };
    Ok(explanation(&running, &policy, keys, &settings.signals.allow))
}

fn explanation(running: &Running, policy: &Policy, keys: &Keys, allowed: &[Allowed]) -> String {
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
    for (id, instance) in description.instances(running, &policy.node) {
        lines.push(format!("  key {}", keys.format(&Key::Instance(id))));
        lines.push(format!("  value {}", String::from_utf8_lossy(&codec::encode(&instance))));
    }
    let by_label = container.labels.get(SIGNAL_LABEL).map_or("none", String::as_str);
    let by_agent: Vec<String> = allowed.iter().map(Allowed::to_string).collect();
    let by_agent = if by_agent.is_empty() { "none".to_owned() } else { by_agent.join(", ") };
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
    use crate::{inventory::container::Container, registration::desired::tests};

    #[test]
    fn it_says_where_why_and_why_not() {
        let keys: Keys = "/rollcall".parse().expect("a prefix");
        let text = explanation(&tests::web(), &tests::policy(), &keys, &[]);
        assert!(text.contains("80/tcp registered as 10.0.0.5:8080"), "{text}");
        assert!(text.contains("service app (from the image's name)"), "{text}");
        assert!(text.contains("key /rollcall/instances/h1/"), "{text}");
        let closed = Container { bindings: vec![], ..(*tests::web().container).clone() };
        let closed = Running { container: closed.into(), is_draining: false };
        let text = explanation(&closed, &tests::policy(), &keys, &[]);
        assert!(text.contains("not registered: it publishes no port"), "{text}");
    }

    #[test]
    fn it_says_which_signals_are_allowed_and_by_whom() {
        let keys: Keys = "/rollcall".parse().expect("a prefix");
        let explained = |rules: &[&str]| {
            let rules: Vec<Allowed> = rules.iter().map(|rule| rule.parse().expect("a rule")).collect();
            explanation(&tests::web(), &tests::policy(), &keys, &rules)
        };
        let none = explained(&[]);
        assert!(none.contains("by its label rollcall.signal: none; by --allow-signal: none"), "{none}");
        let some = explained(&["HUP", "USR1:web-1"]);
        assert!(some.contains("by --allow-signal: HUP, USR1 to container web-1"), "{some}");
    }
}
