//! Why nothing matches a selection: what it looks for, and what there is instead. Pure.

use std::collections::BTreeSet;

use regex::Regex;
use rollcall_shared::{
    model::{
        instance::{Instance, InstanceId},
        stack,
    },
    process::text::escaped,
};

use super::select::Select;

/// An instance and its key.
type Registered<'r> = (&'r InstanceId, &'r Instance);

/// One criterion of a selection.
struct Criterion<'s> {
    /// What an instance does that meets it, such as "is passing".
    verb: String,
    is_met: Box<dyn Fn(Registered<'_>) -> bool + 's>,
    /// What an instance has in place of it.
    has: Box<dyn Fn(Registered<'_>) -> Vec<String> + 's>,
    /// What may help where no instance has anything in place of it.
    hint: Option<String>,
}

/// How many of the values that there are, are shown.
const MAX_SHOWN: usize = 3;
/// How much of each.
const MAX_SHOWN_CHARS: usize = 60;

/// What was looked for and what there is instead, on one line: the first criterion that no instance meets which meets
/// those before it.
pub fn explain<'r>(select: &Select, registered: impl Iterator<Item = Registered<'r>>) -> String {
    let mut left: Vec<Registered<'r>> = registered.collect();
    if left.is_empty() {
        return "no instance is registered at all".to_owned();
    }
    let mut verbs = Vec::new();
    for Criterion { verb, is_met, has, hint } in criteria(select) {
        verbs.push(verb);
        let met: Vec<_> = left.iter().copied().filter(|instance| is_met(*instance)).collect();
        if met.is_empty() {
            let there_is: BTreeSet<String> = left.into_iter().flat_map(has).collect();
            let instead = instead(&there_is).or(hint).map(|text| format!("; {text}")).unwrap_or_default();
            return format!("no instance {}{instead}", verbs.join(" and "));
        }
        left = met;
    }
    format!("no instance {}", verbs.join(" and "))
}

/// What there is, if there is anything.
fn instead(all: &BTreeSet<String>) -> Option<String> {
    let cut = |text: &String| escaped(&text.chars().take(MAX_SHOWN_CHARS).collect::<String>());
    let shown: Vec<String> = all.iter().take(MAX_SHOWN).map(cut).collect();
    match (shown.len(), all.len()) {
        (0, _) => None,
        (shown_count, count) if shown_count == count => Some(format!("there are: {}", shown.join(", "))),
        (shown_count, count) => {
            Some(format!("there are: {}, ... ({shown_count} of {count})", shown.join(", ")))
        }
    }
}

/// The criteria of a selection, in the order in which they are looked at.
fn criteria(select: &Select) -> Vec<Criterion<'_>> {
    let mut all = by_name(select);
    all.extend(by_label(select));
    all.extend(by_place(select));
    all
}

fn by_name(select: &Select) -> Vec<Criterion<'_>> {
    let Select { services, service_regex, container_regex, name_regex, .. } = select;
    let service = |(_, instance): Registered<'_>| vec![instance.service.to_string()];
    let container = |(_, instance): Registered<'_>| vec![instance.container.to_string()];
    let either =
        |(_, instance): Registered<'_>| vec![instance.service.to_string(), instance.container.to_string()];
    let listed = (!services.is_empty()).then(|| Criterion {
        verb: format!("has the service {}", one_of(services)),
        is_met: Box::new(|(_, instance)| services.contains(&instance.service)),
        has: Box::new(service),
        hint: None,
    });
    let patterns = [
        matching("service name", service_regex.as_ref(), service as Names),
        matching("container name", container_regex.as_ref(), container),
        matching("service or container name", name_regex.as_ref(), either),
    ];
    listed.into_iter().chain(patterns.into_iter().flatten()).collect()
}

/// The names of an instance that a pattern is for.
type Names = fn(Registered<'_>) -> Vec<String>;

fn matching<'s>(what: &str, pattern: Option<&'s Regex>, names: Names) -> Option<Criterion<'s>> {
    pattern.map(|pattern| Criterion {
        verb: format!("has a {what} that matches /{}/", escaped(pattern.as_str())),
        is_met: Box::new(move |instance| names(instance).iter().any(|name| pattern.is_match(name))),
        has: Box::new(names),
        hint: None,
    })
}

fn by_label(select: &Select) -> Vec<Criterion<'_>> {
    let Select { labels, stack: stack_choice, tags, .. } = select;
    let labels = labels.iter().map(|label| {
        let name = &label.name;
        let others = move |(_, instance): Registered<'_>| {
            instance.labels.get(name).map(|value| format!("{name}={value}")).into_iter().collect()
        };
        Criterion {
            verb: format!("has the label {label}"),
            is_met: Box::new(|(_, instance)| label.matches(&instance.labels)),
            has: Box::new(others),
            hint: Some(format!("agents let it out with --export-label {name}")),
        }
    });
    let stack = stack_choice.iter().map(|choice| Criterion {
        verb: format!("belongs to the stack {choice}"),
        is_met: Box::new(|(_, instance)| choice.matches(&instance.labels)),
        has: Box::new(|(_, instance)| {
            stack::stack(&instance.labels).map(str::to_owned).into_iter().collect()
        }),
        hint: Some("none belongs to any".to_owned()),
    });
    let tags = tags.iter().map(|tag| Criterion {
        verb: format!("has the tag {tag}"),
        is_met: Box::new(|(_, instance)| instance.tags.contains(tag)),
        has: Box::new(|(_, instance)| instance.tags.clone()),
        hint: Some("none has any".to_owned()),
    });
    labels.chain(stack).chain(tags).collect()
}

fn by_place(select: &Select) -> Vec<Criterion<'_>> {
    let Select { nodes, ports, protocol, statuses, family, .. } = select;
    let node = (!nodes.is_empty()).then(|| Criterion {
        verb: format!("is on the node {}", one_of(nodes)),
        is_met: Box::new(|(id, _)| nodes.contains(&id.node)),
        has: Box::new(|(id, _)| vec![id.node.to_string()]),
        hint: None,
    });
    let port = (!ports.is_empty()).then(|| Criterion {
        verb: format!("has the container port {}", one_of(ports)),
        is_met: Box::new(|(_, instance)| ports.contains(&instance.container_port)),
        has: Box::new(|(_, instance)| vec![instance.container_port.to_string()]),
        hint: None,
    });
    let protocol = protocol.map(|protocol| Criterion {
        verb: format!("speaks {protocol}"),
        is_met: Box::new(move |(_, instance)| instance.protocol == protocol),
        has: Box::new(|(_, instance)| vec![instance.protocol.to_string()]),
        hint: None,
    });
    let status = Criterion {
        verb: format!("is {}", one_of(statuses)),
        is_met: Box::new(|(_, instance)| statuses.contains(&instance.status)),
        has: Box::new(|(_, instance)| vec![format!("{} that is {}", instance.container, instance.status)]),
        hint: None,
    };
    let family = family.map(|family| Criterion {
        verb: format!("has an address of the family {family:?}").to_lowercase(),
        is_met: Box::new(|(_, instance)| select.pick(instance).is_some()),
        has: Box::new(|(_, instance)| vec![instance.address.to_string()]),
        hint: None,
    });
    let place = [node, port, protocol].into_iter().flatten();
    place.chain([status]).chain(family).collect()
}

fn one_of(values: &[impl ToString]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use rollcall_shared::model::{instance::Status, stack::COMPOSE_PROJECT};

    use super::*;
    use crate::testing;

    fn explained(select: &Select, instances: &[Instance]) -> String {
        let ids: Vec<InstanceId> = (0..instances.len()).map(testing::id).collect();
        explain(select, ids.iter().zip(instances))
    }

    fn select(toml: &str) -> Select {
        toml::from_str::<crate::roll::RawSelect>(toml).expect("a selection").parse()
    }

    #[test]
    fn it_tells_what_is_looked_for_and_what_there_is_instead() {
        let labels =
            [("role".to_owned(), "front".to_owned()), (COMPOSE_PROJECT.to_owned(), "shop".to_owned())];
        let api = Instance { labels: labels.into(), ..testing::instance(1, "api") };
        let web = Instance { status: Status::Starting, ..testing::instance(2, "web") };
        for (toml, expected) in [
            ("service = [\"db\", \"x\"]", "no instance has the service db or x; there are: api, web"),
            (
                "service_regex = \"^w$\"",
                "no instance has a service name that matches /^w$/; there are: api, web",
            ),
            (
                "container_regex = \"x\"",
                "no instance has a container name that matches /x/; there are: api-1, web-2",
            ),
            (
                "labels = \"zone\"",
                "no instance has the label zone; agents let it out with --export-label zone",
            ),
            ("labels = \"role=back\"", "no instance has the label role=back; there are: role=front"),
            ("stack = \"other\"", "no instance belongs to the stack other; there are: shop"),
            ("tags = \"blue\"", "no instance has the tag blue; none has any"),
            ("node = \"h2\"", "no instance is on the node h2; there are: h1"),
            ("port = [81, 82]", "no instance has the container port 81 or 82; there are: 80"),
            ("protocol = \"udp\"", "no instance speaks udp; there are: tcp"),
            (
                "status = \"failing\"",
                "no instance is failing; there are: api-1 that is passing, web-2 that is starting",
            ),
            (
                "family = \"ipv6\"",
                "no instance is passing and has an address of the family ipv6; there are: 10.0.0.1",
            ),
            (
                "service = \"web\"",
                "no instance has the service web and is passing; there are: web-2 that is starting",
            ),
            (
                "service = \"web\"\nlabels = \"role\"",
                "no instance has the service web and has the label role; agents let it out with --export-label role",
            ),
        ] {
            assert_eq!(explained(&select(toml), &[api.clone(), web.clone()]), expected, "{toml}");
        }
        assert_eq!(explained(&select(""), &[]), "no instance is registered at all");
    }

    #[test]
    fn it_shows_a_few_of_many_and_nothing_that_could_forge_a_line() {
        let pattern = Some(Regex::new("we$").expect("a pattern"));
        let by_name = Select { name_regex: pattern, ..Select::default() };
        let many: Vec<Instance> = (1..=9).map(|number| testing::instance(number, "api")).collect();
        let looked_for = "no instance has a service or container name that matches /we$/";
        let expected = format!("{looked_for}; there are: api, api-1, api-2, ... (3 of 10)");
        assert_eq!(explained(&by_name, &many), expected);
        let labels = [("role".to_owned(), format!("a\n{}", "x".repeat(10_000)))].into();
        let hostile = Instance { labels, ..testing::instance(1, "api") };
        let text = explained(&select("labels = \"role=b\""), &[hostile]);
        assert!(text.len() < 200 && !text.contains('\n'), "{text}");
    }
}
