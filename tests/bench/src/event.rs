//! Docker's events of containers that start and die: as they come, and afterwards from the engine's memory.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::clock::now;
use crate::docker::{self, SOCKET};

/// How long to wait for an event.
pub const EVENT_TIMEOUT: Duration = Duration::from_secs(20);

/// What happens to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It started.
    Start,
    /// It ended.
    Die,
}

/// Something that happened to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The container's full ID.
    pub id: String,
    /// What happened.
    pub action: Action,
    /// When Docker says it happened, since 1970.
    pub at: Duration,
    /// When the bench read it, since 1970.
    pub read_at: Duration,
}

/// The events from now on.
pub struct EventStream(Receiver<Event>);

impl EventStream {
    /// Subscribes.
    pub fn open() -> Result<Self> {
        let mut stream = UnixStream::connect(SOCKET)?;
        write!(stream, "GET /events?filters={} HTTP/1.0\r\n\r\n", filters())?;
        let mut lines = BufReader::new(stream).lines();
        // Docker sends the head once the subscription is in place.
        while !lines.next().context("Docker closed the connection")??.is_empty() {}
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if event(&line, now()).is_some_and(|event| sender.send(event).is_err()) {
                    return;
                }
            }
        });
        Ok(Self(receiver))
    }

    /// What has happened since the last call.
    pub fn take(&self) -> Vec<Event> {
        self.0.try_iter().collect()
    }

    /// Waits for what happens to a container.
    pub fn wait(&self, id: &str, action: Action) -> Result<Event> {
        loop {
            let event = self.0.recv_timeout(EVENT_TIMEOUT);
            let event = event.with_context(|| format!("no event {action:?} of {id} came"))?;
            if event.id == id && event.action == action {
                return Ok(event);
            }
        }
    }
}

/// What has happened since a time, oldest first. The engine remembers its last 256 events, of all kinds.
pub fn past_events(since: Duration) -> Result<Vec<Event>> {
    let time = |at: Duration| format!("{}.{:09}", at.as_secs(), at.subsec_nanos());
    let path = format!("/events?since={}&until={}&filters={}", time(since), time(now()), filters());
    let read_at = now();
    Ok(docker::call("GET", &path, None)?.lines().filter_map(|line| event(line, read_at)).collect())
}

/// The query parameter that leaves out every other kind of event.
fn filters() -> String {
    let filters = serde_json::json!({ "type": ["container"], "event": ["start", "die"] }).to_string();
    filters.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn event(line: &str, read_at: Duration) -> Option<Event> {
    let event: Value = serde_json::from_str(line).ok()?;
    let action = match event["Action"].as_str()? {
        "start" => Action::Start,
        "die" => Action::Die,
        _ => return None,
    };
    let at = Duration::from_nanos(event["timeNano"].as_u64()?);
    Some(Event { id: event["Actor"]["ID"].as_str()?.to_owned(), action, at, read_at })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_and_ends_are_read_and_other_events_are_not() {
        let line = |action: &str| {
            format!(
                r#"{{"Type":"container","Action":"{action}","Actor":{{"ID":"c0"}},"timeNano":1500000000}}"#
            )
        };
        let read_at = Duration::from_secs(2);
        let expected =
            |action| Event { id: "c0".to_owned(), action, at: Duration::from_millis(1500), read_at };
        assert_eq!(event(&line("start"), read_at), Some(expected(Action::Start)));
        assert_eq!(event(&line("die"), read_at), Some(expected(Action::Die)));
        assert_eq!(event(&line("kill"), read_at), None);
    }
}
