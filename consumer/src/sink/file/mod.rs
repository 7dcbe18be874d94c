//! The file sink: renders a file, checks it, installs it, and notifies whoever reads it.

pub mod check;
pub mod command;
pub mod dry_run;
pub mod install;
pub mod isolate;
pub mod isolated;
pub mod nginx;
pub mod notes;
pub mod notify;
pub mod read_back;
pub mod render;
pub mod settings;
#[allow(clippy::module_inception, reason = "the room's main type is the sink")]
pub mod sink;
pub mod verify;
mod worker;

pub use check::Check;
pub use settings::FileConfig;
pub use sink::FileSink;
