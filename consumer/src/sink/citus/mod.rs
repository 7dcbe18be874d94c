//! Citus by SQL: the coordinator is told of new workers and of those that moved.

pub mod conninfo;
pub mod error;
pub mod libpq;
pub mod passfile;
pub mod session;
pub mod tls;
