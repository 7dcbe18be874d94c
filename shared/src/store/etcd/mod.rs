//! The store in etcd (API v3), the only folder that names `etcd_client`.
//!
//! ```text
//! call -> members: pick one, dial and log in where needed -> attempt, and another beside it where no answer comes
//! watch -> follow, and ask a silent member for a sign of life
//! ```

mod call;
mod certificates;
mod convert;
mod error;
mod login;
mod members;
mod pulse;
mod store;
mod watch;

pub use store::EtcdStore;
