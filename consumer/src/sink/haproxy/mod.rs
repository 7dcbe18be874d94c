//! HAProxy, told directly over its unix socket: servers come and go without a reload.
//!
//! ```text
//! observe: show info, show servers state, show stat -> plan (pure) -> apply: add, set, del server -> observed again
//! ```
//!
//! The commands and their answers are those of HAProxy's management guide, section 9.3, as 2.6, 2.8 and 3.0 have them.
//! The file beside is what a restart finds: it has the same servers by the same names, see [`lines`].

pub mod backend;
pub mod command;
pub mod draft;
pub mod leaving;
pub mod lines;
pub mod memory;
pub mod observed;
pub mod plan;
pub mod program;
pub mod reloads;
pub mod server;
pub mod settings;
#[allow(clippy::module_inception, reason = "the sink beside the program")]
pub mod sink;
pub mod socket;
pub mod state;
pub mod step;

pub use program::HaproxyProgram;
pub use settings::{HaproxyConfig, RawRuntime, RuntimeConfig};
pub use sink::HaproxySink;
