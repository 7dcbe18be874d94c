//! HAProxy's unix socket: commands, and the answer of each.
//!
//! Each round has a connection of its own: after a reload an old one would still reach the old process. Commands are
//! sent a line each in interactive mode (`prompt`), where every answer ends with a prompt; the answers of commands
//! that are joined otherwise run into each other, as HAProxy 2.6 ends some without an empty line.

use std::{io, path::PathBuf, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time,
};

/// How long a round may take.
const TIMEOUT: Duration = Duration::from_secs(2);
/// More than 100,000 servers take.
const MAX_BYTES: u64 = 64 << 20;
/// What ends each answer in interactive mode.
const PROMPT: &str = "\n> ";

/// Why HAProxy could not be asked. All is tried again.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum SocketError {
    #[error("HAProxy's socket {} is not there: HAProxy does not run, or its configuration does not name it", .0.display())]
    Absent(PathBuf),
    #[error("Nobody listens on HAProxy's socket {}: HAProxy does not run, or has another one", .0.display())]
    Deserted(PathBuf),
    #[error("Permission denied on HAProxy's socket {}: Rollcall's user must be able to write to it", .0.display())]
    Denied(PathBuf),
    #[error("HAProxy's socket {} cannot be used", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("HAProxy has not answered on {} within {TIMEOUT:?}", .0.display())]
    Slow(PathBuf),
    #[error("What answers on {} is not HAProxy", .0.display())]
    Nonsense(PathBuf),
}

/// HAProxy's socket.
#[derive(Debug, Clone)]
pub struct Socket {
    path: PathBuf,
}

impl Socket {
    /// The socket at this path.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// What answers here is not what it should be.
    pub fn nonsense(&self) -> SocketError {
        SocketError::Nonsense(self.path.clone())
    }

    /// The path, for messages.
    pub fn path(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// Sends commands, and gives the answer of each. A command is one line.
    ///
    /// # Errors
    /// HAProxy cannot be reached or does not answer as it should. Some of the commands may have been done.
    pub async fn ask(&self, commands: &[String]) -> Result<Vec<String>, SocketError> {
        let asked = time::timeout(TIMEOUT, self.converse(commands)).await;
        let text =
            asked.map_err(|_| SocketError::Slow(self.path.clone()))?.map_err(|error| self.explain(error))?;
        let mut answers: Vec<String> = text.split(PROMPT).map(|answer| answer.trim().to_owned()).collect();
        // The answer to `prompt` comes first, and nothing follows the last prompt.
        if answers.len() != commands.len() + 2 {
            return Err(self.nonsense());
        }
        answers.pop();
        answers.remove(0);
        Ok(answers)
    }

    async fn converse(&self, commands: &[String]) -> io::Result<String> {
        let (mut read, mut write) = UnixStream::connect(&self.path).await?.into_split();
        let lines = format!("prompt\n{}\nquit\n", commands.join("\n"));
        let mut answer = vec![];
        // Side by side, as HAProxy reads no further while nobody takes its answers.
        let ask = async move {
            match write.write_all(lines.as_bytes()).await {
                // It may have hung up for a reason that its answer has.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(write),
                result => result.map(|()| write),
            }
        };
        let listen = async {
            let read = (&mut read).take(MAX_BYTES).read_to_end(&mut answer).await;
            match read {
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(0),
                result => result,
            }
        };
        tokio::try_join!(ask, listen)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    fn explain(&self, source: io::Error) -> SocketError {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::NotFound => SocketError::Absent(path),
            io::ErrorKind::ConnectionRefused => SocketError::Deserted(path),
            io::ErrorKind::PermissionDenied => SocketError::Denied(path),
            _ => SocketError::Io { path, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use rollcall_shared::process::error::one_line;
    use tokio::net::UnixListener;

    use super::*;

    async fn error(socket: &Socket) -> String {
        one_line(&socket.ask(&["show info".to_owned()]).await.expect_err("it cannot be asked"))
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_socket_is_said_on_one_line() {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = Socket::new(dir.path().join("s"));
        assert!(error(&socket).await.contains("/s is not there: "));
        let listener = UnixListener::bind(dir.path().join("s")).expect("a socket");
        tokio::spawn(async move {
            for answer in ["", "HTTP/1.1 400 Bad Request\r\n\r\n", "\n> \n> \n> \n> "] {
                let (mut stream, _) = listener.accept().await.expect("a client");
                stream.write_all(answer.as_bytes()).await.expect("it listens");
            }
            drop(listener);
        });
        for _ in 0..3 {
            assert!(error(&socket).await.ends_with("/s is not HAProxy"), "{}", error(&socket).await);
        }
        assert!(error(&socket).await.starts_with("Nobody listens on HAProxy's socket"));
        std::fs::remove_file(dir.path().join("s")).expect("it is there");
        std::fs::write(dir.path().join("s"), "").expect("a file");
        assert!(error(&socket).await.starts_with("Nobody listens"), "a file is no socket");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_never_answers_is_left_after_a_while() {
        let dir = tempfile::tempdir().expect("a folder");
        let _listener = UnixListener::bind(dir.path().join("s")).expect("a socket");
        let error = error(&Socket::new(dir.path().join("s"))).await;
        assert!(error.starts_with("HAProxy has not answered on "), "{error}");
        assert!(error.ends_with(" within 2s"), "{error}");
    }
}
