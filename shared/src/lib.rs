//! What Rollcall's agent and consumer share: the records and their keys, the store that carries them, and what every
//! long-running process needs.
//!
//! Nothing here knows Docker, files or templates.

pub mod codec;
pub mod keys;
pub mod model;

pub mod store;

pub mod reflector;
pub mod session;

pub mod process;
