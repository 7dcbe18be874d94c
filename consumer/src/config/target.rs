//! A target's settings, pace and guard among them: the raw form that every source gives, and what it means.

use std::time::Duration;

use rollcall_shared::{
    model::{instance::Protocol, name::TargetName},
    process::{setting::SettingError, time},
};

use crate::{
    roll::{RawSelect, Select, StackChoice},
    sink::{
        file::{notify::Notify, render::Format},
        settings::{RawSink, SinkConfig, SinkKind},
    },
    target::{
        loss_guard::{GuardSettings, RawGuard},
        pacer::{PaceSettings, RawPace},
    },
};

/// A target as flags, the Citus variables or TOML give it. Each room checks its own part.
#[derive(Debug, Clone)]
pub struct RawTarget {
    /// Its name.
    pub name: TargetName,
    /// Which instances it shows.
    pub select: RawSelect,
    /// How its reloads are paced.
    pub pace: Option<RawPace>,
    /// The least time between two reloads, instead of a pace.
    pub heartbeat: Option<Duration>,
    /// What is held back.
    pub guard: Option<RawGuard>,
    /// How often to look whether the file is still as it was left.
    pub reconcile: Option<Duration>,
    /// Whether a file with something in it may be emptied where nothing has matched yet.
    pub allow_empty: bool,
    /// What it writes to.
    pub sink: RawSink,
}

/// A target: what is kept as the roll calls for, and what follows from it.
#[derive(Debug, Clone, PartialEq)]
pub struct TargetConfig {
    /// Its name, unique among the consumer's targets.
    pub name: TargetName,
    /// Which instances it shows.
    pub select: Select,
    /// How its reloads are paced.
    pub pace: PaceSettings,
    /// The stack that the containers to signal are narrowed to, where it is the consumer's own, which is not known yet.
    pub notify_stack: Option<StackChoice>,
    /// What is held back.
    pub guard: GuardSettings,
    /// How often to look whether the file is still as it was left.
    pub reconcile: Duration,
    /// Whether a file with something in it may be emptied where nothing has matched yet.
    pub allow_empty: bool,
    /// What it writes to.
    pub sink: SinkConfig,
}

impl TargetConfig {
    /// Whether it is a file that nobody is told of.
    pub fn is_unnotified(&self) -> bool {
        self.sink.kind() == SinkKind::File && self.sink.notify().is_none()
    }

    /// Whether it is narrowed to the consumer's own stack.
    pub fn wants_own_stack(&self) -> bool {
        let wants = |stack: &Option<StackChoice>| stack.as_ref().is_some_and(|stack| stack.name().is_none());
        wants(&self.select.stack) || wants(&self.notify_stack)
    }

    /// Narrows it to the consumer's own stack, if it wants that.
    ///
    /// # Errors
    /// There is none, and it is expected.
    pub fn set_own_stack(&mut self, own: Option<&str>) -> Result<(), SettingError> {
        let outer = format!("target {}: ", self.name);
        let resolved =
            |stack: StackChoice| stack.resolved(own).map_err(|error| error.within(&outer)).transpose();
        self.select.stack = self.select.stack.take().and_then(&resolved).transpose()?.map(StackChoice::Named);
        let notify = self.sink.file_mut().and_then(|file| file.notify.as_mut());
        if let (Some(stack), Some(Notify::Signal(delivery))) = (self.notify_stack.take(), notify) {
            delivery.to.stack = resolved(stack).transpose()?;
        }
        Ok(())
    }
}

/// How often to look whether a file is still as it was left, unless it is said.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(30);

impl RawTarget {
    /// Checks that what was given fits together, and completes it.
    ///
    /// # Errors
    /// The setting that cannot work, by its name in TOML.
    pub fn parse(self) -> Result<TargetConfig, SettingError> {
        let Self { name, select, pace, heartbeat, guard, reconcile, allow_empty, sink } = self;
        let notify_stack = sink.file.notify.as_ref().and_then(|notify| notify.stack.clone());
        let sink = sink.parse()?;
        let default_pace =
            if sink.notify().is_some() { PaceSettings::reload() } else { PaceSettings::none() };
        let mut select = select.parse();
        if let Some(format) = sink.format() {
            restrict(&mut select, format)?;
        }
        if sink.kind() == SinkKind::Citus {
            select.protocol.get_or_insert(Protocol::Tcp);
        }
        if let Some(reconcile) = reconcile.filter(Duration::is_zero) {
            return Err(SettingError::new("reconcile", time::show(reconcile), "more than 0s"));
        }
        Ok(TargetConfig {
            name,
            select,
            pace: PaceSettings::parse(pace, heartbeat)?.unwrap_or(default_pace),
            notify_stack: notify_stack.filter(|stack| stack.name().is_none()),
            guard: guard.map(RawGuard::parse).transpose()?.unwrap_or_default(),
            reconcile: reconcile.unwrap_or(RECONCILE_INTERVAL),
            allow_empty,
            sink,
        })
    }
}

#[cfg(test)]
impl RawTarget {
    /// A target of everything there is.
    pub fn json(name: &str, dest: &str) -> Self {
        use crate::sink::file::settings::RawFile;
        let file = RawFile { dest: Some(dest.into()), format: Some(Format::Json), ..RawFile::default() };
        let name = name.parse().expect("a name");
        Self {
            name,
            select: RawSelect::default(),
            pace: None,
            heartbeat: None,
            guard: None,
            reconcile: None,
            allow_empty: false,
            sink: RawSink { file, ..RawSink::default() },
        }
    }
}

/// Leaves only instances of a protocol that the format can express.
fn restrict(select: &mut Select, format: Format) -> Result<(), SettingError> {
    match select.protocol {
        None => select.protocol = format.protocol(),
        Some(protocol) if format.speaks(protocol) => {}
        Some(protocol) => {
            let expected = "a protocol that the format can express";
            return Err(SettingError::new("select.protocol", protocol, expected));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::sink::file::{notify::settings::RawNotify, settings::RawFile};

    fn target(format: Format) -> RawTarget {
        let raw = RawTarget::json("web", "/x");
        let file = RawFile { format: Some(format), ..raw.sink.file };
        RawTarget { sink: RawSink { file, ..raw.sink }, ..raw }
    }

    #[test]
    fn a_target_is_paced_where_something_is_notified_unless_its_pace_is_set() {
        let mut raw = target(Format::Json);
        let pace = |raw: &RawTarget| raw.clone().parse().expect("a target").pace;
        assert_eq!(pace(&raw), PaceSettings::none());
        let container = Some("proxy".parse().expect("a name"));
        raw.sink.file.notify = Some(RawNotify { container, ..RawNotify::default() });
        assert_eq!(pace(&raw), PaceSettings::reload());
        raw.heartbeat = Some(Duration::from_secs(9));
        assert_eq!(pace(&raw), PaceSettings::heartbeat(Duration::from_secs(9)));
        raw.heartbeat = None;
        raw.pace = Some("none".parse().expect("a pace"));
        assert_eq!(pace(&raw), PaceSettings::none());
    }

    #[test]
    fn a_format_implies_its_protocol_and_refuses_one_that_it_cannot_express() {
        let protocol = |format, protocol| {
            let mut raw = target(format);
            raw.select.protocol = protocol;
            raw.parse().map(|target| target.select.protocol).map_err(|error| error.to_string())
        };
        assert_eq!(protocol(Format::Json, None), Ok(None));
        assert_eq!(protocol(Format::CitusWorkers, None), Ok(Some(Protocol::Tcp)));
        assert_eq!(protocol(Format::NginxUpstream, Some(Protocol::Udp)), Ok(Some(Protocol::Udp)));
        assert_eq!(
            protocol(Format::CitusWorkers, Some(Protocol::Udp)),
            Err("select.protocol is udp: expected a protocol that the format can express".to_owned())
        );
    }
}
