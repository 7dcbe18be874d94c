//! From what a Docker engine says to plain values.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use bollard::models::{
    ContainerInspectResponse, ContainerState, ContainerSummary, ContainerSummaryStateEnum, EndpointSettings,
    EventMessage, EventMessageTypeEnum, HealthStatusEnum, PortMap, RestartPolicy, RestartPolicyNameEnum,
};
use jiff::Timestamp;
use rollcall_shared::model::{name::NameError, signal::Signal};

use crate::inventory::container::{
    Action, Addresses, Binding, Check, Container, Event, FullId, Port, Restart, Summary,
};

/// An inspection that cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DecodeError {
    /// Something that every container has is not there.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// A name or an ID of another form than Docker's own.
    #[error("its {what} cannot be read")]
    Name {
        /// The name or the ID.
        what: &'static str,
        /// Why.
        source: NameError,
    },
}

/// An event that changes what is registered; `None` for any other.
pub(super) fn decode_event(message: EventMessage) -> Option<Event> {
    let at = decode_time(&message)?;
    let actor = message.actor?;
    let mut attributes = actor.attributes.unwrap_or_default();
    let action = message.action?;
    let (id, action) = match (message.typ?, action.as_str()) {
        (EventMessageTypeEnum::NETWORK, _) => (attributes.remove("container")?, Action::Change),
        (EventMessageTypeEnum::CONTAINER, "start") => (actor.id?, Action::Start),
        (EventMessageTypeEnum::CONTAINER, "die" | "died") => (actor.id?, Action::Die),
        (EventMessageTypeEnum::CONTAINER, "kill") => {
            let signal = attributes.get("signal")?.parse().ok()?;
            (actor.id?, Action::Kill(signal))
        }
        (EventMessageTypeEnum::CONTAINER, _) => (actor.id?, Action::Change),
        _ => return None,
    };
    Some(Event { id: id.into(), action, at })
}

fn decode_time(message: &EventMessage) -> Option<Timestamp> {
    match (message.time_nano, message.time) {
        (Some(nanoseconds), _) => Timestamp::from_nanosecond(nanoseconds.into()).ok(),
        (None, Some(seconds)) => Timestamp::from_second(seconds).ok(),
        (None, None) => None,
    }
}

/// A container of a list; `None` where it has no name or ID yet.
pub(super) fn decode_summary(listed: ContainerSummary) -> Option<Summary> {
    let networks = listed.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    // Names of links have more than one slash.
    let own = |name: &String| name.rfind('/') == Some(0);
    let name = listed.names?.into_iter().find(own)?;
    Some(Summary {
        id: listed.id?.into(),
        name: name.trim_start_matches('/').to_owned(),
        paused: listed.state == Some(ContainerSummaryStateEnum::PAUSED),
        check: decode_listed_check(&listed.status.unwrap_or_default()),
        networks: networks.into_keys().collect(),
    })
}

/// Before API 1.52 a list has the health only in its words for people, such as "Up 3 minutes (healthy)".
fn decode_listed_check(status: &str) -> Check {
    if status.contains("(healthy)") {
        Check::Healthy
    } else if status.contains("(unhealthy)") {
        Check::Unhealthy
    } else if status.contains("(health: starting)") {
        Check::Starting
    } else {
        Check::None
    }
}

/// The container, or `None` where it does not run.
pub(super) fn decode_container(answer: ContainerInspectResponse) -> Result<Option<Container>, DecodeError> {
    let state = answer.state.ok_or(DecodeError::Missing("state"))?;
    if state.running != Some(true) || state.restarting == Some(true) {
        return Ok(None);
    }
    let id: FullId = answer.id.ok_or(DecodeError::Missing("ID"))?.into();
    let named = |what| move |source| DecodeError::Name { what, source };
    let name = answer.name.unwrap_or_default();
    let config = answer.config.unwrap_or_default();
    let settings = answer.network_settings.unwrap_or_default();
    let host_config = answer.host_config.unwrap_or_default();
    let network_mode = host_config.network_mode.unwrap_or_default();
    let (exposed, ports) = (config.exposed_ports.unwrap_or_default(), settings.ports.unwrap_or_default());
    let stop_signal = config.stop_signal.and_then(|text| text.parse().ok());
    Ok(Some(Container {
        short_id: id.parse().map_err(named("ID"))?,
        id,
        name: name.trim_start_matches('/').parse().map_err(named("name"))?,
        image: config.image.unwrap_or_default(),
        labels: config.labels.unwrap_or_default().into_iter().collect(),
        env: decode_env(&config.env.unwrap_or_default()),
        paused: state.paused == Some(true),
        check: decode_check(&state),
        started_at: state
            .started_at
            .and_then(|text| text.parse().ok())
            .ok_or(DecodeError::Missing("time of start"))?,
        pid: state.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0),
        stop_signal: stop_signal.unwrap_or(Signal::TERM),
        names_stop_signal: stop_signal.is_some(),
        restart: decode_restart(host_config.restart_policy),
        host_network: network_mode == "host",
        network_of: network_mode.strip_prefix("container:").map(str::to_owned),
        exposed: exposed.iter().filter_map(|port| port.parse().ok()).collect(),
        other_ports: exposed.iter().chain(ports.keys()).filter(is_other).cloned().collect(),
        bindings: decode_bindings(ports),
        networks: decode_networks(settings.networks.unwrap_or_default()),
    }))
}

fn decode_check(state: &ContainerState) -> Check {
    match state.health.as_ref().and_then(|health| health.status) {
        Some(HealthStatusEnum::STARTING) => Check::Starting,
        Some(HealthStatusEnum::HEALTHY) => Check::Healthy,
        Some(HealthStatusEnum::UNHEALTHY) => Check::Unhealthy,
        Some(HealthStatusEnum::NONE | HealthStatusEnum::EMPTY) | None => Check::None,
    }
}

fn decode_env(env: &[String]) -> BTreeMap<String, String> {
    let pairs = env.iter().filter_map(|variable| variable.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Whether a port is of another protocol than TCP and UDP, such as `9/sctp`.
fn is_other(port: &&String) -> bool {
    port.parse::<Port>().is_err()
}

fn decode_restart(policy: Option<RestartPolicy>) -> Restart {
    match policy.and_then(|policy| policy.name) {
        Some(RestartPolicyNameEnum::ALWAYS) => Restart::Always,
        Some(RestartPolicyNameEnum::UNLESS_STOPPED) => Restart::UnlessStopped,
        Some(RestartPolicyNameEnum::ON_FAILURE) => Restart::OnFailure,
        Some(RestartPolicyNameEnum::NO | RestartPolicyNameEnum::EMPTY) | None => Restart::Never,
    }
}

fn decode_bindings(ports: PortMap) -> Vec<Binding> {
    let mut bindings = Vec::new();
    for (port, bound) in ports {
        let Ok(to) = port.parse::<Port>() else { continue };
        for binding in bound.unwrap_or_default() {
            // Docker writes no address, or an empty one, for every address of IPv4.
            let ip = binding.host_ip.filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned());
            let port = binding.host_port.and_then(|port| port.parse().ok()).filter(|port| *port != 0);
            if let (Ok(ip), Some(port)) = (ip.parse::<IpAddr>(), port) {
                bindings.push(Binding { to, ip, port });
            }
        }
    }
    // Docker gives them in no order; equal containers must be equal values.
    bindings.sort_unstable();
    bindings
}

fn decode_networks(networks: HashMap<String, EndpointSettings>) -> BTreeMap<String, Addresses> {
    let addresses = |endpoint: EndpointSettings| Addresses {
        v4: endpoint.ip_address.and_then(|ip| ip.parse().ok()),
        v6: endpoint.global_ipv6_address.and_then(|ip| ip.parse().ok()),
        gateway: endpoint.gateway.and_then(|ip| ip.parse().ok()),
    };
    networks.into_iter().map(|(name, endpoint)| (name, addresses(endpoint))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspected(json: serde_json::Value) -> Result<Option<Container>, DecodeError> {
        decode_container(serde_json::from_value(json).expect("an inspection"))
    }

    fn web() -> serde_json::Value {
        serde_json::json!({
            "Id": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "Name": "/web-1",
            "State": { "Running": true, "Pid": 77, "StartedAt": "2026-01-02T03:04:05.678901234Z",
                       "Health": { "Status": "starting" } },
            "HostConfig": { "NetworkMode": "container:c2", "RestartPolicy": { "Name": "unless-stopped" } },
            "Config": { "Image": "team/web:1", "Labels": { "a": "b" }, "StopSignal": "SIGQUIT",
                        "Env": ["PATH=/bin", "SERVICE_NAME=web", "SECRET=x"],
                        "ExposedPorts": { "80/tcp": {}, "53/udp": {}, "9/sctp": {} } },
            "NetworkSettings": {
                "Ports": { "80/tcp": [{ "HostIp": "0.0.0.0", "HostPort": "8080" },
                                      { "HostIp": "::", "HostPort": "8080" }],
                           "53/udp": null },
                "Networks": { "front": { "IPAddress": "10.5.0.2", "Gateway": "10.5.0.1", "GlobalIPv6Address": "" } } }
        })
    }

    #[test]
    fn an_inspection_is_read_as_far_as_it_matters() {
        let web = inspected(web()).expect("readable").expect("it runs");
        assert_eq!((web.name.as_str(), web.short_id.as_str(), web.pid), ("web-1", "0123456789ab", Some(77)));
        assert_eq!((web.stop_signal.to_string().as_str(), web.names_stop_signal), ("QUIT", true));
        assert_eq!((web.restart, web.network_of.as_deref()), (Restart::UnlessStopped, Some("c2")));
        assert_eq!(Vec::from_iter(&web.other_ports), ["9/sctp"]);
        assert_eq!(web.check, Check::Starting);
        assert_eq!(web.env["SERVICE_NAME"], "web");
        assert_eq!(web.exposed.iter().map(Port::to_string).collect::<Vec<_>>(), ["53/udp", "80/tcp"]);
        assert_eq!(web.bindings.len(), 2);
        assert_eq!(web.networks["front"].v6, None);
        assert_eq!(web.networks["front"].gateway, Some(std::net::Ipv4Addr::new(10, 5, 0, 1)));
    }

    #[test]
    fn what_does_not_run_is_no_container_and_what_cannot_be_read_is_an_error() {
        let mut stopped = web();
        stopped["State"]["Running"] = false.into();
        assert_eq!(inspected(stopped), Ok(None));
        let mut nameless = web();
        nameless["Name"] = "/a/b".into();
        assert!(matches!(inspected(nameless), Err(DecodeError::Name { what: "name", .. })));
    }

    #[test]
    fn events_are_read_and_the_others_are_not() {
        let at = Timestamp::from_nanosecond(1_000_000_007).expect("a time");
        let read = |mut json: serde_json::Value| {
            json["timeNano"] = 1_000_000_007.into();
            decode_event(serde_json::from_value(json).expect("a message"))
        };
        let actor = serde_json::json!({ "ID": "c1", "Attributes": { "signal": "15" } });
        let kill = read(serde_json::json!({ "Type": "container", "Action": "kill", "Actor": actor }));
        assert_eq!(kill, Some(Event { id: "c1".into(), action: Action::Kill(Signal::TERM), at }));
        for end in ["die", "died"] {
            let end = read(serde_json::json!({ "Type": "container", "Action": end, "Actor": actor }));
            assert_eq!(end, Some(Event { id: "c1".into(), action: Action::Die, at }));
        }
        let podmans = serde_json::json!({ "ID": "c1", "Attributes": {} });
        let podmans = serde_json::json!({ "Type": "container", "Action": "kill", "Actor": podmans });
        assert_eq!(read(podmans), None, "nobody can know what it means");
        let health =
            serde_json::json!({ "Type": "container", "Action": "health_status: healthy", "Actor": actor });
        assert_eq!(read(health), Some(Event { id: "c1".into(), action: Action::Change, at }));
        let actor = serde_json::json!({ "ID": "n1", "Attributes": { "container": "c2" } });
        let connect = read(serde_json::json!({ "Type": "network", "Action": "connect", "Actor": actor }));
        assert_eq!(connect, Some(Event { id: "c2".into(), action: Action::Change, at }));
        assert_eq!(read(serde_json::json!({ "Type": "image", "Action": "pull", "Actor": actor })), None);
    }
}
