//! What a container's labels and environment say of its services.
//!
//! In falling order: `rollcall.<port>/<protocol>.*`, `rollcall.<port>.*` and `rollcall.*` labels; `SERVICE_<port>_*` and `SERVICE_*` as
//! labels or environment variables, as registrator reads them
//! (<https://gliderlabs.github.io/registrator/latest/user/services/>); Compose's and Swarm's own labels;
//! the image's base name.

use rollcall_shared::model::{
    instance::Protocol,
    name::ServiceName,
    signal::Signal,
    stack::{COMPOSE_SERVICE, SWARM_SERVICE},
};

use super::omission::Omission;
use crate::inventory::container::{Container, Port};

/// The label by which a container says which signals it may be sent.
pub const SIGNAL_LABEL: &str = "rollcall.signal";

/// Where a service's name comes from that nobody gives.
const IMAGE: &str = "the image's name";

/// A value and where it was found.
pub(crate) type Found<'a> = (&'a str, String);

/// Looks a name up as [`ours`] and then another one as [`registrators`].
pub(crate) fn find<'a>(
    container: &'a Container,
    port: Option<Port>,
    our_name: &str,
    registrators_name: &str,
) -> Option<Found<'a>> {
    ours(container, port, our_name).or_else(|| registrators(container, port, registrators_name))
}

/// Looks `rollcall.<port>/<protocol>.<name>`, `rollcall.<port>.<name>` and `rollcall.<name>` up.
pub(crate) fn ours<'a>(container: &'a Container, port: Option<Port>, name: &str) -> Option<Found<'a>> {
    let label = |name: String| container.labels.get(&name).map(|value| (value.as_str(), name));
    port.and_then(|port| label(format!("rollcall.{port}.{name}")))
        .or_else(|| port.and_then(|port| label(format!("rollcall.{}.{name}", port.number))))
        .or_else(|| label(format!("rollcall.{name}")))
}

/// Looks `SERVICE_<port>_<NAME>` and `SERVICE_<NAME>` up.
pub(crate) fn registrators<'a>(
    container: &'a Container,
    port: Option<Port>,
    name: &str,
) -> Option<Found<'a>> {
    let service = |name: String| {
        let value = container.labels.get(&name).or_else(|| container.env.get(&name));
        value.map(|value| (value.as_str(), name))
    };
    port.and_then(|port| service(format!("SERVICE_{}_{name}", port.number)))
        .or_else(|| service(format!("SERVICE_{name}")))
}

/// Whether the container, or one port of it, asks not to be registered.
pub fn is_ignored(container: &Container, port: Option<Port>) -> bool {
    // registrator takes any value; the usual ways to say no are taken as such.
    find(container, port, "ignore", "IGNORE").is_some_and(|(value, _)| is_yes(value))
}

/// Whether a value of registrator's, which has no word for no, is not one of the usual ways to say no.
pub(crate) fn is_yes(value: &str) -> bool {
    !matches!(value.to_ascii_lowercase().as_str(), "" | "0" | "false" | "no")
}

/// Whether the container names a service of its own.
pub fn is_explicit(container: &Container) -> bool {
    let names = |key: &String| {
        (key.starts_with("rollcall.") && key.ends_with("service"))
            || (key.starts_with("SERVICE_") && key.ends_with("NAME"))
    };
    container.labels.keys().chain(container.env.keys()).any(names)
}

/// Whether somebody counts on it being registered: it names a service or a virtual host.
pub fn is_counted_on(container: &Container) -> bool {
    const VIRTUAL_HOST: &str = "VIRTUAL_HOST";
    is_explicit(container)
        || container.env.contains_key(VIRTUAL_HOST)
        || container.labels.contains_key(VIRTUAL_HOST)
}

/// The name of the service that a port is of, and where it comes from. `group` tells whether the container
/// has other ports: then names that were not given for this port alone get `-<port>`, as registrator has it.
///
/// # Errors
/// Its source and why the name there cannot be one.
pub fn service(container: &Container, port: Port, group: bool) -> Result<(ServiceName, String), Omission> {
    let given = find(container, Some(port), "service", "NAME");
    let label = |name: &str| container.labels.get(name).map(|value| (value.as_str(), name.to_owned()));
    let (text, source) = given
        .or_else(|| label(SWARM_SERVICE))
        .or_else(|| label(COMPOSE_SERVICE))
        .unwrap_or_else(|| (base_name(&container.image), IMAGE.to_owned()));
    let exact = source.starts_with("rollcall.") || source == format!("SERVICE_{}_NAME", port.number);
    let text = if group && !exact { format!("{text}-{}", port.number) } else { text.to_owned() };
    match text.parse() {
        Ok(name) => Ok((name, source)),
        Err(error) => Err(Omission::of_value(&source, &text, error.expected())),
    }
}

/// `registry:5000/team/app:1.2@sha256:...` is `app`.
fn base_name(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split(':').next().unwrap_or(last)
}

/// The tags of a port: words separated by commas.
pub fn tags(container: &Container, port: Port) -> Vec<String> {
    let text = find(container, Some(port), "tags", "TAGS").map_or("", |(value, _)| value);
    text.split(',').map(str::trim).filter(|tag| !tag.is_empty()).map(str::to_owned).collect()
}

/// A port's weight; 1 where none is given.
///
/// # Errors
/// Its source and why the weight there cannot be one.
pub fn weight(container: &Container, port: Port) -> Result<u16, Omission> {
    match find(container, Some(port), "weight", "WEIGHT") {
        None => Ok(1),
        Some((text, source)) => match text.parse() {
            Ok(weight) if weight > 0 => Ok(weight),
            _ => Err(Omission::of_value(&source, text, "1 to 65535")),
        },
    }
}

/// The ports that the container asks to be registered, by `rollcall.port=80,53/udp`.
///
/// # Errors
/// A port that cannot be one.
pub fn ports(container: &Container) -> Result<Option<Vec<Port>>, Omission> {
    const LABEL: &str = "rollcall.port";
    let Some(text) = container.labels.get(LABEL) else { return Ok(None) };
    let port = |text: &str| {
        let expected = "ports from 1 to 65535, each with or without /tcp or /udp";
        text.trim().parse().map_err(|_| Omission::of_value(LABEL, text, expected))
    };
    text.split(',').map(port).collect::<Result<Vec<Port>, Omission>>().map(Some)
}

/// The port at which nginx-proxy would reach it on its own address, whether it exposes it or not: that of VIRTUAL_PORT, or
/// 80 where it has a VIRTUAL_HOST and exposes none. What is no port is named by the format that needs it.
pub fn virtual_port(container: &Container) -> Option<Port> {
    let value = |name: &str| container.env.get(name).or_else(|| container.labels.get(name));
    match value("VIRTUAL_PORT") {
        Some(text) => text.trim().parse().ok().filter(|port: &Port| port.protocol == Protocol::Tcp),
        None if container.exposed.is_empty() => {
            value("VIRTUAL_HOST").map(|_| Port { number: 80, protocol: Protocol::Tcp })
        }
        None => None,
    }
}

/// What its label asks for that is no signal.
pub fn unknown_signals(container: &Container) -> Vec<Omission> {
    let text = container.labels.get(SIGNAL_LABEL).map_or("", String::as_str);
    let texts = text.split(',').map(str::trim).filter(|text| !text.is_empty());
    let unknown = texts.filter(|text| text.parse::<Signal>().is_err());
    unknown.take(1).map(|text| Omission::of_value(SIGNAL_LABEL, text, "signals such as HUP,USR1")).collect()
}

/// The way its address is found, by `rollcall.address`.
pub fn address(container: &Container) -> Option<&str> {
    container.labels.get("rollcall.address").map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::container::testing::container;

    fn port() -> Port {
        "80".parse().expect("a port")
    }

    fn with(labels: &[(&str, &str)], env: &[(&str, &str)]) -> Container {
        let own = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        Container { labels: own(labels), env: own(env), ..container("web") }
    }

    fn named(container: &Container, group: bool) -> String {
        service(container, port(), group).expect("a name").0.to_string()
    }

    #[test]
    fn the_nearest_name_wins() {
        let all = [
            ("rollcall.80.service", "a"),
            ("rollcall.service", "b"),
            ("SERVICE_80_NAME", "c"),
            ("SERVICE_NAME", "d"),
            ("com.docker.swarm.service.name", "e"),
            ("com.docker.compose.service", "f"),
        ];
        for (skipped, expected) in ["a", "b", "c", "d", "e", "f", "app"].into_iter().enumerate() {
            assert_eq!(named(&with(&all[skipped.min(all.len())..], &[]), false), expected);
        }
        assert_eq!(named(&with(&[], &[("SERVICE_NAME", "env")]), false), "env");
    }

    #[test]
    fn a_port_of_each_protocol_has_labels_of_its_own() {
        let labels = [
            ("rollcall.53.service", "dns"),
            ("rollcall.53/udp.service", "dns-udp"),
            ("rollcall.53/udp.weight", "7"),
            ("rollcall.53/udp.tags", "fast"),
        ];
        let container = with(&labels, &[]);
        for (port, name, weighs, tagged) in [("53/udp", "dns-udp", 7, 1), ("53/tcp", "dns", 1, 0)] {
            let port = port.parse().expect("a port");
            assert_eq!(service(&container, port, true).expect("a name").0.as_str(), name);
            assert_eq!(weight(&container, port), Ok(weighs));
            assert_eq!(tags(&container, port).len(), tagged);
        }
        assert!(is_ignored(&with(&[("rollcall.80/tcp.ignore", "1")], &[]), Some(port())));
    }

    #[test]
    fn signals_that_are_none_are_named() {
        let named = |label| unknown_signals(&with(&[(SIGNAL_LABEL, label)], &[]));
        assert_eq!(named("HUP, USR1,"), []);
        let expected = "rollcall.signal is \"NONE\": expected signals such as HUP,USR1";
        assert_eq!(named("HUP,NONE,ALSO")[0].to_string(), expected);
    }

    #[test]
    fn one_of_several_ports_is_told_apart_unless_it_is_named_exactly() {
        for (labels, expected) in [
            (vec![("com.docker.compose.service", "web")], "web-80"),
            (vec![("SERVICE_NAME", "web")], "web-80"),
            (vec![("SERVICE_80_NAME", "web")], "web"),
            (vec![("rollcall.service", "web")], "web"),
            (vec![], "app-80"),
        ] {
            assert_eq!(named(&with(&labels, &[]), true), expected, "{labels:?}");
        }
    }

    #[test]
    fn a_bad_name_is_refused_with_its_source() {
        let error =
            service(&with(&[("rollcall.service", "a/b\n")], &[]), port(), false).expect_err("a bad name");
        assert!(
            error.to_string().starts_with("rollcall.service is \"a/b\\n\": expected 1 to 253"),
            "{error}"
        );
        let secret = with(&[], &[("SERVICE_NAME", "a secret")]);
        let error = service(&secret, port(), false).expect_err("a bad name").to_string();
        assert!(error.starts_with("SERVICE_NAME is something else: expected 1 to 253"), "{error}");
    }

    #[test]
    fn an_image_gives_its_base_name() {
        for image in ["app", "app:1", "team/app:1", "registry:5000/team/app", "app@sha256:0123"] {
            assert_eq!(base_name(image), "app", "{image}");
        }
    }

    #[test]
    fn nginx_proxys_port_need_not_be_exposed() {
        for (labels, env, exposed, expected) in [
            (&[("VIRTUAL_PORT", "8080")][..], &[][..], true, Some("8080/tcp")),
            (&[("VIRTUAL_PORT", "1")], &[("VIRTUAL_PORT", " 8080 ")], true, Some("8080/tcp")),
            (&[], &[("VIRTUAL_PORT", "8080/udp")], true, None),
            (&[], &[("VIRTUAL_PORT", "none")], false, None),
            (&[], &[("VIRTUAL_HOST", "a.example")], false, Some("80/tcp")),
            (&[], &[("VIRTUAL_HOST", "a.example")], true, None),
            (&[], &[], false, None),
        ] {
            let exposed = if exposed { [port()].into() } else { [].into() };
            let container = Container { exposed, ..with(labels, env) };
            let found = virtual_port(&container).map(|port| port.to_string());
            assert_eq!(found.as_deref(), expected, "{labels:?} {env:?}");
        }
    }

    #[test]
    fn ports_tags_and_weights_are_parsed() {
        let container = with(&[("rollcall.port", "80, 53/udp"), ("rollcall.80.tags", "a, b,,")], &[]);
        let ports: Vec<String> =
            ports(&container).expect("ports").expect("some").iter().map(Port::to_string).collect();
        assert_eq!(ports, ["80/tcp", "53/udp"]);
        assert_eq!(tags(&container, port()), ["a", "b"]);
        assert_eq!(weight(&container, port()), Ok(1));
        assert!(weight(&with(&[("rollcall.weight", "0")], &[]), port()).is_err());
    }
}
