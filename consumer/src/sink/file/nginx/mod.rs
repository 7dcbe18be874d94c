//! nginx as its processes show it: whether it has taken a file, and how many workers it still has of earlier ones.
//!
//! nginx tells nobody whether a reload went well, but a master that has read its configuration starts new workers, and one
//! that could not keeps those that it has. The consumer must see the host's processes for that.

pub mod draining;
pub mod processes;

pub use draining::Draining;
pub use processes::{Master, MasterError, Worker, Workers};
