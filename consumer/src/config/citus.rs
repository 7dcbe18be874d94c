//! workerlist-gen's own settings: the Citus variables, and the target that they mean.

use std::path::PathBuf;

use rollcall_shared::{
    model::{label::LabelSelector, name::ContainerName},
    process::setting::SettingError,
};

use super::target::{RawTarget, TargetConfig};
use crate::{
    roll::RawSelect,
    sink::file::{notify::settings::RawNotify, render::Format, settings::RawFile},
};

/// The port that every Citus worker listens at, as workerlist-gen has it.
pub const CITUS_PORT: u16 = 5432;

/// The name of workerlist-gen's own target.
const TARGET_NAME: &str = "citus";
/// The folder of the worker list where none is given.
const DEFAULT_CONFDIR: &str = "/etc/citus";
/// The container to signal where none is given.
const DEFAULT_CONTAINER: &str = "citus_master";
/// The label by which Compose names a container's service.
const COMPOSE_SERVICE: &str = "com.docker.compose.service";

/// workerlist-gen's own target. Without `--config` and `--dest` it is there in embedded mode, or where one of these is
/// set.
#[derive(Debug, Clone, Default, clap::Args)]
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
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub citus_service_name: Option<String>,
}

impl CitusSettings {
    /// Whether one of them is set.
    pub(super) fn is_given(&self) -> bool {
        let Self { citus_confdir, citus_container, citus_service_name } = self;
        citus_confdir.is_some() || citus_container.is_some() || citus_service_name.is_some()
    }

    /// The target that they mean.
    pub(super) fn parse(&self) -> Result<TargetConfig, SettingError> {
        self.raw().parse().map_err(|error| error.within("target citus: "))
    }

    fn raw(&self) -> RawTarget {
        let confdir = self.citus_confdir.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_CONFDIR));
        let worker =
            LabelSelector { name: "com.citusdata.role".to_owned(), value: Some("Worker".to_owned()) };
        RawTarget {
            name: TARGET_NAME.parse().expect("it is a name"),
            select: RawSelect { labels: vec![worker], port: vec![CITUS_PORT], ..RawSelect::default() },
            pace: None,
            heartbeat: None,
            guard: None,
            reconcile: None,
            file: RawFile {
                dest: Some(confdir.join("pg_worker_list.conf")),
                format: Some(Format::CitusWorkers),
                notify: Some(self.raw_notify()),
                ..RawFile::default()
            },
        }
    }

    fn raw_notify(&self) -> RawNotify {
        if let Some(service) = self.citus_service_name.clone() {
            let label = LabelSelector { name: COMPOSE_SERVICE.to_owned(), value: Some(service) };
            return RawNotify { label: Some(label), ..RawNotify::default() };
        }
        let default = || DEFAULT_CONTAINER.parse().expect("it is a name");
        let container = self.citus_container.clone().unwrap_or_else(default);
        RawNotify { container: Some(container), ..RawNotify::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rollcall_shared::model::instance::Protocol;

    use super::*;
    use crate::{sink::file::render::Content, target::pacer::PaceSettings};

    #[test]
    fn its_target_lists_the_workers_as_workerlist_gen_does() {
        let target = CitusSettings::default().parse().expect("a target");
        assert_eq!(target.name.as_str(), "citus");
        assert_eq!(target.file.dest, Path::new("/etc/citus/pg_worker_list.conf"));
        assert_eq!(target.file.content, Content::Format(Format::CitusWorkers));
        assert_eq!(target.select.labels, ["com.citusdata.role=Worker".parse().expect("a label")]);
        assert_eq!(target.select.ports, [5432]);
        assert_eq!(target.select.protocol, Some(Protocol::Tcp));
        assert_eq!(target.pace, PaceSettings::reload());
    }

    #[test]
    fn the_variables_of_both_seeds_work() {
        let (service, container) = (Some("master".to_owned()), Some("db".parse().expect("a name")));
        for (container, service, expected) in [
            (None, None, "HUP to container citus_master"),
            (container, None, "HUP to container db"),
            (None, service, "HUP to label com.docker.compose.service=master"),
        ] {
            let settings = CitusSettings {
                citus_confdir: Some("/data".into()),
                citus_container: container,
                citus_service_name: service,
            };
            assert!(settings.is_given());
            let file = settings.parse().expect("a target").file;
            assert_eq!(file.dest, Path::new("/data/pg_worker_list.conf"));
            assert_eq!(file.notify.expect("a notifier").to_string(), expected);
        }
    }
}
