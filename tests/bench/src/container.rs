//! A container of the bench.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::docker::call;
use crate::event::Action;

/// A container of the worker image with port 80 published, created but not started. It is removed when dropped.
#[derive(Debug)]
pub struct BenchContainer {
    /// The full ID.
    pub id: String,
    /// The host's port. It is chosen in advance, so that nobody has to ask for it while time is taken.
    pub port: u16,
}

impl BenchContainer {
    /// Creates one with nothing special.
    pub fn new(name: &str) -> Result<Self> {
        Self::with(name, &[], &json!({}), &[])
    }

    /// Creates one with environment, labels and bind mounts.
    pub fn with(name: &str, env: &[&str], labels: &Value, binds: &[String]) -> Result<Self> {
        remove_old(name)?;
        let image = rollcall_tests::image::worker()?;
        let port = rollcall_tests::port::free(Ipv4Addr::LOCALHOST.into())?;
        let bindings = json!({ "80/tcp": [{ "HostPort": port.to_string() }] });
        let host = json!({ "PortBindings": bindings, "Binds": binds });
        let body = json!({ "Image": image, "Env": env, "Labels": labels, "ExposedPorts": { "80/tcp": {} },
                           "HostConfig": host });
        let answer = call("POST", &format!("/containers/create?name={name}"), Some(&body))?;
        let answer: Value = serde_json::from_str(&answer)?;
        let id = answer["Id"].as_str().with_context(|| format!("no ID in {answer}"))?;
        Ok(Self { id: id.to_owned(), port })
    }

    /// Creates several, named by number.
    pub fn several(prefix: &str, count: usize) -> Result<Vec<Self>> {
        (0..count).map(|number| Self::new(&format!("{prefix}-{number}"))).collect()
    }

    /// The part of the ID that keys have.
    pub fn short_id(&self) -> &str {
        &self.id[..12]
    }

    /// Has something happen to it.
    pub fn act(&self, action: Action) -> Result<()> {
        match action {
            Action::Start => self.start(),
            Action::Die => self.kill(),
        }
    }

    /// Starts it.
    pub fn start(&self) -> Result<()> {
        call("POST", &format!("/containers/{}/start", self.id), None).map(drop)
    }

    /// Kills it.
    pub fn kill(&self) -> Result<()> {
        call("POST", &format!("/containers/{}/kill", self.id), None).map(drop)
    }

    /// Stops it as `docker stop` does.
    pub fn stop(&self) -> Result<()> {
        call("POST", &format!("/containers/{}/stop", self.id), None).map(drop)
    }

    /// Inspects it.
    pub fn inspect(&self) -> Result<Value> {
        Ok(serde_json::from_str(&call("GET", &format!("/containers/{}/json", self.id), None)?)?)
    }
}

impl Drop for BenchContainer {
    fn drop(&mut self) {
        if let Err(error) = call("DELETE", &format!("/containers/{}?force=1", self.id), None) {
            eprintln!("bench: {error:#}");
        }
    }
}

/// Removes a container of that name, which a bench that was killed may have left.
fn remove_old(name: &str) -> Result<()> {
    match call("DELETE", &format!("/containers/{name}?force=1"), None) {
        Err(error) if !error.to_string().contains(": 404 ") => Err(error),
        _ => Ok(()),
    }
}
