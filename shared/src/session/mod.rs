//! Sessions: one lease and, under it, the claim on a name.
//!
//! Whoever writes under a node's or a consumer's name first claims the record's key. A [`keeper::Keeper`] does that and
//! keeps the claim; what it holds is a [`Session`], under which others write.
//!
//! ```text
//! no record ---------------------------------> grant a lease, put our record if there is still none
//! our own record ----------------------------> put it again, under the lease that we hold
//! our owner's, and it has left --------------> adopt its lease, put our record over it
//! our owner's, leaving or without a lease ---> grant a lease, put our record over it
//! our owner's, otherwise --------------------> ask it to answer; it does: refused. It does not in time: adopt its lease
//! another owner's ---------------------------> refused
//! another's where ours was ------------------> taken over: stop, and revoke nothing
//! ```
//!
//! After the store went back, what is found is older than what was held:
//!
//! ```text
//! our owner's -------------------------------> put our record, under the lease that is found if it lives
//! another owner's ---------------------------> wait until its lease has ended, as nobody keeps it
//! ```

#[allow(clippy::module_inception, reason = "the room is named for its main type")]
mod session;

mod decision;
pub mod error;
pub mod keeper;
pub mod refusals;
pub mod settings;

pub use error::KeeperError;
pub use keeper::{Keeper, OnExit};
pub use refusals::{Due, Refusals};
pub use session::Session;
pub use settings::LeaseSettings;
