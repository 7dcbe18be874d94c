//! HAProxy, told directly over its unix socket: servers come and go without a reload.
//!
//! ```text
//! observe: show info, show servers state, show stat -> plan (pure) -> apply: add, set, del server -> observed again
//! ```
//!
//! The commands and their answers are those of HAProxy's management guide, section 9.3, as 2.6, 2.8 and 3.0 have them.
//!
//! # The file beside
//! Servers that were added vanish when HAProxy starts anew, so a file of the format `haproxy` or `haproxy-backend` is
//! kept besides. It has the same servers by the same names and with the same options, see [`lines`], so that nothing
//! is left to do after a start. [`HaproxySink`] keeps both:
//!
//! - File and socket are brought up side by side, and neither waits for the other; what counts as applied is what is
//!   read back from the socket. A file that cannot be written, or that its check refuses, fails the target all the
//!   same.
//! - A new generation of the file is notified, which reloads HAProxy, only for what cannot be told at run time: a
//!   backend is new, slots have run out, an algorithm takes no servers, an address is a host name. When that is, is
//!   decided in [`reloads`]. Otherwise the file is written and nobody is told.
//! - After a reload or a start ([`crate::sink::program::Program::restarted`]) all is compared anew.
//! - One socket belongs to one target of one consumer, see [`lock`].

pub mod backend;
pub mod command;
pub mod draft;
pub mod leaving;
pub mod lines;
pub mod lock;
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
