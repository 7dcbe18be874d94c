//! Which containers are registered at all.

use super::{
    labels,
    omission::{Omission, Reason},
    settings::FilterSettings,
};
use crate::inventory::container::Container;

/// Whether a container is to be registered.
///
/// # Errors
/// Why not, in a few words.
pub fn admit(container: &Container, filter: &FilterSettings) -> Result<(), Omission> {
    let FilterSettings {
        containers,
        only_name,
        only_label,
        only_image,
        explicit,
        export_labels: _,
        export_env: _,
    } = filter;
    if labels::is_ignored(container, None) {
        let text = "it asks to be ignored, by rollcall.ignore or SERVICE_IGNORE";
        return Err(Omission::new(Reason::Ignored, text));
    }
    if !containers.is_empty() && !containers.contains(&container.name) {
        return filtered("--container names others");
    }
    if let Some(regex) = only_name.as_ref().filter(|regex| !regex.is_match(container.name.as_str())) {
        return filtered(format!("its name does not match --only-name {regex}"));
    }
    if let Some(regex) = only_image.as_ref().filter(|regex| !regex.is_match(&container.image)) {
        return filtered(format!("its image {} does not match --only-image {regex}", container.image));
    }
    if let Some(label) = only_label.iter().find(|label| !label.matches(&container.labels)) {
        return filtered(format!("it lacks the label {label} of --only-label"));
    }
    if *explicit && !labels::is_explicit(container) {
        return filtered("--explicit is set and nothing names its service");
    }
    Ok(())
}

fn filtered(text: impl Into<String>) -> Result<(), Omission> {
    Err(Omission::new(Reason::Filtered, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::container::testing::container;

    fn filter() -> FilterSettings {
        FilterSettings {
            containers: Vec::new(),
            only_name: None,
            only_label: Vec::new(),
            only_image: None,
            explicit: false,
            export_labels: Vec::new(),
            export_env: Vec::new(),
        }
    }

    fn labelled(name: &str, value: &str) -> Container {
        let mut container = container("web-1");
        container.labels.insert(name.to_owned(), value.to_owned());
        container
    }

    #[test]
    fn every_filter_lets_in_what_it_names_and_nothing_else() {
        let regex = |text: &str| Some(regex::Regex::new(text).expect("a regex"));
        let name = |name: &str| vec![name.parse().expect("a name")];
        let labels = |labels: &[&str]| labels.iter().map(|label| label.parse().expect("a label")).collect();
        let web = labelled("role", "Worker");
        for (admitted, filter) in [
            (true, filter()),
            (true, FilterSettings { containers: name("web-1"), ..filter() }),
            (false, FilterSettings { containers: name("web"), ..filter() }),
            (true, FilterSettings { only_name: regex("^web-[0-9]+$"), ..filter() }),
            (false, FilterSettings { only_name: regex("^db"), ..filter() }),
            (true, FilterSettings { only_image: regex("app"), ..filter() }),
            (false, FilterSettings { only_image: regex("^redis"), ..filter() }),
            (true, FilterSettings { only_label: labels(&["role=Worker"]), ..filter() }),
            (true, FilterSettings { only_label: labels(&["role"]), ..filter() }),
            (false, FilterSettings { only_label: labels(&["role=Worker", "x"]), ..filter() }),
            (false, FilterSettings { explicit: true, ..filter() }),
        ] {
            assert_eq!(admit(&web, &filter).is_ok(), admitted, "{filter:?}");
        }
    }

    #[test]
    fn a_container_that_asks_to_be_ignored_is() {
        assert!(admit(&labelled("rollcall.ignore", "true"), &filter()).is_err());
        assert!(admit(&labelled("SERVICE_IGNORE", "1"), &filter()).is_err());
        assert!(admit(&labelled("rollcall.ignore", "false"), &filter()).is_ok());
    }
}
