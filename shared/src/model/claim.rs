//! A claim on a name: the part that a node's and a consumer's record have in common. See [`crate::session`] for the
//! protocol.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{codec::Value, process::host};

/// A record whose key is a claim on a name.
pub trait Record: Value + Clone {
    /// The flag by which a process gets another name.
    const FLAG: &'static str;

    /// The claim.
    fn claim(&self) -> &Claim;

    /// The claim, to be changed.
    fn claim_mut(&mut self) -> &mut Claim;
}

/// Which process holds a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Whose processes may succeed each other under the name: the Docker engine's ID, or the consumer's.
    pub owner: String,
    /// The process: a token that is unique to each run.
    pub holder: String,
    /// The host name that the process runs under.
    pub host: String,
    /// Rollcall's version.
    pub version: String,
    /// When the process started, by its own clock.
    pub started_at: Timestamp,
    /// The time to live of the claim's lease, in seconds.
    pub ttl_seconds: u64,
    /// Whether the process is still there.
    #[serde(default, skip_serializing_if = "Presence::is_present")]
    pub presence: Presence,
    /// A later process of the same owner that asks whether this one still runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub challenger: Option<String>,
}

impl Claim {
    /// A claim of this process, for an owner.
    pub fn new(owner: String, ttl_seconds: u64) -> Self {
        Self {
            owner,
            holder: format!("{:016x}", fastrand::u64(..)),
            host: host::name(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: Timestamp::now(),
            ttl_seconds,
            presence: Presence::Present,
            challenger: None,
        }
    }
}

/// Whether the process that holds a claim is still there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// It is, as far as it has said.
    #[default]
    Present,
    /// It is about to revoke its lease: its keys go for good.
    Leaving,
    /// It has ended and left its keys to their TTL, for a successor to adopt.
    Left,
}

impl Presence {
    fn is_present(&self) -> bool {
        *self == Presence::Present
    }
}
