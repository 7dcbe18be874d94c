//! Registration: what of this host should be in the store, what is there, and the writes between the two.
//!
//! ```text
//! running container -> filter -> labels, address, export -> desired -> plan(desired, observed) -> registrar -> store
//! ```

pub mod export;
pub mod filter;
pub mod labels;

pub mod address;
pub mod advertise;
pub mod container_address;
pub mod finder;

pub mod omission;

pub mod description;
pub mod desired;
pub mod left_behind;
pub mod observed;
pub mod plan;
pub mod registrar;
pub mod reporter;

pub mod settings;

pub use description::Policy;
pub use desired::Values;
pub use plan::SignalReports;
pub use registrar::{PART, Registrar};
pub use settings::{AddressMode, FilterSettings, NodeSettings};
