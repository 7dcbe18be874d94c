//! A target: one thing that is kept as the roll calls for, at its own pace, with its own memory of what was done.

pub mod generation;
pub mod loss_guard;
pub mod matched;
pub mod metrics;
pub mod pacer;
pub mod reporter;
pub mod state;
pub mod status;
#[allow(clippy::module_inception, reason = "the room is named for its main type")]
pub mod target;

pub use metrics::describe_metrics;
pub use target::{Target, TargetError};
