//! A setting that cannot work: which one, what its value is, and what was expected.

use std::{error::Error, fmt};

/// A setting that cannot work. It stays so until someone changes it.
#[derive(Debug)]
pub struct SettingError {
    /// The setting as the user knows it, such as `--refresh` or `target web: check`.
    setting: String,
    /// Its value, where it has one.
    value: Option<String>,
    problem: Problem,
}

#[derive(Debug)]
enum Problem {
    Expected(String),
    Caused(Box<dyn Error + Send + Sync>),
}

impl SettingError {
    /// The setting has this value, and another one was expected.
    pub fn new(setting: impl Into<String>, value: impl fmt::Display, expected: impl Into<String>) -> Self {
        let problem = Problem::Expected(expected.into());
        Self { setting: setting.into(), value: Some(value.to_string()), problem }
    }

    /// The setting is not given, and is needed.
    pub fn missing(setting: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { setting: setting.into(), value: None, problem: Problem::Expected(expected.into()) }
    }

    /// The setting has this value, which leads to an error.
    pub fn caused(
        setting: impl Into<String>,
        value: impl fmt::Display,
        cause: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        let problem = Problem::Caused(cause.into());
        Self { setting: setting.into(), value: Some(value.to_string()), problem }
    }

    /// The same of a setting within another: `target web: ` before `check`, or `--` before a flag's name.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.setting = format!("{outer}{}", self.setting);
        self
    }
}

impl fmt::Display for SettingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let setting = &self.setting;
        match (&self.value, &self.problem) {
            (Some(value), Problem::Expected(expected)) => {
                write!(f, "{setting} is {value}: expected {expected}")
            }
            (None, Problem::Expected(expected)) => write!(f, "{setting} is not given: expected {expected}"),
            (Some(value), Problem::Caused(_)) => write!(f, "{setting} is {value}"),
            (None, Problem::Caused(_)) => f.write_str(setting),
        }
    }
}

impl Error for SettingError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.problem {
            Problem::Expected(_) => None,
            Problem::Caused(cause) => Some(&**cause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::error::one_line;

    #[test]
    fn it_names_the_setting_the_value_and_what_was_expected() {
        let error = SettingError::new("--mode", "\"rw\"", "octal digits");
        assert_eq!(one_line(&error), "--mode is \"rw\": expected octal digits");
        let error = SettingError::missing("dest", "a file").within("target web: ");
        assert_eq!(one_line(&error), "target web: dest is not given: expected a file");
        let error = SettingError::caused("--config", "/x", std::io::Error::other("no such file"));
        assert_eq!(one_line(&error), "--config is /x: no such file");
    }
}
