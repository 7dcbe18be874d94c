//! Putting bytes into a file, so that a reader has the old file or the new one and nothing between.

pub mod installer;
pub mod owner;

pub use installer::{Backups, InstallError, Installer, Staged, Stamp};
pub use owner::{Mode, Owner};
