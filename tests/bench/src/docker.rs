//! Docker's API by hand, without anything that costs time: [`call`] on a connection of its own, and a [`Connection`]
//! that is kept open where time is measured.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// The engine's socket.
pub const SOCKET: &str = "/var/run/docker.sock";

/// Makes a request and returns the answer's body. It speaks HTTP/1.0, so that the end of the stream ends the body.
pub fn call(method: &str, path: &str, body: Option<&Value>) -> Result<String> {
    let mut stream = UnixStream::connect(SOCKET)?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    ensure!(status.starts_with('2') || status == "304", "{method} {path}: {status} {body}");
    Ok(body.to_owned())
}

/// The host's own address on Docker's bridge. What goes there is sent on by the kernel, as it is for other hosts; what goes
/// to 127.0.0.1 by a process of Docker's, which takes connections before the container does.
pub fn bridge_address() -> Result<Ipv4Addr> {
    let network: Value = serde_json::from_str(&call("GET", "/networks/bridge", None)?)?;
    let subnet = network["IPAM"]["Config"][0]["Subnet"].as_str().and_then(|subnet| subnet.split_once('/'));
    let subnet: Ipv4Addr = subnet.with_context(|| format!("no subnet in {network}"))?.0.parse()?;
    // Nothing is sent: it only asks by which address the host would.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((Ipv4Addr::from_bits(subnet.to_bits() + 2), 9))?;
    match socket.local_addr()?.ip() {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => bail!("the bridge is at {address}"),
    }
}

/// A connection that serves one call after the other. Docker answers faster than on a new one.
pub struct Connection(BufReader<UnixStream>);

impl Connection {
    /// Connects.
    pub fn open() -> Result<Self> {
        Ok(Self(BufReader::new(UnixStream::connect(SOCKET)?)))
    }

    /// Inspects a container.
    pub fn inspect(&mut self, id: &str) -> Result<Value> {
        write!(self.0.get_mut(), "GET /containers/{id}/json HTTP/1.1\r\nHost: docker\r\n\r\n")?;
        let body = match self.head()? {
            Some(length) => self.exactly(length)?,
            None => self.chunks()?,
        };
        Ok(serde_json::from_slice(&body)?)
    }

    /// Reads the head of an answer and returns the body's length, or `None` where the body comes in chunks.
    fn head(&mut self) -> Result<Option<usize>> {
        let mut length = None;
        loop {
            let line = self.line()?.to_ascii_lowercase();
            if line.is_empty() {
                return Ok(length);
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = Some(value.trim().parse()?);
            }
        }
    }

    fn chunks(&mut self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let size = usize::from_str_radix(&self.line()?, 16)?;
            body.extend(self.exactly(size)?);
            ensure!(self.line()?.is_empty(), "the chunk is longer than announced");
            if size == 0 {
                return Ok(body);
            }
        }
    }

    fn exactly(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.0.read_line(&mut line)? > 0, "Docker closed the connection");
        Ok(line.trim_end().to_owned())
    }
}
