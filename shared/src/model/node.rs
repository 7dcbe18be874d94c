//! A node: a Docker host with an agent.

use serde::{Deserialize, Serialize};

use super::claim::{Claim, Record};
use crate::codec::{V1, Value};

/// What an agent says of its node. The claim's owner is the ID of the node's Docker engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The format's version.
    pub v: V1,
    /// Which process holds the node's name.
    #[serde(flatten)]
    pub claim: Claim,
}

impl Value for NodeRecord {
    const WHAT: &'static str = "node";
}

impl Record for NodeRecord {
    const FLAG: &'static str = "--node";

    fn claim(&self) -> &Claim {
        &self.claim
    }

    fn claim_mut(&mut self) -> &mut Claim {
        &mut self.claim
    }
}
