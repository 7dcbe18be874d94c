//! What a node and a consumer say of themselves. Their keys are also their claims (see
//! [`crate::session`]): who holds the key speaks under that name.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::wire::V1;

/// A record whose key is a claim on a name.
pub trait Claim: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// What kind of record it is, for messages.
    const WHAT: &'static str;

    /// Who may take the claim over from a process that died: the Docker engine, or the host.
    fn owner(&self) -> &str;

    /// Which process holds the claim: unique to each run.
    fn holder(&self) -> &str;

    /// The time to live of the lease it was written under, in seconds.
    fn ttl_seconds(&self) -> u64;
}

/// A node: a Docker host with an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The format's version.
    pub v: V1,
    /// The ID of the node's Docker engine.
    pub engine: String,
    /// This run of the agent.
    pub holder: String,
    /// The address under which the node's published ports are registered, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
    /// The agent's version.
    pub version: String,
    /// When this run of the agent started.
    pub started_at: Timestamp,
    /// The lease's time to live in seconds.
    pub ttl_seconds: u64,
}

/// A consumer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerRecord {
    /// The format's version.
    pub v: V1,
    /// The host name of the machine or container it runs in.
    pub host: String,
    /// This run of the consumer.
    pub holder: String,
    /// The names of its targets.
    pub targets: Vec<String>,
    /// The consumer's version.
    pub version: String,
    /// When this run of the consumer started.
    pub started_at: Timestamp,
    /// The lease's time to live in seconds.
    pub ttl_seconds: u64,
}

impl Claim for NodeRecord {
    const WHAT: &'static str = "node";
    fn owner(&self) -> &str {
        &self.engine
    }
    fn holder(&self) -> &str {
        &self.holder
    }
    fn ttl_seconds(&self) -> u64 {
        self.ttl_seconds
    }
}

impl Claim for ConsumerRecord {
    const WHAT: &'static str = "consumer";
    fn owner(&self) -> &str {
        &self.host
    }
    fn holder(&self) -> &str {
        &self.holder
    }
    fn ttl_seconds(&self) -> u64 {
        self.ttl_seconds
    }
}

/// A token for [`Claim::holder`], unique to this run.
pub fn new_holder() -> String {
    format!("{:016x}", fastrand::u64(..))
}

/// A lease's time to live and how often it is refreshed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Lease")]
pub struct LeaseSettings {
    /// How long registrations outlive a host that died
    #[arg(long, env = "ROLLCALL_TTL", value_name = "TIME", default_value = "60s", global = true)]
    #[arg(value_parser = humantime::parse_duration)]
    pub ttl: Duration,
    /// How often the lease is refreshed; must be less than the TTL
    #[arg(long, env = "ROLLCALL_REFRESH", value_name = "TIME", default_value = "30s", global = true)]
    #[arg(value_parser = humantime::parse_duration)]
    pub refresh: Duration,
}

impl LeaseSettings {
    /// Checks that the settings can hold a lease.
    ///
    /// # Errors
    /// A sentence naming the setting, its value and what was expected.
    pub fn check(&self) -> Result<(), String> {
        let show = |time: Duration| humantime::format_duration(time).to_string();
        if self.ttl.subsec_nanos() != 0 || self.ttl < Duration::from_secs(2) {
            return Err(format!("--ttl is {}: expected whole seconds, 2s or more", show(self.ttl)));
        }
        if self.refresh.is_zero() || self.refresh >= self.ttl {
            let (refresh, ttl) = (show(self.refresh), show(self.ttl));
            return Err(format!("--refresh is {refresh}: expected more than 0s and less than --ttl ({ttl})"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refresh_that_cannot_hold_the_lease_is_refused() {
        let seconds = Duration::from_secs;
        let settings = |ttl, refresh| LeaseSettings { ttl, refresh };
        assert!(settings(seconds(60), seconds(30)).check().is_ok());
        for (ttl, refresh) in [(60, 60), (60, 90), (60, 0), (1, 0)] {
            assert!(settings(seconds(ttl), seconds(refresh)).check().is_err(), "{ttl} {refresh}");
        }
        let message = settings(seconds(30), seconds(60)).check().expect_err("refresh above ttl");
        assert_eq!(message, "--refresh is 1m: expected more than 0s and less than --ttl (30s)");
    }
}
