//! An etcd cluster of several members, on 127.0.0.1 or one on each host.

use std::path::Path;

use anyhow::Result;

use crate::{DockerHost, Etcd, EtcdConfig, Etcdctl};

/// A cluster whose members can be stopped, killed and started again one by one.
#[derive(Debug)]
pub struct EtcdCluster {
    members: Vec<Etcd>,
}

impl EtcdCluster {
    /// A cluster of this many members on 127.0.0.1, all healthy when this returns.
    ///
    /// # Errors
    /// etcd is missing, or a member does not become healthy.
    pub fn start(members: usize) -> Result<Self> {
        let config = |i| EtcdConfig { name: format!("etcd{i}"), ..EtcdConfig::default() };
        Self::start_with((1..=members).map(config).collect())
    }

    /// A cluster of one member on each host.
    ///
    /// # Errors
    /// As [`EtcdCluster::start`].
    pub fn start_on(hosts: &[DockerHost]) -> Result<Self> {
        let config = |host: &DockerHost| EtcdConfig {
            name: host.ip().to_string(),
            listen_ip: host.ip(),
            netns: host.netns().map(Path::to_owned),
            tls: None,
            extra: Vec::new(),
            is_3_5: false,
        };
        Self::start_with(hosts.iter().map(config).collect())
    }

    /// A cluster of one member for each configuration; their names must differ.
    ///
    /// # Errors
    /// As [`EtcdCluster::start`].
    pub fn start_with(configs: Vec<EtcdConfig>) -> Result<Self> {
        let mut members = configs.into_iter().map(Etcd::new).collect::<Result<Vec<_>>>()?;
        let cluster = members.iter().map(Etcd::peer).collect::<Vec<_>>().join(",");
        // None becomes healthy before a majority runs, so all are started before any is waited for.
        for member in &mut members {
            member.join(cluster.clone());
            member.spawn()?;
        }
        for member in &mut members {
            member.wait_healthy()?;
        }
        Ok(Self { members })
    }

    /// The client URLs of all members, running or not.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(Etcd::endpoint).collect()
    }

    /// A member, counted from 0.
    pub fn member(&self, i: usize) -> &Etcd {
        &self.members[i]
    }

    /// A member to stop, kill or start again, counted from 0.
    pub fn member_mut(&mut self, i: usize) -> &mut Etcd {
        &mut self.members[i]
    }

    /// A client of all members.
    pub fn ctl(&self) -> Etcdctl {
        Etcdctl::new(self.endpoints(), self.members.first().and_then(Etcd::tls))
    }

    /// Runs `etcdctl` against the members and gives what it printed.
    ///
    /// # Errors
    /// etcdctl fails.
    pub fn etcdctl(&self, args: &[&str]) -> Result<String> {
        self.ctl().run(args)
    }
}
