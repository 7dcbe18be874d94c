//! The host's own address, under which ports published on every address are registered.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket},
    str::FromStr,
};

use ipnet::IpNet;

use super::address::Readers;

const FLAG: &str = "--advertise";

/// How the operator says which address it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Advertise {
    /// This address.
    Ip(IpAddr),
    /// The address in this network.
    Network(IpNet),
    /// The addresses of this interface.
    Interface(String),
}

impl FromStr for Advertise {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<IpAddr>() {
            Ok(ip) if ip.is_unspecified() => return Err("expected an address, not all of them".to_owned()),
            Ok(ip) => return Ok(Advertise::Ip(ip)),
            Err(_) => {}
        }
        if let Ok(network) = text.parse() {
            return Ok(Advertise::Network(network));
        }
        // Linux's own limit is 15 bytes, without slash or space.
        let plain = |c: char| c.is_ascii_graphic() && c != '/';
        if (1..=15).contains(&text.len()) && text.chars().all(plain) && !text.contains("://") {
            return Ok(Advertise::Interface(text.to_owned()));
        }
        Err("expected an IP address, an interface such as eth0, or a CIDR such as 10.0.0.0/8".to_owned())
    }
}

impl fmt::Display for Advertise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Advertise::Ip(ip) => ip.fmt(f),
            Advertise::Network(network) => network.fmt(f),
            Advertise::Interface(name) => name.fmt(f),
        }
    }
}

/// The host's addresses, at most one of each family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Advertised {
    /// IPv4.
    pub v4: Option<Ipv4Addr>,
    /// IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl Advertised {
    fn add(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => drop(self.v4.get_or_insert(ip)),
            IpAddr::V6(ip) => drop(self.v6.get_or_insert(ip)),
        }
    }

    /// These, and of a family that they lack, the others'.
    pub fn or(self, others: Self) -> Self {
        Self { v4: self.v4.or(others.v4), v6: self.v6.or(others.v6) }
    }

    /// The address of the same family as `ip`.
    pub fn like(&self, ip: IpAddr) -> Option<IpAddr> {
        match ip {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }
}

impl fmt::Display for Advertised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.v4, self.v6) {
            (Some(v4), Some(v6)) => write!(f, "{v4},{v6}"),
            (Some(v4), None) => v4.fmt(f),
            (None, Some(v6)) => v6.fmt(f),
            (None, None) => f.write_str("nothing"),
        }
    }
}

/// An address of one of the host's interfaces.
#[derive(Debug, Clone)]
struct Local {
    interface: String,
    ip: IpAddr,
}

/// What was found of the addresses to advertise, and what was not, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The addresses.
    pub advertised: Advertised,
    /// What is not there (yet): an interface or an address.
    pub missing: Vec<String>,
}

/// Finds the addresses to advertise. Where the operator names none, it is the source address of the route to etcd, or of
/// the default route where that is on this machine. May block, as etcd's name is looked up.
pub fn find(settings: &[Advertise], readers: &Readers) -> Found {
    if settings.is_empty() {
        return by_route(readers, source_of_route);
    }
    let only_ips = settings.iter().all(|setting| matches!(setting, Advertise::Ip(_)));
    match if_addrs::get_if_addrs() {
        _ if only_ips => choose(settings, &[]),
        Ok(interfaces) => {
            let local = |found: &if_addrs::Interface| Local { interface: found.name.clone(), ip: found.ip() };
            choose(settings, &interfaces.iter().map(local).collect::<Vec<_>>())
        }
        Err(error) => {
            let missing = vec![format!("the interfaces cannot be listed: {error}")];
            Found { advertised: Advertised::default(), missing }
        }
    }
}

/// Chooses among the host's addresses. A loopback address is chosen only where it is given as such.
fn choose(settings: &[Advertise], locals: &[Local]) -> Found {
    let mut found = Found::default();
    for setting in settings {
        let here = |is_meant: &dyn Fn(&Local) -> bool| -> Vec<IpAddr> {
            let useful = |local: &&Local| is_useful(local.ip) && is_meant(local);
            locals.iter().filter(useful).map(|local| local.ip).collect()
        };
        let matching = match setting {
            // Taken as it is: it may be an address in front of this host.
            Advertise::Ip(ip) => vec![*ip],
            Advertise::Network(network) => here(&|local| network.contains(&local.ip)),
            Advertise::Interface(name) => here(&|local| local.interface == *name),
        };
        if matching.is_empty() {
            let have: Vec<String> =
                locals.iter().map(|local| format!("{} {}", local.interface, local.ip)).collect();
            let have = have.join(", ");
            found.missing.push(format!("{FLAG} is {setting} and no address of it is here, only {have}"));
        }
        matching.into_iter().for_each(|ip| found.advertised.add(ip));
    }
    found
}

/// Whether another host may reach it.
fn is_useful(ip: IpAddr) -> bool {
    !ip.to_canonical().is_loopback() && !ip.is_unspecified() && !is_link_local(ip)
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn by_route(readers: &Readers, source_of_route: impl Fn(&str) -> io::Result<IpAddr>) -> Found {
    // Documentation addresses: only the route to them is looked up, nothing is sent.
    const ANYWHERE: [&str; 2] = ["192.0.2.1:9", "[2001:db8::1]:9"];
    let etcd = match readers {
        Readers::ThisHost => None,
        Readers::AnyHost { etcd } => etcd.as_deref(),
    };
    let Found { mut advertised, mut missing } = Found::default();
    let mut take = |source: IpAddr| {
        if is_useful(source) {
            advertised.add(source)
        }
    };
    match etcd.map(|etcd| (etcd, source_of_route(etcd))) {
        // The default route need not lead there.
        Some((etcd, Err(error))) => {
            missing.push(format!("the route to etcd at {etcd} is not known: {error}"))
        }
        Some((_, Ok(source))) => take(source),
        None => {}
    }
    ANYWHERE.into_iter().filter_map(|anywhere| source_of_route(anywhere).ok()).for_each(take);
    if advertised == Advertised::default() {
        if *readers == Readers::ThisHost {
            // A host without any route still reaches itself.
            advertised.v4 = Some(Ipv4Addr::LOCALHOST);
        } else {
            missing.push(format!("no route leads off it, and {FLAG} gives no address"));
        }
    }
    Found { advertised, missing }
}

/// The address from which this host would send there: to the first of the destination's addresses that a route leads to.
fn source_of_route(destination: &str) -> io::Result<IpAddr> {
    let mut source = Err(io::ErrorKind::NotFound.into());
    for destination in destination.to_socket_addrs()? {
        source = source.or_else(|_| source_towards(destination));
    }
    source
}

fn source_towards(destination: SocketAddr) -> io::Result<IpAddr> {
    let any = if destination.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    // Connecting a UDP socket chooses its source address and sends nothing.
    socket.connect(destination)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locals() -> Vec<Local> {
        [
            ("lo", "127.0.0.1"),
            ("eth0", "fe80::1"),
            ("eth0", "10.0.0.5"),
            ("eth0", "fd00::5"),
            ("eth1", "192.168.7.5"),
        ]
        .map(|(interface, ip)| Local { interface: interface.to_owned(), ip: ip.parse().expect("an address") })
        .to_vec()
    }

    fn chosen(settings: &[&str]) -> Found {
        let settings: Vec<Advertise> =
            settings.iter().map(|setting| setting.parse().expect("a setting")).collect();
        choose(&settings, &locals())
    }

    fn shown(settings: &[&str]) -> String {
        let Found { advertised, missing } = chosen(settings);
        assert_eq!(missing, [""; 0]);
        advertised.to_string()
    }

    #[test]
    fn an_interface_gives_its_address_of_each_family() {
        assert_eq!(shown(&["eth0"]), "10.0.0.5,fd00::5");
    }

    #[test]
    fn a_network_gives_the_address_in_it_and_an_ip_is_taken_as_it_is() {
        assert_eq!(shown(&["192.168.0.0/16"]), "192.168.7.5");
        assert_eq!(shown(&["203.0.113.9", "fd00::/8"]), "203.0.113.9,fd00::5");
        assert_eq!(shown(&["127.0.0.1"]), "127.0.0.1");
        assert!("0.0.0.0".parse::<Advertise>().is_err());
    }

    #[test]
    fn what_no_address_meets_is_missing_and_the_rest_is_there() {
        let Found { advertised, missing } = chosen(&["172.16.0.0/12", "wlan7", "eth1"]);
        assert_eq!((advertised.to_string().as_str(), missing.len()), ("192.168.7.5", 2));
        assert!(missing[0].starts_with("--advertise is 172.16.0.0/12 and no address of it"), "{missing:?}");
        assert!(missing[1].contains("eth1 192.168.7.5"), "{missing:?}");
    }

    #[test]
    fn neither_an_interface_nor_a_network_gives_a_loopback_address() {
        assert_eq!(shown(&["0.0.0.0/0"]), "10.0.0.5");
        for setting in ["lo", "127.0.0.0/8"] {
            let Found { advertised, missing } = chosen(&[setting]);
            assert_eq!((advertised, missing.len()), (Advertised::default(), 1), "{setting}");
        }
    }

    #[test]
    fn while_the_route_to_etcd_is_not_known_another_is_not_all_that_was_looked_for() {
        let readers = Readers::AnyHost { etcd: Some("etcd.lan:2379".to_owned()) };
        let found = |etcd: Option<&str>, v4: Option<&str>, readers: &Readers| {
            let route = |destination: &str| {
                let source = match destination {
                    "etcd.lan:2379" => etcd,
                    destination if destination.starts_with('[') => None,
                    _ => v4,
                };
                source.map(|ip| ip.parse().expect("an address")).ok_or(io::ErrorKind::NotFound.into())
            };
            let Found { advertised, missing } = by_route(readers, route);
            (advertised.to_string(), missing.len())
        };
        let (inner, outer) = (Some("10.9.0.5"), Some("192.168.7.5"));
        assert_eq!(found(inner, outer, &readers), ("10.9.0.5".to_owned(), 0));
        assert_eq!(found(None, outer, &readers), ("192.168.7.5".to_owned(), 1));
        assert_eq!(found(Some("127.0.0.1"), outer, &readers), ("192.168.7.5".to_owned(), 0));
        assert_eq!(found(None, None, &readers), ("nothing".to_owned(), 2));
        assert_eq!(found(None, None, &Readers::ThisHost), ("127.0.0.1".to_owned(), 0));
    }
}
