//! The network that Docker hosts of one test share: a bridge with a subnet of its own, 10.77.x.0/24.

use std::fs::File;
use std::net::Ipv4Addr;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::{leftovers, tool};

static COUNT: AtomicU32 = AtomicU32::new(1);

/// A bridge, removed when the last host on it has gone. This machine itself is on it as 10.77.x.254, so that
/// a test reaches every host.
#[derive(Debug, Clone)]
pub struct Bridge {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    serial: u32,
    subnet: u8,
}

impl Bridge {
    /// Makes a bridge with the first subnet that is free.
    ///
    /// # Errors
    /// Not root, a tool is missing, or no subnet is free.
    pub fn start() -> Result<Self> {
        tool::need_root()?;
        leftovers::clear();
        let serial = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("rc{}b{serial}", process::id());
        // Held until the address is set: two runs must not pick the same subnet.
        // A folder serves as the lock, as it stays when they are done.
        let lock = File::open(std::env::temp_dir()).context("cannot lock the temporary folder")?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
        let taken = tool::run_line("ip -4 route show table all")?;
        let subnet = (0..=u8::MAX).find(|x| !taken.contains(&format!("10.77.{x}.")));
        let subnet = subnet.context("every 10.77.x.0/24 is taken")?;
        tool::run_line(&format!("ip link add {name} type bridge"))?;
        // From here on dropping it removes what there is.
        let bridge = Self { inner: Arc::new(Inner { name, serial, subnet }) };
        let Inner { name, .. } = &*bridge.inner;
        tool::run_line(&format!("ip addr add 10.77.{subnet}.254/24 dev {name}"))?;
        tool::run_line(&format!("ip link set {name} up"))?;
        // Bridged packets pass iptables where br_netfilter is loaded, and Docker's policy there is to drop.
        tool::run_line(&format!("iptables -w -I FORWARD -i {name} -o {name} -j ACCEPT"))?;
        Ok(bridge)
    }

    /// The address of host `n` on this bridge, 10.77.x.n.
    pub fn address(&self, n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.inner.subnet, n)
    }

    /// This machine's own address on it.
    pub fn own_address(&self) -> Ipv4Addr {
        self.address(254)
    }

    /// The bridge's interface.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The name of host `n`'s end on the bridge.
    pub(crate) fn veth(&self, n: u8) -> String {
        format!("rc{}v{}h{n}", process::id(), self.inner.serial)
    }

    /// The name of host `n`'s network namespace.
    pub(crate) fn netns(&self, n: u8) -> String {
        format!("rc{}n{}h{n}", process::id(), self.inner.serial)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Best effort: what stays is cleared by the next run.
        let name = &self.name;
        let _ = tool::run_line(&format!("iptables -w -D FORWARD -i {name} -o {name} -j ACCEPT"));
        let _ = tool::run_line(&format!("ip link del {name}"));
    }
}
