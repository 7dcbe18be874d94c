//! The consumer: renders files from the roll of running containers, and has those who read them signalled.
//!
//! ```text
//! store watch -> roll -> per target: select -> debounce -> guard -> render -> check -> install
//!                                                                -> notify until acked
//! ```
//!
//! It never touches Docker; only its embedded mode runs the agent, which does.

pub mod config;
pub mod settings;

pub mod roll;
pub mod select;

pub mod debounce;
pub mod target;

pub mod guard;
pub mod press;
pub mod render;

pub mod command;
pub mod install;
pub mod owner;

pub mod generation;
pub mod ledger;
pub mod notify;

pub mod condition;
pub mod dry_run;
pub mod embedded;
#[cfg(test)]
mod maker;
pub mod run;

pub use run::run;
