//! etcd as an outsider sees it, through `etcdctl`: independent of Rollcall's own client, which the tests
//! judge.

use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{Process, Tls, leftovers, tool};

/// A client by command line; each call is a process of about 20 ms.
#[derive(Debug, Clone)]
pub struct Etcdctl {
    endpoints: Vec<String>,
    tls: Option<Arc<Tls>>,
    user: Option<String>,
}

impl Etcdctl {
    /// A client of these endpoints.
    pub fn new(endpoints: Vec<String>, tls: Option<Arc<Tls>>) -> Self {
        Self { endpoints, tls, user: None }
    }

    /// The same client as another user.
    pub fn as_user(mut self, name: &str, password: &str) -> Self {
        self.user = Some(format!("{name}:{password}"));
        self
    }

    /// The command with its connection settings, to which arguments are added.
    ///
    /// # Errors
    /// etcdctl is missing.
    pub fn command(&self) -> Result<Command> {
        let mut command = tool::command("etcdctl")?;
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ETCDCTL_")) {
            command.env_remove(name);
        }
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoints.join(",")]);
        if let Some(tls) = &self.tls {
            let (certificate, key) = tls.client();
            command.arg("--cacert").arg(tls.ca()).arg("--cert").arg(certificate).arg("--key").arg(key);
        }
        if let Some(user) = &self.user {
            command.args(["--user", user]);
        }
        Ok(command)
    }

    /// Runs etcdctl and gives what it printed.
    ///
    /// # Errors
    /// It failed; the message says how.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        tool::run(self.command()?.args(args))
    }

    /// Puts a key.
    ///
    /// # Errors
    /// As [`Etcdctl::run`].
    pub fn put(&self, key: &str, value: &str) -> Result<()> {
        self.run(&["put", "--", key, value]).map(drop)
    }

    /// A key's value, or `None` where there is no such key.
    ///
    /// # Errors
    /// As [`Etcdctl::run`].
    pub fn get(&self, key: &str) -> Result<Option<String>> {
        let printed = self.run(&["get", "--", key])?;
        Ok(printed.split_once('\n').map(|(_, value)| value.to_owned()))
    }

    /// Deletes a key.
    ///
    /// # Errors
    /// As [`Etcdctl::run`].
    pub fn del(&self, key: &str) -> Result<()> {
        self.run(&["del", "--", key]).map(drop)
    }

    /// The keys under a prefix, in order.
    ///
    /// # Errors
    /// As [`Etcdctl::run`].
    pub fn keys(&self, prefix: &str) -> Result<Vec<String>> {
        let printed = self.run(&["get", "--prefix", "--keys-only", "--", prefix])?;
        Ok(printed.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    /// The store's revision.
    ///
    /// # Errors
    /// As [`Etcdctl::run`].
    pub fn revision(&self) -> Result<i64> {
        let printed = self.run(&["get", "--write-out", "json", "--", "any"])?;
        let answer: serde_json::Value = serde_json::from_str(&printed)?;
        answer["header"]["revision"].as_i64().with_context(|| format!("no revision in {printed}"))
    }

    /// Watches a prefix from now on: what is written after this call is seen, however late the process gets
    /// going.
    ///
    /// # Errors
    /// As [`Etcdctl::run`].
    pub fn watch(&self, prefix: &str) -> Result<Watch> {
        let next = self.revision()? + 1;
        self.watch_from(prefix, next)
    }

    /// Watches a prefix from a revision on.
    ///
    /// # Errors
    /// etcdctl is missing or cannot be started.
    pub fn watch_from(&self, prefix: &str, revision: i64) -> Result<Watch> {
        let dir = tempfile::Builder::new().prefix(&leftovers::prefix()).tempdir()?;
        let mut command = self.command()?;
        // No `--` before the prefix: here it would begin a command to run at each event.
        command.args(["watch", "--prefix", "--rev", &revision.to_string(), prefix]);
        let process = Process::start("etcdctl watch", command, &dir.path().join("log"))?;
        Ok(Watch { process, _dir: dir })
    }
}

/// What happened to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It was written.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: String,
    },
    /// It was deleted, or its lease ended.
    Delete {
        /// The key.
        key: String,
    },
}

/// A running `etcdctl watch`, ended when dropped.
#[derive(Debug)]
pub struct Watch {
    process: Process,
    _dir: TempDir,
}

impl Watch {
    /// The lines it has printed so far.
    pub fn lines(&self) -> Vec<String> {
        self.process.log().lines().map(str::to_owned).collect()
    }

    /// The events it has printed so far. Keys and values must be one line each, as Rollcall's are.
    ///
    /// # Errors
    /// It has printed something else, such as a failure.
    pub fn events(&self) -> Result<Vec<Event>> {
        let log = self.process.log();
        // Only whole lines: the last one may still be on its way.
        let whole = &log[..log.rfind('\n').map_or(0, |end| end + 1)];
        let lines: Vec<&str> = whole.lines().collect();
        let event = |event: &[&str]| match *event {
            ["PUT", key, value] => Ok(Event::Put { key: key.to_owned(), value: value.to_owned() }),
            ["DELETE", key, ""] => Ok(Event::Delete { key: key.to_owned() }),
            _ => anyhow::bail!("etcdctl watch printed {event:?}"),
        };
        lines.chunks_exact(3).map(event).collect()
    }

    /// The process ID.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}
