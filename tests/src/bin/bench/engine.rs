//! Docker's API by hand, without anything that costs time: what the floors are measured with.
//! On a connection of its own for each call; see [`Kept`] where the time counts.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

const SOCKET: &str = "/var/run/docker.sock";

/// Asks and gives the body. HTTP/1.0, so that the end of the stream is the end of the body.
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
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer of HTTP")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    ensure!(status.starts_with('2') || status == "304", "{method} {path}: {status} {body}");
    Ok(body.to_owned())
}

/// Something that happened to a container, and when.
#[derive(Debug, Clone)]
pub struct Event {
    /// The container's full ID.
    pub id: String,
    /// `start` or `die`, or what announces them: `connect` to a network, `kill`.
    pub action: String,
    /// When Docker says it happened, since 1970.
    pub at: Duration,
    /// When we read it, since 1970.
    pub read_at: Duration,
}

/// The time since 1970.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970")
}

/// What the events are filtered by, as part of a path.
fn filters() -> String {
    let filters = serde_json::json!({ "event": ["connect", "start", "kill", "die"] }).to_string();
    filters.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn event(line: &str) -> Option<Event> {
    let read_at = now();
    let event: Value = serde_json::from_str(line).ok()?;
    let actor = &event["Actor"];
    let id = if event["Type"] == "network" { &actor["Attributes"]["container"] } else { &actor["ID"] };
    let at = Duration::from_nanos(event["timeNano"].as_u64()?);
    Some(Event { id: id.as_str()?.to_owned(), action: event["Action"].as_str()?.to_owned(), at, read_at })
}

/// Starts and ends of containers from now on, and what announces them.
pub fn events() -> Result<Receiver<Event>> {
    let mut stream = UnixStream::connect(SOCKET)?;
    write!(stream, "GET /events?filters={} HTTP/1.0\r\n\r\n", filters())?;
    let mut lines = BufReader::new(stream).lines();
    // The head comes as soon as the subscription stands.
    while !lines.next().context("a head")??.is_empty() {}
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if event(&line).is_some_and(|event| sender.send(event).is_err()) {
                return;
            }
        }
    });
    Ok(receiver)
}

/// A connection that serves one call after the other: Docker answers sooner than on a new one.
pub struct Kept(BufReader<UnixStream>);

impl Kept {
    /// Connects.
    pub fn new() -> Result<Self> {
        Ok(Self(BufReader::new(UnixStream::connect(SOCKET)?)))
    }

    /// An inspection of a container.
    pub fn inspect(&mut self, id: &str) -> Result<Value> {
        write!(self.0.get_mut(), "GET /containers/{id}/json HTTP/1.1\r\nHost: docker\r\n\r\n")?;
        let (mut line, mut chunked, mut length) = (String::new(), false, 0);
        while line != "\r\n" {
            line.clear();
            ensure!(self.0.read_line(&mut line)? > 0, "Docker closed the connection");
            chunked |= line.eq_ignore_ascii_case("transfer-encoding: chunked\r\n");
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        while chunked {
            line.clear();
            self.0.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim_end(), 16)?;
            let start = body.len();
            body.resize(start + size + 2, 0);
            self.0.read_exact(&mut body[start..])?;
            body.truncate(start + size);
            chunked = size > 0;
        }
        Ok(serde_json::from_slice(&body)?)
    }
}

/// What has happened to a container since a time, if it has, from the engine's memory: nobody was listening
/// meanwhile.
pub fn past_event(since: Duration, id: &str, action: &str) -> Result<Option<Event>> {
    let time = |at: Duration| format!("{}.{:09}", at.as_secs(), at.subsec_nanos());
    let path = format!("/events?since={}&until={}&filters={}", time(since), time(now()), filters());
    let events = call("GET", &path, None)?;
    Ok(events.lines().filter_map(event).find(|event| event.id == id && event.action == action))
}

/// Awaits what happens to a container.
pub fn await_event(events: &Receiver<Event>, id: &str, action: &str) -> Result<Event> {
    loop {
        let event =
            events.recv_timeout(Duration::from_secs(20)).with_context(|| format!("{action} of {id}"))?;
        if event.id == id && event.action == action {
            return Ok(event);
        }
    }
}

/// Makes way for a container of that name, which a bench that was killed may have left.
fn clear(name: &str) -> Result<()> {
    match call("DELETE", &format!("/containers/{name}?force=1"), None) {
        Err(error) if !error.to_string().contains(": 404 ") => Err(error),
        _ => Ok(()),
    }
}

/// A container of the worker image with port 80 published, made but not started; removed when dropped.
#[derive(Debug)]
pub struct Made {
    /// The full ID.
    pub id: String,
    /// The host's port. Chosen beforehand, so that nobody has to ask for it while time is taken.
    pub port: u16,
}

impl Made {
    /// Makes one. `extra` is merged into its HostConfig.
    pub fn new(name: &str, env: &[&str], labels: Value, binds: &[String]) -> Result<Self> {
        clear(name)?;
        let image = rollcall_tests::image::worker()?;
        let port = rollcall_tests::port::free(Ipv4Addr::LOCALHOST.into())?;
        let bindings = serde_json::json!({ "80/tcp": [{ "HostPort": port.to_string() }] });
        let host = serde_json::json!({ "PortBindings": bindings, "Binds": binds });
        let body = serde_json::json!({ "Image": image, "Env": env, "Labels": labels,
                                       "ExposedPorts": { "80/tcp": {} }, "HostConfig": host });
        let made: Value =
            serde_json::from_str(&call("POST", &format!("/containers/create?name={name}"), Some(&body))?)?;
        let Some(id) = made["Id"].as_str() else { bail!("no ID in {made}") };
        Ok(Self { id: id.to_owned(), port })
    }

    /// Starts it.
    pub fn start(&self) -> Result<()> {
        call("POST", &format!("/containers/{}/start", self.id), None).map(drop)
    }

    /// Kills it.
    pub fn kill(&self) -> Result<()> {
        call("POST", &format!("/containers/{}/kill", self.id), None).map(drop)
    }

    /// What an inspection says.
    pub fn inspect(&self) -> Result<Value> {
        Ok(serde_json::from_str(&call("GET", &format!("/containers/{}/json", self.id), None)?)?)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Err(error) = call("DELETE", &format!("/containers/{}?force=1", self.id), None) {
            eprintln!("bench: {error:#}");
        }
    }
}
