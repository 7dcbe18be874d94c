//! Whom to notify of a new file: as it is written, in TOML or by flags, and as it is used.

use std::{fmt, path::PathBuf, time::Duration};

use rollcall_shared::{
    model::{
        label::LabelSelector,
        name::{ContainerName, TargetName},
        selector::Selector,
        signal::{Delivery, Signal},
    },
    process::{setting::SettingError, time},
};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};

use crate::{
    config::toml::{self, one_or_many, parsed},
    roll::StackChoice,
    sink::file::command::CommandLine,
};

/// Whom to notify of a new file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notify {
    /// Containers, wherever they run, by a signal.
    Signal(Delivery),
    /// A process of this host, by a signal.
    PidFile {
        /// The file with its process ID.
        pid_file: PathBuf,
        /// The signal.
        signal: Signal,
        /// The name that the process must have.
        process: Option<String>,
    },
    /// A command.
    Command {
        /// The command.
        command: CommandLine,
        /// How long it may take.
        timeout: Duration,
    },
}

/// How much longer than its time-out a command may take: it is still to be ended then.
const END_MARGIN: Duration = Duration::from_secs(2);
/// How long a command may keep the process from ending. The unit's TimeoutStopSec is longer.
const MAX_END_TIMEOUT: Duration = Duration::from_secs(30);

impl Notify {
    /// How long one attempt may take, where that is set.
    pub fn timeout(&self) -> Option<Duration> {
        match self {
            Notify::Command { timeout, .. } => Some(*timeout),
            Notify::Signal(_) | Notify::PidFile { .. } => None,
        }
    }

    /// How long an attempt that is under way is waited for when the process ends, where its own time-out says so.
    pub fn end_timeout(&self) -> Option<Duration> {
        self.timeout().map(|timeout| timeout.saturating_add(END_MARGIN).min(MAX_END_TIMEOUT))
    }
}

impl fmt::Display for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notify::Signal(delivery) => delivery.fmt(f),
            Notify::PidFile { pid_file, signal, .. } => {
                write!(f, "{signal} to process {}", pid_file.display())
            }
            Notify::Command { command, .. } => write!(f, "command {command}"),
        }
    }
}

/// How long a command may take unless it is said.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Whom a target notifies, as it is written.
#[derive(Debug, Clone)]
pub enum NotifyOrName {
    /// `[target.notify]`.
    Own(Box<RawNotify>),
    /// `notify = "proxy"`: that of `[notifier.proxy]`, which other targets may share.
    Shared(TargetName),
}

impl<'de> Deserialize<'de> for NotifyOrName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = NotifyOrName;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a [notifier.NAME], or a table")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<NotifyOrName, E> {
                name.parse().map(NotifyOrName::Shared).map_err(E::custom)
            }
            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<NotifyOrName, A::Error> {
                let own = RawNotify::deserialize(MapAccessDeserializer::new(table))?;
                Ok(NotifyOrName::Own(Box::new(own)))
            }
        }
        from.deserialize_any(Either)
    }
}

/// Whom to notify, as it is written: `[target.notify]` or `[notifier.NAME]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawNotify {
    /// A container by name.
    pub container: Option<ContainerName>,
    /// Containers by service.
    pub service: Option<String>,
    /// Containers by labels, all of which they must have.
    #[serde(default, alias = "label", deserialize_with = "one_or_many")]
    pub labels: Vec<LabelSelector>,
    /// The stack that those containers belong to, or `own`.
    #[serde(default, deserialize_with = "parsed")]
    pub stack: Option<StackChoice>,
    /// A process by its pid file.
    pub pid_file: Option<PathBuf>,
    /// The name that the process must have.
    pub process: Option<String>,
    /// A command.
    #[serde(default, deserialize_with = "toml::command")]
    pub command: Option<CommandLine>,
    /// The signal.
    pub signal: Option<Signal>,
    /// How long the command may take.
    #[serde(default, deserialize_with = "toml::time")]
    pub timeout: Option<Duration>,
}

impl RawNotify {
    /// Whether it means containers by their service or labels, which a stack narrows.
    pub fn is_by_label(&self) -> bool {
        self.service.is_some() || !self.labels.is_empty()
    }

    /// What it means.
    ///
    /// # Errors
    /// None or several of the ways to notify, or settings that do not go with the one that is given.
    pub fn parse(self) -> Result<Notify, SettingError> {
        let by_label = self.is_by_label();
        let Self { container, service, labels, stack, pid_file, process, command, signal, timeout } = self;
        if let (None, Some(timeout)) = (&command, timeout) {
            return Err(SettingError::new("notify.timeout", time::show(timeout), "notify.command beside it"));
        }
        if let (None, Some(process)) = (&pid_file, process.as_ref()) {
            return Err(SettingError::new("notify.process", process, "notify.pid_file beside it"));
        }
        if let (Some(_), Some(signal)) = (&command, signal) {
            return Err(SettingError::new("notify.signal", signal, "it or notify.command, not both"));
        }
        let signal = signal.unwrap_or(Signal::HUP);
        let one = "exactly one of container, service or labels, pid_file and command";
        if let (false, Some(stack)) = (by_label, &stack) {
            return Err(SettingError::new(
                "notify.stack",
                stack,
                "notify.service or notify.labels beside it",
            ));
        }
        match (container, by_label.then_some(service), pid_file, command) {
            (Some(container), None, None, None) => {
                Ok(Notify::Signal(Delivery { signal, to: Selector::container(container) }))
            }
            (None, Some(service), None, None) => {
                // The own stack is filled in once it is known.
                let stack = stack.as_ref().and_then(StackChoice::name).map(str::to_owned);
                Ok(Notify::Signal(Delivery {
                    signal,
                    to: Selector { container: None, service, stack, labels },
                }))
            }
            (None, None, Some(pid_file), None) => Ok(Notify::PidFile { pid_file, signal, process }),
            (None, None, None, Some(command)) => {
                Ok(Notify::Command { command, timeout: timeout.unwrap_or(COMMAND_TIMEOUT) })
            }
            (None, None, None, None) => Err(SettingError::missing("notify", one)),
            (..) => Err(SettingError::new("notify", "several of them", one)),
        }
    }
}

/// Whom to notify, by flags.
#[derive(Debug, Clone, Default, clap::Args)]
// A service and labels may be given together.
#[command(group(clap::ArgGroup::new("notifier").multiple(true)))]
pub struct NotifyFlags {
    /// Container to signal, on whichever host it runs
    #[arg(long, env = "ROLLCALL_NOTIFY_CONTAINER", value_name = "NAME", group = "notifier")]
    pub notify_container: Option<ContainerName>,
    /// Compose or Swarm service, or that of the label rollcall.service, whose containers are signalled
    #[arg(long, env = "ROLLCALL_NOTIFY_SERVICE", value_name = "NAME", group = "notifier")]
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    #[arg(conflicts_with_all = ["notify_container", "notify_pid_file", "notify_command"])]
    pub notify_service: Option<String>,
    /// Label, or label and value, of the containers to signal; all that are given must match
    #[arg(long, env = "ROLLCALL_NOTIFY_LABEL", value_name = "LABEL[=VALUE],...", value_delimiter = ',')]
    #[arg(group = "notifier", conflicts_with_all = ["notify_container", "notify_pid_file", "notify_command"])]
    pub notify_label: Vec<LabelSelector>,
    /// File with the ID of the process to signal
    #[arg(long, env = "ROLLCALL_NOTIFY_PID_FILE", value_name = "FILE", group = "notifier")]
    #[arg(conflicts_with = "notify_container")]
    pub notify_pid_file: Option<PathBuf>,
    /// Command to run after the file has changed; run without a shell
    #[arg(long, env = "ROLLCALL_NOTIFY_COMMAND", value_name = "COMMAND", group = "notifier")]
    #[arg(conflicts_with_all = ["notify_signal", "notify_container", "notify_pid_file"])]
    pub notify_command: Option<CommandLine>,
    /// Signal to send [default: HUP]
    #[arg(long, env = "ROLLCALL_NOTIFY_SIGNAL", value_name = "SIGNAL", requires = "notifier")]
    pub notify_signal: Option<Signal>,
}

impl NotifyFlags {
    /// The same as it would be written in TOML, if anything of it is given.
    pub fn raw(&self) -> Option<RawNotify> {
        let Self { notify_container, notify_service, notify_label, .. } = self.clone();
        let Self { notify_pid_file, notify_command, notify_signal, .. } = self.clone();
        let is_given = notify_container.is_some()
            || notify_service.is_some()
            || !notify_label.is_empty()
            || notify_pid_file.is_some()
            || notify_command.is_some();
        is_given.then_some(RawNotify {
            container: notify_container,
            service: notify_service,
            labels: notify_label,
            stack: None,
            pid_file: notify_pid_file,
            process: None,
            command: notify_command,
            signal: notify_signal,
            timeout: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_waited_for_at_the_end_within_its_time_out_and_half_a_minute() {
        let command = |seconds| Notify::Command {
            command: "true".parse().expect("a command"),
            timeout: Duration::from_secs(seconds),
        };
        assert_eq!(command(10).end_timeout(), Some(Duration::from_secs(12)));
        assert_eq!(command(600).end_timeout(), Some(Duration::from_secs(30)));
    }
}
