//! Free TCP ports on this machine.

use std::collections::BTreeSet;
use std::net::{IpAddr, TcpListener};
use std::ops::Range;
use std::sync::Mutex;

use anyhow::{Context, Result};

/// Below the range from which the kernel picks source ports (32768 and up). From within it, a client that
/// retries a server that is down sooner or later gets the server's port as its own source port, connects to
/// itself, and keeps the server from starting again.
const PORT_RANGE: Range<u16> = 20_000..32_000;

static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port that nobody listens on at `ip`, never given twice in this process.
///
/// # Errors
/// A thousand ports in a row were in use, or the address is not this machine's.
pub fn free(ip: IpAddr) -> Result<u16> {
    let mut given = GIVEN.lock().expect("nothing panics while holding it");
    let mut tries = (0..1000).map(|_| fastrand::u16(PORT_RANGE));
    let port = tries
        .find(|port| !given.contains(port) && TcpListener::bind((ip, *port)).is_ok())
        .with_context(|| format!("no free port at {ip}"))?;
    given.insert(port);
    Ok(port)
}
