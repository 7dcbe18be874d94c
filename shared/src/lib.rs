//! What Rollcall's agent and consumer both speak: names, records and their keys, the store that
//! carries them, and the few things every long-running process needs (shutdown, health, logs).
//!
//! Nothing here knows Docker, files or templates.

pub mod instance;
pub mod key;
pub mod name;
pub mod record;
pub mod signal;
pub mod wire;

pub mod store;

pub mod reflector;
pub mod session;

pub mod cli;
pub mod health;
pub mod retry;
pub mod shutdown;
pub mod telemetry;
