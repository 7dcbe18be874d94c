//! A TCP proxy in front of a real part, whose connections a test can cut.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};

/// A proxy on 127.0.0.1, which ends with the test's process.
#[derive(Debug)]
pub struct TcpProxy {
    address: SocketAddr,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    accepted: Arc<Mutex<usize>>,
}

impl TcpProxy {
    /// A proxy in front of a URL's host and port.
    ///
    /// # Errors
    /// There is no free port.
    pub fn start(url: &str) -> Result<Self> {
        let target: SocketAddr = url.rsplit('/').next().unwrap_or_default().parse().context("host:port")?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let proxy =
            Self { address: listener.local_addr()?, connections: Arc::default(), accepted: Arc::default() };
        let (connections, accepted) = (proxy.connections.clone(), proxy.accepted.clone());
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                *accepted.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                // Where the part is away, the client sees its connection closed.
                let _ = join(client, target, &connections);
            }
        });
        Ok(proxy)
    }

    /// Its own URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many connections it has taken.
    pub fn accepted(&self) -> usize {
        *self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        for connection in connections.drain(..) {
            // One that is closed already needs no cut.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

fn join(client: TcpStream, target: SocketAddr, connections: &Mutex<Vec<TcpStream>>) -> io::Result<()> {
    let server = TcpStream::connect(target)?;
    for (from, to) in [(&client, &server), (&server, &client)] {
        let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
        connections.lock().unwrap_or_else(PoisonError::into_inner).push(from.try_clone()?);
        thread::spawn(move || {
            // It ends with either side.
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}
