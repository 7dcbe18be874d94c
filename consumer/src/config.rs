//! The targets, as a TOML file or a few flags name them, parsed into what the rest works with.
//!
//! Whatever is wrong is found here, before anything is touched: an error names the file, the line, the
//! value and what was expected.

use std::{
    collections::HashSet,
    fmt, fs,
    marker::PhantomData,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use regex::Regex;
use rollcall_shared::{
    cli,
    instance::{Protocol, Status},
    name::{NodeName, ServiceName, TargetName},
    signal::{Selector, Signal},
};
use serde::{
    Deserialize, Deserializer,
    de::{self, Error as _, SeqAccess, Visitor},
};

use crate::{
    command::{CommandLine, FILE},
    debounce::{DebounceSettings, MinMax},
    guard::{GuardSettings, Share},
    install::Backups,
    owner::{Mode, Owner},
    render::{Content, Format},
    select::{Family, Label, Select},
};

/// One rendered file and what follows from it.
#[derive(Debug, Clone)]
pub struct TargetSettings {
    /// Its name, unique among the consumer's targets.
    pub name: TargetName,
    /// The file.
    pub dest: PathBuf,
    /// What the file is made by.
    pub content: Content,
    /// Which instances it is made of.
    pub select: Select,
    /// The file's permission bits.
    pub mode: Option<Mode>,
    /// The file's owner.
    pub owner: Option<Owner>,
    /// What a staged file must pass.
    pub check: Option<Check>,
    /// What follows an installed file.
    pub notify: Option<Notify>,
    /// How changes are gathered.
    pub debounce: DebounceSettings,
    /// What is held back.
    pub guard: GuardSettings,
    /// Which earlier files are kept.
    pub backups: Option<Backups>,
}

/// A command that a staged file must pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The command, which names the staged file.
    pub command: CommandLine,
    /// How long it may take.
    pub timeout: Duration,
}

/// How a target learns of its new file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notify {
    /// A signal to containers, wherever they run, through the store.
    Signal {
        /// Which containers.
        to: Selector,
        /// The signal.
        signal: Signal,
    },
    /// A signal to a process of this host.
    Process {
        /// The file with its process ID.
        pid_file: PathBuf,
        /// The signal.
        signal: Signal,
    },
    /// A command.
    Command {
        /// The command.
        command: CommandLine,
        /// How long it may take.
        timeout: Duration,
    },
}

impl fmt::Display for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notify::Signal { to, signal } => write!(f, "{signal} to {to}"),
            Notify::Process { pid_file, signal } => write!(f, "{signal} to process {}", pid_file.display()),
            Notify::Command { command, .. } => write!(f, "command {command}"),
        }
    }
}

/// How long a check may take where nothing else is said.
pub const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a command that notifies may take where nothing else is said.
pub const NOTIFY_TIMEOUT: Duration = Duration::from_secs(30);

/// Reads the targets of a TOML file.
///
/// # Errors
/// A sentence naming the file, the line, the value and what was expected.
pub fn read(path: &Path) -> Result<Vec<TargetSettings>, String> {
    let name = |why: String| format!("--config is {}: {why}", path.display());
    let text = fs::read_to_string(path).map_err(|error| name(error.to_string()))?;
    parse(&text).map_err(name)
}

fn parse(text: &str) -> Result<Vec<TargetSettings>, String> {
    let file: File = toml::from_str(text).map_err(|error| one_line(text, &error))?;
    if file.target.is_empty() {
        return Err("it has no [[target]]: expected one or more".to_owned());
    }
    let targets = file.target.into_iter().map(RawTarget::parse).collect::<Result<Vec<_>, _>>()?;
    check_distinct(&targets)?;
    Ok(targets)
}

/// Checks that no two targets have one name or one file.
fn check_distinct(targets: &[TargetSettings]) -> Result<(), String> {
    let (mut names, mut files) = (HashSet::new(), HashSet::new());
    for TargetSettings { name, dest, .. } in targets {
        if !names.insert(name) {
            return Err(format!("target {name} is there twice: expected names of their own"));
        }
        if !files.insert(dest) {
            return Err(format!("target {name}: dest is {}, which another target has", dest.display()));
        }
    }
    Ok(())
}

/// A TOML error on one line: which line it is, what stands there and what is wrong with it.
fn one_line(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let Some(span) = error.span() else { return message };
    let start = span.start.min(text.len());
    let number = text[..start].matches('\n').count() + 1;
    let line = text.lines().nth(number - 1).unwrap_or_default().trim();
    format!("line {number}, {line:?}: {message}")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    target: Vec<RawTarget>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTarget {
    name: TargetName,
    dest: PathBuf,
    format: Option<Format>,
    template: Option<PathBuf>,
    #[serde(default)]
    select: RawSelect,
    #[serde(default, deserialize_with = "parsed")]
    mode: Option<Mode>,
    #[serde(default, deserialize_with = "parsed")]
    owner: Option<Owner>,
    #[serde(default, deserialize_with = "command")]
    check: Option<CommandLine>,
    #[serde(default, deserialize_with = "time")]
    check_timeout: Option<Duration>,
    notify: Option<RawNotify>,
    debounce: Option<RawDebounce>,
    #[serde(default, deserialize_with = "time")]
    heartbeat: Option<Duration>,
    guard: Option<RawGuard>,
    backups: Option<RawBackups>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSelect {
    #[serde(default, deserialize_with = "one_or_many")]
    service: Vec<ServiceName>,
    #[serde(default, deserialize_with = "pattern")]
    service_regex: Option<Regex>,
    #[serde(default, deserialize_with = "pattern")]
    container_regex: Option<Regex>,
    #[serde(default, deserialize_with = "one_or_many")]
    labels: Vec<Label>,
    #[serde(default, deserialize_with = "one_or_many")]
    node: Vec<NodeName>,
    #[serde(default, deserialize_with = "one_or_many")]
    port: Vec<u16>,
    protocol: Option<Protocol>,
    #[serde(default, deserialize_with = "one_or_many")]
    tags: Vec<String>,
    #[serde(default, deserialize_with = "one_or_many")]
    status: Vec<StatusName>,
    family: Option<Family>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNotify {
    container: Option<rollcall_shared::name::ContainerName>,
    #[serde(default, deserialize_with = "parsed")]
    label: Option<Label>,
    pid_file: Option<PathBuf>,
    #[serde(default, deserialize_with = "command")]
    command: Option<CommandLine>,
    signal: Option<Signal>,
    #[serde(default, deserialize_with = "time")]
    timeout: Option<Duration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDebounce {
    #[serde(default, deserialize_with = "time")]
    min: Option<Duration>,
    #[serde(default, deserialize_with = "time")]
    max: Option<Duration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGuard {
    min_instances: Option<usize>,
    #[serde(default, deserialize_with = "parsed")]
    max_loss: Option<Share>,
    #[serde(default, deserialize_with = "time")]
    hold: Option<Duration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBackups {
    dir: PathBuf,
    keep: Option<usize>,
}

/// How many backups are kept where nothing else is said.
pub const BACKUPS: usize = 10;

impl RawTarget {
    fn parse(self) -> Result<TargetSettings, String> {
        let RawTarget { name, dest, format, template, select, mode, owner, .. } = self;
        let named = |why: String| format!("target {name}: {why}");
        let content = match (format, template) {
            (Some(format), None) => Content::Format(format),
            (None, Some(template)) => Content::Template(template),
            (None, None) => return Err(named("expected format or template".to_owned())),
            (Some(_), Some(_)) => {
                return Err(named("format and template are both set: expected one of them".to_owned()));
            }
        };
        let check = match (self.check, self.check_timeout) {
            (Some(command), timeout) => Some(Check { command, timeout: timeout.unwrap_or(CHECK_TIMEOUT) }),
            (None, Some(_)) => return Err(named("check_timeout is set without check".to_owned())),
            (None, None) => None,
        };
        let debounce = debounce(self.debounce, self.heartbeat).map_err(named)?;
        let settings = TargetSettings {
            select: select.parse(),
            notify: self.notify.map(RawNotify::parse).transpose().map_err(named)?,
            guard: self.guard.map(RawGuard::parse).transpose().map_err(named)?.unwrap_or_default(),
            backups: self
                .backups
                .map(|RawBackups { dir, keep }| Backups { dir, keep: keep.unwrap_or(BACKUPS) }),
            name: name.clone(),
            dest,
            content,
            mode,
            owner,
            check,
            debounce,
        };
        settings.settle().map_err(named)
    }
}

impl TargetSettings {
    /// Checks that what was set fits together, and fills in what the format implies.
    ///
    /// # Errors
    /// A sentence naming the settings that contradict each other.
    pub fn settle(mut self) -> Result<Self, String> {
        if !self.dest.is_absolute() && self.dest.file_name().is_none() {
            return Err(format!("dest is {:?}: expected a file", self.dest));
        }
        if let Some(check) = self.check.as_ref().filter(|check| !check.command.names_file()) {
            return Err(format!("check is {:?}: expected {FILE} in it", check.command.to_string()));
        }
        if let Content::Format(format) = self.content {
            match self.select.protocol {
                Some(protocol) if !format.speaks(protocol) => {
                    return Err(format!("protocol is {protocol}, which the format cannot express"));
                }
                Some(_) => {}
                None => self.select.protocol = format.protocol(),
            }
        }
        Ok(self)
    }
}

fn debounce(debounce: Option<RawDebounce>, heartbeat: Option<Duration>) -> Result<DebounceSettings, String> {
    let default = DebounceSettings::default();
    let MinMax { min, max } = match debounce {
        Some(RawDebounce { min, max }) => {
            MinMax::new(min.unwrap_or(default.min), max).map_err(|error| format!("debounce.{error}"))?
        }
        None => MinMax { min: default.min, max: default.max },
    };
    Ok(DebounceSettings { min, max, heartbeat: heartbeat.unwrap_or_default() })
}

impl RawSelect {
    fn parse(self) -> Select {
        let RawSelect { service, service_regex, container_regex, labels, node, port, .. } = self;
        let default = Select::default();
        let statuses: Vec<Status> = self.status.into_iter().map(|StatusName(status)| status).collect();
        Select {
            services: service,
            service_regex,
            container_regex,
            name_regex: None,
            labels,
            nodes: node,
            ports: port,
            protocol: self.protocol,
            tags: self.tags,
            statuses: if statuses.is_empty() { default.statuses } else { statuses },
            family: self.family,
        }
    }
}

impl RawNotify {
    fn parse(self) -> Result<Notify, String> {
        let RawNotify { container, label, pid_file, command, signal, timeout } = self;
        if command.is_none() && timeout.is_some() {
            return Err("notify.timeout is set without notify.command".to_owned());
        }
        if command.is_some() && signal.is_some() {
            return Err("notify.signal and notify.command are both set: expected one of them".to_owned());
        }
        let signal = signal.unwrap_or(Signal::HUP);
        match (container, label, pid_file, command) {
            (Some(container), None, None, None) => {
                Ok(Notify::Signal { to: Selector::Container(container), signal })
            }
            (None, Some(label), None, None) => {
                Ok(Notify::Signal { to: Selector::Label(label.to_string()), signal })
            }
            (None, None, Some(pid_file), None) => Ok(Notify::Process { pid_file, signal }),
            (None, None, None, Some(command)) => {
                Ok(Notify::Command { command, timeout: timeout.unwrap_or(NOTIFY_TIMEOUT) })
            }
            _ => Err("notify: expected exactly one of container, label, pid_file and command".to_owned()),
        }
    }
}

impl RawGuard {
    fn parse(self) -> Result<GuardSettings, String> {
        let RawGuard { min_instances, max_loss, hold } = self;
        let default = GuardSettings::default();
        if min_instances.is_none() && max_loss.is_none() {
            return Err("guard: expected min_instances, max_loss or both".to_owned());
        }
        Ok(GuardSettings {
            min_instances: min_instances.unwrap_or(default.min_instances),
            max_loss,
            hold: hold.unwrap_or(default.hold),
            ..default
        })
    }
}

/// A status by its name.
struct StatusName(Status);

impl FromStr for StatusName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Status::ALL.into_iter().find(|status| status.as_str() == text).map(StatusName).ok_or_else(|| {
            let known = Status::ALL.map(Status::as_str).join(", ");
            format!("{text:?} is not a status: expected one of {known}")
        })
    }
}

fn pattern<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Regex>, D::Error> {
    cli::regex(&String::deserialize(from)?).map(Some).map_err(D::Error::custom)
}

fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(from)?;
    let time = humantime::parse_duration(&text);
    time.map(Some)
        .map_err(|_| D::Error::custom(format!("{text:?} is not a time: expected one such as 20ms or 1m")))
}

fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(from: D) -> Result<Option<T>, D::Error> {
    String::deserialize(from)?.parse().map(Some).map_err(D::Error::custom)
}

fn command<'de, D: Deserializer<'de>>(from: D) -> Result<Option<CommandLine>, D::Error> {
    /// One text is split into words, a list is words already.
    struct Words;
    impl<'de> Visitor<'de> for Words {
        type Value = CommandLine;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a command, or a list of its words")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<CommandLine, E> {
            text.parse().map_err(E::custom)
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<CommandLine, A::Error> {
            let mut words = Vec::new();
            while let Some(word) = seq.next_element()? {
                words.push(word);
            }
            CommandLine::from_words(words).map_err(A::Error::custom)
        }
    }
    from.deserialize_any(Words).map(Some)
}

fn one_or_many<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    from: D,
) -> Result<Vec<T>, D::Error> {
    struct Values<T>(PhantomData<T>);
    impl<'de, T: FromStr<Err: fmt::Display>> Visitor<'de> for Values<T> {
        type Value = Vec<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("one value, or a list of them")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
            text.parse().map(|value| vec![value]).map_err(E::custom)
        }
        fn visit_i64<E: de::Error>(self, number: i64) -> Result<Vec<T>, E> {
            self.visit_str(&number.to_string()).map_err(|error: E| E::custom(format!("{number}: {error}")))
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut values = Vec::new();
            while let Some(One(mut one)) = seq.next_element::<One<T>>()? {
                values.append(&mut one);
            }
            Ok(values)
        }
    }
    struct One<T>(Vec<T>);
    impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for One<T> {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            one_or_many(from).map(One)
        }
    }
    from.deserialize_any(Values(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: &str = "[[target]]\nname = \"web\"\ndest = \"/tmp/web.conf\"\n";

    fn web(rest: &str) -> Result<TargetSettings, String> {
        let mut targets = parse(&format!("{TARGET}{rest}"))?;
        Ok(targets.remove(0))
    }

    #[test]
    fn a_target_with_every_key_is_read() {
        let target = web(r#"
format = "nginx-upstream"
mode = "0640"
owner = "0:0"
check = "nginx -t -c {file}"
check_timeout = "5s"
heartbeat = "1s"
debounce = { min = "10ms", max = "100ms" }
guard = { min_instances = 1, max_loss = "50%", hold = "30s" }
backups = { dir = "/var/backups", keep = 3 }
[target.select]
service = ["web", "api"]
service_regex = "^w"
container_regex = "1$"
labels = ["role=front", "public"]
node = "h1"
port = [80, 8080]
protocol = "tcp"
tags = ["blue"]
status = ["passing", "starting"]
family = "ipv6"
[target.notify]
label = "role=proxy"
signal = "USR1"
"#)
        .expect("a target");
        assert_eq!(target.content, Content::Format(Format::NginxUpstream));
        assert_eq!(target.select.ports, [80, 8080]);
        assert_eq!(target.select.nodes, ["h1".parse().expect("a name")]);
        assert_eq!(target.select.statuses, [Status::Passing, Status::Starting]);
        assert_eq!(target.debounce.max, Duration::from_millis(100));
        assert_eq!(target.notify.expect("a notifier").to_string(), "USR1 to label role=proxy");
        assert_eq!(target.check.expect("a check").timeout, Duration::from_secs(5));
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let target = web("format = \"json\"").expect("a target");
        assert_eq!(target.select.statuses, [Status::Passing]);
        assert_eq!(target.select.protocol, None);
        assert_eq!(target.debounce, DebounceSettings::default());
        let target = web("format = \"citus-workers\"").expect("a target");
        assert_eq!(target.select.protocol, Some(Protocol::Tcp));
    }

    #[test]
    fn what_is_wrong_is_named_on_one_line() {
        for (rest, expected) in [
            ("", "target web: expected format or template"),
            (
                "format = \"json\"\ntemplate = \"x\"",
                "target web: format and template are both set: expected one of them",
            ),
            (
                "formt = \"json\"",
                "line 4, \"formt = \\\"json\\\"\": unknown field `formt`, expected one of `name`, `dest`, `format`,",
            ),
            (
                "format = \"json\"\n[target.select]\nservice_regex = \"(\"",
                "line 6, \"service_regex = \\\"(\\\"\": \"(\" is not a regular expression: unclosed group",
            ),
            (
                "format = \"json\"\n[target.select]\nport = 99999",
                "line 6, \"port = 99999\": 99999: number too large",
            ),
            (
                "format = \"json\"\n[target.select]\nservice = \"a b\"",
                "line 6, \"service = \\\"a b\\\"\": \"a b\" is not a service name",
            ),
            (
                "format = \"json\"\n[target.select]\nstatus = \"up\"",
                "line 6, \"status = \\\"up\\\"\": \"up\" is not a status",
            ),
            (
                "format = \"json\"\nheartbeat = \"soon\"",
                "line 5, \"heartbeat = \\\"soon\\\"\": \"soon\" is not a time",
            ),
            ("format = \"json\"\ncheck = \"true\"", "target web: check is \"true\": expected {file} in it"),
            ("format = \"json\"\ncheck_timeout = \"1s\"", "target web: check_timeout is set without check"),
            (
                "format = \"json\"\n[target.notify]\nsignal = \"HUP\"",
                "target web: notify: expected exactly one of",
            ),
            (
                "format = \"json\"\n[target.notify]\ncommand = \"x\"\nsignal = \"HUP\"",
                "target web: notify.signal and notify.command",
            ),
            (
                "format = \"citus-workers\"\n[target.select]\nprotocol = \"udp\"",
                "target web: protocol is udp",
            ),
            (
                "format = \"json\"\nguard = { max_loss = \"100%\" }",
                "line 5, \"guard = { max_loss = \\\"100%\\\" }\": \"100%\" is not a share",
            ),
            ("format = \"json\"\nguard = {}", "target web: guard: expected min_instances, max_loss or both"),
        ] {
            let error = web(rest).map(drop).expect_err(rest);
            assert!(error.starts_with(expected), "{error}\n{expected}");
            assert!(!error.contains('\n'), "{error}");
        }
        assert_eq!(parse("").map(drop), Err("it has no [[target]]: expected one or more".to_owned()));
        let twice = format!("{TARGET}format = \"json\"\n{TARGET}format = \"json\"\n");
        assert_eq!(
            parse(&twice).map(drop),
            Err("target web is there twice: expected names of their own".to_owned())
        );
    }
}
