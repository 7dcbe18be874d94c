//! What should be registered: from a running container to its instances, and why.

use std::{collections::BTreeMap, sync::Arc};

use itertools::{
    EitherOrBoth::{Both, Left, Right},
    Itertools,
};
use rollcall_shared::{
    codec::{self, V1},
    keys::{Key, Keys},
    model::{
        instance::{Instance, InstanceId, Status},
        name::NodeName,
    },
    process::setting::SettingError,
};

use super::{
    address::{self, AddressPolicy, PortReached, Reached, Readers},
    filter,
    finder::AddressReceiver,
    labels,
    settings::{AddressMode, FilterSettings, NodeSettings},
};
use crate::inventory::{
    Running, RunningContainers,
    container::{Check, Container, FullId, Port},
};

/// Values by key.
pub type Values = BTreeMap<String, Vec<u8>>;

/// How many instances a container may have: its labels are its author's, and the store is everybody's.
const MAX_INSTANCES: usize = 128;

/// What the registration of a container depends on beside the container.
#[derive(Debug, Clone)]
pub struct Policy {
    /// This host.
    pub node: NodeName,
    /// Which containers, and with what.
    pub filter: FilterSettings,
    /// Where they are reached.
    pub address: AddressPolicy,
    /// The host's own addresses as they change.
    pub addresses: AddressReceiver,
}

impl Policy {
    /// What the settings say.
    ///
    /// # Errors
    /// The host has no name that can be the node's.
    pub fn new(
        node: &NodeSettings,
        filter: &FilterSettings,
        readers: &Readers,
        addresses: AddressReceiver,
    ) -> Result<Self, SettingError> {
        let address = AddressPolicy {
            mode: node.address.clone().unwrap_or(AddressMode::Host),
            advertised: *addresses.borrow(),
            loopback: *readers == Readers::ThisHost,
            ports: node.ports.clone(),
        };
        Ok(Self { node: node.name()?, filter: filter.clone(), address, addresses })
    }
}

/// What is registered of a container and why, or why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Why nothing is registered, if so.
    pub skipped: Option<String>,
    /// Each of its ports: what it is registered as, or why it is not.
    pub ports: Vec<(Port, Result<Described, String>)>,
}

/// An instance and where its service's name comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// The instance.
    pub instance: Instance,
    /// The label or variable that names its service, or the image.
    pub source: String,
}

/// Describes what a container should be registered as.
pub fn describe(running: &Running, policy: &Policy) -> Description {
    let container = &*running.container;
    let reached =
        filter::admit(container, &policy.filter).and_then(|()| address::reach(container, &policy.address));
    let ports = match reached {
        Ok(ports) => ports,
        Err(reason) => return Description { skipped: Some(reason), ports: Vec::new() },
    };
    if ports.len() > MAX_INSTANCES {
        let reason = format!("it has {} ports: expected {MAX_INSTANCES} or fewer", ports.len());
        return Description { skipped: Some(reason), ports: Vec::new() };
    }
    let group = ports.len() > 1;
    let describe = |(port, reached): PortReached| {
        let instance = match reached {
            Ok(_) if labels::is_ignored(container, Some(port)) => Err("it asks to be ignored".to_owned()),
            Ok(reached) => instance(running, reached, group, policy),
            Err(reason) => Err(reason),
        };
        (port, instance)
    };
    Description { skipped: None, ports: ports.into_iter().map(describe).collect() }
}

fn instance(running: &Running, reached: Reached, group: bool, policy: &Policy) -> Result<Described, String> {
    let container = &*running.container;
    let Reached { port, network, endpoints } = reached;
    let (service, source) = labels::service(container, port, group)?;
    let tags = labels::tags(container, port);
    if !tags.iter().chain([&container.image]).all(|text| codec::is_one_line(text)) {
        return Err("a control character in its tags or its image's name".to_owned());
    }
    let mut endpoints = endpoints.into_iter();
    let first = endpoints.next().ok_or("it has no address")?;
    let instance = Instance {
        v: V1,
        service,
        container: container.name.clone(),
        id: container.short_id,
        image: container.image.clone(),
        address: first.address,
        port: first.port,
        protocol: port.protocol,
        container_port: port.number,
        network,
        status: status(running),
        weight: labels::weight(container, port)?,
        started_at: container.started_at,
        tags,
        labels: exported(container, &policy.filter),
        alternatives: endpoints.collect(),
    };
    let size = codec::encode(&instance).len();
    if size > codec::MAX_VALUE_BYTES {
        let max = codec::MAX_VALUE_BYTES;
        return Err(format!("its labels and tags make a value of {size} bytes: expected {max} or fewer"));
    }
    Ok(Described { instance, source })
}

fn status(running: &Running) -> Status {
    match running.container.check {
        _ if running.is_draining => Status::Draining,
        _ if running.container.paused => Status::Failing,
        Check::None | Check::Healthy => Status::Passing,
        Check::Starting => Status::Starting,
        Check::Unhealthy => Status::Failing,
    }
}

/// Labels often hold secrets: only those that the operator names go out, and Rollcall's own. One whose value has
/// several lines stays in.
fn exported(container: &Container, filter: &FilterSettings) -> BTreeMap<String, String> {
    let wanted = |name: &str| {
        name.starts_with("rollcall.")
            || filter.export_labels.iter().any(|wanted| match wanted.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => name == wanted,
            })
    };
    let lines = |(name, value): &(&String, &String)| codec::is_one_line(name) && codec::is_one_line(value);
    let labels = container.labels.iter().filter(|(name, _)| wanted(name)).filter(lines);
    labels.map(|(name, value)| (name.clone(), value.clone())).collect()
}

impl Description {
    /// The instances with their identities.
    pub fn instances(self, running: &Running, node: &NodeName) -> Vec<(InstanceId, Instance)> {
        let container = running.container.short_id;
        let identified = |(port, described): (Port, Result<Described, String>)| {
            let Port { number: port, protocol } = port;
            Some((InstanceId { node: node.clone(), container, port, protocol }, described.ok()?.instance))
        };
        self.ports.into_iter().filter_map(identified).collect()
    }
}

/// What should be registered of all that runs, as keys and values. Only what has changed is described again: most
/// containers stay the same from one event to the next.
#[derive(Debug)]
pub struct Desired {
    policy: Policy,
    keys: Keys,
    running: Option<Arc<RunningContainers>>,
    /// The keys of each container's instances.
    registered: BTreeMap<FullId, Vec<String>>,
    values: Values,
}

impl Desired {
    /// Nothing yet, as it is not known what runs.
    pub fn new(policy: Policy, keys: Keys) -> Self {
        Self { policy, keys, running: None, registered: BTreeMap::new(), values: Values::new() }
    }

    /// The values, by key; `None` until it is known what runs.
    pub fn values(&self) -> Option<&Values> {
        self.running.as_ref().map(|_| &self.values)
    }

    /// Takes what runs now. If the host's addresses have changed, everything is described anew.
    pub fn update(&mut self, running: Arc<RunningContainers>) {
        let mut before = self.running.replace(running.clone()).unwrap_or_default();
        let advertised = *self.policy.addresses.borrow();
        if self.policy.address.advertised != advertised {
            self.policy.address.advertised = advertised;
            before = Arc::default();
            self.registered.clear();
            self.values.clear();
        }
        for pair in before.iter().merge_join_by(&*running, |(a, _), (b, _)| a.cmp(b)) {
            match pair {
                Left((id, _)) => self.forget(id),
                Right((id, now)) => self.describe(id, now),
                Both((id, before), (_, now)) if !now.is_same(before) => {
                    self.forget(id);
                    self.describe(id, now);
                }
                Both(..) => {}
            }
        }
    }

    fn forget(&mut self, id: &FullId) {
        for key in self.registered.remove(id).unwrap_or_default() {
            self.values.remove(&key);
        }
    }

    fn describe(&mut self, id: &FullId, running: &Running) {
        for (instance_id, instance) in describe(running, &self.policy).instances(running, &self.policy.node) {
            let key = self.keys.format(&Key::Instance(instance_id));
            self.registered.entry(id.clone()).or_default().push(key.clone());
            self.values.insert(key, codec::encode(&instance));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::{
        inventory::container::{Binding, testing::container},
        registration::advertise::Advertised,
    };

    pub(crate) fn policy() -> Policy {
        let advertised = Advertised { v4: Some("10.0.0.5".parse().expect("an address")), v6: None };
        Policy {
            addresses: watch::channel(advertised).1,
            node: "h1".parse().expect("a name"),
            filter: FilterSettings {
                containers: Vec::new(),
                only_name: None,
                only_label: Vec::new(),
                only_image: None,
                explicit: false,
                export_labels: vec!["team".to_owned(), "public.*".to_owned()],
            },
            address: AddressPolicy {
                mode: AddressMode::Host,
                advertised,
                loopback: false,
                ports: Vec::new(),
            },
        }
    }

    pub(crate) fn web() -> Running {
        let to = "80".parse().expect("a port");
        let ip = "0.0.0.0".parse().expect("an address");
        let mut web = container("web-1");
        web.bindings = vec![Binding { to, ip, port: 8080 }];
        Running { container: Arc::new(web), is_draining: false }
    }

    fn described(running: &Running) -> Instance {
        let mut instances = describe(running, &policy()).instances(running, &policy().node);
        assert_eq!(instances.len(), 1);
        instances.remove(0).1
    }

    fn changed(change: impl FnOnce(&mut Container)) -> Running {
        let mut container = (*web().container).clone();
        change(&mut container);
        Running { container: Arc::new(container), is_draining: false }
    }

    #[test]
    fn a_container_that_asks_for_too_much_is_left_out_and_told_why() {
        let mut greedy = (*web().container).clone();
        greedy.labels.insert("rollcall.note".to_owned(), "x".repeat(codec::MAX_VALUE_BYTES));
        let running = Running { container: greedy.clone().into(), is_draining: false };
        let described = describe(&running, &policy());
        let reason = described.ports[0].1.as_ref().expect_err("its value is too large");
        assert!(reason.contains("expected 65536 or fewer"), "{reason}");
        let binding = greedy.bindings[0];
        greedy.bindings = (1..=129)
            .map(|port: u16| Binding { to: port.to_string().parse().expect("a port"), ..binding })
            .collect();
        let described = describe(&Running { container: greedy.into(), is_draining: false }, &policy());
        assert_eq!(described.skipped.as_deref(), Some("it has 129 ports: expected 128 or fewer"));
    }

    #[test]
    fn what_is_registered_is_read_back_as_it_was() {
        let instance = described(&web());
        assert_eq!(codec::decode::<Instance>(&codec::encode(&instance)).expect("a record"), instance);
    }

    #[test]
    fn what_changes_is_described_again_and_what_ends_is_forgotten() {
        let keys: Keys = "/rollcall".parse().expect("a prefix");
        let other = |name: &str| changed(|container| container.name = name.parse().expect("a name"));
        let running = |all: &[(&str, &Running)]| {
            Arc::new(all.iter().map(|(id, running)| (FullId::from(*id), (*running).clone())).collect())
        };
        let at = |id: char| {
            changed(|container| {
                container.short_id = id.to_string().repeat(12).parse().expect("an ID");
            })
        };
        let (a, b) = (at('a'), at('b'));
        let draining = Running { is_draining: true, ..a.clone() };
        let mut desired = Desired::new(policy(), keys);
        assert_eq!(desired.values(), None);
        let mut values = |all: &[(&str, &Running)]| -> Vec<String> {
            desired.update(running(all));
            let values = desired.values().expect("it is known what runs").values();
            values.map(|value| String::from_utf8_lossy(value).into_owned()).collect()
        };
        assert_eq!(values(&[("a", &a), ("b", &b)]).len(), 2);
        let now = values(&[("a", &draining), ("b", &b)]);
        assert!(now[0].contains("draining") && now[1].contains("passing"), "{now:?}");
        assert_eq!(values(&[("b", &b)]).len(), 1);
        assert_eq!(values(&[("b", &other("web-2"))]).len(), 1);
        assert_eq!(values(&[]).len(), 0);
    }

    #[test]
    fn when_the_hosts_address_changes_everything_is_described_anew() {
        let (found, addresses) = watch::channel(Advertised::default());
        let address = AddressPolicy { advertised: Advertised::default(), ..policy().address };
        let mut desired =
            Desired::new(Policy { addresses, address, ..policy() }, "/rollcall".parse().expect("a prefix"));
        let running = Arc::new(RunningContainers::from([(web().container.id.clone(), web())]));
        for (address, expected) in
            [(None, None), (Some("10.0.0.7"), Some("10.0.0.7")), (Some("10.1.0.1"), Some("10.1.0.1"))]
        {
            found
                .send_replace(Advertised { v4: address.map(|ip| ip.parse().expect("an address")), v6: None });
            desired.update(running.clone());
            let values = desired.values().expect("it is known what runs");
            let registered: Vec<Instance> =
                values.values().map(|value| codec::decode(value).expect("an instance")).collect();
            let registered: Vec<String> = registered.iter().map(|found| found.address.to_string()).collect();
            assert_eq!(registered, Vec::from_iter(expected));
        }
    }

    #[test]
    fn only_labels_that_the_operator_lets_out_are_registered() {
        let instance = described(&changed(|container| {
            for (name, value) in [
                ("secret", "x"),
                ("team", "blue"),
                ("public.a", "1"),
                ("public.lines", "a\nb"),
                ("rollcall.signal", "HUP"),
            ] {
                container.labels.insert(name.to_owned(), value.to_owned());
            }
        }));
        assert_eq!(instance.labels.keys().collect::<Vec<_>>(), ["public.a", "rollcall.signal", "team"]);
    }

    #[test]
    fn the_status_says_the_worst_that_is_known() {
        let draining = Running { is_draining: true, ..changed(|c| c.check = Check::Healthy) };
        for (running, status) in [
            (web(), Status::Passing),
            (changed(|c| c.check = Check::Starting), Status::Starting),
            (changed(|c| c.check = Check::Unhealthy), Status::Failing),
            (changed(|c| c.paused = true), Status::Failing),
            (draining, Status::Draining),
        ] {
            assert_eq!(described(&running).status, status);
        }
    }

    #[test]
    fn one_bad_label_leaves_out_its_port_and_says_why() {
        let running = changed(|c| drop(c.labels.insert("rollcall.weight".to_owned(), "much".to_owned())));
        let description = describe(&running, &policy());
        let reason = description.ports[0].1.as_ref().expect_err("a bad weight");
        assert_eq!(reason, "rollcall.weight is \"much\": expected 1 to 65535");
    }
}
