//! Keeping up with a range of the store: a reflector lists and watches it, and a typed cache takes what it finds.

#[allow(clippy::module_inception, reason = "the room is named for its main type")]
mod reflector;

pub mod cache;

pub use cache::{Cache, Changed, Delta};
pub use reflector::{Cause, Decode, Held, Item, Reflector, Update, Updates, describe_metrics};
