//! The agent: registers the running containers of one Docker host in the store, delivers signals to them and has files
//! checked in them.
//!
//! ```text
//! docker events, inspect, list -> inventory -> desired -> registrar: plan(desired, observed) -> session -> store
//! desired -> checks -> desired
//! consumers' records -> dispatcher -> receivers -> registrar
//! requests to this node -> dispatcher -> pidfd, or Docker -> acks -> registrar
//! checks of this node -> dispatcher -> Docker's exec -> verdicts -> registrar
//! ```

pub mod checks;
pub mod docker;
pub mod exec;
pub mod inventory;
pub mod layout;
pub mod registration;
pub mod signals;

pub mod error;
pub mod explain;
pub mod program;
pub mod run;
pub mod settings;

pub use error::Error;
pub use inventory::Port;
pub use layout::LayoutSettings;
pub use registration::AddressMode;
pub use run::Agent;
pub use settings::Settings;

/// Describes the agent's metrics.
pub fn describe_metrics() {
    checks::prober::describe_metrics();
    inventory::watcher::describe_metrics();
    registration::registrar::describe_metrics();
    registration::reporter::describe_metrics();
    signals::answer::describe_metrics();
    exec::checks::describe_metrics();
}
