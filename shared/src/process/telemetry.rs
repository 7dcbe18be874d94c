//! Logs and metrics: set up once, in main.

use std::{io::IsTerminal, time::Duration};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use super::setting::SettingError;

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
    // Docker's answers have the containers' environment, with its secrets.
    let debug = "debug,bollard=info,h2=info,hyper_util=info,tower=info";
    let filter = if settings.debug { debug } else { &settings.filter };
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| SettingError::caused("--log", format!("{filter:?}"), error))?;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match settings.log_format {
        LogFormat::Text => logs.with_target(false).init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
    Ok(())
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
