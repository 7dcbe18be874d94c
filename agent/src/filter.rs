//! Which containers are registered at all.

use rollcall_shared::signal::Selector;

use crate::{container::Container, metadata, settings::ChoiceSettings};

/// Whether a container is to be registered.
///
/// # Errors
/// Why not, in a few words.
pub fn admit(container: &Container, choice: &ChoiceSettings) -> Result<(), String> {
    let ChoiceSettings {
        containers,
        only_name,
        only_label,
        only_image,
        explicit,
        export_labels: _,
        gather: _,
    } = choice;
    if metadata::is_ignored(container, None) {
        return Err("it asks to be ignored, by rollcall.ignore or SERVICE_IGNORE".to_owned());
    }
    if !containers.is_empty() && !containers.contains(&container.name) {
        return Err("--container names others".to_owned());
    }
    if let Some(regex) = only_name.as_ref().filter(|regex| !regex.is_match(container.name.as_str())) {
        return Err(format!("its name does not match --only-name {regex}"));
    }
    if let Some(regex) = only_image.as_ref().filter(|regex| !regex.is_match(&container.image)) {
        return Err(format!("its image {} does not match --only-image {regex}", container.image));
    }
    let has = |label: &&String| {
        !Selector::Label((*label).clone()).matches(&container.id, &container.name, &container.labels)
    };
    if let Some(label) = only_label.iter().find(has) {
        return Err(format!("it lacks the label {label} of --only-label"));
    }
    if *explicit && !metadata::is_explicit(container) {
        return Err("--explicit is set and nothing names its service".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::testing::container;

    fn choice() -> ChoiceSettings {
        ChoiceSettings {
            containers: Vec::new(),
            only_name: None,
            only_label: Vec::new(),
            only_image: None,
            explicit: false,
            export_labels: Vec::new(),
            gather: std::time::Duration::ZERO,
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
        let web = labelled("role", "Worker");
        for (admitted, choice) in [
            (true, choice()),
            (true, ChoiceSettings { containers: name("web-1"), ..choice() }),
            (false, ChoiceSettings { containers: name("web"), ..choice() }),
            (true, ChoiceSettings { only_name: regex("^web-[0-9]+$"), ..choice() }),
            (false, ChoiceSettings { only_name: regex("^db"), ..choice() }),
            (true, ChoiceSettings { only_image: regex("app"), ..choice() }),
            (false, ChoiceSettings { only_image: regex("^redis"), ..choice() }),
            (true, ChoiceSettings { only_label: vec!["role=Worker".to_owned()], ..choice() }),
            (true, ChoiceSettings { only_label: vec!["role".to_owned()], ..choice() }),
            (
                false,
                ChoiceSettings { only_label: vec!["role=Worker".to_owned(), "x".to_owned()], ..choice() },
            ),
            (false, ChoiceSettings { explicit: true, ..choice() }),
        ] {
            assert_eq!(admit(&web, &choice).is_ok(), admitted, "{choice:?}");
        }
    }

    #[test]
    fn who_asks_to_be_ignored_is() {
        assert!(admit(&labelled("rollcall.ignore", "true"), &choice()).is_err());
        assert!(admit(&labelled("SERVICE_IGNORE", "1"), &choice()).is_err());
        assert!(admit(&labelled("rollcall.ignore", "false"), &choice()).is_ok());
    }
}
