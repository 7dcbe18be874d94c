//! Checks: whether the ports of this host's containers can be used, as the agent finds by itself.
//!
//! ```text
//! labels -> spec, target -> definition -> prober: probe -> monitor -> verdicts -> desired -> registrar
//! ```
//!
//! What Docker's own HEALTHCHECK says is part of a container, and known to `registration` without this room.

pub mod definition;
pub mod monitor;
pub mod probe;
pub mod prober;
pub mod registrator;
pub mod settings;
pub mod spec;
pub mod target;
pub mod verdict;

#[cfg(test)]
pub(crate) mod testing;

pub use definition::{CheckId, Definition, Definitions};
pub use prober::Prober;
pub use settings::{CheckSettings, Ready};
pub use spec::Spec;
pub use verdict::{Health, Verdicts};
