//! The consumer's settings: where they come from, and the one way from there to a checked plan.
//!
//! ```text
//! flags and environment -> TargetFlags --+
//! the Citus variables -> CitusSettings --+-> RawTarget -> TargetConfig -> Plan
//! the file of --config -> toml ----------+
//! ```
//!
//! Whatever is wrong is found here, before anything is touched. Each room owns its part of a target: a clap group, a
//! TOML struct and what both mean.

use rollcall_shared::{
    model::name::ConsumerName,
    process::{health::Listen, host, setting::SettingError},
};

pub mod backends_updater;
pub mod citus;
pub mod flags;
pub mod target;
pub(crate) mod toml;

pub use citus::{CITUS_PORT, CitusSettings, Tool};
pub use flags::{Cli, Command, CommonFlags, ConsumerSettings, Settings, TargetFlags};
pub use target::{RawTarget, TargetConfig};

use crate::sink::settings::SinkKind;

/// The settings, checked and completed.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The consumer's name.
    pub consumer: ConsumerName,
    /// The targets; one or more.
    pub targets: Vec<TargetConfig>,
    /// Whether there is no etcd: the agent is to run within this process.
    pub embedded: bool,
    /// Whether the only target is workerlist-gen's own.
    pub citus: bool,
}

/// What is expected where there is no target.
const ANY_TARGET: &str =
    "it, or --dest and a format or template, or CITUS_SERVICE_NAME for a Citus worker list";
/// What is expected beside the name of a Citus tool.
const NO_TARGET: &str = "no other target beside workerlist-gen's";

impl Plan {
    /// Whether a target is narrowed to the consumer's own stack.
    pub fn wants_own_stack(&self) -> bool {
        self.targets.iter().any(TargetConfig::wants_own_stack)
    }

    /// The plan for a consumer whose own container belongs to this stack, or to none.
    ///
    /// # Errors
    /// A target expects one.
    pub fn with_own_stack(mut self, own: Option<&str>) -> Result<Self, SettingError> {
        self.targets.iter_mut().try_for_each(|target| target.set_own_stack(own))?;
        Ok(self)
    }
}

impl Settings {
    /// Checks that the settings fit together, reads the targets and touches nothing.
    ///
    /// # Errors
    /// The setting that cannot work.
    pub fn plan(&self) -> Result<Plan, SettingError> {
        self.etcd.check()?;
        self.lease.check()?;
        let embedded = self.etcd.endpoints.is_empty();
        let (targets, citus) = match &self.consumer.config {
            Some(_) if self.citus.tool.is_some() => {
                return Err(SettingError::new("--config", "given", NO_TARGET));
            }
            None if self.target.is_given() && self.citus.tool.is_some() => {
                return Err(SettingError::new("one target", "given by flags", NO_TARGET));
            }
            Some(file) => (toml::read(file)?, false),
            None if self.target.is_given() => (vec![self.target.parse()?], false),
            None if embedded || self.citus.is_given() => {
                (vec![self.citus.parse(&self.target.common, embedded)?], true)
            }
            None => return Err(SettingError::missing("--config", ANY_TARGET)),
        };
        let ConsumerSettings { listen, once, dry_run, .. } = &self.consumer;
        let served = targets.iter().find(|target| target.sink.kind() == SinkKind::Http);
        if let (Listen::Off, false, Some(target)) = (listen, *once || *dry_run, served) {
            let expected = format!("an address, as target {} is served there", target.name);
            return Err(SettingError::new("--listen", "off", expected));
        }
        Ok(Plan { consumer: self.consumer.name()?, targets, embedded, citus })
    }
}

impl ConsumerSettings {
    /// The consumer's name: the one that is given, else the host's.
    fn name(&self) -> Result<ConsumerName, SettingError> {
        match &self.name {
            Some(name) => Ok(name.clone()),
            None => host::name()
                .parse()
                .map_err(|error| SettingError::missing("--name", format!("it, as the host name {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use clap::Parser;
    use rollcall_shared::process::{cli, error::one_line};

    use super::*;

    fn plan(args: &[&str]) -> Result<Plan, String> {
        let parsed = Cli::try_parse_from([&["rollcall-consumer"], args].concat());
        let settings = parsed.map_err(|error| cli::usage(&error))?.settings;
        settings.plan().map_err(|error| one_line(&error))
    }

    #[test]
    fn without_any_setting_it_is_workerlist_gen() {
        let plan = plan(&[]).expect("it needs none");
        assert!(plan.embedded && plan.citus);
        let [target] = plan.targets.as_slice() else { panic!("one target") };
        assert_eq!(target.name.as_str(), "citus");
        assert_eq!(target.sink.file().expect("a file").dest, Path::new("/etc/citus/pg_worker_list.conf"));
        let notify = target.sink.notify().expect("a notifier");
        assert_eq!(notify.to_string(), "HUP to container citus_master");
    }

    #[test]
    fn with_etcd_it_is_workerlist_gen_only_where_a_citus_setting_says_so() {
        let plan = plan(&["--etcd=h:1", "--citus-service-name=master"]).expect("a target");
        assert!(!plan.embedded && plan.citus);
    }

    #[test]
    fn a_file_has_the_targets_that_it_names() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("targets.toml");
        let target =
            |name: &str| format!("[[target]]\nname = \"{name}\"\ndest = \"/{name}\"\nformat = \"json\"\n");
        fs::write(&file, target("a") + &target("b")).expect("a file");
        let plan = plan(&["--name=c1", &format!("--config={}", file.display())]).expect("two targets");
        assert_eq!(plan.consumer.as_str(), "c1");
        assert!(plan.embedded && !plan.citus);
        assert_eq!(plan.targets.iter().map(|target| target.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn a_target_that_is_served_needs_an_address_unless_it_runs_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("targets.toml");
        fs::write(&file, "[[target]]\nname = \"a\"\nsink = \"http\"\nformat = \"json\"\n").expect("a file");
        let config = format!("--config={}", file.display());
        let error = plan(&[&config, "--listen=off"]).map(drop).expect_err("nobody could ask");
        assert_eq!(error, "--listen is off: expected an address, as target a is served there");
        plan(&[&config, "--listen=off", "--dry-run"]).expect("nobody is to");
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        let json = ["--etcd=h:1", "--dest=/x", "--format=json"];
        for (args, expected) in [
            (vec!["--etcd=h:1"], "--config is not given: expected it, or --dest and a format or template"),
            (vec!["--config=/x", "--dest=/y"], "the argument '--config <FILE>' cannot be used with"),
            (vec!["--config=/x", "--label=y"], "the argument '--config <FILE>' cannot be used with"),
            (
                vec!["--config=/x", "--notify-container=y"],
                "the argument '--config <FILE>' cannot be used with",
            ),
            (vec!["--config=/x", "--heartbeat=1s"], "the argument '--config <FILE>' cannot be used with"),
            (vec!["--format=json"], "--dest is not given: expected the file to render"),
            (vec!["--notify-label=x"], "--dest is not given: expected the file to render"),
            (vec!["--dest=/x"], "--format is not given: expected it or template"),
            (
                vec!["--dest=/x", "--format=json", "--template=/y"],
                "the argument '--format <FORMAT>' cannot be used with",
            ),
            (vec!["--dest=/x", "--format=jason"], "invalid value 'jason' for '--format <FORMAT>'"),
            (
                vec!["--dest=/x", "--service=("],
                "invalid value '(' for '--service <REGEX>': \"(\" is not a regular expression: unclosed group",
            ),
            (
                vec!["--dest=/x", "--mode=rw"],
                "invalid value 'rw' for '--mode <OCTAL>': \"rw\" is not a mode: expected three or four octal",
            ),
            (vec!["--dest=/x", "--notify-signal=HUP"], "the following required arguments were not provided:"),
            (
                vec!["--dest=/x", "--notify-container=a", "--notify-label=b"],
                "the argument '--notify-container <NAME>' cannot be used with '--notify-label",
            ),
            (
                vec!["--dest=/x", "--notify-command=a", "--notify-signal=HUP"],
                "the argument '--notify-command <COMMAND>' cannot be used with '--notify-signal",
            ),
            (
                vec!["--dest=/x", "--heartbeat=1s", "--pace=1/1s"],
                "the argument '--heartbeat <TIME>' cannot be used with '--pace",
            ),
            (vec!["--dest=/x", "--check-timeout=1s"], "the following required arguments were not provided:"),
            ([&json[..], &["--check=true"]].concat(), "--check is \"true\": expected {file} in it"),
            (vec!["--config=/no/such/file"], "--config is /no/such/file: No such file or directory"),
            (
                vec!["--ttl=10s", "--refresh=10s"],
                "--refresh is 10s: expected more than 0s and less than --ttl (10s)",
            ),
            (
                vec!["--citus-container=a", "--citus-service-name=b"],
                "the argument '--citus-container <NAME>' cannot be used with '--citus-service-name",
            ),
            (vec!["--dset=/x"], "unexpected argument '--dset' found"),
        ] {
            let error = plan(&args).map(drop).expect_err(&args.join(" "));
            assert!(error.starts_with(expected), "{error}\n{expected}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
