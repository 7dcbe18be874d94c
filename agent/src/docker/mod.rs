//! Docker's API: the only room that names bollard. It turns what an engine says into plain values and decides nothing.

mod api;
mod decode;

pub mod client;
pub mod engine;
pub mod settings;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use client::Docker;
pub use engine::{DockerError, Engine};
pub use settings::DockerSettings;
