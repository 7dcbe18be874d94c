//! The consumer's settings: flags, each with an environment twin, and the seeds' own variables.

use std::{path::PathBuf, time::Duration};

use regex::Regex;
use rollcall_shared::{
    cli,
    health::Listen,
    name::{ConsumerName, ContainerName, TargetName},
    record::LeaseSettings,
    signal::{Selector, Signal},
    store::settings::EtcdSettings,
    telemetry::LogSettings,
};

use crate::{
    command::CommandLine,
    config::{self, CHECK_TIMEOUT, Check, NOTIFY_TIMEOUT, Notify, TargetSettings},
    debounce::{DebounceSettings, MinMax},
    guard::GuardSettings,
    install::Backups,
    owner::{Mode, Owner},
    render::{Content, Format},
    select::{Label, Select},
};

/// Renders files from the roll of running containers, and has those who read them signalled.
#[derive(Debug, clap::Parser)]
#[command(name = "rollcall-consumer", version, max_term_width = 110)]
pub struct Cli {
    /// What to do instead of following the roll.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The settings.
    #[command(flatten)]
    pub settings: Settings,
}

/// What to do instead of following the roll.
#[derive(Debug, Clone, Copy, clap::Subcommand)]
pub enum Command {
    /// Ask the running consumer at --listen whether it lives
    Healthcheck,
}

/// Everything that a consumer is told.
#[derive(Debug, Clone, clap::Args)]
// The agent's settings make a group of this name.
#[group(skip)]
pub struct Settings {
    #[command(flatten)]
    #[allow(missing_docs, reason = "the group says it")]
    pub consumer: ConsumerSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "the group says it")]
    pub target: Option<TargetFlags>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "the group says it")]
    pub citus: CitusSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "the group says it")]
    pub etcd: EtcdSettings,
    /// The embedded agent's.
    #[command(flatten)]
    pub agent: rollcall_agent::Settings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "the group says it")]
    pub lease: LeaseSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "the group says it")]
    pub logs: LogSettings,
}

/// The consumer itself.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Consumer")]
pub struct ConsumerSettings {
    /// This consumer's name, unique among all that share a store [default: the host name]
    #[arg(long, env = "ROLLCALL_CONSUMER", value_name = "NAME")]
    pub name: Option<ConsumerName>,
    /// TOML file of targets
    #[arg(long, env = "ROLLCALL_CONFIG", value_name = "FILE", conflicts_with = "TargetFlags")]
    pub config: Option<PathBuf>,
    /// Folder that remembers across restarts which notifications were acked
    #[arg(long, env = "ROLLCALL_STATE_DIR", value_name = "DIR", default_value = "/var/lib/rollcall")]
    pub state_dir: PathBuf,
    /// Address of /healthz, /readyz and /metrics, or off
    #[arg(
        long,
        env = "ROLLCALL_LISTEN",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:9181",
        global = true
    )]
    pub listen: Listen,
    /// Render, install and notify once, then end
    #[arg(long, env = "ROLLCALL_ONCE", value_parser = clap::builder::FalseyValueParser::new())]
    pub once: bool,
    /// Show as a diff what --once would change, and touch nothing
    #[arg(long, env = "ROLLCALL_DRY_RUN", value_parser = clap::builder::FalseyValueParser::new())]
    pub dry_run: bool,
    /// How long the store is waited for at the start, and with --once each target's ack
    #[arg(long, env = "ROLLCALL_WAIT", value_name = "TIME", default_value = "10s")]
    #[arg(value_parser = humantime::parse_duration)]
    pub wait: Duration,
}

/// One target, given by flags alone.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "One target, instead of --config")]
pub struct TargetFlags {
    /// The file to render
    #[arg(long, env = "ROLLCALL_DEST", value_name = "FILE", required = false)]
    pub dest: Option<PathBuf>,
    /// Built-in format
    #[arg(long, env = "ROLLCALL_FORMAT", value_name = "FORMAT", conflicts_with = "template")]
    pub format: Option<Format>,
    /// Template in the Jinja language, instead of a format
    #[arg(long, env = "ROLLCALL_TEMPLATE", value_name = "FILE")]
    pub template: Option<PathBuf>,
    /// Regular expression that the service's or the container's name must contain
    #[arg(long, env = "ROLLCALL_SERVICE", value_name = "REGEX", value_parser = cli::regex)]
    pub service: Option<Regex>,
    /// Label, or label and value, that the container must have; all that are given must match
    #[arg(long, env = "ROLLCALL_LABEL", value_name = "LABEL[=VALUE],...", value_delimiter = ',')]
    pub label: Vec<Label>,
    /// The file's mode [default: as it is, or 0644]
    #[arg(long, env = "ROLLCALL_MODE", value_name = "OCTAL")]
    pub mode: Option<Mode>,
    /// The file's owner, by name or number [default: as it is]
    #[arg(long, env = "ROLLCALL_OWNER", value_name = "USER[:GROUP]")]
    pub owner: Option<Owner>,
    /// Command that the staged file must pass, with {file} for it; run without a shell
    #[arg(long, env = "ROLLCALL_CHECK", value_name = "COMMAND")]
    pub check: Option<CommandLine>,
    /// How long the check may take [default: 10s]
    #[arg(long, env = "ROLLCALL_CHECK_TIMEOUT", value_name = "TIME", requires = "check")]
    #[arg(value_parser = humantime::parse_duration)]
    pub check_timeout: Option<Duration>,
    /// Container to signal, on whichever host it runs
    #[arg(long, env = "ROLLCALL_NOTIFY_CONTAINER", value_name = "NAME", group = "notifier")]
    pub notify_container: Option<ContainerName>,
    /// Label, or label and value, of the containers to signal
    #[arg(long, env = "ROLLCALL_NOTIFY_LABEL", value_name = "LABEL[=VALUE]", group = "notifier")]
    pub notify_label: Option<Label>,
    /// File with the ID of the process to signal
    #[arg(long, env = "ROLLCALL_NOTIFY_PID_FILE", value_name = "FILE", group = "notifier")]
    pub notify_pid_file: Option<PathBuf>,
    /// Command to run after the file has changed; run without a shell
    #[arg(long, env = "ROLLCALL_NOTIFY_COMMAND", value_name = "COMMAND", group = "notifier")]
    #[arg(conflicts_with = "notify_signal")]
    pub notify_command: Option<CommandLine>,
    /// Signal to send [default: HUP]
    #[arg(long, env = "ROLLCALL_NOTIFY_SIGNAL", value_name = "SIGNAL", requires = "notifier")]
    pub notify_signal: Option<Signal>,
    /// Least time between two reloads of the target [default: 0s]
    #[arg(long, env = "ROLLCALL_HEARTBEAT", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub heartbeat: Option<Duration>,
    /// How long it must be quiet before gathered changes are rendered, and how long they wait at most; the
    /// first change goes at once [default: 20ms:200ms]
    #[arg(long, env = "ROLLCALL_DEBOUNCE", value_name = "MIN:MAX")]
    pub debounce: Option<MinMax>,
    /// Folder in which the ten last files are kept
    #[arg(long, env = "ROLLCALL_BACKUP_DIR", value_name = "DIR", alias = "bkp-dir")]
    pub backup_dir: Option<PathBuf>,
}

/// workerlist-gen's own target, which is there without --config and --dest in embedded mode, or where
/// one of these is set.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Citus worker list, where no other target is given")]
pub struct CitusSettings {
    /// Folder of pg_worker_list.conf [default: /etc/citus]
    #[arg(long, env = "CITUS_CONFDIR", value_name = "DIR")]
    pub citus_confdir: Option<PathBuf>,
    /// Container to send SIGHUP to [default: citus_master]
    #[arg(long, env = "CITUS_CONTAINER", value_name = "NAME", conflicts_with = "citus_service_name")]
    pub citus_container: Option<ContainerName>,
    /// Compose service to send SIGHUP to, instead of a container
    #[arg(long, env = "CITUS_SERVICE_NAME", value_name = "NAME")]
    pub citus_service_name: Option<String>,
}

/// The settings, checked and completed.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The consumer's name.
    pub consumer: ConsumerName,
    /// The targets; one or more.
    pub targets: Vec<TargetSettings>,
    /// Whether there is no etcd: the agent is to run within this process.
    pub embedded: bool,
    /// Whether the only target is workerlist-gen's own.
    pub citus: bool,
}

/// The port that every Citus worker listens at, as workerlist-gen has it.
pub const CITUS_PORT: u16 = 5432;
/// The label that a Citus worker has, as workerlist-gen has it.
pub const CITUS_LABEL: &str = "com.citusdata.role";

impl Settings {
    /// Checks that the settings fit together, reads the targets and touches nothing.
    ///
    /// # Errors
    /// A sentence naming the setting, its value and what was expected.
    pub fn plan(&self) -> Result<Plan, String> {
        self.etcd.check()?;
        self.lease.check()?;
        let embedded = self.etcd.endpoints.is_empty();
        let ConsumerSettings { config, .. } = &self.consumer;
        let (targets, citus) = match (config, &self.target) {
            (Some(file), _) => (config::read(file)?, false),
            (None, Some(flags)) => (vec![flags.target()?], false),
            (None, None) if embedded || self.citus.is_set() => (vec![self.citus.target()?], true),
            (None, None) => return Err("no target is given: expected --config or --dest".to_owned()),
        };
        let consumer = match &self.consumer.name {
            Some(name) => name.clone(),
            None => own_name()?,
        };
        Ok(Plan { consumer, targets, embedded, citus })
    }
}

/// The name of the host or container that this runs in.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn own_name() -> Result<ConsumerName, String> {
    host_name().parse().map_err(|error| format!("--name is not given and the host name {error}"))
}

/// The name of a target that is given by flags.
const FLAGS_TARGET: &str = "default";
/// The name of workerlist-gen's own target.
const CITUS_TARGET: &str = "citus";

fn name(text: &str) -> TargetName {
    text.parse().expect("our own names are names")
}

impl TargetFlags {
    fn target(&self) -> Result<TargetSettings, String> {
        let Some(dest) = self.dest.clone() else {
            return Err("--dest is not given: expected the file to render".to_owned());
        };
        let content = match (self.format, &self.template) {
            (Some(format), _) => Content::Format(format),
            (None, Some(template)) => Content::Template(template.clone()),
            (None, None) => return Err("expected --format or --template beside --dest".to_owned()),
        };
        let select =
            Select { name_regex: self.service.clone(), labels: self.label.clone(), ..Select::default() };
        let default = DebounceSettings::default();
        let MinMax { min, max } = self.debounce.unwrap_or(MinMax { min: default.min, max: default.max });
        let heartbeat = self.heartbeat.unwrap_or(default.heartbeat);
        let check = self
            .check
            .clone()
            .map(|command| Check { command, timeout: self.check_timeout.unwrap_or(CHECK_TIMEOUT) });
        let settings = TargetSettings {
            name: name(FLAGS_TARGET),
            dest,
            content,
            select,
            mode: self.mode,
            owner: self.owner,
            check,
            notify: self.notify(),
            debounce: DebounceSettings { min, max, heartbeat },
            guard: GuardSettings::default(),
            backups: self.backup_dir.clone().map(|dir| Backups { dir, keep: config::BACKUPS }),
        };
        settings.settle().map_err(|error| format!("--{error}"))
    }

    /// The notifier; the flags' group lets only one be given.
    fn notify(&self) -> Option<Notify> {
        let signal = self.notify_signal.unwrap_or(Signal::HUP);
        let to = |to| Notify::Signal { to, signal };
        let container = self.notify_container.clone().map(|name| to(Selector::Container(name)));
        let label = || self.notify_label.as_ref().map(|label| to(Selector::Label(label.to_string())));
        let process = || self.notify_pid_file.clone().map(|pid_file| Notify::Process { pid_file, signal });
        let command = || {
            let command = self.notify_command.clone()?;
            Some(Notify::Command { command, timeout: NOTIFY_TIMEOUT })
        };
        container.or_else(label).or_else(process).or_else(command)
    }
}

impl CitusSettings {
    fn is_set(&self) -> bool {
        self.citus_confdir.is_some() || self.citus_container.is_some() || self.citus_service_name.is_some()
    }

    fn target(&self) -> Result<TargetSettings, String> {
        let confdir = self.citus_confdir.clone().unwrap_or_else(|| PathBuf::from("/etc/citus"));
        let to = match (&self.citus_container, &self.citus_service_name) {
            (Some(container), _) => Selector::Container(container.clone()),
            (None, Some(service)) => Selector::Label(format!("com.docker.compose.service={service}")),
            (None, None) => Selector::Container("citus_master".parse().expect("it is a name")),
        };
        let worker = Label { name: CITUS_LABEL.to_owned(), value: Some("Worker".to_owned()) };
        let settings = TargetSettings {
            name: name(CITUS_TARGET),
            dest: confdir.join("pg_worker_list.conf"),
            content: Content::Format(Format::CitusWorkers),
            select: Select { labels: vec![worker], ports: vec![CITUS_PORT], ..Select::default() },
            mode: None,
            owner: None,
            check: None,
            notify: Some(Notify::Signal { to, signal: Signal::HUP }),
            debounce: DebounceSettings::default(),
            guard: GuardSettings::default(),
            backups: None,
        };
        settings.settle()
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    fn plan(args: &[&str]) -> Result<Plan, String> {
        let parsed = Cli::try_parse_from([&["rollcall-consumer"], args].concat());
        parsed.map_err(|error| cli::usage(&error))?.settings.plan()
    }

    #[test]
    fn the_flags_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn without_any_setting_it_is_workerlist_gen() {
        let plan = plan(&[]).expect("it needs none");
        assert!(plan.embedded && plan.citus);
        let [target] = plan.targets.as_slice() else { panic!("one target") };
        assert_eq!(target.dest, PathBuf::from("/etc/citus/pg_worker_list.conf"));
        let notify = target.notify.as_ref().expect("a notifier").to_string();
        assert_eq!(notify, "HUP to container citus_master");
    }

    #[test]
    fn one_target_is_given_by_flags() {
        let plan = plan(&[
            "--etcd=http://127.0.0.1:2379",
            "--dest=/tmp/x",
            "--format=nginx-upstream",
            "--service=web",
            "--notify-label=role=proxy",
            "--bkp-dir=/tmp/b",
            "--debounce=5ms:50ms",
        ])
        .expect("a target");
        assert!(!plan.embedded && !plan.citus);
        let [target] = plan.targets.as_slice() else { panic!("one target") };
        assert_eq!(target.select.named_services(), ["web".parse().expect("a name")]);
        assert_eq!(target.debounce.max, Duration::from_millis(50));
        assert_eq!(target.notify.as_ref().expect("a notifier").to_string(), "HUP to label role=proxy");
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        let etcd = "--etcd=h:1";
        for (args, expected) in [
            (vec![etcd], "no target is given: expected --config or --dest"),
            (vec![etcd, "--config=/x", "--dest=/y"], "the argument '--config <FILE>' cannot be used with"),
            (vec![etcd, "--format=json"], "--dest is not given: expected the file to render"),
            (vec![etcd, "--dest=/x"], "expected --format or --template beside --dest"),
            (
                vec![etcd, "--dest=/x", "--format=json", "--template=/y"],
                "the argument '--format <FORMAT>' cannot be",
            ),
            (vec![etcd, "--dest=/x", "--format=jason"], "invalid value 'jason' for '--format <FORMAT>'"),
            (
                vec![etcd, "--dest=/x", "--service=("],
                "invalid value '(' for '--service <REGEX>': \"(\" is not a regular expression: unclosed group",
            ),
            (
                vec![etcd, "--dest=/x", "--notify-signal=HUP"],
                "the following required arguments were not provided:",
            ),
            (
                vec![etcd, "--dest=/x", "--notify-container=a", "--notify-label=b"],
                "the argument '--notify-container",
            ),
            (
                vec![etcd, "--dest=/x", "--format=json", "--check=true"],
                "--check is \"true\": expected {file} in it",
            ),
            (vec![etcd, "--config=/no/such/file"], "--config is /no/such/file: No such file or directory"),
            (
                vec!["--ttl=10s", "--refresh=10s"],
                "--refresh is 10s: expected more than 0s and less than --ttl",
            ),
            (vec!["--dset=/x"], "unexpected argument '--dset' found"),
        ] {
            let error = plan(&args).map(drop).expect_err(&args.join(" "));
            assert!(error.starts_with(expected), "{error}\n{expected}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
