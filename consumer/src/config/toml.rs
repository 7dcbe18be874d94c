//! The file of targets: TOML read into raw targets, and the line of each error.
//!
//! A value is parsed as it is read, so that its error has its line. What contradicts another setting is found
//! afterwards, and named by target and setting.

use std::{
    collections::BTreeMap,
    fmt, fs,
    marker::PhantomData,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use regex::Regex;
use rollcall_shared::{
    model::name::TargetName,
    process::{cli, setting::SettingError, time as times},
};
use serde::{
    Deserialize, Deserializer,
    de::{
        self, DeserializeOwned, Error as _, MapAccess, SeqAccess, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};

use super::target::{RawTarget, TargetConfig};
use crate::{
    roll::RawSelect,
    sink::file::{
        check::settings::RawCheck,
        command::CommandLine,
        install::{Mode, Owner},
        notify::settings::{NotifyOrName, RawNotify},
        read_back::RawReadBack,
        render::{
            Format, RawRenderSettings, haproxy::RawHaproxy, nginx::RawNginx,
            nginx_proxy::settings::RawNginxProxy, settings::Vars, traefik::RawTraefik,
        },
        settings::{RawBackups, RawFile},
        verify::RawVerify,
    },
    sink::{
        citus::RawCitus,
        haproxy::RawRuntime,
        settings::{RawSink, SinkKind},
    },
    target::{loss_guard::RawGuard, pacer::RawPace},
};

/// Reads the targets of a TOML file.
///
/// # Errors
/// A file that cannot be read, a line that cannot be parsed, or a setting that cannot work.
pub(crate) fn read(path: &Path) -> Result<Vec<TargetConfig>, SettingError> {
    let text =
        fs::read_to_string(path).map_err(|error| SettingError::caused("--config", path.display(), error))?;
    parse(&text).map_err(|error| SettingError::caused("--config", path.display(), error))
}

/// What is wrong with a file of targets.
#[derive(Debug, thiserror::Error)]
enum FileError {
    /// A line cannot be parsed.
    #[error("line {number}, {line:?}: {reason}")]
    Line { number: usize, line: String, reason: String },
    /// Something cannot be parsed, and the parser does not know where.
    #[error("{0}")]
    Anywhere(String),
    /// A setting cannot work.
    #[error(transparent)]
    Setting(#[from] SettingError),
}

/// What is wrong with `[target]`, in place of the parser's "invalid type: map, expected a sequence".
const ONE_TARGET: &str = "expected [[target]], in two brackets, as there may be several";

impl FileError {
    /// Shows no more of a line than this many characters.
    const MAX_SHOWN: usize = 120;

    fn new(text: &str, error: &::toml::de::Error) -> Self {
        let reason = error.message().lines().map(str::trim).collect::<Vec<_>>().join(" ");
        let Some(span) = error.span() else { return FileError::Anywhere(reason) };
        let before = &text.as_bytes()[..span.start.min(text.len())];
        let lines_before = before.iter().filter(|byte| **byte == b'\n').count();
        let line = text.lines().nth(lines_before).unwrap_or_default().trim();
        let reason = if line == "[target]" { ONE_TARGET.to_owned() } else { reason };
        let line = line.chars().take(Self::MAX_SHOWN).collect();
        FileError::Line { number: lines_before + 1, line, reason }
    }
}

fn parse(text: &str) -> Result<Vec<TargetConfig>, FileError> {
    let file: TargetsFile = ::toml::from_str(text).map_err(|error| FileError::new(text, &error))?;
    if file.targets.is_empty() {
        return Err(SettingError::missing("[[target]]", "one or more").into());
    }
    let notifiers = &file.notifiers;
    let parsed = file.targets.into_iter().map(|target| target.parse(notifiers));
    let targets = parsed.collect::<Result<Vec<_>, _>>()?;
    check_notifiers(notifiers.keys(), &targets)?;
    check_distinct(&targets)?;
    Ok(targets)
}

/// Checks that no two targets have one name or one file.
fn check_distinct(targets: &[TargetConfig]) -> Result<(), SettingError> {
    for (place, target) in targets.iter().enumerate() {
        let (TargetConfig { name, sink, .. }, before) = (target, &targets[..place]);
        if before.iter().any(|other| other.name == *name) {
            return Err(SettingError::new("target name", name, "a name that no other target has"));
        }
        if let Some(error) = before.iter().find_map(|other| sink.clash(&other.sink)) {
            return Err(error.within(&format!("target {name}: ")));
        }
    }
    Ok(())
}

/// Checks that each notifier has a name of its own, and somebody who uses it.
fn check_notifiers<'n>(
    notifiers: impl Iterator<Item = &'n TargetName>,
    targets: &[TargetConfig],
) -> Result<(), SettingError> {
    for name in notifiers {
        if targets.iter().any(|target| target.name == *name) {
            return Err(SettingError::new("notifier", name, "a name that no target has"));
        }
        if !targets.iter().any(|target| target.sink.shared() == Some(name)) {
            let expected = format!("a target with notify = \"{name}\"");
            return Err(SettingError::new("notifier", name, expected));
        }
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetsFile {
    #[serde(default, rename = "target")]
    targets: Vec<TargetTable>,
    /// Notifiers that targets may share, by their names.
    #[serde(default, rename = "notifier")]
    notifiers: BTreeMap<TargetName, RawNotify>,
}

/// `[[target]]`: the keys of the target and of its file in one table. Serde's flatten would lose the lines of errors.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetTable {
    name: TargetName,
    sink: Option<SinkKind>,
    dest: Option<PathBuf>,
    format: Option<Format>,
    template: Option<PathBuf>,
    #[serde(default)]
    select: RawSelect,
    #[serde(default, deserialize_with = "parsed")]
    mode: Option<Mode>,
    #[serde(default, deserialize_with = "parsed")]
    owner: Option<Owner>,
    #[serde(default, deserialize_with = "command_or_table")]
    check: Option<RawCheck>,
    #[serde(default, deserialize_with = "time")]
    check_timeout: Option<Duration>,
    check_isolates: Option<bool>,
    #[serde(default, deserialize_with = "command_or_table")]
    verify: Option<RawVerify>,
    read_back: Option<RawReadBack>,
    notify: Option<NotifyOrName>,
    pace: Option<RawPace>,
    #[serde(default, deserialize_with = "time")]
    heartbeat: Option<Duration>,
    guard: Option<RawGuard>,
    #[serde(default, deserialize_with = "time")]
    reconcile: Option<Duration>,
    backups: Option<RawBackups>,
    #[serde(default)]
    allow_empty: bool,
    nginx_proxy: Option<RawNginxProxy>,
    haproxy: Option<RawHaproxy>,
    runtime: Option<RawRuntime>,
    citus: Option<RawCitus>,
    traefik: Option<RawTraefik>,
    nginx: Option<RawNginx>,
    vars: Option<Vars>,
}

impl TargetTable {
    fn parse(self, notifiers: &BTreeMap<TargetName, RawNotify>) -> Result<TargetConfig, SettingError> {
        let outer = format!("target {}: ", self.name);
        let (notify, shared) = match self.notify.clone() {
            None => (None, None),
            Some(NotifyOrName::Own(own)) => (Some(*own), None),
            Some(NotifyOrName::Shared(name)) => {
                let found = notifiers.get(&name).cloned();
                let expected = format!("a table [notifier.{name}]");
                let missing = || SettingError::new("notify", &name, expected).within(&outer);
                (Some(found.ok_or_else(missing)?), Some(name))
            }
        };
        let raw = RawTarget::from(self);
        let file = RawFile { notify, shared, ..raw.sink.file };
        RawTarget { sink: RawSink { file, ..raw.sink }, ..raw }.parse().map_err(|error| error.within(&outer))
    }
}

impl From<TargetTable> for RawTarget {
    fn from(table: TargetTable) -> Self {
        let TargetTable { name, select, pace, heartbeat, guard, reconcile, allow_empty, .. } = table;
        let TargetTable { dest, format, template, mode, owner, backups, .. } = table;
        let TargetTable { check, check_timeout, check_isolates, verify, read_back, .. } = table;
        let TargetTable { sink, runtime, citus, nginx_proxy, haproxy, nginx, traefik, vars, .. } = table;
        let render = RawRenderSettings { nginx_proxy, haproxy, nginx, traefik, vars };
        let file = RawFile { dest, format, template, render, mode, owner, ..RawFile::default() };
        let file = RawFile { check, check_timeout, check_isolates, verify, read_back, backups, ..file };
        let sink = RawSink { kind: sink, file, runtime, citus };
        Self { name, select, pace, heartbeat, guard, reconcile, allow_empty, sink }
    }
}

/// A regular expression.
pub(crate) fn pattern<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Regex>, D::Error> {
    cli::regex(&String::deserialize(from)?).map(Some).map_err(D::Error::custom)
}

/// A time, such as `20ms`.
pub(crate) fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    struct Time;
    impl Visitor<'_> for Time {
        type Value = Duration;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a time such as \"30s\"")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
            times::parse(text).map_err(E::custom)
        }
    }
    from.deserialize_any(Time).map(Some)
}

/// A text that is parsed as a flag's value is.
pub(crate) fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    String::deserialize(from)?.parse().map(Some).map_err(D::Error::custom)
}

/// A command: one text is split into words, a list is words already.
pub(crate) fn command<'de, D: Deserializer<'de>>(from: D) -> Result<Option<CommandLine>, D::Error> {
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

/// A setting that is a command or, where there is more to say, a table.
pub(crate) trait CommandOrTable: Sized {
    /// The table.
    type Table: DeserializeOwned;

    /// A command alone.
    fn of_command(command: CommandLine) -> Self;

    /// A table.
    fn of_table(table: Self::Table) -> Self;
}

/// A command, as text or as a list of words, or a table.
pub(crate) fn command_or_table<'de, D: Deserializer<'de>, T: CommandOrTable>(
    from: D,
) -> Result<Option<T>, D::Error> {
    struct Either<T>(PhantomData<T>);
    impl<'de, T: CommandOrTable> Visitor<'de> for Either<T> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a command, a list of its words, or a table")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map(T::of_command).map_err(E::custom)
        }
        fn visit_seq<A: SeqAccess<'de>>(self, words: A) -> Result<T, A::Error> {
            let words = Vec::deserialize(SeqAccessDeserializer::new(words))?;
            CommandLine::from_words(words).map(T::of_command).map_err(A::Error::custom)
        }
        fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<T, A::Error> {
            T::Table::deserialize(MapAccessDeserializer::new(table)).map(T::of_table)
        }
    }
    from.deserialize_any(Either(PhantomData)).map(Some)
}

/// One value or a list of them, each a text or a whole number.
pub(crate) fn one_or_many<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    from: D,
) -> Result<Vec<T>, D::Error> {
    from.deserialize_any(Values(PhantomData))
}

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
        while let Some(One(value)) = seq.next_element()? {
            values.push(value);
        }
        Ok(values)
    }
}

/// One value of a list.
struct One<T>(T);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for One<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Single<T>(PhantomData<T>);
        impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for Single<T> {
            type Value = T;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a whole number")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
                self.visit_str(&number.to_string())
                    .map_err(|error: E| E::custom(format!("{number}: {error}")))
            }
        }
        from.deserialize_any(Single(PhantomData)).map(One)
    }
}

#[cfg(test)]
mod tests {
    use rollcall_shared::{
        model::instance::{Protocol, Status},
        process::error::one_line,
    };

    use super::*;
    use crate::{
        roll::StackChoice,
        sink::file::{install::Backups, render::Content},
        target::{
            loss_guard::{GuardSettings, HoldTime},
            pacer::PaceSettings,
        },
    };

    const TARGET: &str = "[[target]]\nname = \"web\"\ndest = \"/tmp/web.conf\"\n";

    fn targets(text: &str) -> Result<Vec<TargetConfig>, String> {
        parse(text).map_err(|error| one_line(&error))
    }

    fn web(rest: &str) -> Result<TargetConfig, String> {
        Ok(targets(&format!("{TARGET}{rest}"))?.remove(0))
    }

    #[test]
    fn a_file_that_a_program_follows_is_named_as_the_program_wants_it_and_read_back_by_that_program() {
        let target = |dest: &str, rest: &str| {
            targets(&format!("[[target]]\nname = \"web\"\ndest = \"{dest}\"\n{rest}"))
                .map(|mut all| all.remove(0))
        };
        let envoy = "format = \"envoy-eds\"\nread_back = { envoy = \"http://127.0.0.1:9901\" }\n";
        let read_back = target("/x/{service}.json", envoy)
            .expect("a target")
            .sink
            .file()
            .expect("a file")
            .read_back
            .clone()
            .expect("it is asked");
        assert_eq!(read_back.url.to_string(), "http://127.0.0.1:9901/");
        for (dest, rest, expected) in [
            ("/x.yaml", envoy, "dest is /x.yaml: expected a name that ends in .json"),
            (
                "/x.json",
                "format = \"traefik\"",
                "dest is /x.json: expected a name that ends in .yml or .yaml",
            ),
            ("/x", "format = \"prometheus\"", "dest is /x: expected a name that ends in .json"),
            (
                "/{service}.yml",
                "format = \"traefik\"",
                "dest is /{service}.yml: expected one file, as {service} cannot go beside a format that is a whole \
                 configuration",
            ),
            (
                "/x.json",
                "format = \"json\"\ntraefik = { domain = \"a\" }",
                "traefik is given: expected format = \"traefik\" beside it",
            ),
            (
                "/x.json",
                "format = \"json\"\nread_back = { envoy = \"http://h\" }",
                "read_back.envoy is http://h/: expected format = \"envoy-eds\" or a template beside it",
            ),
        ] {
            assert_eq!(target(dest, rest).expect_err("it cannot work"), format!("target web: {expected}"));
        }
    }

    #[test]
    fn a_target_with_every_key_is_read() {
        let target = web(r#"
format = "nginx-upstream"
mode = "0640"
owner = "0:0"
check = "nginx -t -c {file}"
check_timeout = "5s"
pace = { burst = 3, interval = "1s", quiet = "100ms" }
guard = { min_instances = 1, max_loss = "50%", hold = "forever" }
reconcile = "10s"
allow_empty = true
backups = { dir = "/var/backups", keep = 3 }
[target.select]
service = ["web", "api"]
service_regex = "^w"
container_regex = "1$"
labels = ["role=front", "public"]
stack = "shop"
node = "h1"
port = [80, 8080]
protocol = "tcp"
tags = ["blue"]
status = ["passing", "starting"]
family = "ipv6"
[target.notify]
service = "proxy"
labels = ["role=proxy", "zone"]
stack = "shop"
signal = "USR1"
"#)
        .expect("a target");
        let TargetConfig { name, select, pace, guard, reconcile, allow_empty, sink, .. } = target;
        let file = sink.file().expect("a file").clone();
        assert!(allow_empty);
        assert_eq!(name.as_str(), "web");
        assert_eq!(select.services.len(), 2);
        assert_eq!(select.labels.len(), 2);
        assert_eq!(select.ports, [80, 8080]);
        assert_eq!(select.nodes, ["h1".parse().expect("a name")]);
        assert_eq!(select.statuses, [Status::Passing, Status::Starting]);
        assert_eq!(pace.burst, 3);
        assert_eq!(reconcile, Duration::from_secs(10));
        assert_eq!((guard.min_instances, guard.hold), (1, HoldTime::Forever));
        assert_eq!(file.content, Content::Format(Format::NginxUpstream));
        assert_eq!(file.mode, Some(Mode(0o640)));
        assert_eq!(file.owner, Some(Owner { user: Some(0), group: Some(0) }));
        assert_eq!(file.check.expect("a check").timeout, Duration::from_secs(5));
        assert_eq!(file.backups, Some(Backups { dir: "/var/backups".into(), keep: 3 }));
        assert_eq!(
            file.notify.expect("a notifier").to_string(),
            "USR1 to service proxy, label role=proxy, label zone, stack shop"
        );
        assert_eq!(select.stack, Some(StackChoice::Named("shop".to_owned())));
    }

    #[test]
    fn a_setting_that_is_left_out_has_its_default() {
        let target = web("format = \"json\"").expect("a target");
        assert_eq!(target.select.statuses, [Status::Passing]);
        assert_eq!(target.select.protocol, None);
        assert_eq!(target.pace, PaceSettings::none());
        assert_eq!(target.guard, GuardSettings::default());
        assert_eq!(target.reconcile, Duration::from_secs(30));
        let file = target.sink.file().expect("a file");
        assert_eq!((&file.check, &file.backups, &file.notify), (&None, &None, &None));
        let rest = "format = \"citus-workers\"\ncheck = \"a {file}\"\nbackups = { dir = \"/b\" }\n[target.notify]\ncommand = [\"b\", \"c d\"]";
        let target = web(rest).expect("a target");
        assert_eq!(target.select.protocol, Some(Protocol::Tcp));
        assert_eq!(target.pace, PaceSettings::reload());
        let file = target.sink.file().expect("a file").clone();
        assert_eq!(file.check.expect("a check").timeout, Duration::from_secs(10));
        assert_eq!(file.backups.expect("backups").keep, 10);
        assert_eq!(file.notify.expect("a notifier").to_string(), "command b c d");
    }

    #[test]
    fn a_line_that_cannot_be_parsed_is_named() {
        for (rest, expected) in [
            (
                "formt = \"json\"",
                "line 4, \"formt = \\\"json\\\"\": unknown field `formt`, expected one of `name`, `sink`, `dest`, `format`,",
            ),
            (
                "format = \"jason\"",
                "line 4, \"format = \\\"jason\\\"\": unknown variant `jason`, expected one of",
            ),
            (
                "format = \"json\"\nmode = \"rw\"",
                "line 5, \"mode = \\\"rw\\\"\": \"rw\" is not a mode: expected three or four octal digits",
            ),
            (
                "format = \"json\"\nheartbeat = \"now\"",
                "line 5, \"heartbeat = \\\"now\\\"\": \"now\" is not a time: expected one such as",
            ),
            (
                "format = \"json\"\nheartbeat = 30",
                "line 5, \"heartbeat = 30\": invalid type: integer `30`, expected a time such as \"30s\"",
            ),
            (
                "format = \"json\"\npace = { burst = \"x\" }",
                "line 5, \"pace = { burst = \\\"x\\\" }\": invalid type: string \"x\", expected u32",
            ),
            (
                "format = \"json\"\nguard = { max_loss = \"100%\" }",
                "line 5, \"guard = { max_loss = \\\"100%\\\" }\": \"100%\" is not a share: expected 0% to 99%",
            ),
            (
                "format = \"json\"\ndebounce = { min = \"1s\" }",
                "line 5, \"debounce = { min = \\\"1s\\\" }\": unknown field `debounce`",
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
                "format = \"json\"\n[target.select]\nport = [80, [81]]",
                "line 6, \"port = [80, [81]]\": invalid type: sequence, expected a text or a whole number",
            ),
            (
                "format = \"json\"\n[target.select]\nservice = \"a b\"",
                "line 6, \"service = \\\"a b\\\"\": \"a b\" is not a service name",
            ),
            (
                "format = \"json\"\n[target.select]\nstatus = \"up\"",
                "line 6, \"status = \\\"up\\\"\": \"up\" is not a status",
            ),
            ("[target.notify", "line 4, \"[target.notify\": "),
        ] {
            let error = web(rest).map(drop).expect_err(rest);
            assert!(error.starts_with(expected), "{error}\n{expected}");
            assert!(!error.contains('\n'), "{error}");
        }
        let error = targets("[[target]]\ndest = \"/x\"\n").map(drop).expect_err("it has no name");
        assert!(error.starts_with("line 1, \"[[target]]\": missing field `name`"), "{error}");
        let error = targets("[target]\nname = \"web\"\n").map(drop).expect_err("it is a list");
        assert_eq!(error, format!("line 1, \"[target]\": {ONE_TARGET}"));
    }

    #[test]
    fn a_setting_that_cannot_work_is_named_by_its_target() {
        for (rest, expected) in [
            ("", "format is not given: expected "),
            ("format = \"json\"\ntemplate = \"x\"", "template is x: expected "),
            ("format = \"json\"\ncheck = \"true\"", "check is \"true\": expected {file} in it"),
            ("format = \"json\"\ncheck_timeout = \"1s\"", "check_timeout is 1s: expected check beside it"),
            (
                "format = \"json\"\n[target.notify]\nsignal = \"HUP\"",
                "notify is not given: expected exactly one of",
            ),
            (
                "format = \"json\"\n[target.notify]\ncontainer = \"x\"\nlabel = \"y\"",
                "notify is several of them: expected exactly one of container, service or labels, pid_file and command",
            ),
            (
                "format = \"json\"\n[target.notify]\ncontainer = \"x\"\nstack = \"own\"",
                "notify.stack is own: expected notify.service or notify.labels beside it",
            ),
            (
                "format = \"json\"\n[target.notify]\ncommand = \"x\"\nsignal = \"HUP\"",
                "notify.signal is HUP: expected ",
            ),
            (
                "format = \"json\"\n[target.notify]\npid_file = \"x\"\ntimeout = \"1s\"",
                "notify.timeout is 1s: expected notify.command beside it",
            ),
            (
                "format = \"json\"\n[target.notify]\ncontainer = \"x\"\nprocess = \"nginx\"",
                "notify.process is nginx: expected notify.pid_file beside it",
            ),
            (
                "format = \"citus-workers\"\n[target.select]\nprotocol = \"udp\"",
                "select.protocol is udp: expected a protocol that the format can express",
            ),
            ("format = \"json\"\nguard = {}", "guard.max_loss is not given: expected "),
            (
                "format = \"json\"\nheartbeat = \"1s\"\npace = \"none\"",
                "heartbeat is 1s: expected it or pace, not both",
            ),
            (
                "format = \"json\"\nbackups = { dir = \"/b\", keep = 0 }",
                "backups.keep is 0: expected 1 or more",
            ),
            ("format = \"json\"\nreconcile = \"0s\"", "reconcile is 0s: expected more than 0s"),
            ("format = \"json\"\npace = { burst = 0 }", "pace.burst is 0: expected 1 to 1000"),
        ] {
            let error = web(rest).map(drop).expect_err(rest);
            let expected = format!("target web: {expected}");
            assert!(error.starts_with(&expected), "{error}\n{expected}");
            assert!(!error.contains('\n'), "{error}");
        }
        let error = targets("[[target]]\nname = \"web\"\n").map(drop).expect_err("it has no file");
        assert!(error.starts_with("target web: dest is not given: expected "), "{error}");
    }

    #[test]
    fn targets_have_names_and_files_of_their_own() {
        let target = |name: &str, dest: &str| {
            format!("[[target]]\nname = \"{name}\"\ndest = \"{dest}\"\nformat = \"json\"\n")
        };
        for (text, expected) in [
            (String::new(), "[[target]] is not given: expected one or more"),
            (
                target("a", "/x") + &target("a", "/y"),
                "target name is a: expected a name that no other target has",
            ),
            (
                target("a", "/x") + &target("b", "/./x"),
                "target b: dest is /./x: expected a file that no other target has",
            ),
        ] {
            assert_eq!(targets(&text).map(drop), Err(expected.to_owned()));
        }
    }

    #[test]
    fn an_error_names_the_file_first() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("targets.toml");
        fs::write(&file, format!("{TARGET}format = \"json\"\ncheck = \"true\"\n")).expect("a file");
        let error = one_line(&read(&file).expect_err("its check names no file"));
        let expected = "target web: check is \"true\": expected {file} in it";
        assert_eq!(error, format!("--config is {}: {expected}", file.display()));
    }
}
