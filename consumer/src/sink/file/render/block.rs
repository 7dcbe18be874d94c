//! What one service comes to.

use minijinja::Value;
use rollcall_shared::model::name::ContainerName;

use super::{hosts::Standing, nginx_proxy::Candidate};

/// What one service comes to, as long as its rows have not changed.
#[derive(Debug)]
pub(super) struct Block {
    /// Its part of the file.
    pub body: Body,
    /// How many instances are in it.
    pub instances: usize,
    /// The instances that the format cannot express.
    pub left_out: Vec<String>,
    /// The host names that its program resolves when it loads the file, and what followed for them.
    pub hosts: Vec<(ContainerName, Standing)>,
}

/// A service's part of a file.
#[derive(Debug)]
pub(super) enum Body {
    /// As it stands in the file.
    Text(String),
    /// Its list, as templates see it.
    List(Vec<Value>),
    /// Its instances whose containers declare virtual hosts.
    Candidates(Vec<Candidate>),
}

impl Block {
    /// What stands in the file.
    pub fn text(&self) -> Option<&str> {
        match &self.body {
            Body::Text(text) => Some(text),
            Body::List(_) | Body::Candidates(_) => None,
        }
    }

    /// What templates see.
    pub fn list(&self) -> &[Value] {
        match &self.body {
            Body::Text(_) | Body::Candidates(_) => &[],
            Body::List(list) => list,
        }
    }

    /// What declares virtual hosts.
    pub fn candidates(&self) -> &[Candidate] {
        match &self.body {
            Body::Text(_) | Body::List(_) => &[],
            Body::Candidates(candidates) => candidates,
        }
    }
}
