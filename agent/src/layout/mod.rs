//! Layouts: the keys that other tools' readers look for, beside Rollcall's own and under the same lease.
//!
//! Each is a pure function from an instance to keys and values. [`wanted`] says which of them this node wants, [`plan`]
//! what to write so that they are there. Other nodes and other tools write below the same folders: what is not ours is
//! neither overwritten nor deleted.

pub mod plan;
pub mod settings;
pub mod wanted;

mod containers;
mod registrator;
mod skydns;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use rollcall_shared::{
    model::{
        instance::{Instance, Protocol},
        name::NodeName,
    },
    store::KeyRange,
};
pub use settings::LayoutSettings;

use crate::inventory::container::Binding;

/// Keys that another tool's readers look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Layout {
    /// /containers/NAME/PORT/host and /port, as etcd-container-presence has them
    Containers,
    /// `/services/SERVICE/NODE:CONTAINER:PORT[:udp]` = ADDRESS:PORT, as registrator has them
    Registrator,
    /// /skydns/DOMAIN/SERVICE/..., which CoreDNS serves as A, AAAA and SRV records
    Skydns,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layout::Containers => "containers",
            Layout::Registrator => "registrator",
            Layout::Skydns => "skydns",
        })
    }
}

/// What the keys of an instance depend on.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The instance.
    pub instance: &'a Instance,
    /// The node that it is on.
    pub node: &'a NodeName,
    /// The host's ports that lead to it, where it is reached by one.
    pub bindings: &'a [Binding],
}

/// The keys and values of an instance in one layout. They are written together, or none is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entries {
    /// The layout.
    pub layout: Layout,
    /// The keys and values, in the order of the keys.
    pub pairs: Vec<(String, Vec<u8>)>,
}

impl Entries {
    /// Entries of one pair of texts or more.
    fn new<const N: usize>(layout: Layout, pairs: [(String, String); N]) -> Self {
        Self { layout, pairs: pairs.map(|(key, value)| (key, value.into_bytes())).into() }
    }

    /// The keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(|(key, _)| key.as_str())
    }
}

impl LayoutSettings {
    /// The layouts that are asked for, each once.
    pub fn layouts(&self) -> BTreeSet<Layout> {
        self.layouts.iter().copied().collect()
    }

    /// Where all keys of a layout are, whoever writes them.
    pub fn range(&self, layout: Layout) -> KeyRange {
        KeyRange::folder(self.folder(layout))
    }

    /// Where the keys of one folder are one instance's, and written together.
    pub fn pairs(&self) -> Option<KeyRange> {
        self.layouts.contains(&Layout::Containers).then(|| self.range(Layout::Containers))
    }

    /// The folder of a layout's keys, which ends with a slash.
    fn folder(&self, layout: Layout) -> String {
        match layout {
            Layout::Containers => format!("{}/", self.containers_prefix),
            Layout::Registrator => format!("{}/", self.registrator_prefix),
            Layout::Skydns => skydns::folder(&self.skydns_prefix, &self.skydns_domain),
        }
    }

    /// The entries of an instance in a layout; `None` while its readers, who see no status, should not find it.
    ///
    /// # Errors
    /// Why the layout cannot have it.
    fn entries(&self, layout: Layout, subject: &Subject<'_>) -> Result<Option<Entries>, String> {
        match layout {
            Layout::Containers => {
                Ok(containers::entries(subject, &self.containers_prefix, self.containers_host))
            }
            Layout::Registrator => Ok(registrator::entries(subject, &self.registrator_prefix)),
            Layout::Skydns => skydns::entries(subject, &self.folder(layout)),
        }
    }
}

/// The entries of one container's instances in every layout that is asked for, and what is left out. Where two of them
/// have one key, the first has it: TCP comes before UDP.
pub fn lay_out<'a>(
    settings: &LayoutSettings,
    subjects: impl Iterator<Item = Subject<'a>> + Clone,
) -> (Vec<Entries>, Vec<String>) {
    let (mut laid_out, mut left_out): (Vec<Entries>, Vec<String>) = Default::default();
    let mut taken: BTreeMap<String, Protocol> = BTreeMap::new();
    for layout in settings.layouts() {
        for subject in subjects.clone() {
            let Instance { container_port, protocol, .. } = subject.instance;
            let port = format!("port {container_port}/{protocol} in the layout {layout}");
            let entries = match settings.entries(layout, &subject) {
                Ok(Some(entries)) => entries,
                Ok(None) => continue,
                Err(reason) => {
                    left_out.push(format!("{port}: {reason}"));
                    continue;
                }
            };
            let first = entries.keys().find_map(|key| taken.get(key)).copied();
            if let Some(first) = first {
                left_out.push(format!("{port}: {container_port}/{first} has its keys"));
                continue;
            }
            taken.extend(entries.keys().map(|key| (key.to_owned(), *protocol)));
            laid_out.push(entries);
        }
    }
    (laid_out, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::testing::{instance, node};

    #[test]
    fn of_a_tcp_and_a_udp_port_of_one_number_tcp_has_the_key_and_the_other_is_named() {
        let settings = testing::settings(&["--layout", "containers,registrator"]);
        let instances = [instance("53/tcp", "10.0.0.5:5301"), instance("53/udp", "10.0.0.5:5302")];
        let node = node();
        let subjects = instances.iter().map(|instance| Subject { instance, node: &node, bindings: &[] });
        let (laid_out, left_out) = lay_out(&settings, subjects);
        assert_eq!(left_out, ["port 53/udp in the layout containers: 53/tcp has its keys"]);
        let keys: Vec<&str> = laid_out.iter().flat_map(Entries::keys).collect();
        assert_eq!(
            keys,
            [
                "/containers/web-1/53/host",
                "/containers/web-1/53/port",
                "/services/web/h1:web-1:53",
                "/services/web/h1:web-1:53:udp"
            ]
        );
        assert_eq!(laid_out[0].pairs[1].1, b"5301");
    }

    #[test]
    fn without_a_layout_there_is_nothing_beside_rollcalls_own_keys() {
        let (node, instance) = (node(), instance("80/tcp", "10.0.0.5:8080"));
        let subject = Subject { instance: &instance, node: &node, bindings: &[] };
        assert_eq!(lay_out(&LayoutSettings::default(), [subject].into_iter()), (vec![], vec![]));
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Instances and settings for tests.

    use clap::Parser;
    use jiff::Timestamp;
    use rollcall_shared::{
        codec::V1,
        model::instance::{Address, Status},
    };

    use super::*;
    use crate::inventory::Port;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        layout: LayoutSettings,
    }

    pub(crate) fn settings(flags: &[&str]) -> LayoutSettings {
        Cli::parse_from([&["agent"], flags].concat()).layout
    }

    pub(crate) fn node() -> NodeName {
        "h1".parse().expect("a name")
    }

    /// An instance of the service `web`, of the container `web-1`.
    pub(crate) fn instance(port: &str, endpoint: &str) -> Instance {
        let Port { number, protocol } = port.parse().expect("a port");
        let (address, port) = endpoint.rsplit_once(':').expect("an endpoint");
        let address: Address = address.to_owned().try_into().expect("an address");
        Instance {
            v: V1,
            service: "web".parse().expect("a name"),
            container: "web-1".parse().expect("a name"),
            id: "0123456789ab".parse().expect("an ID"),
            image: "example/app:1".to_owned(),
            address,
            port: port.parse().expect("a port"),
            protocol,
            container_port: number,
            network: None,
            status: Status::Passing,
            weight: 1,
            started_at: Timestamp::UNIX_EPOCH,
            tags: Vec::new(),
            labels: BTreeMap::new(),
            environment: BTreeMap::new(),
            alternatives: Vec::new(),
        }
    }

    /// The keys and values of entries as text.
    pub(crate) fn shown(entries: Option<Entries>) -> Vec<String> {
        let pairs = entries.map(|entries| entries.pairs).unwrap_or_default();
        pairs.into_iter().map(|(key, value)| format!("{key} {}", String::from_utf8_lossy(&value))).collect()
    }
}
