//! A small HTTP backend: answers every request with 200 and one fixed body, one request a connection.
//!
//! It owns the answering only; when to stop is the caller's matter (`main.rs` drains on SIGTERM).

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// How long a client may take over its request.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// No honest request of a test has a longer head, in bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Answers each connection with `body`, in a thread of its own, until the listener fails.
///
/// # Errors
/// What `accept` says, but for a client that went away before it was accepted.
pub fn serve(listener: &TcpListener, body: &str) -> io::Result<()> {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        let body = body.to_owned();
        thread::spawn(move || {
            // A client that hangs up early concerns nobody else.
            let _ = answer(stream, &body);
        });
    }
}

fn answer(mut stream: TcpStream, body: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    // The head is read to its end first: closing with bytes unread would reset the connection.
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        let length = stream.read(&mut chunk)?;
        if length == 0 || head.len() + length > MAX_HEAD_BYTES {
            return Ok(());
        }
        head.extend_from_slice(&chunk[..length]);
    }
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}
