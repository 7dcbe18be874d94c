//! Putting bytes into a file, or into one for each service, so that a reader has the old file or the new one and nothing between.

pub mod attributes;
pub mod backups;
pub mod files;
pub mod installer;
pub mod owner;

pub use attributes::Attributes;
pub use backups::Backups;
pub use files::{Batch, Contents, Files};
pub use installer::{InstallError, Installed, Installer, Staged, Stamp};
pub use owner::{Mode, Owner};
