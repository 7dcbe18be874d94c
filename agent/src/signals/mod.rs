//! Signals: which containers of this host the consumers' targets mean, and the delivery of what they request.
//!
//! ```text
//! consumers' records -> receivers -> registrar -> store
//! requests to this node -> policy -> pidfd, or Docker -> acks -> registrar -> store
//! ```

pub mod acks;
pub mod answer;
pub mod decode;

pub mod dispatcher;
pub mod pidfd;
pub mod policy;
pub mod settings;

pub use dispatcher::Dispatcher;
pub use settings::{Allowed, SignalSettings};
