//! The containers that run on this host, pieced together from what Docker says.

pub mod container;
#[allow(clippy::module_inception, reason = "the room is named for its main type")]
mod inventory;
pub mod recent;
pub mod watcher;

pub use container::Port;
pub use inventory::{Inventory, Question, Running, RunningContainers};
pub use watcher::Watcher;
