//! The consumer: keeps its targets as the roll of running containers calls for, and has whoever reads them notified.
//!
//! ```text
//! store watch -> roll (with retention) -> selection (with loss guard) -> target (pacer) -> sink: render, check, install
//!                                                                               -> notify until everybody has acked
//! ```
//!
//! It never touches Docker; only its embedded mode runs the agent, which does.

pub mod config;

pub mod roll;

pub mod target;

pub mod sink;

pub mod targets;

mod answers;
pub mod claim;
pub mod state_dir;
mod succession;

pub mod embedded;
pub mod home;
pub mod reload;
pub mod run;
pub mod supervisor;

#[cfg(test)]
mod testing;

pub use embedded::explain;
pub use run::run;
