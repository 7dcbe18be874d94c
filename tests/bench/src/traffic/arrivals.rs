//! The workers that come: when each is in the file, and when it serves its first request.
//!
//! From the moment when the file has a worker and it takes connections itself, requests are made one after another until
//! it answers one: not before, as asking all the time would take the machine from what is measured. So the time is never
//! too short. Each request names the worker, which a proxy may heed or not.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::exchange::{Answer, connect, exchange};
use crate::clock::now;
use crate::container::BenchContainer;
use crate::file_watch::FileWatch;

/// The line of a request's head that names a server.
pub const HEADER: &str = "X-Server";
/// How long a worker is asked for, and the pause between two requests.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
const ASK_PAUSE: Duration = Duration::from_micros(200);
/// How often it is looked whether all is over.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Workers that are awaited, and what became of each.
#[derive(Debug)]
pub struct Arrivals {
    /// Where the workers are reached themselves.
    address: Ipv4Addr,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    /// The names of the hosts of workers that are not in the file yet, by their ports.
    expected: BTreeMap<u16, String>,
    arrived: BTreeMap<String, Arrival>,
}

/// What became of a worker. Times are since 1970.
#[derive(Debug, Clone, Default)]
pub struct Arrival {
    /// When the file had it.
    pub in_file: Duration,
    /// When it took connections, as far as it did not when the file had it.
    pub took: Option<Duration>,
    /// When it had answered a request.
    pub served: Option<Duration>,
    /// How many requests were made for it.
    pub asked: usize,
    /// How many of those failed.
    pub failed: usize,
}

impl Arrivals {
    /// None yet, of workers whose ports are at this address.
    pub fn new(address: Ipv4Addr) -> Self {
        Self { address, inside: Mutex::default() }
    }

    /// A worker is about to start.
    pub fn expect(&self, container: &BenchContainer) {
        self.inside().expected.insert(container.port, container.short_id().to_owned());
    }

    /// What became of each, by the names of their hosts.
    pub fn take(&self) -> BTreeMap<String, Arrival> {
        std::mem::take(&mut self.inside().arrived)
    }

    /// Follows the file until all is over, and asks the proxy at this port for the workers that are new in it.
    pub fn follow(&self, file: FileWatch, port: u16, is_over: &AtomicBool) -> Result<()> {
        thread::scope(|scope| {
            while !is_over.load(Ordering::Relaxed) {
                let Some(version) = file.within(LOOK_INTERVAL) else { continue };
                for (server, name) in version.servers()? {
                    let Some(host) = self.inside().expected.remove(&server) else { continue };
                    scope.spawn(move || {
                        let worker = SocketAddr::new(self.address.into(), server);
                        let arrival =
                            Arrival { in_file: version.at, took: await_worker(worker), ..<_>::default() };
                        let arrival = ask_for(&host, &name, port, arrival);
                        self.inside().arrived.insert(host, arrival);
                    });
                }
            }
            Ok(())
        })
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until a worker takes connections; gives when it did, since 1970, unless it was at once.
fn await_worker(worker: SocketAddr) -> Option<Duration> {
    let begun = Instant::now();
    let mut took = None;
    while TcpStream::connect_timeout(&worker, ASK_TIMEOUT).is_err() && begun.elapsed() < ASK_TIMEOUT {
        thread::sleep(ASK_PAUSE);
        took = Some(now());
    }
    took
}

/// Makes requests until a worker answers one.
fn ask_for(host: &str, server: &str, port: u16, mut arrival: Arrival) -> Arrival {
    let (begun, head) = (Instant::now(), format!("{HEADER}: {server}\r\n"));
    while begun.elapsed() < ASK_TIMEOUT {
        arrival.asked += 1;
        match request(port, &head) {
            Ok(Answer { status: 200, body, .. }) if body == host => {
                arrival.served = Some(now());
                break;
            }
            Ok(Answer { status: 200, .. }) => {}
            Ok(_) | Err(_) => arrival.failed += 1,
        }
        thread::sleep(ASK_PAUSE);
    }
    arrival
}

fn request(port: u16, head: &str) -> Result<Answer> {
    let mut stream: BufReader<TcpStream> = connect(port)?;
    exchange(&mut stream, head)
}
