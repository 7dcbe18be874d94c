//! The settings of a coordinator: `[target.citus]` in TOML.

use std::time::Duration;

use rollcall_shared::process::{setting::SettingError, time::show};
use serde::Deserialize;

use super::{
    conninfo::Conninfo,
    libpq::{Environment, Login},
};
use crate::config::toml::time;

/// How long others that hold locks have before they are ended, where a move is forced, unless it is said.
const LOCK_COOLDOWN: Duration = Duration::from_secs(10);
/// How long a statement may take unless it is said.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest time that PostgreSQL takes, in milliseconds.
const MAX_MILLISECONDS: u128 = i32::MAX as u128;

/// How a coordinator is reached and told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CitusConfig {
    /// Where it is and who we are.
    pub database: Conninfo,
    /// Who we are to workers that are asked who they are, where that is somebody else. Anybody who may start a container
    /// may pose as one, and is told this user's password.
    pub workers: Option<Conninfo>,
    /// After which time a node is moved even though others hold locks on its shards; `None` never.
    pub force_after: Option<Duration>,
    /// How long those others have then.
    pub lock_cooldown: Duration,
    /// How long a statement may take.
    pub statement_timeout: Duration,
}

/// The same, as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawCitus {
    /// A connection string of libpq's. What it leaves open comes from where libpq looks for it.
    pub database: Option<String>,
    /// The same for workers that are asked who they are, without a host. What it leaves open is as for the coordinator;
    /// where it has a user, the password is that user's. The user needs no rights but to connect.
    pub workers: Option<String>,
    /// When a move is forced.
    #[serde(default, deserialize_with = "time")]
    pub force_after: Option<Duration>,
    /// How long those that hold locks have then; 10 s.
    #[serde(default, deserialize_with = "time")]
    pub lock_cooldown: Option<Duration>,
    /// How long a statement may take; 60 s.
    #[serde(default, deserialize_with = "time")]
    pub statement_timeout: Option<Duration>,
}

impl RawCitus {
    /// What it means.
    ///
    /// # Errors
    /// A connection string that cannot be read, or a time that cannot be.
    pub fn parse(self) -> Result<CitusConfig, SettingError> {
        let Self { database, workers, force_after, lock_cooldown, statement_timeout } = self;
        let database = Conninfo::parse(database.as_deref().unwrap_or_default())
            .map_err(|error| SettingError::caused("citus.database", "not a connection string", error))?;
        let workers = workers.as_deref().map(parse_workers).transpose()?;
        // A service file may come later, and the environment is the process's: what is wrong with the rest is said now.
        if database.get("service").is_none() {
            let login = Login::resolve(database.clone(), Environment::default())
                .map_err(|error| SettingError::caused("citus.database", "not what libpq takes", error))?;
            login
                .for_workers(workers.as_ref())
                .map_err(|error| SettingError::caused("citus.workers", "not what libpq takes", error))?;
        }
        let checked = |name: &str, time: Option<Duration>, default: Duration| {
            let time = time.unwrap_or(default);
            if time.is_zero() || time.as_millis() > MAX_MILLISECONDS {
                return Err(SettingError::new(name, show(time), "more than 0s, and 24 days at most"));
            }
            Ok(time)
        };
        let lock_cooldown = checked("citus.lock_cooldown", lock_cooldown, LOCK_COOLDOWN)?;
        let statement_timeout = checked("citus.statement_timeout", statement_timeout, STATEMENT_TIMEOUT)?;
        if force_after.is_some() && lock_cooldown >= statement_timeout {
            let expected = format!(
                "less than citus.statement_timeout, {}, or no move is ever forced",
                show(statement_timeout)
            );
            return Err(SettingError::new("citus.lock_cooldown", show(lock_cooldown), expected));
        }
        Ok(CitusConfig { database, workers, force_after, lock_cooldown, statement_timeout })
    }
}

fn parse_workers(text: &str) -> Result<Conninfo, SettingError> {
    let workers = Conninfo::parse(text)
        .map_err(|error| SettingError::caused("citus.workers", "not a connection string", error))?;
    let given =
        ["host", "hostaddr", "port", "service"].into_iter().find(|keyword| workers.get(keyword).is_some());
    match given {
        Some(keyword) => {
            let expected = "no more than who asks, and how, as each worker's address is registered";
            Err(SettingError::new("citus.workers", keyword, expected))
        }
        None => Ok(workers),
    }
}

#[cfg(test)]
mod tests {
    use rollcall_shared::process::error::one_line;

    use super::*;

    fn parsed(text: &str) -> Result<CitusConfig, String> {
        let raw: RawCitus = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        raw.parse().map_err(|error| one_line(&error))
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let config = parsed("database = 'host=db'\nforce_after = '5m'").expect("settings");
        assert_eq!(config.database.get("host"), Some("db"));
        assert_eq!(config.force_after, Some(Duration::from_secs(300)));
        assert_eq!(config.lock_cooldown, Duration::from_secs(10));
        assert_eq!(config.statement_timeout, Duration::from_secs(60));
        assert_eq!(parsed("").expect("libpq's own").force_after, None);
    }

    #[test]
    fn settings_that_cannot_work_are_refused_by_name() {
        for (text, expected) in [
            ("hosts = 'a'", "unknown field `hosts`, expected one of `database`,"),
            ("database = 'hots=a'", "citus.database is not a connection string: \"hots\" is no keyword"),
            (
                "database = 'sslmode=on'",
                "citus.database is not what libpq takes: sslmode is \"on\": expected",
            ),
            ("statement_timeout = '0s'", "citus.statement_timeout is 0s: expected more than 0s"),
            (
                "force_after = '5m'\nstatement_timeout = '10s'",
                "citus.lock_cooldown is 10s: expected less than citus.statement_timeout, 10s, or no move is",
            ),
            ("workers = 'host=a'", "citus.workers is host: expected no more than who asks"),
            ("workers = 'sslmode=on'", "citus.workers is not what libpq takes: sslmode is \"on\": expected"),
            ("lock_cooldown = '25days'", "citus.lock_cooldown is 25days: expected more than 0s"),
        ] {
            let error = parsed(text).map(drop).expect_err(text);
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
