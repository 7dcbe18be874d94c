//! What HAProxy says of itself: `show info`, `show servers state` and `show stat`, columns by their names.
//!
//! The names are those of HAProxy's management guide, section 9.3; columns that are new, gone or moved do no harm as
//! long as those that are needed are there.

use std::{collections::HashMap, fmt, net::IpAddr, str::FromStr};

/// What an answer is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum StateError {
    #[error("HAProxy's answer to `{command}` has no {what}")]
    Missing { command: &'static str, what: String },
    #[error("HAProxy's answer to `{command}` has {text:?} for {what}")]
    Bad { command: &'static str, what: String, text: String },
}

/// HAProxy's version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The branch, such as 2 and 8.
    pub branch: (u32, u32),
    text: String,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Version {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else { return Err(()) };
        Ok(Self { branch: (major, minor), text: text.chars().take(40).collect() })
    }
}

/// Which process answers: `show info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Its version.
    pub version: Version,
    /// Its process ID, which is the same after a restart where a container has one process.
    pub pid: u32,
    /// How long it runs, in seconds.
    pub uptime: u64,
    /// Whether it takes no new connections, as another one has taken its place.
    pub is_stopping: bool,
}

impl Info {
    /// Reads an answer to `show info`.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, StateError> {
        const COMMAND: &str = "show info";
        let fields: HashMap<_, _> = text.lines().filter_map(|line| line.split_once(": ")).collect();
        fn field<T: FromStr>(fields: &HashMap<&str, &str>, what: &str) -> Result<T, StateError> {
            let text = fields
                .get(what)
                .ok_or_else(|| StateError::Missing { command: COMMAND, what: what.to_owned() })?;
            text.trim().parse().map_err(|_| bad(COMMAND, what, text))
        }
        Ok(Self {
            version: field(&fields, "Version")?,
            pid: field(&fields, "Pid")?,
            uptime: field(&fields, "Uptime_sec")?,
            is_stopping: field::<u8>(&fields, "Stopping")? != 0,
        })
    }

    /// Whether it is another process than `last` was, some time later.
    pub fn is_other(&self, last: &Self) -> bool {
        self.pid != last.pid || self.uptime < last.uptime || self.version != last.version
    }
}

fn bad(command: &'static str, what: &str, text: &str) -> StateError {
    StateError::Bad { command, what: what.to_owned(), text: text.chars().take(40).collect() }
}

/// Bits of `srv_admin_state`.
mod admin {
    /// Forced into maintenance.
    pub const FORCED_MAINT: u32 = 0x01;
    /// Forced to drain.
    pub const FORCED_DRAIN: u32 = 0x08;
    /// In maintenance for any reason: forced, inherited, or a name that does not resolve.
    pub const MAINT: u32 = 0x23;
}

/// Bits of `srv_check_state`.
mod check {
    /// There is a check, which may be enabled.
    pub const CONFIGURED: u32 = 0x02;
    /// It is enabled.
    pub const ENABLED: u32 = 0x04;
}

/// A server: a line of `show servers state`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerState {
    /// Its backend's number.
    pub backend_id: u32,
    /// Its backend.
    pub backend: String,
    /// Its name.
    pub name: String,
    /// Its IP address, where it has one.
    pub ip: Option<IpAddr>,
    /// The host name that the configuration has instead.
    pub host: Option<String>,
    /// Its port.
    pub port: u16,
    /// Whether HAProxy would use it: its checks pass, or it has none, and nobody has forced it out.
    pub is_up: bool,
    /// Its weight, as it was set last.
    pub weight: u16,
    /// Its weight in the configuration.
    pub initial_weight: u16,
    admin: u32,
    check: u32,
}

impl ServerState {
    /// Reads an answer to `show servers state`.
    ///
    /// # Errors
    /// It is none.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, StateError> {
        const COMMAND: &str = "show servers state";
        let header = text.lines().find_map(|line| line.strip_prefix("# "));
        let header =
            header.ok_or_else(|| StateError::Missing { command: COMMAND, what: "header".to_owned() })?;
        let columns = Columns::new(COMMAND, header.split(' '));
        // The first line has the version of the format.
        let lines = text.lines().skip(1).filter(|line| !line.starts_with('#') && !line.trim().is_empty());
        lines.map(|line| Self::parse(&columns, &line.split(' ').collect::<Vec<_>>())).collect()
    }

    fn parse(columns: &Columns<'_>, fields: &[&str]) -> Result<Self, StateError> {
        let host: String = columns.get(fields, "srv_fqdn")?;
        let ip: String = columns.get(fields, "srv_addr")?;
        Ok(Self {
            backend_id: columns.get(fields, "be_id")?,
            backend: columns.get(fields, "be_name")?,
            name: columns.get(fields, "srv_name")?,
            ip: ip.parse().ok(),
            host: Some(host).filter(|host| host != "-"),
            port: columns.get(fields, "srv_port")?,
            is_up: columns.get::<u8>(fields, "srv_op_state")? != 0,
            weight: columns.get(fields, "srv_uweight")?,
            initial_weight: columns.get(fields, "srv_iweight")?,
            admin: columns.get(fields, "srv_admin_state")?,
            check: columns.get(fields, "srv_check_state")?,
        })
    }

    /// Whether somebody has forced it into maintenance.
    pub fn is_forced_out(&self) -> bool {
        self.admin & admin::FORCED_MAINT != 0
    }

    /// Whether somebody has forced it to drain.
    pub fn drains(&self) -> bool {
        self.admin & admin::FORCED_DRAIN != 0
    }

    /// Whether it is in maintenance, for whatever reason.
    pub fn is_in_maintenance(&self) -> bool {
        self.admin & admin::MAINT != 0
    }

    /// Whether it has a check that somebody has switched off.
    pub fn is_unchecked(&self) -> bool {
        self.check & check::CONFIGURED != 0 && self.check & check::ENABLED == 0
    }
}

/// What a server has of clients: a line of `show stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Requests that it serves.
    pub sessions: u64,
    /// Requests that wait for it.
    pub queued: u64,
    /// Connections to it: those in use, and those that are kept.
    pub connections: u64,
}

impl Load {
    /// Nobody waits for it or is served.
    pub fn is_idle(self) -> bool {
        self.sessions == 0 && self.queued == 0
    }

    /// As [`Load::is_idle`], and nothing is connected.
    pub fn is_none(self) -> bool {
        self.is_idle() && self.connections == 0
    }
}

/// How a backend picks a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// It takes servers at run time.
    Dynamic,
    /// It does not.
    Static,
    /// It depends on what the column does not say: `hash-type`.
    Unclear,
}

impl Algorithm {
    fn parse(text: &str) -> Self {
        match text {
            "roundrobin" | "leastconn" | "first" | "random" => Algorithm::Dynamic,
            "static-rr" => Algorithm::Static,
            _ => Algorithm::Unclear,
        }
    }
}

/// Backends and servers: an answer to `show stat`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stat {
    /// How each backend picks a server.
    pub algorithms: HashMap<String, Algorithm>,
    /// What each server has, by backend and name.
    pub loads: HashMap<(String, String), Load>,
}

impl Stat {
    /// Reads an answer to `show stat`, and adds what it has. Its fields may have what servers answered to checks.
    ///
    /// # Errors
    /// It is none.
    pub fn add(&mut self, text: &str) -> Result<(), StateError> {
        const COMMAND: &str = "show stat";
        let missing = |what: &str| StateError::Missing { command: COMMAND, what: what.to_owned() };
        let text = text.strip_prefix("# ").ok_or_else(|| missing("header"))?;
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(text.as_bytes());
        let header = reader.headers().map_err(|_| missing("header"))?.clone();
        let columns = Columns::new(COMMAND, header.iter());
        for record in reader.records() {
            let record = record.map_err(|_| missing("comma-separated values"))?;
            let fields: Vec<_> = record.iter().collect();
            let backend: String = columns.get(&fields, "pxname")?;
            let server: String = columns.get(&fields, "svname")?;
            match columns.get::<u8>(&fields, "type")? {
                1 => {
                    let algorithm = columns.get::<String>(&fields, "algo").unwrap_or_default();
                    self.algorithms.insert(backend, Algorithm::parse(&algorithm));
                }
                2 => drop(self.loads.insert((backend, server), load(&columns, &fields)?)),
                _ => {}
            }
        }
        Ok(())
    }
}

fn load(columns: &Columns<'_>, fields: &[&str]) -> Result<Load, StateError> {
    Ok(Load {
        sessions: columns.get(fields, "scur")?,
        queued: columns.get(fields, "qcur")?,
        connections: columns
            .get::<u64>(fields, "srv_icur")?
            .saturating_add(columns.get(fields, "used_conn_cur")?),
    })
}

/// Where each column is.
struct Columns<'h> {
    command: &'static str,
    places: HashMap<&'h str, usize>,
}

impl<'h> Columns<'h> {
    fn new(command: &'static str, header: impl Iterator<Item = &'h str>) -> Self {
        Self { command, places: header.enumerate().map(|(place, name)| (name, place)).collect() }
    }

    fn get<T: FromStr>(&self, fields: &[&str], name: &str) -> Result<T, StateError> {
        let place = self.places.get(name).and_then(|place| fields.get(*place));
        let text =
            place.ok_or_else(|| StateError::Missing { command: self.command, what: name.to_owned() })?;
        text.parse().map_err(|_| bad(self.command, name, text))
    }
}

/// The backends: an answer to `show backend`.
///
/// # Errors
/// It is none.
pub fn backends(text: &str) -> Result<Vec<String>, StateError> {
    let missing = || StateError::Missing { command: "show backend", what: "header".to_owned() };
    let names = text.strip_prefix("# name").ok_or_else(missing)?;
    Ok(names.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As HAProxy 2.6 and 2.8 answer.
    const STATE: &str = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight \
        srv_iweight srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state \
        srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port \
        srv_check_addr srv_agent_addr srv_agent_port\n\
        3 web 1 h1:web-1:80:000000000001 fd00::1 0 8 7 1 1 8 2 0 6 0 0 0 - 9999 - 0 0 - - 0\n\
        3 web 2 byname - 0 32 1 1 1 1 0 0 14 0 0 0 no-such-host 80 - 0 0 - - 0\n\
        3 web 3 rollcall-slot-1 127.0.0.1 0 5 1 1 1 1 0 0 10 0 0 0 - 9 - 0 0 - - 0\n";

    #[test]
    fn servers_are_read_by_the_names_of_the_columns() {
        let servers = ServerState::parse_all(STATE).expect("it is an answer");
        let [first, named, slot] = &servers[..] else { panic!("{servers:?}") };
        assert_eq!((first.backend_id, first.backend.as_str(), first.port), (3, "web", 9999));
        assert_eq!(first.ip, Some("fd00::1".parse().expect("an address")));
        assert!(first.drains() && !first.is_forced_out() && !first.is_up && !first.is_unchecked());
        assert_eq!((first.weight, first.initial_weight), (7, 1));
        assert_eq!((named.ip, named.host.as_deref()), (None, Some("no-such-host")));
        assert!(named.is_in_maintenance() && !named.is_forced_out());
        assert!(slot.is_forced_out() && slot.is_unchecked());
        // Another order, and one more.
        let moved = "1\n# srv_new srv_port srv_name be_id be_name srv_addr srv_op_state srv_admin_state srv_uweight \
             srv_iweight srv_check_state srv_fqdn\nx 80 a 1 web 10.0.0.1 2 0 1 1 6 -\n";
        let servers = ServerState::parse_all(moved).expect("it is an answer");
        assert_eq!((servers[0].name.as_str(), servers[0].port, servers[0].is_up), ("a", 80, true));
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = |text: &str| ServerState::parse_all(text).expect_err("it is none").to_string();
        assert_eq!(error("nonsense"), "HAProxy's answer to `show servers state` has no header");
        assert_eq!(
            error("1\n# be_id srv_addr srv_fqdn\n3 x y\n"),
            "HAProxy's answer to `show servers state` has no be_name"
        );
        assert_eq!(
            error(&STATE.replace(" 9999 ", " many ")),
            "HAProxy's answer to `show servers state` has \"many\" for srv_port"
        );
        let info = "Name: HAProxy\nVersion: 2.8.25-5cf5d0683\nPid: 12\nUptime_sec: 3\nStopping: 0\n";
        let parsed = Info::parse(info).expect("it is an answer");
        assert_eq!((parsed.pid, parsed.version.branch, parsed.uptime), (12, (2, 8), 3));
        let error = Info::parse("Name: nginx\n").expect_err("it is none").to_string();
        assert_eq!(error, "HAProxy's answer to `show info` has no Version");
    }

    #[test]
    fn a_process_is_another_one_by_its_id_or_when_it_started() {
        let info =
            |pid, uptime| Info { version: "2.8.1".parse().expect("one"), pid, uptime, is_stopping: false };
        assert!(!info(8, 70).is_other(&info(8, 60)));
        assert!(info(9, 70).is_other(&info(8, 60)));
        assert!(info(8, 1).is_other(&info(8, 60)));
    }

    #[test]
    fn loads_and_algorithms_are_read_whatever_a_check_said() {
        let mut stat = Stat::default();
        stat.add(
            "# pxname,svname,qcur,scur,type,last_chk,algo,srv_icur,used_conn_cur,\n\
             web,a,1,2,2,\"a \"\"b\"\",\nweb,b,0,0,2,\",,3,4,\nweb,BACKEND,0,0,1,,roundrobin,,,\n\
             hashed,BACKEND,0,0,1,,source,,,\nnone,FRONTEND,,0,0,,,,,\n",
        )
        .expect("it is an answer");
        assert_eq!(stat.loads.len(), 1);
        let load = stat.loads[&("web".to_owned(), "a".to_owned())];
        assert_eq!(load, Load { sessions: 2, queued: 1, connections: 7 });
        assert!(!load.is_idle() && !load.is_none());
        assert_eq!(stat.algorithms["web"], Algorithm::Dynamic);
        assert_eq!(stat.algorithms["hashed"], Algorithm::Unclear);
        assert!(Stat::default().add("Permission denied").is_err());
    }

    proptest! {
        #[test]
        fn nonsense_is_an_error_and_never_a_panic(text in r"(\PC|[\n# ,:0-9]){0,200}", at in 0..STATE.len(), cut in r"(\PC|[\n# ]){0,5}") {
            let _ = Info::parse(&text);
            let _ = backends(&text);
            let _ = ServerState::parse_all(&text);
            let _ = Stat::default().add(&text);
            let _ = Stat::default().add(&format!("# {text}"));
            let mut broken = STATE.to_owned();
            broken.replace_range(at..at + 1, &cut);
            if let Ok(servers) = ServerState::parse_all(&broken) {
                prop_assert!(servers.len() <= 4 + cut.lines().count());
            }
        }
    }
}
