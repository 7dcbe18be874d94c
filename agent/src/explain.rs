//! `explain CONTAINER`: what would be registered of a container, and why, or why not.

use std::sync::Arc;

use rollcall_shared::{
    codec,
    keys::{Key, Keys},
    model::{
        instance::{Endpoint, Instance},
        name::ContainerName,
        signal::Signal,
    },
    process::{error::one_line, health::Explainer, host, setting::SettingError, text::escaped},
};
use tokio::sync::watch;

use crate::{
    Error, LayoutSettings, Settings,
    docker::{Docker, Engine},
    inventory::{
        Running, RunningContainers,
        container::{Container, FullId},
    },
    registration::{
        Policy,
        address::Readers,
        advertise::{self, Found},
        container_address,
        description::{self, Described},
        omission::MAX_SHOWN_CHARS,
    },
    signals::{
        Allowed,
        policy::{self, SIGNAL_LABEL},
    },
};

/// Explains one running container, by name or ID, in a few lines for people. What is no name is not looked for: Docker's
/// API would take it for another path.
///
/// # Errors
/// Settings that cannot work, Docker out of reach, or no such running container.
pub async fn explain(
    settings: &Settings,
    layouts: &LayoutSettings,
    keys: &Keys,
    readers: &Readers,
    container: &str,
) -> Result<String, Error> {
    let name: ContainerName = container.parse().map_err(|_| no_such(container))?;
    let (wanted, of) = (settings.node.advertise.clone(), readers.clone());
    // Looking up etcd's name may block, and whatever else this process does goes on meanwhile.
    let search = tokio::task::spawn_blocking(move || advertise::find(&wanted, &of));
    let Found { advertised, missing } = search.await.expect("searching does not panic");
    let Settings { node, filter, checks, .. } = settings;
    let addresses = watch::channel(advertised).1;
    let policy = Policy::new(node, filter, *checks, readers, addresses, layouts)?;
    let docker = Docker::connect(&settings.docker).await?;
    let Some(found) = docker.inspect(name.as_str()).await? else { return Err(no_such(container).into()) };
    let running = Running { container: Arc::new(found), is_draining: false };
    let all = shared_network(&docker, &running).await?;
    let warning = container_address::warning(&policy, &own_container(&docker).await?);
    let warning = warning.map(|warning| format!("  {}\n", escaped(&warning))).unwrap_or_default();
    let missing = missing.iter().map(|missing| format!("  {}\n", escaped(&format!("not found: {missing}"))));
    Ok(explanation(&running, &all, &policy, keys, &settings.signals.allow)
        + &missing.collect::<String>()
        + &warning)
}

fn no_such(container: &str) -> SettingError {
    let expected = "the name or ID of a container that runs on this host";
    SettingError::new("CONTAINER", format!("{container:?}"), expected)
}

/// The container that this process runs in, if it does: Docker makes its ID the host name.
async fn own_container(docker: &Docker) -> Result<RunningContainers, Error> {
    Ok(docker.inspect(&host::name()).await?.into_iter().map(keyed).collect())
}

/// Explains containers by the settings of the process that runs.
pub fn explainer(settings: Settings, layouts: LayoutSettings, keys: Keys, readers: Readers) -> Explainer {
    let told = Arc::new((settings, layouts, keys, readers));
    Arc::new(move |container| {
        let told = told.clone();
        Box::pin(async move {
            let (settings, layouts, keys, readers) = &*told;
            explain(settings, layouts, keys, readers, &container).await.map_err(|error| one_line(&error))
        })
    })
}

/// The container whose network this one shares, if it does.
async fn shared_network(docker: &Docker, running: &Running) -> Result<RunningContainers, Error> {
    let Some(other) = &running.container.network_of else { return Ok(RunningContainers::new()) };
    Ok(docker.inspect(other).await?.into_iter().map(keyed).collect())
}

fn keyed(container: Container) -> (FullId, Running) {
    (container.id.clone(), Running { container: Arc::new(container), is_draining: false })
}

fn explanation(
    running: &Running,
    all: &RunningContainers,
    policy: &Policy,
    keys: &Keys,
    allowed: &[Allowed],
) -> String {
    let container = &*running.container;
    let description = description::describe(running, all, policy);
    let mut lines = vec![format!("{} ({}), image {}", container.name, container.short_id, container.image)];
    lines.push(format!("  node {}, advertised as {}", policy.node, policy.address.advertised));
    if let Some(reason) = &description.skipped {
        lines.push(format!("  not registered: {reason}"));
    }
    for (port, described) in &description.ports {
        match described {
            Err(reason) => lines.push(format!("  {port} not registered: {reason}")),
            Ok(Described { instance, source, check }) => {
                lines.push(format!("  {port} registered as {}", endpoints(instance)));
                lines.push(format!("    service {} (from {source})", instance.service));
                let at_best = if check.is_some() { " at best" } else { "" };
                lines.push(format!("    status {}{at_best}, weight {}", instance.status, instance.weight));
                if let Some(check) = check {
                    lines.push(format!("    the agent finds the status by {check}"));
                }
            }
        }
    }
    for omission in &description.refused {
        lines.push(format!("  left out: {omission}"));
    }
    let layouts = description.layouts.clone();
    for (id, instance) in description.instances(running, &policy.node) {
        lines.push(format!("  key {}", keys.format(&Key::Instance(id))));
        lines.push(format!("  value {}", String::from_utf8_lossy(&codec::encode(&instance))));
    }
    for (key, value) in layouts.iter().flat_map(|entries| &entries.pairs) {
        lines.push(format!("  key {key}"));
        lines.push(format!("  value {}", String::from_utf8_lossy(value)));
    }
    let by_label: String = match container.labels.get(SIGNAL_LABEL) {
        Some(label) => label.chars().take(MAX_SHOWN_CHARS).collect(),
        None => "none".to_owned(),
    };
    let by_agent: Vec<String> = allowed.iter().map(Allowed::to_string).collect();
    let by_agent = if by_agent.is_empty() { "none".to_owned() } else { by_agent.join(", ") };
    lines.push(format!(
        "  signals allowed: by its label {SIGNAL_LABEL}: {by_label}; by --allow-signal: {by_agent}"
    ));
    // HUP stands for any signal that is not the container's own stop signal.
    if let Some(restart) = policy::forgotten_restart(container, Signal::HUP) {
        lines.push(format!(
            "  a signal through Docker's API has Docker forget its --restart {restart}; one by an agent in the host's \
             PID namespace does not"
        ));
    }
    lines.iter().map(|line| escaped(line) + "\n").collect()
}

fn endpoints(instance: &Instance) -> String {
    let others = instance.alternatives.iter().map(Endpoint::to_string);
    let all: Vec<String> = [instance.endpoint().to_string()].into_iter().chain(others).collect();
    all.join(", also ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{inventory::container::Restart, program::Cli, registration::description::tests};

    #[tokio::test]
    async fn what_would_be_another_path_of_dockers_api_is_never_asked_for() {
        let flags = ["rollcall-agent", "--etcd=127.0.0.1:1", "--docker-host=tcp://127.0.0.1:1"];
        let settings = Cli::try_parse_from(flags).expect("flags").settings;
        let (keys, readers) = (settings.etcd.prefix.clone(), Readers::ThisHost);
        for name in ["../images/app", "web/logs?follow=1#", "web/json?", "a b", "", ".."] {
            let explained = explain(&settings.agent, &settings.layouts, &keys, &readers, name).await;
            let refused = explained.expect_err("it is no name").to_string();
            assert!(refused.starts_with(&format!("CONTAINER is {name:?}: expected the name")), "{refused}");
        }
    }

    #[test]
    fn it_says_where_why_and_why_not() {
        let keys: Keys = "/rollcall".parse().expect("a prefix");
        let text = explanation(&tests::web(), &RunningContainers::new(), &tests::policy(), &keys, &[]);
        assert!(text.contains("80/tcp registered as 10.0.0.5:8080"), "{text}");
        assert!(text.contains("service app (from the image's name)"), "{text}");
        assert!(text.contains("key /rollcall/instances/h1/"), "{text}");
        let closed = Container { bindings: vec![], ..(*tests::web().container).clone() };
        let closed = Running { container: closed.into(), is_draining: false };
        let text = explanation(&closed, &RunningContainers::new(), &tests::policy(), &keys, &[]);
        assert!(text.contains("not registered: it publishes no port"), "{text}");
    }

    #[test]
    fn it_lists_the_keys_of_the_layouts() {
        let keys: Keys = "/rollcall".parse().expect("a prefix");
        let layouts = crate::layout::testing::settings(&["--layout", "containers,registrator"]);
        let policy = Policy { layouts, ..tests::policy() };
        let text = explanation(&tests::web(), &RunningContainers::new(), &policy, &keys, &[]);
        for expected in [
            "  key /containers/web-1/80/host\n  value 10.0.0.5\n",
            "  key /containers/web-1/80/port\n  value 8080\n",
            "  key /services/app/h1:web-1:80\n  value 10.0.0.5:8080\n",
        ] {
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn it_says_which_signals_are_allowed_and_by_whom() {
        let keys: Keys = "/rollcall".parse().expect("a prefix");
        let explained = |rules: &[&str]| {
            let rules: Vec<Allowed> = rules.iter().map(|rule| rule.parse().expect("a rule")).collect();
            explanation(&tests::web(), &RunningContainers::new(), &tests::policy(), &keys, &rules)
        };
        let none = explained(&[]);
        assert!(none.contains("by its label rollcall.signal: none; by --allow-signal: none"), "{none}");
        let some = explained(&["HUP", "USR1:web-1"]);
        assert!(some.contains("by --allow-signal: HUP, USR1 to container web-1 or service web-1"), "{some}");
    }

    #[test]
    fn it_says_how_a_port_is_checked_and_where() {
        let keys: Keys = "/rollcall".parse().expect("a prefix");
        let mut web = (*tests::web().container).clone();
        web.labels.insert("rollcall.check".to_owned(), "http".to_owned());
        let web = Running { container: web.into(), is_draining: false };
        let text = explanation(&web, &RunningContainers::new(), &tests::policy(), &keys, &[]);
        let expected = "status passing at best, weight 1\n    the agent finds the status by GET / answered with 200-399 \
                        within 2s, each 10s, rise 2, fall 3 (from rollcall.check), at 172.17.0.2:80, or else \
                        10.0.0.5:8080\n";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn nothing_that_a_container_says_forges_a_line_and_what_it_does_not_get_is_listed() {
        let keys: Keys = "/rollcall".parse().expect("a prefix");
        let mut web = (*tests::web().container).clone();
        web.image = "app\n  80/tcp registered as 1.2.3.4:80".to_owned();
        web.restart = Restart::UnlessStopped;
        for (name, value) in [
            ("rollcall.signal", "HUP\n  not registered"),
            ("rollcall.weight", "1\n  x"),
            ("public.lines", "a\nb"),
            ("secret", "hunter2"),
            ("SERVICE_NAME", "hunter2 /"),
        ] {
            web.labels.insert(name.to_owned(), value.to_owned());
        }
        let web = Running { container: web.into(), is_draining: false };
        let text = explanation(&web, &RunningContainers::new(), &tests::policy(), &keys, &[]);
        assert!(text.lines().all(|line| !line.starts_with("  80/tcp registered")), "{text}");
        assert!(text.lines().all(|line| !line.starts_with("  not registered")), "{text}");
        assert!(text.contains("left out: label public.lines has a control character"), "{text}");
        assert!(text.contains("left out: rollcall.signal is"), "{text}");
        assert!(text.contains("has Docker forget its --restart unless-stopped"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}
