//! Which backend of HAProxy serves a service.

use rollcall_shared::{model::name::ServiceName, process::setting::SettingError};

/// A pattern of the names of backends, with the service's name in it once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackendPattern {
    before: String,
    after: String,
}

const SERVICE: &str = "{service}";

impl BackendPattern {
    /// A pattern such as `be_{service}`.
    ///
    /// # Errors
    /// No `{service}` or more than one, or what cannot stand in the name of a backend.
    pub fn parse(text: &str) -> Result<Self, SettingError> {
        let expected = || {
            SettingError::new(
                "runtime.backend",
                text,
                "{service} once, beside letters, digits, '_', '-', '.' or ':'",
            )
        };
        let (before, after) = text.split_once(SERVICE).ok_or_else(expected)?;
        let may_stand = |c: char| c.is_ascii_alphanumeric() || "_-.:".contains(c);
        if !before.chars().chain(after.chars()).all(may_stand) {
            return Err(expected());
        }
        Ok(Self { before: before.to_owned(), after: after.to_owned() })
    }

    /// The backend of a service.
    pub fn name(&self, service: &ServiceName) -> String {
        format!("{}{service}{}", self.before, self.after)
    }

    /// The service whose backend it is, if it is one's.
    pub fn service(&self, backend: &str) -> Option<ServiceName> {
        backend.strip_prefix(&self.before)?.strip_suffix(&self.after)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_and_its_service_name_each_other() {
        let service: ServiceName = "web".parse().expect("a name");
        for (pattern, backend) in [("{service}", "web"), ("be_{service}:x", "be_web:x")] {
            let pattern = BackendPattern::parse(pattern).expect("a pattern");
            assert_eq!(pattern.name(&service), backend);
            assert_eq!(pattern.service(backend), Some(service.clone()));
        }
        let pattern = BackendPattern::parse("be_{service}").expect("a pattern");
        assert_eq!(pattern.service("stats"), None);
        assert_eq!(pattern.service("be_"), None);
    }

    #[test]
    fn a_pattern_without_one_service_is_refused() {
        for bad in ["web", "{service}{service}", "a b {service}", "{service};", "#{service}"] {
            assert!(BackendPattern::parse(bad).is_err(), "{bad:?} was taken");
        }
    }
}
