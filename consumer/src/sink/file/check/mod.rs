//! What a staged file must pass before it is installed: a command here, or the program that will read it, in its own
//! container.
//!
//! ```text
//! staged file -> command of this host -> passes, or not
//!             -> request -> store -> agent -> the container's program -> verdict -> store -> passes, or not
//! ```

pub mod container;
pub mod examination;
pub mod settings;

pub use container::ContainerChecker;
pub use settings::{Check, Place};
