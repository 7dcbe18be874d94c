//! What a target writes to, by its settings.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
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
    haproxy::{HaproxyConfig, RawRuntime},
    http::HttpConfig,
};

/// The kinds of sinks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SinkKind {
    /// A file, and a notification where there is somebody to notify.
    #[default]
    File,
    /// HAProxy, which is told at run time, and the file of its next start.
    Haproxy,
    /// A Citus coordinator, which is told by SQL.
    Citus,
    /// An answer of the consumer's own HTTP server.
    Http,
}

impl fmt::Display for SinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SinkKind::File => "file",
            SinkKind::Haproxy => "haproxy",
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
    /// HAProxy and its file.
    Haproxy(Box<HaproxyConfig>),
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
            SinkConfig::Haproxy(_) => SinkKind::Haproxy,
            SinkConfig::Citus(_) => SinkKind::Citus,
            SinkConfig::Http(_) => SinkKind::Http,
        }
    }

    /// Its file, if it keeps one.
    pub fn file(&self) -> Option<&FileConfig> {
        match self {
            SinkConfig::File(file) => Some(file),
            SinkConfig::Haproxy(haproxy) => Some(&haproxy.file),
            SinkConfig::Citus(_) | SinkConfig::Http(_) => None,
        }
    }

    /// Its file, if it keeps one.
    pub fn file_mut(&mut self) -> Option<&mut FileConfig> {
        match self {
            SinkConfig::File(file) => Some(file),
            SinkConfig::Haproxy(haproxy) => Some(&mut haproxy.file),
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

    /// Whether two of them would write to one place.
    pub fn overlaps(&self, other: &SinkConfig) -> bool {
        self.clash(other).is_some()
    }

    /// Why this may not be beside another target's, if so: they would write to one place.
    pub fn clash(&self, other: &SinkConfig) -> Option<SettingError> {
        let overlap = |(ours, theirs): (PathBuf, PathBuf)| {
            ours == theirs || files::matches(&ours, &theirs) || files::matches(&theirs, &ours)
        };
        if self.absolute_dest().zip(other.absolute_dest()).is_some_and(overlap) {
            return Some(SettingError::new("dest", self, "a file that no other target has"));
        }
        match (self, other) {
            (SinkConfig::Haproxy(ours), SinkConfig::Haproxy(theirs)) => {
                let (socket, expected) = (&ours.runtime.socket, "a socket that no other target has");
                (resolved(socket) == resolved(&theirs.runtime.socket))
                    .then(|| SettingError::new("runtime.socket", socket.display(), expected))
            }
            (SinkConfig::Citus(ours), SinkConfig::Citus(theirs)) => {
                let (database, expected) = (&ours.database, "a coordinator that no other target has");
                (*database == theirs.database)
                    .then(|| SettingError::new("citus.database", database, expected))
            }
            _ => None,
        }
    }
}

/// The path without links such as /var/run, as far as there are folders: one socket is not to count as two.
fn resolved(socket: &Path) -> PathBuf {
    let whole = fs::canonicalize(socket).ok();
    let in_its_folder =
        || Some(fs::canonicalize(socket.parent()?).ok()?.join(socket.file_name().unwrap_or_default()));
    whole.or_else(in_its_folder).unwrap_or_else(|| socket.to_owned())
}

/// Where it writes to, for people.
impl fmt::Display for SinkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SinkConfig::File(file) => file.dest.display().fmt(f),
            SinkConfig::Haproxy(haproxy) => haproxy.file.dest.display().fmt(f),
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
    /// How HAProxy is told at run time.
    pub runtime: Option<RawRuntime>,
    /// How a Citus coordinator is reached and told.
    pub citus: Option<RawCitus>,
}

impl RawSink {
    /// What it means.
    ///
    /// # Errors
    /// Settings that are missing, contradict each other or cannot work.
    pub fn parse(self) -> Result<SinkConfig, SettingError> {
        let Self { kind, file, runtime, citus } = self;
        let kind = kind.unwrap_or_default();
        if let (true, Some(_)) = (kind != SinkKind::Citus, &citus) {
            return Err(SettingError::new("citus", "given", "sink = \"citus\" beside it"));
        }
        if let (true, Some(_)) = (kind != SinkKind::Haproxy, &runtime) {
            return Err(SettingError::new("runtime", "given", "sink = \"haproxy\" beside it"));
        }
        match kind {
            SinkKind::Haproxy => haproxy(file, runtime.unwrap_or_default()),
            SinkKind::File => file.parse().map(Box::new).map(SinkConfig::File),
            SinkKind::Citus => {
                file.refuse_all(kind)?;
                citus.unwrap_or_default().parse().map(Box::new).map(SinkConfig::Citus)
            }
            SinkKind::Http => file.parse_served().map(Box::new).map(SinkConfig::Http),
        }
    }
}

/// A HAProxy and its file, whose servers have the same names and options.
fn haproxy(file: RawFile, runtime: RawRuntime) -> Result<SinkConfig, SettingError> {
    if file.verify.is_some() {
        return Err(SettingError::new("verify", "given", "none of it beside sink = \"haproxy\""));
    }
    let mut file = file.parse()?;
    let runtime = runtime.parse()?;
    match file.content {
        Content::Format(Format::Haproxy | Format::HaproxyBackend) => {}
        Content::Format(format) => {
            let name =
                format.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
            let expected = "haproxy or haproxy-backend beside sink = \"haproxy\"";
            return Err(SettingError::new("format", name, expected));
        }
        Content::Template(template) => {
            let expected = "format = \"haproxy\" or \"haproxy-backend\" beside sink = \"haproxy\", \
                            as the socket has to know the names of the servers";
            return Err(SettingError::new("template", template.display(), expected));
        }
    }
    file.render.runtime = Some(runtime.clone());
    Ok(SinkConfig::Haproxy(Box::new(HaproxyConfig { file, runtime })))
}

#[cfg(test)]
mod tests {
    use rollcall_shared::process::error::one_line;

    use super::*;
    use crate::config::{TargetConfig, toml};

    fn targets(text: &str) -> Result<Vec<TargetConfig>, String> {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("c.toml");
        fs::write(&file, text).expect("a file");
        toml::read(&file).map_err(|error| one_line(&error).replace(&format!("{}: ", file.display()), ""))
    }

    const HAPROXY: &str = "[[target]]\nname = \"h\"\nsink = \"haproxy\"\ndest = \"/h.cfg\"\n\
                           format = \"haproxy\"\nruntime = { socket = \"/run/h.sock\" }\n";

    #[test]
    fn a_haproxy_keeps_a_file_that_has_what_its_socket_is_told() {
        let [target] = &targets(HAPROXY).expect("a target")[..] else { panic!("one") };
        let SinkConfig::Haproxy(haproxy) = &target.sink else { panic!("it is HAProxy") };
        assert_eq!(haproxy.file.render.runtime.as_ref(), Some(&haproxy.runtime));
        assert_eq!(target.sink.file().expect("a file").dest, PathBuf::from("/h.cfg"));
    }

    #[test]
    fn what_belongs_to_another_kind_of_sink_is_refused_by_name() {
        let citus = "[[target]]\nname = \"c\"\nsink = \"citus\"\ncitus = { database = \"host=db\" }\n";
        let second = |first: &str| format!("{first}{}", first.replace("name = \"", "name = \"second"));
        for (text, expected) in [
            (
                HAPROXY.replace("\"haproxy\"\nruntime", "\"json\"\nruntime"),
                "target h: format is json: expected haproxy or haproxy-backend beside",
            ),
            (
                HAPROXY.replace("format = \"haproxy\"", "template = \"/t\""),
                "target h: template is /t: expected format =",
            ),
            (
                HAPROXY.replace("sink = \"haproxy\"", "sink = \"file\""),
                "target h: runtime is given: expected sink =",
            ),
            (format!("{HAPROXY}verify = \"true\"\n"), "target h: verify is given: expected none of it"),
            (
                format!("{citus}dest = \"/x\"\n"),
                "target c: dest is given: expected none of it beside sink = \"citus\"",
            ),
            (format!("{citus}format = \"json\"\n"), "target c: format is given: expected none of it"),
            (
                second(citus),
                "target secondc: citus.database is host=db: expected a coordinator that no other target",
            ),
            (second(HAPROXY), "target secondh: dest is /h.cfg: expected a file that no other"),
            (
                format!("{HAPROXY}{}", HAPROXY.replace("/h.cfg", "/i.cfg").replace("\"h\"", "\"i\"")),
                "target i: runtime.socket is /run/h.sock: expected a socket that no other target has",
            ),
        ] {
            let error = targets(&text).map(drop).expect_err(&text);
            assert!(error.contains(expected), "{error}\n{expected}");
        }
    }

    #[test]
    fn a_socket_that_two_paths_lead_to_is_one() {
        let dir = tempfile::tempdir().expect("a folder");
        let (run, link) = (dir.path().join("run"), dir.path().join("var-run"));
        fs::create_dir(&run).expect("a folder");
        std::os::unix::fs::symlink(&run, &link).expect("a link");
        let at = |name: &str, folder: &Path| {
            let target =
                HAPROXY.replace("\"h\"", &format!("{name:?}")).replace("/h.cfg", &format!("/{name}.cfg"));
            target.replace("/run/h.sock", &folder.join("h.sock").display().to_string())
        };
        // Nobody listens there yet, and then somebody does.
        for _ in 0..2 {
            let error = targets(&(at("h", &run) + &at("i", &link))).map(drop).expect_err("it is one socket");
            assert!(error.contains("expected a socket that no other target has"), "{error}");
            fs::write(run.join("h.sock"), "").expect("a file");
        }
    }
}
