//! Citus by SQL: the coordinator is told of new workers and of those that moved.
//!
//! ```text
//! desired ───────────────────────┐
//! coordinator: nodes, registry ──┼─> plan -> add, move, record
//! workers: who they are ─────────┘
//! ```
//!
//! The authority is the coordinator's pg_dist_node. Nothing is ever disabled or removed, and placements are left alone:
//! shrinking is the operator's word, [`drain`].

pub mod conninfo;
pub mod coordinator;
pub mod drain;
pub mod error;
pub mod identity;
pub mod libpq;
pub mod passfile;
pub mod plan;
pub mod program;
pub mod registry;
pub mod session;
pub mod settings;
pub mod tls;

pub use program::CitusProgram;
pub use settings::{CitusConfig, RawCitus};
