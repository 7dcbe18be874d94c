//! The records: what agents and consumers say of themselves, of containers and of signals. Plain values, stored as JSON.

pub mod check;
pub mod claim;
pub mod consumer;
pub mod instance;
pub mod label;
pub mod name;
pub mod node;
pub mod selector;
pub mod signal;
pub mod stack;
