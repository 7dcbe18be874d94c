//! Checks in containers: which containers of this host the consumers' targets mean, and the commands that are run there
//! on staged files.
//!
//! ```text
//! consumers' records -> checkers -> registrar -> store
//! requests to this node -> policy -> Docker's exec -> verdicts -> registrar -> store
//! ```
//!
//! Whoever can write a request can run what a container's label or the agent's operator allows, on a staged file, and
//! nothing else. No word passes a shell.

pub mod checks;
pub mod policy;
pub mod runner;
pub mod settings;

pub use checks::Checks;
pub use settings::{AllowedCommand, ExecSettings};
