//! Putting bytes into a file, so that a reader has the old file or the new one and nothing between.

pub mod attributes;
pub mod backups;
pub mod installer;
pub mod owner;

pub use attributes::Attributes;
pub use backups::Backups;
pub use installer::{InstallError, Installed, Installer, Staged, Stamp};
pub use owner::{Mode, Owner};
