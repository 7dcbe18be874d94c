//! A consumer, and what its targets signal.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    claim::{Claim, Record},
    name::TargetName,
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
    /// Its targets.
    pub targets: BTreeMap<TargetName, TargetRecord>,
}

/// What a consumer says of a target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetRecord {
    /// The signal that follows each change, and to which containers, if the target signals containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<Delivery>,
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
