//! What every long-running process needs: arguments and exit codes, errors on one line, readiness, logs and metrics, and
//! an orderly end.

pub mod backoff;
pub mod cli;
pub mod error;
pub mod health;
pub mod host;
pub mod readiness;
pub mod reload;
pub mod service;
pub mod setting;
pub mod shutdown;
pub mod telemetry;
pub mod text;
pub mod time;
