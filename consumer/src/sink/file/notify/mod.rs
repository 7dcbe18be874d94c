//! Telling whoever reads a file that it has changed, until everybody has taken it.
//!
//! ```text
//! target -> order (generation) -> notifier -> containers: requests -> store -> agents -> acks -> notifier -> target
//!                                          -> a process of this host, or a command
//! ```

pub mod command;
pub mod delivery;
pub mod difference;
pub mod nodes;
pub mod notifier;
pub mod pid_file;
pub mod requests;
pub mod settings;
pub mod shared;
pub mod signal;
pub mod watches;

pub use difference::Told;
pub use notifier::{Notification, Notifier, NotifierHandle, Order};
pub use settings::Notify;
