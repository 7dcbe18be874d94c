//! The lease's settings.

use std::time::Duration;

use crate::process::{setting::SettingError, time};

/// A lease's time to live and how often it is refreshed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Lease")]
pub struct LeaseSettings {
    /// How long registrations outlive a host that died
    #[arg(long, env = "ROLLCALL_TTL", value_name = "TIME", default_value = "60s", global = true)]
    #[arg(value_parser = time::parse)]
    pub ttl: Duration,
    /// How often the lease is refreshed; must be less than the TTL
    #[arg(long, env = "ROLLCALL_REFRESH", value_name = "TIME", default_value = "30s", global = true)]
    #[arg(value_parser = time::parse)]
    pub refresh: Duration,
}

impl LeaseSettings {
    /// Checks that the settings can hold a lease.
    ///
    /// # Errors
    /// The setting that cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        let (ttl, refresh) = (time::show(self.ttl), time::show(self.refresh));
        if self.ttl.subsec_nanos() != 0 || self.ttl < Duration::from_secs(2) {
            return Err(SettingError::new("--ttl", ttl, "whole seconds, 2s or more"));
        }
        if self.refresh.is_zero() || self.refresh >= self.ttl {
            let expected = format!("more than 0s and less than --ttl ({ttl})");
            return Err(SettingError::new("--refresh", refresh, expected));
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
        let error = settings(seconds(30), seconds(60)).check().expect_err("refresh above ttl");
        assert_eq!(error.to_string(), "--refresh is 1m: expected more than 0s and less than --ttl (30s)");
    }
}
