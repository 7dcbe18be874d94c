//! Where to connect and as whom, as libpq finds it out: what the connection string leaves open comes from a service
//! file, then from the environment, then from libpq's defaults.
//!
//! It is found out anew at each connection, as files change in years. "Parameter Key Words", "Environment Variables"
//! and "The Connection Service File" in PostgreSQL's chapter on libpq have the rules.

use std::{
    collections::BTreeMap,
    fmt, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio_postgres::{Config, config::ChannelBinding};

use super::{
    conninfo::{Conninfo, ConninfoError},
    passfile::{self, Found},
    tls::{SslMode, TlsFiles},
};

/// How long connecting may take unless it is said.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The port unless it is said.
const PORT: u16 = 5432;
/// The folder of the socket unless a host is said: Debian's, then PostgreSQL's own.
const SOCKET_DIRS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// The variables that set a keyword.
const VARIABLES: [(&str, &str); 18] = [
    ("PGAPPNAME", "application_name"),
    ("PGCHANNELBINDING", "channel_binding"),
    ("PGCONNECT_TIMEOUT", "connect_timeout"),
    ("PGDATABASE", "dbname"),
    ("PGGSSENCMODE", "gssencmode"),
    ("PGHOST", "host"),
    ("PGHOSTADDR", "hostaddr"),
    ("PGOPTIONS", "options"),
    ("PGPASSFILE", "passfile"),
    ("PGPASSWORD", "password"),
    ("PGPORT", "port"),
    ("PGSERVICE", "service"),
    ("PGSSLCERT", "sslcert"),
    ("PGSSLKEY", "sslkey"),
    ("PGSSLMODE", "sslmode"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGTARGETSESSIONATTRS", "target_session_attrs"),
    ("PGUSER", "user"),
];

/// Settings that do not tell where to connect and as whom.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// A connection string or a line of a service file.
    #[error(transparent)]
    Conninfo(#[from] ConninfoError),
    /// A value that is none of its keyword's.
    #[error("{keyword} is {value:?}: expected {expected}")]
    Value {
        /// The keyword.
        keyword: &'static str,
        /// Its value.
        value: String,
        /// What was expected.
        expected: &'static str,
    },
    /// A service that no file has.
    #[error("service {service:?} is in none of the service files {}", files.join(", "))]
    Service {
        /// Its name.
        service: String,
        /// Where it was looked for.
        files: Vec<String>,
    },
    /// A line of a service file.
    #[error("service file {}, line {line}, cannot be read", path.display())]
    ServiceLine {
        /// The file.
        path: PathBuf,
        /// The line's number, from 1.
        line: usize,
        /// Why.
        #[source]
        source: ConninfoError,
    },
}

/// The environment variables of libpq, and whose they are.
#[derive(Clone, Default)]
pub struct Environment {
    /// The variables that are set and not empty.
    pub variables: BTreeMap<String, String>,
    /// The user of the operating system.
    pub user: Option<String>,
}

impl Environment {
    /// The process's own.
    pub fn of_process() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, value)| (name == "HOME" || name.starts_with("PG")) && !value.is_empty());
        Self { variables: variables.collect(), user: os_user() }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// A file in the user's home folder.
    fn home(&self, file: &str) -> Option<PathBuf> {
        self.get("HOME").map(|home| Path::new(home).join(file))
    }
}

impl fmt::Debug for Environment {
    /// Without values, of which one may be a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.variables.keys()).finish()
    }
}

/// The name of the process's user. A static program has no other way to it than the file.
fn os_user() -> Option<String> {
    let id = rustix::process::geteuid().as_raw().to_string();
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let mut entries = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let own = entries.find(|fields| fields.get(2) == Some(&id.as_str()))?;
    own.first().map(|name| (*name).to_owned())
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Its name or address, or the folder of its socket.
    pub host: String,
    /// The address to connect to instead of looking the name up.
    pub hostaddr: Option<IpAddr>,
    /// Its port.
    pub port: u16,
}

/// Where to connect and as whom.
#[derive(Debug, Clone)]
pub struct Login {
    /// The servers, in the order in which they are tried; one or more.
    pub servers: Vec<Server>,
    /// The user.
    pub user: String,
    /// The database.
    pub database: String,
    /// How TLS is used.
    pub ssl_mode: SslMode,
    /// The files that TLS needs.
    pub tls: TlsFiles,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    conninfo: Conninfo,
    environment: Environment,
}

impl Login {
    /// Completes a connection string.
    ///
    /// # Errors
    /// A service that is not found, or a value that cannot be.
    pub fn resolve(mut conninfo: Conninfo, environment: Environment) -> Result<Self, LoginError> {
        let service = conninfo.get("service").or(environment.get("PGSERVICE")).map(str::to_owned);
        if let Some(service) = service {
            conninfo.fill(of_service(&service, &environment)?);
        }
        for (variable, keyword) in VARIABLES {
            if let (None, Some(value)) = (conninfo.get(keyword), environment.get(variable)) {
                conninfo.set(keyword, value.to_owned())?;
            }
        }
        let os_user = || environment.user.clone().unwrap_or_else(|| "postgres".to_owned());
        let user = conninfo.get("user").map_or_else(os_user, str::to_owned);
        let database = conninfo.get("dbname").unwrap_or(&user).to_owned();
        let timeout = number(&conninfo, "connect_timeout")?.filter(|seconds| *seconds > 0);
        let text = |keyword, file| {
            conninfo
                .get(keyword)
                .map(PathBuf::from)
                .map(|path| (path, true))
                .or_else(|| environment.home(&format!(".postgresql/{file}")).map(|path| (path, false)))
        };
        check_unsupported(&conninfo)?;
        Ok(Self {
            servers: servers(&conninfo)?,
            database,
            ssl_mode: ssl_mode(&conninfo)?,
            tls: TlsFiles {
                root: text("sslrootcert", "root.crt"),
                certificate: text("sslcert", "postgresql.crt"),
                key: text("sslkey", "postgresql.key"),
            },
            connect_timeout: timeout.map_or(CONNECT_TIMEOUT, Duration::from_secs),
            user,
            conninfo,
            environment,
        })
    }

    /// The same for asking workers, about which nothing is known yet: `own` comes before what the coordinator is told.
    /// Where it has a user, the coordinator's password is not that user's, and is kept from whoever poses as a worker.
    ///
    /// # Errors
    /// A value that cannot be.
    pub fn for_workers(&self, own: Option<&Conninfo>) -> Result<Self, LoginError> {
        let Some(own) = own else { return Ok(self.clone()) };
        // The service and the environment are in it already.
        let mut rest = self.conninfo.clone();
        rest.set("dbname", self.database.clone())?;
        let others = own.get("user").map(|_| ["user", "password"]).into_iter().flatten();
        for keyword in ["service", "host", "hostaddr", "port"].into_iter().chain(others) {
            rest.set(keyword, String::new())?;
        }
        let mut conninfo = own.clone();
        conninfo.fill(rest);
        let mut environment = self.environment.clone();
        environment.variables.retain(|name, _| name == "HOME");
        Self::resolve(conninfo, environment)
    }

    /// The same at one other server.
    #[must_use]
    pub fn at(&self, host: String, port: u16) -> Self {
        Self { servers: vec![Server { host, hostaddr: None, port }], ..self.clone() }
    }

    /// The password for a server, or why there is none.
    pub fn password(&self, server: &Server) -> Found {
        if let Some(password) = self.conninfo.get("password") {
            return Found::Password(password.to_owned());
        }
        let given = self.conninfo.get("passfile").map(PathBuf::from);
        let Some(path) = given.or_else(|| self.environment.home(".pgpass")) else {
            return Found::Nothing(None);
        };
        let is_default = SOCKET_DIRS.contains(&server.host.as_str());
        let host = if is_default { "localhost" } else { &server.host };
        let (database, user) = (self.database.as_str(), self.user.as_str());
        passfile::look_up(&path, passfile::Entry { host, port: server.port, database, user })
    }

    /// How tokio-postgres is told, but for TLS.
    ///
    /// # Errors
    /// A value that cannot be.
    pub fn config(&self, server: &Server) -> Result<Config, LoginError> {
        let mut config = Config::new();
        config.host(&server.host).port(server.port).user(&self.user).dbname(&self.database);
        config.connect_timeout(self.connect_timeout);
        if let Some(address) = server.hostaddr {
            config.hostaddr(address);
        }
        if let Found::Password(password) = self.password(server) {
            config.password(password);
        }
        let get = |keyword| self.conninfo.get(keyword);
        let name = get("application_name").or(get("fallback_application_name"));
        config.application_name(name.unwrap_or("rollcall-consumer"));
        if let Some(options) = get("options") {
            config.options(options);
        }
        let seconds = |keyword| number(&self.conninfo, keyword).map(|n| n.map(Duration::from_secs));
        // A coordinator that vanishes is noticed within a minute, where nothing else is said.
        config.keepalives_idle(seconds("keepalives_idle")?.unwrap_or(Duration::from_secs(30)));
        config.keepalives_interval(seconds("keepalives_interval")?.unwrap_or(Duration::from_secs(10)));
        let count = number(&self.conninfo, "keepalives_count")?.and_then(|count| u32::try_from(count).ok());
        config.keepalives_retries(count.unwrap_or(3));
        config.keepalives(number(&self.conninfo, "keepalives")? != Some(0));
        if let Some(milliseconds) = number(&self.conninfo, "tcp_user_timeout")? {
            config.tcp_user_timeout(Duration::from_millis(milliseconds));
        }
        config.channel_binding(match get("channel_binding") {
            Some("require") => ChannelBinding::Require,
            Some("disable") => ChannelBinding::Disable,
            _ => ChannelBinding::Prefer,
        });
        Ok(config)
    }
}

/// Everybody has a certificate of the system's authorities, so that these mean nothing unless names are checked.
fn ssl_mode(conninfo: &Conninfo) -> Result<SslMode, LoginError> {
    let given: Option<SslMode> = parsed(conninfo, "sslmode", SslMode::EXPECTED)?;
    match (conninfo.get("sslrootcert"), given) {
        (Some("system"), None) => Ok(SslMode::VerifyFull),
        (Some("system"), Some(mode)) if mode != SslMode::VerifyFull => Err(LoginError::Value {
            keyword: "sslmode",
            value: conninfo.get("sslmode").unwrap_or_default().to_owned(),
            expected: "verify-full beside sslrootcert=system",
        }),
        (_, given) => Ok(given.unwrap_or(SslMode::Prefer)),
    }
}

/// Values that would change what is safe, and that are not supported.
fn check_unsupported(conninfo: &Conninfo) -> Result<(), LoginError> {
    for (keyword, taken, expected) in [
        ("gssencmode", &["disable", "prefer"][..], "disable or prefer, as GSSAPI is not supported"),
        ("channel_binding", &["disable", "prefer", "require"], "disable, prefer or require"),
        (
            "target_session_attrs",
            &["any", "read-write", "primary"],
            "any, read-write or primary, as a coordinator is never a standby",
        ),
    ] {
        if let Some(value) = conninfo.get(keyword)
            && !taken.contains(&value)
        {
            return Err(LoginError::Value { keyword, value: value.to_owned(), expected });
        }
    }
    Ok(())
}

fn parsed<T: std::str::FromStr>(
    conninfo: &Conninfo,
    keyword: &'static str,
    expected: &'static str,
) -> Result<Option<T>, LoginError> {
    let parse = |value: &str| {
        let error = |_| LoginError::Value { keyword, value: value.to_owned(), expected };
        value.trim().parse().map_err(error)
    };
    conninfo.get(keyword).map(parse).transpose()
}

/// libpq takes a negative time for none.
fn number(conninfo: &Conninfo, keyword: &'static str) -> Result<Option<u64>, LoginError> {
    let number: Option<i64> = parsed(conninfo, keyword, "a whole number")?;
    Ok(number.map(|number| u64::try_from(number).unwrap_or(0)))
}

fn servers(conninfo: &Conninfo) -> Result<Vec<Server>, LoginError> {
    let list = |keyword| -> Vec<&str> {
        conninfo.get(keyword).map(|value| value.split(',').map(str::trim).collect()).unwrap_or_default()
    };
    let (hosts, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = hosts.len().max(addresses.len()).max(1);
    let value =
        |keyword, value: &str, expected| LoginError::Value { keyword, value: value.to_owned(), expected };
    if !addresses.is_empty() && !hosts.is_empty() && addresses.len() != hosts.len() {
        return Err(value("hostaddr", &addresses.join(","), "as many as host has"));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(value("port", &ports.join(","), "one, or as many as host has"));
    }
    let server = |n: usize| {
        let address = addresses.get(n).filter(|address| !address.is_empty());
        let parse = |text: &&str| text.parse().map_err(|_| value("hostaddr", text, "an IP address"));
        let hostaddr: Option<IpAddr> = address.map(parse).transpose()?;
        let port = ports.get(n).or(ports.first()).filter(|port| !port.is_empty());
        let parse = |text: &&str| match text.parse() {
            Ok(0) | Err(_) => Err(value("port", text, "1 to 65535")),
            Ok(port) => Ok(port),
        };
        let host = hosts.get(n).filter(|host| !host.is_empty()).map(|host| (*host).to_owned());
        let default = || hostaddr.map_or_else(socket_dir, |address| address.to_string());
        Ok(Server {
            host: host.unwrap_or_else(default),
            hostaddr,
            port: port.map(parse).transpose()?.unwrap_or(PORT),
        })
    };
    (0..count).map(server).collect()
}

fn socket_dir() -> String {
    let there = SOCKET_DIRS.into_iter().find(|dir| Path::new(dir).is_dir());
    there.unwrap_or(SOCKET_DIRS[0]).to_owned()
}

/// The settings of a service: from the user's own file, else from the system's.
fn of_service(service: &str, environment: &Environment) -> Result<Conninfo, LoginError> {
    let own = environment.get("PGSERVICEFILE").map(PathBuf::from);
    let own = own.or_else(|| environment.home(".pg_service.conf"));
    let system = Path::new(environment.get("PGSYSCONFDIR").unwrap_or("/etc/postgresql-common"));
    let files: Vec<PathBuf> = own.into_iter().chain([system.join("pg_service.conf")]).collect();
    for path in &files {
        let Ok(text) = fs::read_to_string(path) else { continue };
        if let Some(conninfo) = section(&text, service, path)? {
            return Ok(conninfo);
        }
    }
    let files = files.iter().map(|path| path.display().to_string()).collect();
    Err(LoginError::Service { service: service.to_owned(), files })
}

/// The settings of a service in a file: `[service]`, and `keyword=value` on each line.
fn section(text: &str, service: &str, path: &Path) -> Result<Option<Conninfo>, LoginError> {
    let mut found: Option<Conninfo> = None;
    for (at, line) in text.lines().map(str::trim).enumerate() {
        let error = |source| LoginError::ServiceLine { path: path.to_owned(), line: at + 1, source };
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            found = (name.trim_end_matches(']') == service).then(Conninfo::default);
        } else if let Some(conninfo) = &mut found {
            let no_value = || error(ConninfoError::NoValue(1));
            let (keyword, value) = line.split_once('=').ok_or_else(no_value)?;
            // The first line of a keyword counts.
            if conninfo.get(keyword.trim()).is_none() {
                conninfo.set(keyword.trim(), value.trim().to_owned()).map_err(error)?;
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Environment { variables: variables.iter().map(own).collect(), user: Some("me".to_owned()) }
    }

    fn login(text: &str, variables: &[(&str, &str)]) -> Result<Login, String> {
        let conninfo = Conninfo::parse(text).map_err(|error| error.to_string())?;
        let resolved = Login::resolve(conninfo, environment(variables));
        resolved.map_err(|error| rollcall_shared::process::error::one_line(&error))
    }

    fn shown(login: &Login) -> String {
        let servers: Vec<_> =
            login.servers.iter().map(|server| format!("{}:{}", server.host, server.port)).collect();
        format!("{}@{}/{} {:?}", login.user, servers.join(","), login.database, login.ssl_mode)
    }

    #[test]
    fn the_string_comes_before_the_service_and_the_service_before_the_environment() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("services");
        fs::write(&file, "# ours\n[other]\nhost=no\n[shop]\nhost=s\nport=1\nuser=s\n\n[more]\nuser=x\n")
            .expect("a file");
        let file = file.to_str().expect("a path");
        let variables = [("PGSERVICEFILE", file), ("PGUSER", "e"), ("PGDATABASE", "e"), ("PGPORT", "9")];
        let found = login("service=shop host=c", &variables).expect("a login");
        assert_eq!(shown(&found), "s@c:1/e Prefer");
        let found = login("", &[&variables[..], &[("PGSERVICE", "shop")]].concat()).expect("a login");
        assert_eq!(shown(&found), "s@s:1/e Prefer");
        let error = login("service=none", &variables).expect_err("there is none");
        assert!(error.starts_with(r#"service "none" is in none of the service files "#), "{error}");
    }

    #[test]
    fn what_is_said_nowhere_is_as_in_libpq() {
        let found = login("host=a,b port=1", &[]).expect("a login");
        assert_eq!(shown(&found), "me@a:1,b:1/me Prefer");
        let found = login("postgresql://a,b:2/x?sslmode=verify-ca", &[]).expect("a login");
        assert_eq!(shown(&found), "me@a:5432,b:2/x VerifyCa");
        let found = login("hostaddr=10.0.0.1", &[("PGSSLMODE", "disable")]).expect("a login");
        assert_eq!(shown(&found), "me@10.0.0.1:5432/me Disable");
        assert!(login("", &[]).expect("a login").servers[0].host.starts_with('/'), "a socket");
        let found = login("host=a sslrootcert=system", &[]).expect("a login");
        assert_eq!(shown(&found), "me@a:5432/me VerifyFull");
    }

    #[test]
    fn values_that_cannot_be_are_named() {
        for (text, expected) in [
            ("port=x", r#"port is "x": expected 1 to 65535"#),
            ("host=a,b port=1,2,3", r#"port is "1,2,3": expected one, or as many as host has"#),
            ("hostaddr=x", r#"hostaddr is "x": expected an IP address"#),
            ("sslmode=on", r#"sslmode is "on": expected disable, allow, prefer, require,"#),
            ("sslrootcert=system sslmode=require", r#"sslmode is "require": expected verify-full beside"#),
            ("connect_timeout=1s", r#"connect_timeout is "1s": expected a whole number"#),
            ("gssencmode=require", r#"gssencmode is "require": expected disable or prefer"#),
            ("target_session_attrs=standby", r#"target_session_attrs is "standby": expected any"#),
        ] {
            let error = login(text, &[]).map(drop).expect_err(text);
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn the_password_comes_from_the_string_the_environment_or_the_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let home = dir.path().to_str().expect("a path");
        let file = dir.path().join(".pgpass");
        fs::write(&file, "db:5433:*:me:filed\nlocalhost:*:*:*:socket\n").expect("a file");
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("ours");
        let found = |text, variables: &[(&str, &str)]| {
            let login = login(text, &[variables, &[("HOME", home)]].concat()).expect("a login");
            login.password(&login.servers[0])
        };
        let password = |text: &str| Found::Password(text.to_owned());
        assert_eq!(found("host=db password=given", &[("PGPASSWORD", "env")]), password("given"));
        assert_eq!(found("host=db port=5433", &[("PGPASSWORD", "env")]), password("env"));
        assert_eq!(found("host=db port=5433", &[]), password("filed"));
        assert_eq!(found("host=/tmp", &[]), password("socket"));
        assert!(matches!(found("host=db", &[]), Found::Nothing(Some(_))));
        assert_eq!(found("host=db passfile=/none", &[]), Found::Nothing(None));
    }

    #[test]
    fn workers_can_be_asked_by_a_user_who_has_not_the_coordinators_password() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("services");
        fs::write(&file, "[shop]\nhost=s\nuser=s\npassword=secret\n").expect("a file");
        let service = ("PGSERVICEFILE", file.to_str().expect("a path"));
        let none = Found::Nothing(None);
        let secret = Found::Password("secret".to_owned());
        for (database, variables, workers, expected, password) in [
            (
                "host=db user=u password=secret sslmode=require",
                &[][..],
                "user=ask",
                "ask@w:1/u Require",
                &none,
            ),
            ("service=shop", &[service], "user=ask dbname=x", "ask@w:1/x Prefer", &none),
            ("user=u", &[("PGPASSWORD", "secret"), ("PGHOST", "db")], "user=ask", "ask@w:1/u Prefer", &none),
            ("user=u password=p", &[], "user=ask password=secret", "ask@w:1/u Prefer", &secret),
            ("user=u password=secret", &[], "sslmode=require", "u@w:1/u Require", &secret),
        ] {
            let own = Conninfo::parse(workers).expect("a string");
            let login = login(database, variables).expect("a login");
            let asked = login.for_workers(Some(&own)).expect("a login").at("w".to_owned(), 1);
            assert_eq!((shown(&asked), &asked.password(&asked.servers[0])), (expected.to_owned(), password));
        }
    }

    #[test]
    fn another_server_is_asked_with_its_own_password() {
        let login = login("host=db user=u password=p sslmode=require", &[]).expect("a login");
        let other = login.at("10.0.0.1".to_owned(), 5433);
        assert_eq!(shown(&other), "u@10.0.0.1:5433/u Require");
        let config = other.config(&other.servers[0]).expect("it can be");
        assert_eq!((config.get_password(), config.get_ports()), (Some(&b"p"[..]), &[5433][..]));
    }
}
