//! Which program is asked, and where: as it is written, and as it is used.

use rollcall_shared::process::setting::SettingError;
use serde::Deserialize;

use crate::{
    config::toml::parsed,
    sink::file::{
        render::{Content, Format},
        verify::http::Url,
    },
};

/// A program that is asked whether it has what is in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadBack {
    /// Which program.
    pub program: Program,
    /// Where its own interface is.
    pub url: Url,
}

/// A program that can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// Envoy, by its administration interface.
    Envoy,
    /// Traefik, by its API.
    Traefik {
        /// Whether other files of the same Traefik have routers and services as well.
        others: bool,
    },
    /// Prometheus, by its API.
    Prometheus {
        /// The job that has the targets; where there is none, whichever has targets of Rollcall's.
        job: Option<String>,
    },
}

/// The settings as they are written: `read_back = { envoy = "http://127.0.0.1:9901" }`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawReadBack {
    #[serde(default, deserialize_with = "parsed")]
    envoy: Option<Url>,
    #[serde(default, deserialize_with = "parsed")]
    traefik: Option<Url>,
    others: Option<bool>,
    #[serde(default, deserialize_with = "parsed")]
    prometheus: Option<Url>,
    job: Option<String>,
}

impl RawReadBack {
    /// What it means beside this content.
    ///
    /// # Errors
    /// No program or several, one that does not read the format, or settings of another one.
    pub fn parse(self, content: &Content) -> Result<ReadBack, SettingError> {
        let Self { envoy, traefik, others, prometheus, job } = self;
        if let (None, Some(job)) = (&prometheus, &job) {
            return Err(SettingError::new("read_back.job", job, "read_back.prometheus beside it"));
        }
        if let (None, Some(others)) = (&traefik, others) {
            return Err(SettingError::new("read_back.others", others, "read_back.traefik beside it"));
        }
        let others = others.unwrap_or_default();
        let programs = [
            ("envoy", envoy, Program::Envoy, Format::EnvoyEds),
            ("traefik", traefik, Program::Traefik { others }, Format::Traefik),
            ("prometheus", prometheus, Program::Prometheus { job }, Format::Prometheus),
        ];
        let mut given = programs.into_iter().filter_map(|(name, url, program, format)| {
            url.map(|url| (format!("read_back.{name}"), url, program, format))
        });
        let Some((setting, url, program, format)) = given.next() else {
            return Err(SettingError::missing("read_back", "envoy, traefik or prometheus in it"));
        };
        if let Some((other, url, ..)) = given.next() {
            return Err(SettingError::new(&other, url, format!("it or {setting}, not both")));
        }
        if url.has_query() {
            return Err(SettingError::new(&setting, url, "an address without a ?"));
        }
        if !matches!(content, Content::Template(_)) && *content != Content::Format(format) {
            let expected = format!("format = \"{}\" or a template beside it", &setting["read_back.".len()..]);
            let expected =
                if format == Format::EnvoyEds { expected.replace("envoy", "envoy-eds") } else { expected };
            return Err(SettingError::new(&setting, url, expected));
        }
        Ok(ReadBack { program, url })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_program_that_reads_the_format_is_asked_and_nothing_else() {
        let parse = |text: &str, format| {
            let raw: RawReadBack = ::toml::from_str(text).map_err(|error| error.message().to_owned())?;
            raw.parse(&Content::Format(format)).map_err(|error| error.to_string())
        };
        for (text, format, expected) in [
            ("", Format::EnvoyEds, "read_back is not given: expected envoy, traefik or prometheus in it"),
            (
                "envoy = \"http://h:9901\"",
                Format::Json,
                "read_back.envoy is http://h:9901/: expected format = \"envoy-eds\" or a template beside it",
            ),
            (
                "traefik = \"http://h\"",
                Format::EnvoyEds,
                "read_back.traefik is http://h/: expected format = \"traefik\" or a template beside it",
            ),
            (
                "envoy = \"http://h\"\nprometheus = \"http://p\"",
                Format::EnvoyEds,
                "read_back.prometheus is http://p/: expected it or read_back.envoy, not both",
            ),
            (
                "envoy = \"http://h\"\njob = \"x\"",
                Format::EnvoyEds,
                "read_back.job is x: expected read_back.prometheus beside it",
            ),
            (
                "envoy = \"http://h\"\nothers = true",
                Format::EnvoyEds,
                "read_back.others is true: expected read_back.traefik beside it",
            ),
            (
                "envoy = \"http://h/?x\"",
                Format::EnvoyEds,
                "read_back.envoy is http://h/?x: expected an address without a ?",
            ),
            (
                "envoy = \"h\"",
                Format::EnvoyEds,
                "\"h\" is not an address of HTTP: expected http://HOST[:PORT]/PATH",
            ),
        ] {
            assert_eq!(parse(text, format).expect_err("it cannot work"), expected, "{text}");
        }
        let asked = parse("prometheus = \"http://h\"\njob = \"x\"", Format::Prometheus).expect("it can");
        assert_eq!(asked.program, Program::Prometheus { job: Some("x".to_owned()) });
        let raw: RawReadBack = ::toml::from_str("traefik = \"http://h\"").expect("it can be read");
        raw.parse(&Content::Template("x".into())).expect("a template may make the same");
    }
}
