//! The settings of the Citus tools workerlist-gen and dockercloud-workerlist-gen, and the target that they mean.

use std::path::PathBuf;

use rollcall_shared::{
    model::{instance::Status, label::LabelSelector, name::ContainerName},
    process::setting::SettingError,
};

use super::{
    flags::CommonFlags,
    target::{RawTarget, TargetConfig},
};
use crate::{
    roll::{RawSelect, StackChoice},
    sink::{
        file::{notify::settings::RawNotify, render::Format, settings::RawFile},
        settings::RawSink,
    },
};

/// The port that every Citus worker listens at, as workerlist-gen has it.
pub const CITUS_PORT: u16 = 5432;

/// The name of workerlist-gen's own target.
const TARGET_NAME: &str = "citus";
/// The folder of the worker list where none is given.
const DEFAULT_CONFDIR: &str = "/etc/citus";
/// workerlist-gen's container to signal where none is given.
const DEFAULT_CONTAINER: &str = "citus_master";
/// dockercloud-workerlist-gen's service to signal where none is given.
const DEFAULT_SERVICE: &str = "master";

/// A Citus tool whose work is done. Both list the containers with the label `com.citusdata.role=Worker`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// Lists the workers of one host, and signals a container.
    WorkerlistGen,
    /// Lists the workers of one stack on any host, and signals the containers of a service in it.
    DockercloudWorkerlistGen,
}

/// workerlist-gen's own target. Without `--config` and `--dest` it is there in embedded mode, or where one of these is
/// set.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Citus worker list, where no other target is given")]
pub struct CitusSettings {
    /// Folder of pg_worker_list.conf [default: /etc/citus]
    #[arg(long, env = "CITUS_CONFDIR", value_name = "DIR")]
    pub citus_confdir: Option<PathBuf>,
    /// Container to send SIGHUP to [default: citus_master, without etcd]
    #[arg(long, env = "CITUS_CONTAINER", value_name = "NAME", conflicts_with = "citus_service_name")]
    pub citus_container: Option<ContainerName>,
    /// Compose or Swarm service to send SIGHUP to, instead of a container; then only workers of the same stack are
    /// listed [default: master, with etcd]
    #[arg(long, env = "CITUS_SERVICE_NAME", value_name = "NAME")]
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub citus_service_name: Option<String>,
    /// The tool that is asked for by its name.
    #[arg(skip)]
    pub tool: Option<Tool>,
}

impl CitusSettings {
    /// Whether one of them is set.
    pub(super) fn is_given(&self) -> bool {
        let Self { citus_confdir, citus_container, citus_service_name, tool } = self;
        citus_confdir.is_some() || citus_container.is_some() || citus_service_name.is_some() || tool.is_some()
    }

    /// The target that they mean: where nothing tells, dockercloud-workerlist-gen's beside etcd, else workerlist-gen's.
    pub(super) fn parse(&self, common: &CommonFlags, embedded: bool) -> Result<TargetConfig, SettingError> {
        let default = if embedded { Tool::WorkerlistGen } else { Tool::DockercloudWorkerlistGen };
        let tool = match (&self.citus_container, &self.citus_service_name) {
            (Some(_), _) => Tool::WorkerlistGen,
            (None, Some(_)) => Tool::DockercloudWorkerlistGen,
            (None, None) => self.tool.unwrap_or(default),
        };
        self.raw(tool, common).parse().map_err(|error| error.within("target citus: "))
    }

    fn raw(&self, tool: Tool, common: &CommonFlags) -> RawTarget {
        let CommonFlags { stack, status, allow_empty } = common.clone();
        let confdir = self.citus_confdir.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_CONFDIR));
        let worker =
            LabelSelector { name: "com.citusdata.role".to_owned(), value: Some("Worker".to_owned()) };
        let stack = match tool {
            Tool::WorkerlistGen => stack,
            Tool::DockercloudWorkerlistGen => stack.or(Some(StackChoice::OwnIfAny)),
        };
        // A worker that starts, is paused, fails or is about to stop holds data: it is listed for as long as it runs.
        let status = if status.is_empty() { Status::ALL.to_vec() } else { status };
        RawTarget {
            name: TARGET_NAME.parse().expect("it is a name"),
            select: RawSelect {
                labels: vec![worker],
                port: vec![CITUS_PORT],
                stack: stack.clone(),
                status,
                ..RawSelect::default()
            },
            pace: None,
            heartbeat: None,
            guard: None,
            reconcile: None,
            allow_empty,
            sink: RawSink {
                file: RawFile {
                    dest: Some(confdir.join("pg_worker_list.conf")),
                    format: Some(Format::CitusWorkers),
                    notify: Some(self.raw_notify(tool, stack)),
                    ..RawFile::default()
                },
                ..RawSink::default()
            },
        }
    }

    fn raw_notify(&self, tool: Tool, stack: Option<StackChoice>) -> RawNotify {
        match tool {
            Tool::WorkerlistGen => {
                let default = || DEFAULT_CONTAINER.parse().expect("it is a name");
                let container = self.citus_container.clone().unwrap_or_else(default);
                RawNotify { container: Some(container), ..RawNotify::default() }
            }
            Tool::DockercloudWorkerlistGen => {
                let service = self.citus_service_name.clone().unwrap_or_else(|| DEFAULT_SERVICE.to_owned());
                RawNotify { service: Some(service), stack, ..RawNotify::default() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rollcall_shared::model::instance::Protocol;

    use super::*;
    use crate::target::pacer::PaceSettings;

    fn target(settings: &CitusSettings, common: &CommonFlags) -> TargetConfig {
        settings.parse(common, true).expect("a target")
    }

    #[test]
    fn its_target_lists_the_workers_as_workerlist_gen_does() {
        let target = target(&CitusSettings::default(), &CommonFlags::default());
        assert_eq!(target.name.as_str(), "citus");
        assert_eq!(target.sink.file().expect("a file").dest, Path::new("/etc/citus/pg_worker_list.conf"));
        assert_eq!(target.sink.format(), Some(Format::CitusWorkers));
        assert_eq!(target.select.labels, ["com.citusdata.role=Worker".parse().expect("a label")]);
        assert_eq!(target.select.ports, [5432]);
        assert_eq!(target.select.protocol, Some(Protocol::Tcp));
        assert_eq!(target.select.statuses, Status::ALL, "whatever runs is listed");
        assert_eq!(target.pace, PaceSettings::reload());
    }

    #[test]
    fn the_variables_of_both_seeds_work() {
        let (service, container) = (Some("db".to_owned()), Some("db".parse().expect("a name")));
        let named = Some(Tool::DockercloudWorkerlistGen);
        for (container, service, tool, embedded, expected, own_stack) in [
            (None, None, None, true, "HUP to container citus_master", false),
            (None, None, None, false, "HUP to service master", true),
            (None, None, named, true, "HUP to service master", true),
            (None, None, Some(Tool::WorkerlistGen), false, "HUP to container citus_master", false),
            (container.clone(), None, None, true, "HUP to container db", false),
            (container, None, named, false, "HUP to container db", false),
            (None, service, None, true, "HUP to service db", true),
        ] {
            let settings = CitusSettings {
                citus_confdir: Some("/data".into()),
                citus_container: container,
                citus_service_name: service,
                tool,
            };
            assert!(settings.is_given());
            let target = settings.parse(&CommonFlags::default(), embedded).expect("a target");
            assert_eq!(target.sink.file().expect("a file").dest, Path::new("/data/pg_worker_list.conf"));
            assert_eq!(target.sink.notify().expect("a notifier").to_string(), expected);
            assert_eq!(target.wants_own_stack(), own_stack, "{expected}");
        }
    }

    #[test]
    fn the_own_stack_narrows_what_is_listed_and_what_is_signalled_where_there_is_one() {
        let settings =
            CitusSettings { tool: Some(Tool::DockercloudWorkerlistGen), ..CitusSettings::default() };
        for (own, expected) in
            [(Some("shop"), "HUP to service master, stack shop"), (None, "HUP to service master")]
        {
            let mut target = target(&settings, &CommonFlags::default());
            target.set_own_stack(own).expect("none is no failure");
            assert!(!target.wants_own_stack());
            assert_eq!(target.select.stack.as_ref().and_then(StackChoice::name), own);
            assert_eq!(target.sink.notify().expect("a notifier").to_string(), expected);
        }
    }

    #[test]
    fn statuses_and_a_stack_can_be_chosen() {
        let common = CommonFlags {
            stack: Some(StackChoice::Named("shop".to_owned())),
            status: vec![Status::Passing],
            allow_empty: true,
        };
        let target = target(&CitusSettings::default(), &common);
        assert_eq!((target.select.stack, target.select.statuses), (common.stack, common.status));
        assert!(target.allow_empty);
    }
}
