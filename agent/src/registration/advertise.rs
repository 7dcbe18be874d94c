//! The host's own address, under which ports published on every address are registered.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs, UdpSocket},
    str::FromStr,
};

use ipnet::IpNet;
use rollcall_shared::process::setting::SettingError;

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
        if let Ok(ip) = text.parse() {
            return Ok(Advertise::Ip(ip));
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

/// Finds the addresses to advertise. Where the operator names none, it is the source address of the route to `etcd`
/// (host:port), or of the default route where that is not given or on this machine.
///
/// # Errors
/// A setting that no address of this host meets.
pub fn resolve(settings: &[Advertise], etcd: Option<&str>) -> Result<Advertised, SettingError> {
    if settings.is_empty() {
        return Ok(by_route(etcd));
    }
    let interfaces = if_addrs::get_if_addrs().map_err(|error| {
        let settings: Vec<String> = settings.iter().map(Advertise::to_string).collect();
        SettingError::caused(FLAG, settings.join(","), error)
    })?;
    let locals: Vec<Local> =
        interfaces.iter().map(|found| Local { interface: found.name.clone(), ip: found.ip() }).collect();
    choose(settings, &locals)
}

/// Chooses among the host's addresses.
fn choose(settings: &[Advertise], locals: &[Local]) -> Result<Advertised, SettingError> {
    let mut advertised = Advertised::default();
    for setting in settings {
        let matching: Vec<IpAddr> = match setting {
            // Taken as it is: it may be an address in front of this host.
            Advertise::Ip(ip) if !ip.is_unspecified() => vec![*ip],
            Advertise::Ip(_) => Vec::new(),
            Advertise::Network(network) => {
                locals.iter().map(|local| local.ip).filter(|ip| network.contains(ip)).collect()
            }
            Advertise::Interface(name) => locals
                .iter()
                .filter(|local| local.interface == *name && !is_link_local(local.ip))
                .map(|local| local.ip)
                .collect(),
        };
        if matching.is_empty() {
            let have: Vec<String> =
                locals.iter().map(|local| format!("{} {}", local.interface, local.ip)).collect();
            let expected = format!("an address of this host, which has {}", have.join(", "));
            return Err(SettingError::new(FLAG, setting, expected));
        }
        matching.into_iter().for_each(|ip| advertised.add(ip));
    }
    Ok(advertised)
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn by_route(etcd: Option<&str>) -> Advertised {
    // Documentation addresses: only the route to them is looked up, nothing is sent.
    const ANYWHERE: [&str; 2] = ["192.0.2.1:9", "[2001:db8::1]:9"];
    let mut advertised = Advertised::default();
    let useful = |ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified() && !is_link_local(*ip);
    for destination in etcd.into_iter().chain(ANYWHERE) {
        if let Some(ip) = source_of_route(destination).ok().filter(useful) {
            advertised.add(ip);
        }
    }
    if advertised == Advertised::default() {
        // A host without any route still reaches itself.
        advertised.v4 = Some(Ipv4Addr::LOCALHOST);
    }
    advertised
}

fn source_of_route(destination: &str) -> io::Result<IpAddr> {
    let destination = destination.to_socket_addrs()?.next().ok_or(io::ErrorKind::NotFound)?;
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

    fn chosen(settings: &[&str]) -> Result<String, String> {
        let settings: Vec<Advertise> =
            settings.iter().map(|setting| setting.parse().expect("a setting")).collect();
        let chosen = choose(&settings, &locals());
        chosen.map(|advertised| advertised.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn an_interface_gives_its_address_of_each_family() {
        assert_eq!(chosen(&["eth0"]), Ok("10.0.0.5,fd00::5".to_owned()));
    }

    #[test]
    fn a_network_gives_the_address_in_it_and_an_ip_is_taken_as_it_is() {
        assert_eq!(chosen(&["192.168.0.0/16"]), Ok("192.168.7.5".to_owned()));
        assert_eq!(chosen(&["203.0.113.9", "fd00::/8"]), Ok("203.0.113.9,fd00::5".to_owned()));
    }

    #[test]
    fn a_setting_that_no_address_meets_is_refused_with_what_there_is() {
        let error = chosen(&["172.16.0.0/12"]).expect_err("there is none");
        assert!(
            error.starts_with("--advertise is 172.16.0.0/12: expected an address of this host"),
            "{error}"
        );
        assert!(error.contains("eth1 192.168.7.5"), "{error}");
        assert!(chosen(&["0.0.0.0"]).is_err());
        assert!(chosen(&["wlan7"]).is_err());
    }
}
