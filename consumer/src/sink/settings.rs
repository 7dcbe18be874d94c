//! What a target writes to, by its settings.

use std::{fmt, path::PathBuf};

use rollcall_shared::{model::name::TargetName, process::setting::SettingError};
use serde::Deserialize;

use super::{
    citus::{CitusConfig, RawCitus},
    file::{
        FileConfig,
        install::files,
        notify::Notify,
        render::{Content, Format},
        settings::RawFile,
    },
    http::HttpConfig,
};

/// The kinds of sinks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SinkKind {
    /// A file, and a notification where there is somebody to notify.
    #[default]
    File,
    /// A Citus coordinator, which is told by SQL.
    Citus,
    /// An answer of the consumer's own HTTP server.
    Http,
}

impl fmt::Display for SinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SinkKind::File => "file",
            SinkKind::Citus => "citus",
            SinkKind::Http => "http",
        })
    }
}

/// What a target writes to.
#[derive(Debug, Clone, PartialEq)]
pub enum SinkConfig {
    /// A file.
    File(Box<FileConfig>),
    /// A Citus coordinator.
    Citus(Box<CitusConfig>),
    /// An answer of the HTTP server.
    Http(Box<HttpConfig>),
}

impl SinkConfig {
    /// Which kind it is.
    pub fn kind(&self) -> SinkKind {
        match self {
            SinkConfig::File(_) => SinkKind::File,
            SinkConfig::Citus(_) => SinkKind::Citus,
            SinkConfig::Http(_) => SinkKind::Http,
        }
    }

    /// Its file, if it keeps one.
    pub fn file(&self) -> Option<&FileConfig> {
        match self {
            SinkConfig::File(file) => Some(file),
            SinkConfig::Citus(_) | SinkConfig::Http(_) => None,
        }
    }

    /// Its file, if it keeps one.
    pub fn file_mut(&mut self) -> Option<&mut FileConfig> {
        match self {
            SinkConfig::File(file) => Some(file),
            SinkConfig::Citus(_) | SinkConfig::Http(_) => None,
        }
    }

    /// What its file or answer is rendered by, if it has one.
    pub fn content(&self) -> Option<&Content> {
        match self {
            SinkConfig::Http(http) => Some(&http.content),
            _ => self.file().map(|file| &file.content),
        }
    }

    /// The built-in format that it is rendered by, if it is.
    pub fn format(&self) -> Option<Format> {
        match self.content()? {
            Content::Format(format) => Some(*format),
            Content::Template(_) => None,
        }
    }

    /// Whom to notify of a change, if anybody.
    pub fn notify(&self) -> Option<&Notify> {
        self.file()?.notify.as_ref()
    }

    /// The name of that notifier, where other targets may share it.
    pub fn shared(&self) -> Option<&TargetName> {
        self.file()?.shared.as_ref()
    }

    /// The path of its file from the root, if it keeps one. Where there is no current folder, a relative path is compared
    /// as it is.
    pub fn absolute_dest(&self) -> Option<PathBuf> {
        let dest = &self.file()?.dest;
        Some(std::path::absolute(dest).unwrap_or_else(|_| dest.clone()))
    }

    /// Why a second target may not have it.
    pub fn taken(&self) -> SettingError {
        match self {
            SinkConfig::Citus(citus) => {
                SettingError::new("citus.database", &citus.database, "a coordinator that no other target has")
            }
            _ => SettingError::new("dest", self, "a file that no other target has"),
        }
    }

    /// Whether two of them would write to one place.
    pub fn overlaps(&self, other: &SinkConfig) -> bool {
        let overlap = |(ours, theirs): (PathBuf, PathBuf)| {
            ours == theirs || files::matches(&ours, &theirs) || files::matches(&theirs, &ours)
        };
        match (self, other) {
            (SinkConfig::Citus(ours), SinkConfig::Citus(theirs)) => ours.database == theirs.database,
            _ => self.absolute_dest().zip(other.absolute_dest()).is_some_and(overlap),
        }
    }
}

/// Where it writes to, for people.
impl fmt::Display for SinkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SinkConfig::File(file) => file.dest.display().fmt(f),
            SinkConfig::Citus(citus) => write!(f, "the coordinator at {}", citus.database),
            SinkConfig::Http(_) => f.write_str("the answer"),
        }
    }
}

/// What a target writes to, as it is written.
#[derive(Debug, Clone, Default)]
pub struct RawSink {
    /// The kind; a file, where none is given.
    pub kind: Option<SinkKind>,
    /// The file, or what is rendered of one.
    pub file: RawFile,
    /// How a Citus coordinator is reached and told.
    pub citus: Option<RawCitus>,
}

impl RawSink {
    /// What it means.
    ///
    /// # Errors
    /// Settings that are missing, contradict each other or cannot work.
    pub fn parse(self) -> Result<SinkConfig, SettingError> {
        let Self { kind, file, citus } = self;
        let kind = kind.unwrap_or_default();
        if let (true, Some(_)) = (kind != SinkKind::Citus, &citus) {
            return Err(SettingError::new("citus", "given", "sink = \"citus\" beside it"));
        }
        match kind {
            SinkKind::File => file.parse().map(Box::new).map(SinkConfig::File),
            SinkKind::Citus => {
                file.refuse_all(kind)?;
                citus.unwrap_or_default().parse().map(Box::new).map(SinkConfig::Citus)
            }
            SinkKind::Http => file.parse_served().map(Box::new).map(SinkConfig::Http),
        }
    }
}
