//! One request and its answer, and what becomes of the connection.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

/// How long a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// No honest answer of a worker is longer, in bytes.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// An answer as far as it matters.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body, which is the name of the worker's host.
    pub body: String,
    /// Whether the connection ends after it.
    pub is_last: bool,
}

/// Connects to a port of this host.
pub fn connect(port: u16) -> Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
    Ok(BufReader::new(stream))
}

/// Whether an idle connection was ended by the other side.
pub fn has_ended(stream: &TcpStream) -> bool {
    let peek = || {
        stream.set_nonblocking(true)?;
        let found = stream.peek(&mut [0]);
        stream.set_nonblocking(false)?;
        found
    };
    !matches!(peek(), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Whether the connection ended before the answer began.
pub fn is_cut(error: &anyhow::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    matches!(kind, Some(BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof))
}

/// Sends a request with these lines in its head, and reads the answer.
pub fn exchange(stream: &mut BufReader<TcpStream>, head: &str) -> Result<Answer> {
    let request = format!("GET / HTTP/1.1\r\nHost: web\r\n{head}\r\n");
    stream.get_mut().write_all(request.as_bytes())?;
    read(stream)
}

fn read(stream: &mut impl BufRead) -> Result<Answer> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.with_context(|| format!("the answer begins with {line:?}"))?;
    let (mut length, mut is_last) = (0, false);
    loop {
        line.clear();
        anyhow::ensure!(stream.read_line(&mut line)? > 0, "the head of the answer is cut");
        let lower = line.trim_end().to_ascii_lowercase();
        match lower.split_once(':').map(|(name, value)| (name, value.trim())) {
            None if lower.is_empty() => break,
            Some(("content-length", value)) => length = value.parse()?,
            Some(("connection", value)) => is_last = value == "close",
            _ => {}
        }
    }
    anyhow::ensure!(length <= MAX_BODY_BYTES, "the answer is longer than a worker's");
    let mut body = vec![0; length];
    // Not told apart by its kind: bytes were there already, and nothing is to be sent again.
    stream.read_exact(&mut body).map_err(|error| anyhow::anyhow!("the body is cut: {error}"))?;
    Ok(Answer { status, body: String::from_utf8_lossy(&body).trim().to_owned(), is_last })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> Result<Answer> {
        read(&mut text.as_bytes())
    }

    #[test]
    fn an_answer_is_read_to_its_end_and_a_cut_one_is_told_by_how_much_was_there() {
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc";
        let expected = Answer { status: 200, body: "abc".to_owned(), is_last: true };
        assert_eq!(answer(whole).expect("it is whole"), expected);
        assert!(is_cut(&answer("").expect_err("nothing")));
        for cut in [&whole[..20], &whole[..whole.len() - 1]] {
            assert!(!is_cut(&answer(cut).expect_err("a part")), "{cut:?}");
        }
    }
}
