//! A consumer, and what its targets signal.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    check::CheckRule,
    claim::{Claim, Record},
    name::{ContainerId, TargetName},
    signal::Delivery,
};
use crate::codec::{V1, Value};

/// What a consumer says of itself. The claim's owner is an ID that is kept in its state folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerRecord {
    /// The format's version.
    pub v: V1,
    /// Which process holds the consumer's name.
    #[serde(flatten)]
    pub claim: Claim,
    /// The container that it runs in, if it asks which stack that belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerId>,
    /// Its targets.
    pub targets: BTreeMap<TargetName, TargetRecord>,
}

/// What a consumer says of a target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetRecord {
    /// The signal that follows each change, and to which containers, if the target signals containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<Delivery>,
    /// In which containers its files are checked, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<CheckRule>,
}

/// What the agent of a consumer's host says of the container that the consumer runs in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerHome {
    /// The format's version.
    pub v: V1,
    /// The container.
    pub container: ContainerId,
    /// The Compose project or Swarm stack that it belongs to, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<String>,
}

impl Value for ConsumerHome {
    const WHAT: &'static str = "consumer's home";
}

impl Value for ConsumerRecord {
    const WHAT: &'static str = "consumer";
}

impl Record for ConsumerRecord {
    const FLAG: &'static str = "--name";

    fn claim(&self) -> &Claim {
        &self.claim
    }

    fn claim_mut(&mut self) -> &mut Claim {
        &mut self.claim
    }
}
