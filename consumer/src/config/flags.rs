//! The consumer's command line: flags, each with an environment twin.

use std::{path::PathBuf, time::Duration};

use rollcall_shared::{
    model::{instance::Status, name::ConsumerName},
    process::{health::Listen, setting::SettingError, telemetry::LogSettings, time},
    session::LeaseSettings,
    store::settings::EtcdSettings,
};

use super::{
    citus::{CitusSettings, Tool},
    target::{RawTarget, TargetConfig},
};
use crate::{
    roll::{RawSelect, SelectFlags, StackChoice},
    sink::{
        citus::drain::CitusCommand,
        file::{
            notify::settings::NotifyFlags,
            settings::{FileFlags, RawFile},
        },
        settings::RawSink,
    },
    target::pacer::PaceFlags,
};

/// Keeps files up to date with the containers that run on any host, and signals the programs that read them
///
/// SIGHUP reads the file of --config and the templates anew; one that cannot work is refused, and what runs goes on.
/// SIGTERM and SIGINT end it in order, a second one at once.
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
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Without etcd, show what is registered of a running container and why, or why not
    Explain {
        /// Its name or ID
        container: String,
    },
    /// Ask the consumer that runs at --listen whether it is alive
    Healthcheck,
    /// Show the status of the consumer at --listen, one line per part; ends with 1 if none answers
    Status,
    /// Tell a Citus coordinator what only its operator may ask for
    #[command(subcommand)]
    Citus(CitusCommand),
    /// Do what the image citusdata/workerlist-gen does by this command
    #[command(hide = true)]
    WorkerlistGen,
    /// Do what the image citusdata/dockercloud-workerlist-gen does
    #[command(hide = true, alias = "dockercloud-workerlistgen")]
    DockercloudWorkerlistGen,
}

impl Command {
    /// The tool whose work is asked for by the name of its command.
    pub fn tool(&self) -> Option<Tool> {
        match self {
            Command::Explain { .. } | Command::Healthcheck | Command::Status | Command::Citus(_) => None,
            Command::WorkerlistGen => Some(Tool::WorkerlistGen),
            Command::DockercloudWorkerlistGen => Some(Tool::DockercloudWorkerlistGen),
        }
    }
}

/// Everything that a consumer is told.
#[derive(Debug, Clone, clap::Args)]
// The agent's settings make a group of this name.
#[group(skip)]
pub struct Settings {
    /// The consumer itself.
    #[command(flatten)]
    pub consumer: ConsumerSettings,
    /// One target.
    #[command(flatten)]
    pub target: TargetFlags,
    /// workerlist-gen's own target.
    #[command(flatten)]
    pub citus: CitusSettings,
    /// How to reach etcd.
    #[command(flatten)]
    pub etcd: EtcdSettings,
    /// The embedded agent's.
    #[command(flatten)]
    pub agent: rollcall_agent::Settings,
    /// The lease.
    #[command(flatten)]
    pub lease: LeaseSettings,
    /// The logs.
    #[command(flatten)]
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
    #[arg(long, env = "ROLLCALL_CONFIG", value_name = "FILE")]
    #[arg(conflicts_with_all = ["FileFlags", "SelectFlags", "NotifyFlags", "PaceFlags", "CommonFlags"])]
    pub config: Option<PathBuf>,
    /// Folder that remembers across restarts what was applied and acknowledged
    #[arg(long, env = "ROLLCALL_STATE_DIR", value_name = "DIR", default_value = "/var/lib/rollcall")]
    pub state_dir: PathBuf,
    /// Address of /healthz, /readyz, /metrics and /v1/targets, or off
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
    /// How long to wait for the store at the start, and with --once for each target's acknowledgement
    #[arg(long, env = "ROLLCALL_WAIT", value_name = "TIME", default_value = "10s", value_parser = time::parse)]
    pub wait: Duration,
}

/// One target, given by flags alone. Each room has a group of flags, which is absent where none of them is given.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "One target, instead of --config")]
pub struct TargetFlags {
    /// Its file.
    #[command(flatten)]
    pub file: Option<FileFlags>,
    /// Which instances it shows.
    #[command(flatten)]
    pub select: Option<SelectFlags>,
    /// What follows a change.
    #[command(flatten)]
    pub notify: Option<NotifyFlags>,
    /// How its reloads are paced.
    #[command(flatten)]
    pub pace: Option<PaceFlags>,
    /// What a Citus worker list takes as well.
    #[command(flatten)]
    pub common: CommonFlags,
}

/// What applies to one target, and to workerlist-gen's own as well.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "One target, or a Citus worker list")]
pub struct CommonFlags {
    /// Stack (Compose project, Swarm stack or label rollcall.stack) that is selected from and, by --notify-service or
    /// --notify-label, signalled; or own, for that of this process's container
    #[arg(long, env = "ROLLCALL_STACK", value_name = "NAME")]
    pub stack: Option<StackChoice>,
    /// Statuses to select: starting, passing, failing or draining [default: passing; for a Citus worker list all]
    #[arg(long, env = "ROLLCALL_STATUS", value_name = "STATUS,...", value_delimiter = ',')]
    pub status: Vec<Status>,
    /// Empty a file that has something in it even where nothing has matched the selection yet
    #[arg(long, env = "ROLLCALL_ALLOW_EMPTY", value_parser = clap::builder::FalseyValueParser::new())]
    pub allow_empty: bool,
}

/// The name of a target that is given by flags.
const TARGET_NAME: &str = "default";

impl TargetFlags {
    /// Whether one of them is given.
    pub(super) fn is_given(&self) -> bool {
        let Self { file, select, notify, pace, common: _ } = self;
        file.is_some() || select.is_some() || notify.is_some() || pace.is_some()
    }

    /// The target that they mean.
    pub(super) fn parse(&self) -> Result<TargetConfig, SettingError> {
        self.raw().parse().map_err(|error| error.within("--"))
    }

    fn raw(&self) -> RawTarget {
        let Self { file, select, notify, pace, common } = self;
        let CommonFlags { stack, status, allow_empty } = common.clone();
        let file = file.as_ref().map(FileFlags::raw).unwrap_or_default();
        let PaceFlags { heartbeat, pace } = pace.clone().unwrap_or_default();
        let select = select.as_ref().map(SelectFlags::raw).unwrap_or_default();
        let mut notify = notify.as_ref().and_then(NotifyFlags::raw);
        if let Some(notify) = notify.as_mut().filter(|notify| notify.is_by_label()) {
            notify.stack = stack.clone();
        }
        RawTarget {
            name: TARGET_NAME.parse().expect("it is a name"),
            select: RawSelect { stack: stack.clone(), status, ..select },
            pace,
            heartbeat,
            guard: None,
            reconcile: None,
            allow_empty,
            sink: RawSink { file: RawFile { notify, ..file }, ..RawSink::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::{
        sink::file::{
            Check,
            check::Place,
            install::{Backups, Mode, Owner},
            render::{Content, Format},
        },
        target::pacer::PaceSettings,
    };

    fn target(args: &[&str]) -> TargetConfig {
        let parsed = Cli::try_parse_from([&["rollcall-consumer"], args].concat()).expect("good flags");
        parsed.settings.target.parse().expect("a target")
    }

    #[test]
    fn the_flags_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn each_flag_of_a_target_has_its_help_under_the_targets_heading() {
        let command = Cli::command();
        let flags = command.get_arguments().filter(|flag| {
            flag.get_help_heading() == Some("One target, instead of --config") && flag.get_env().is_some()
        });
        let flags: Vec<&str> = flags.filter_map(clap::Arg::get_long).collect();
        let expected = "dest format template mode owner check check-timeout backup-dir service label \
                        notify-container notify-service notify-label notify-pid-file notify-command notify-signal \
                        heartbeat pace";
        assert_eq!(flags.join(" "), expected);
    }

    #[test]
    fn every_flag_of_a_target_reaches_it() {
        let target = target(&[
            "--dest=/tmp/x",
            "--format=nginx-upstream",
            "--service=web",
            "--label=role=front,zone",
            "--mode=0640",
            "--owner=1:2",
            "--check=nginx -t -c {file}",
            "--check-timeout=3s",
            "--notify-label=role=proxy",
            "--notify-signal=USR1",
            "--bkp-dir=/tmp/b",
            "--pace=3/1s",
        ]);
        let TargetConfig { name, select, pace, sink, .. } = target;
        let file = sink.file().expect("a file").clone();
        assert_eq!(name.as_str(), "default");
        assert_eq!(select.named_services().services, ["web".parse().expect("a name")]);
        assert_eq!(select.labels.len(), 2);
        assert_eq!((pace.burst, pace.interval), (3, Duration::from_secs(1)));
        assert_eq!(file.dest, Path::new("/tmp/x"));
        assert_eq!(file.content, Content::Format(Format::NginxUpstream));
        assert_eq!(file.mode, Some(Mode(0o640)));
        assert_eq!(file.owner, Some(Owner { user: Some(1), group: Some(2) }));
        let command = "nginx -t -c {file}".parse().expect("a command");
        assert_eq!(
            file.check,
            Some(Check { command, timeout: Duration::from_secs(3), place: Place::Here, isolates: false })
        );
        assert_eq!(file.backups, Some(Backups { dir: "/tmp/b".into(), keep: 10 }));
        assert_eq!(file.notify.expect("a notifier").to_string(), "USR1 to label role=proxy");
    }

    #[test]
    fn a_heartbeat_is_a_pace_of_its_own() {
        let target = target(&["--dest=/tmp/x", "--template=/tmp/t.j2", "--heartbeat=30s"]);
        assert_eq!(target.sink.content(), Some(&Content::Template("/tmp/t.j2".into())));
        assert_eq!(target.pace, PaceSettings::heartbeat(Duration::from_secs(30)));
    }
}
