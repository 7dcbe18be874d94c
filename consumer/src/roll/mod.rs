//! The roll: which instances there are, why one went, and which of them a target shows.

pub mod decode;
pub mod fallback;
pub mod follower;
mod lost;
mod mismatch;
pub mod remembered;
mod retention;
#[allow(clippy::module_inception, reason = "the room is named for its main type")]
pub mod roll;
pub mod select;
pub mod selection;
pub mod settings;
pub mod shift;
pub mod stack_choice;
pub mod verdict;

pub use decode::{RollDecode, RollKey, RollUpdate, RollValue};
pub use remembered::Remembered;
pub use roll::Roll;
pub use select::{Family, Named, Select};
pub use selection::{Difference, Row, Selection};
pub use settings::{RawSelect, SelectFlags};
pub use shift::{Departure, Shift, Shifts};
pub use stack_choice::StackChoice;
pub use verdict::{Verdict, Version};

pub use crate::target::loss_guard::Hold;

/// Describes the metrics of the roll.
pub fn describe_metrics() {
    metrics::describe_gauge!("rollcall_consumer_roll_instances", "Instances in the roll");
    metrics::describe_gauge!(
        "rollcall_consumer_roll_unconfirmed",
        "Instances that are kept since the store went back, until their nodes register again"
    );
    metrics::describe_gauge!(
        "rollcall_consumer_kept_services",
        "Services of which no instance passes, and those that drain or fail are kept, by target"
    );
}
