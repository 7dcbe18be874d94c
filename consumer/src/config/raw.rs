//! The TOML's own shape: its keys as they are written, and what they mean.

use std::{path::PathBuf, time::Duration};

use regex::Regex;
use rollcall_shared::{
    instance::{Protocol, Status},
    name::{ContainerName, NodeName, ServiceName, TargetName},
    signal::{Selector, Signal},
};
use serde::Deserialize;

use super::{
    BACKUPS, CHECK_TIMEOUT, Check, NOTIFY_TIMEOUT, Notify, TargetSettings,
    value::{StatusName, command, one_or_many, parsed, pattern, time},
};
use crate::{
    command::CommandLine,
    debounce::{DebounceSettings, MinMax},
    guard::{GuardSettings, Share},
    install::Backups,
    owner::{Mode, Owner},
    render::{Content, Format},
    select::{Family, Label, Select},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default, rename = "target")]
    pub(super) targets: Vec<RawTarget>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTarget {
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
    container: Option<ContainerName>,
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

impl RawTarget {
    pub(super) fn parse(self) -> Result<TargetSettings, String> {
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
