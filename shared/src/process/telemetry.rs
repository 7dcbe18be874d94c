//! Logs and metrics: set up once, in main.

use std::{fmt, io::IsTerminal, time::Duration};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::{Level, Metadata, Subscriber, field::Field};
use tracing_subscriber::{
    EnvFilter, Layer,
    field::MakeExt,
    filter::{FilterExt, filter_fn},
    fmt::{
        MakeWriter,
        format::{Writer, debug_fn},
    },
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use super::{setting::SettingError, text};

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged and how.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Logs")]
pub struct LogSettings {
    /// What to log: error, warn, info, debug or trace, or a tracing filter
    #[arg(long = "log", env = "ROLLCALL_LOG", value_name = "LEVEL", default_value = "info", global = true)]
    pub filter: String,
    /// How logs look
    #[arg(long, env = "ROLLCALL_LOG_FORMAT", value_name = "FORMAT", default_value = "text", global = true)]
    pub log_format: LogFormat,
    /// Log at debug level, as DEBUG=true does
    #[arg(long, env = "DEBUG", value_parser = clap::builder::FalseyValueParser::new(), global = true)]
    pub debug: bool,
}

/// Starts logging to standard error.
///
/// # Errors
/// A filter that cannot be read.
pub fn start_logs(settings: &LogSettings) -> Result<(), SettingError> {
    logs(settings, std::io::stderr, std::io::stderr().is_terminal())?.init();
    Ok(())
}

/// What logs to a writer.
fn logs<W>(settings: &LogSettings, writer: W, ansi: bool) -> Result<impl Subscriber + use<W>, SettingError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = if settings.debug { "debug" } else { &settings.filter };
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| SettingError::caused("--log", format!("{filter:?}"), error))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(ansi);
    let lines = match settings.log_format {
        LogFormat::Text => lines.with_target(false).fmt_fields(debug_fn(write_field).delimited(" ")).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let filtered = lines.with_filter(filter.and(filter_fn(holds_no_secret)));
    Ok(tracing_subscriber::registry().with(filtered))
}

/// Writes a field as tracing does, but for what could forge a line.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let value = text::escaped(&format!("{value:?}"));
    if field.name() == "message" { writer.write_str(&value) } else { write!(writer, "{field}={value}") }
}

/// Below info, libraries log what they read and send: containers' environments, tokens, passwords. Only our own code
/// is known not to, so no filter can ask a library for more.
fn holds_no_secret(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("rollcall") || *metadata.level() <= Level::INFO
}

/// Bounds of every histogram, in seconds: from a fraction of a millisecond to the time of a TTL.
const BUCKETS: [f64; 16] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];

/// How often the histograms' samples are moved into their buckets.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Metrics are collected already.
#[derive(Debug, thiserror::Error)]
#[error("metrics are collected already")]
pub struct MetricsError;

/// Starts collecting what the `metrics` macros record, and gives the handle that prints it.
///
/// # Errors
/// Metrics are collected already.
pub fn start_metrics() -> Result<PrometheusHandle, MetricsError> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)
        .expect("there are buckets")
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|_| MetricsError)?;
    crate::reflector::describe_metrics();
    crate::session::keeper::describe_metrics();
    let upkeep = handle.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP_INTERVAL).await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panics with it").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is written where the code and two libraries log at each level.
    fn written(filter: &str, debug: bool) -> String {
        let written = Written::default();
        let writer = written.clone();
        let settings = LogSettings { filter: filter.to_owned(), log_format: LogFormat::Text, debug };
        let logs = logs(&settings, move || writer.clone(), false).expect("a filter");
        tracing::subscriber::with_default(logs, || {
            tracing::debug!(target: "rollcall_agent::inventory", "our own");
            tracing::trace!(target: "bollard::docker", "POSTGRES_PASSWORD=secret");
            tracing::debug!(target: "h2::codec", "authorization: secret");
            tracing::info!(target: "h2::codec", "harmless");
        });
        String::from_utf8(written.0.lock().expect("nobody panics with it").clone()).expect("text")
    }

    #[test]
    fn what_strangers_say_forges_no_line() {
        for log_format in [LogFormat::Text, LogFormat::Json] {
            let written = Written::default();
            let writer = written.clone();
            let settings = LogSettings { filter: "info".to_owned(), log_format, debug: false };
            let logs = logs(&settings, move || writer.clone(), false).expect("a filter");
            let hostile = "web\n2026 INFO forged\r\u{1b}[2J";
            tracing::subscriber::with_default(logs, || {
                let _span = tracing::info_span!("node", name = %hostile).entered();
                tracing::warn!(container = %hostile, reason = hostile, "left out: {hostile}");
            });
            let written = String::from_utf8(written.0.lock().expect("nobody panics").clone()).expect("text");
            assert_eq!(written.lines().count(), 1, "{written}");
            assert!(!written.trim_end().contains(char::is_control), "{written:?}");
        }
    }

    #[test]
    fn no_filter_gets_a_library_to_log_what_it_reads_and_sends() {
        let each = "info,bollard=trace,bollard::docker=trace,h2=debug,[{x}]=trace,rollcall_agent=debug";
        for (filter, debug) in [("info", true), ("debug", false), ("trace", false), (each, false)] {
            let written = written(filter, debug);
            assert!(!written.contains("secret"), "{filter}: {written}");
            assert!(written.contains("our own") && written.contains("harmless"), "{filter}: {written}");
        }
    }
}
