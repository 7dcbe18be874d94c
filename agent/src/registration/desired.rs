//! What should be registered of all that runs. Only what has changed is described again.

use std::{collections::BTreeMap, sync::Arc};

use itertools::{
    EitherOrBoth::{Both, Left, Right},
    Itertools,
};
use rollcall_shared::{
    codec,
    keys::{Key, Keys},
};

use super::{
    address,
    description::{Policy, describe, lay_out},
};
use crate::{
    checks::{CheckId, Definition, Definitions, Verdicts},
    inventory::{Running, RunningContainers, container::FullId},
    layout::wanted::Wanted,
};

/// Values by key.
pub type Values = BTreeMap<String, Vec<u8>>;

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
    layouts: Wanted,
    /// The checks of those containers that have some.
    checks: BTreeMap<FullId, Vec<(CheckId, Definition)>>,
    verdicts: Arc<Verdicts>,
}

impl Desired {
    /// Nothing yet, as it is not known what runs.
    pub fn new(policy: Policy, keys: Keys) -> Self {
        Self {
            policy,
            keys,
            running: None,
            registered: BTreeMap::new(),
            values: Values::new(),
            layouts: Wanted::default(),
            checks: BTreeMap::new(),
            verdicts: Arc::default(),
        }
    }

    /// What is to be checked.
    pub fn definitions(&self) -> Definitions {
        self.checks.values().flatten().cloned().collect()
    }

    /// Whether there is a check that has found nothing yet, and is to.
    pub fn is_unchecked(&self) -> bool {
        let mut checks = self.checks.values().flatten();
        checks.any(|(id, check)| !check.is_suspended && !self.verdicts.contains_key(id))
    }

    /// Takes what the checks have found.
    pub fn judge(&mut self, verdicts: Arc<Verdicts>) {
        let before = std::mem::replace(&mut self.verdicts, verdicts);
        let Some(running) = self.running.clone() else { return };
        let has_changed = |(id, _): &(CheckId, Definition)| before.get(id) != self.verdicts.get(id);
        let changed = self.checks.iter().filter(|(_, checks)| checks.iter().any(has_changed));
        for id in changed.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            if let Some(now) = running.get(&id) {
                self.forget(&id);
                self.describe(&id, now, &running);
            }
        }
    }

    /// The values, by key; `None` until it is known what runs.
    pub fn values(&self) -> Option<&Values> {
        self.running.as_ref().map(|_| &self.values)
    }

    /// What is wanted in the layouts.
    pub fn layouts(&self) -> &Wanted {
        &self.layouts
    }

    /// Takes what runs now. If the host's addresses have changed, everything is described anew.
    pub fn update(&mut self, running: Arc<RunningContainers>) {
        let mut before = self.running.replace(running.clone()).unwrap_or_default();
        if self.policy.follow_addresses() {
            before = Arc::default();
            self.registered.clear();
            self.values.clear();
            self.layouts.clear();
            self.checks.clear();
        }
        // The container whose network one shares counts as well, whose ports it has.
        let is_same = |now: &Running| match &now.container.network_of {
            Some(_) => {
                let other = |all| address::network_of(&now.container, all).ok();
                other(&before) == other(&running)
            }
            None => true,
        };
        for pair in before.iter().merge_join_by(&*running, |(a, _), (b, _)| a.cmp(b)) {
            match pair {
                Left((id, _)) => self.forget(id),
                Right((id, now)) => self.describe(id, now, &running),
                Both((id, was), (_, now)) if !now.is_same(was) || !is_same(now) => {
                    self.forget(id);
                    self.describe(id, now, &running);
                }
                Both(..) => {}
            }
        }
    }

    fn forget(&mut self, id: &FullId) {
        self.checks.remove(id);
        for key in self.registered.remove(id).unwrap_or_default() {
            self.values.remove(&key);
        }
        self.layouts.remove(id);
    }

    fn describe(&mut self, id: &FullId, running: &Running, all: &RunningContainers) {
        let mut description = describe(running, all, &self.policy);
        let checks = description.judge(running.container.incarnation(), &self.verdicts);
        if !checks.is_empty() {
            self.checks.insert(id.clone(), checks);
            // Some depend on what the checks have found. What cannot be laid out does not, and was named.
            description.layouts = lay_out(&running.container, all, &description.ports, &self.policy).0;
        }
        let layouts = std::mem::take(&mut description.layouts);
        self.layouts.set(id.clone(), running.container.started_at, layouts);
        for (instance_id, instance) in description.instances(running, &self.policy.node) {
            let key = self.keys.format(&Key::Instance(instance_id));
            self.registered.entry(id.clone()).or_default().push(key.clone());
            self.values.insert(key, codec::encode(&instance));
        }
    }
}

#[cfg(test)]
mod tests {
    use rollcall_shared::model::instance::Instance;
    use tokio::sync::watch;

    use super::*;
    use crate::{
        checks::Health,
        inventory::container::{Container, testing::container},
        layout,
        registration::{
            address::AddressPolicy,
            advertise::Advertised,
            description::tests::{changed, policy, web},
        },
    };

    #[test]
    fn a_container_in_anothers_network_has_its_ports_also_when_that_one_changes() {
        let gateway = web();
        let id = gateway.container.id.clone();
        let sharing = |other: &str| {
            let network_of = Some(other.to_owned());
            let app = Container { network_of, ..container("app") };
            Running { container: app.into(), is_draining: false }
        };
        let ports = |desired: &Desired| -> Vec<u16> {
            let values = desired.values().expect("it is known what runs").values();
            let instances = values.map(|value| codec::decode::<Instance>(value).expect("an instance"));
            instances.filter(|found| found.container.as_str() == "app").map(|found| found.port).collect()
        };
        for other in [&*id, "web-1"] {
            let app = sharing(other);
            let running = |gateway: Option<&Running>| {
                let all = [Some(&app), gateway].into_iter().flatten();
                Arc::new(all.map(|running| (running.container.id.clone(), running.clone())).collect())
            };
            let mut desired = Desired::new(policy(), "/rollcall".parse().expect("a prefix"));
            desired.update(running(Some(&gateway)));
            assert_eq!(ports(&desired), [8080]);
            let moved = changed(|c| c.bindings[0].port = 9090);
            desired.update(running(Some(&moved)));
            assert_eq!(ports(&desired), [9090]);
            desired.update(running(None));
            assert_eq!(ports(&desired), [0; 0]);
        }
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
    fn a_layout_whose_readers_see_no_status_has_only_what_our_checks_have_found_well() {
        let checked = changed(|c| drop(c.labels.insert("rollcall.check".to_owned(), "tcp".to_owned())));
        let id = CheckId { run: checked.container.incarnation(), port: "80".parse().expect("a port") };
        let layouts = layout::testing::settings(&["--layout", "containers,skydns"]);
        let policy = Policy { layouts, ..policy() };
        let mut desired = Desired::new(policy, "/rollcall".parse().expect("a prefix"));
        desired.update(Arc::new(RunningContainers::from([(checked.container.id.clone(), checked)])));
        let laid_out = |desired: &Desired| -> Vec<layout::Layout> {
            desired.layouts().entries().iter().map(|entries| entries.layout).collect()
        };
        let (containers, skydns) = (layout::Layout::Containers, layout::Layout::Skydns);
        assert_eq!(laid_out(&desired), [containers], "nothing was found yet");
        for (health, expected) in [
            (Health::Passing, &[containers, skydns][..]),
            (Health::Failing, &[containers]),
            (Health::Passing, &[containers, skydns]),
        ] {
            desired.judge(Arc::new(Verdicts::from([(id, health)])));
            assert_eq!(laid_out(&desired), expected, "{health:?}");
        }
    }
}
