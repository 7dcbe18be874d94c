//! The settings of a selection: `[target.select]` in TOML, and flags.

use regex::Regex;
use rollcall_shared::{
    model::{
        instance::{Protocol, Status},
        label::LabelSelector,
        name::{NodeName, ServiceName},
    },
    process::cli,
};
use serde::Deserialize;

use super::{
    fallback::AllFailing,
    select::{Family, Select},
    stack_choice::StackChoice,
};
use crate::config::toml::{one_or_many, parsed, pattern};

/// Which instances belong to a target, as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawSelect {
    /// Services by name.
    #[serde(default, deserialize_with = "one_or_many")]
    pub service: Vec<ServiceName>,
    /// A pattern that the service's name must contain.
    #[serde(default, deserialize_with = "pattern")]
    pub service_regex: Option<Regex>,
    /// A pattern that the container's name must contain.
    #[serde(default, deserialize_with = "pattern")]
    pub container_regex: Option<Regex>,
    /// A pattern that the service's or the container's name must contain. Only a flag sets it.
    #[serde(skip)]
    pub name_regex: Option<Regex>,
    /// Labels, all of which it must have.
    #[serde(default, deserialize_with = "one_or_many")]
    pub labels: Vec<LabelSelector>,
    /// The stack that its container belongs to, or `own`.
    #[serde(default, deserialize_with = "parsed")]
    pub stack: Option<StackChoice>,
    /// Nodes by name.
    #[serde(default, deserialize_with = "one_or_many")]
    pub node: Vec<NodeName>,
    /// Ports inside the container.
    #[serde(default, deserialize_with = "one_or_many")]
    pub port: Vec<u16>,
    /// The protocol.
    pub protocol: Option<Protocol>,
    /// Tags, all of which it must have.
    #[serde(default, deserialize_with = "one_or_many")]
    pub tags: Vec<String>,
    /// Statuses; passing alone, where none is given.
    #[serde(default, deserialize_with = "one_or_many")]
    pub status: Vec<Status>,
    /// What becomes of a service of which no instance has one of them; kept, unless statuses are given.
    pub all_failing: Option<AllFailing>,
    /// The family of its address.
    pub family: Option<Family>,
}

impl RawSelect {
    /// What it means.
    pub fn parse(self) -> Select {
        let Self {
            service,
            service_regex,
            container_regex,
            name_regex,
            labels,
            stack,
            node,
            port,
            protocol,
            tags,
            status,
            all_failing,
            family,
        } = self;
        // Whoever names statuses means these.
        let default = if status.is_empty() { AllFailing::Keep } else { AllFailing::Drop };
        Select {
            services: service,
            service_regex,
            container_regex,
            name_regex,
            labels,
            stack,
            nodes: node,
            ports: port,
            protocol,
            tags,
            statuses: if status.is_empty() { Select::default().statuses } else { status },
            all_failing: all_failing.unwrap_or(default),
            family,
        }
    }
}

/// Which instances belong to a target that is given by flags.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SelectFlags {
    /// Regular expression to find in the service's or the container's name
    #[arg(long, env = "ROLLCALL_SERVICE", value_name = "REGEX", value_parser = cli::regex)]
    pub service: Option<Regex>,
    /// Label, or label and value, that the container must have; all that are given must match
    #[arg(long, env = "ROLLCALL_LABEL", value_name = "LABEL[=VALUE],...", value_delimiter = ',')]
    pub label: Vec<LabelSelector>,
}

impl SelectFlags {
    /// Whether any of them is given.
    pub fn is_given(&self) -> bool {
        self.service.is_some() || !self.label.is_empty()
    }

    /// The same as it would be written in TOML.
    pub fn raw(&self) -> RawSelect {
        RawSelect { name_regex: self.service.clone(), labels: self.label.clone(), ..RawSelect::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Select, String> {
        toml::from_str(text).map(RawSelect::parse).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn one_value_or_a_list_of_them_is_read() {
        let select =
            read("service = \"web\"\nlabels = [\"role=front\", \"zone\"]\nport = 80").expect("a selection");
        assert_eq!(select.services.len(), 1);
        assert_eq!(select.labels.len(), 2);
        assert_eq!(select.ports, [80]);
        assert_eq!(select.statuses, [Status::Passing], "the default");
        let select = read("status = [\"passing\", \"draining\"]").expect("a selection");
        assert_eq!(select.statuses, [Status::Passing, Status::Draining]);
    }

    #[test]
    fn a_service_of_which_none_passes_is_kept_unless_statuses_are_named_or_it_is_said_otherwise() {
        for (text, expected) in [
            ("", AllFailing::Keep),
            ("all_failing = \"drop\"", AllFailing::Drop),
            ("status = \"passing\"", AllFailing::Drop),
            ("status = \"passing\"\nall_failing = \"keep\"", AllFailing::Keep),
        ] {
            assert_eq!(read(text).expect("a selection").all_failing, expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_in_plain_words() {
        for (text, expected) in [
            (
                "status = \"up\"",
                "\"up\" is not a status: expected one of starting, passing, failing, draining",
            ),
            ("all_failing = \"hold\"", "unknown variant `hold`, expected `keep` or `drop`"),
            ("service_regex = \"(\"", "\"(\" is not a regular expression: unclosed group"),
            ("labels = \"=x\"", "\"=x\" is not a label: expected NAME or NAME=VALUE"),
            ("name_regex = \"x\"", "unknown field `name_regex`"),
        ] {
            let error = read(text).map(drop).expect_err(text);
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn flags_come_to_the_same_raw_form() {
        let label = "role=front".parse().expect("a label");
        let flags = SelectFlags { service: Some(Regex::new("web").expect("a pattern")), label: vec![label] };
        let select = flags.raw().parse();
        assert_eq!(select.named_services().services, ["web".parse().expect("a name")]);
        assert_eq!(select.labels.len(), 1);
    }
}
