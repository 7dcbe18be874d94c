//! Rollcall's harness of real parts: etcd, Docker hosts with addresses of their own, images, and Rollcall's
//! programs.
//!
//! Every part stops what it started when it is dropped, also when a test panics, and by process ID only. A
//! part that is missing fails the test with what to do about it (`tests/parts`); nothing is skipped. Tests
//! need root, as namespaces and Docker engines do. What a run that was killed left behind is cleared by the
//! next one.

pub mod bridge;
pub mod citus;
pub mod container;
mod docker_cli;
pub mod docker_host;
pub mod docs;
pub mod envoy;
pub mod etcd;
pub mod etcd_cluster;
pub mod etcdctl;
pub mod haproxy;
pub mod http;
pub mod image;
pub mod leftovers;
mod netns;
mod own_host;
pub mod port;
pub mod process;
pub mod program;
pub mod prometheus;
pub mod swarm;
pub mod targets;
pub mod tcp_proxy;
pub mod tls;
pub mod tool;
pub mod traefik;
pub mod until;

pub use bridge::Bridge;
pub use citus::Postgres;
pub use container::Container;
pub use docker_host::DockerHost;
pub use envoy::Envoy;
pub use etcd::{Etcd, EtcdConfig};
pub use etcd_cluster::EtcdCluster;
pub use etcdctl::{Etcdctl, Watch};
pub use haproxy::Haproxy;
pub use process::Process;
pub use program::Program;
pub use prometheus::Prometheus;
pub use swarm::Swarm;
pub use tcp_proxy::TcpProxy;
pub use tls::Tls;
pub use traefik::Traefik;
pub use until::until;
