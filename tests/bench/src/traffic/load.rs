//! A client with an open loop: requests are due at fixed times whatever became of those before, each on one of its own
//! connections, which are kept alive.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::exchange::{Answer, connect, exchange, has_ended, is_cut};
use crate::clock::now;

/// Requests a second.
pub const RATE: u32 = 200;
/// How many connections there are. A request that finds none free waits, and that counts as its latency.
const CONNECTIONS: usize = 16;

/// What came of the requests.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How long each took that was answered with 200, from when it was due.
    pub latencies: Vec<Duration>,
    /// Why requests failed, and how many did so.
    pub failures: BTreeMap<String, usize>,
    /// Connections that the proxy ended without having said so in an answer, and that were idle.
    pub cut_idle: usize,
    /// The same while a request was on its way; it was sent again on a new connection, once.
    pub cut_busy: usize,
    /// Connections that the proxy ended as it had said.
    pub ended: usize,
    /// When each worker answered for the first time, since 1970, by its host name.
    pub first_served: BTreeMap<String, Duration>,
}

impl Outcome {
    /// How many requests failed.
    pub fn failed(&self) -> usize {
        self.failures.values().sum()
    }

    /// How many requests there were.
    pub fn requests(&self) -> usize {
        self.latencies.len() + self.failed()
    }

    fn take(&mut self, other: Outcome) {
        self.latencies.extend(other.latencies);
        self.cut_idle += other.cut_idle;
        self.cut_busy += other.cut_busy;
        self.ended += other.ended;
        for (reason, count) in other.failures {
            *self.failures.entry(reason).or_default() += count;
        }
        for (worker, at) in other.first_served {
            self.first_served.entry(worker).and_modify(|first| *first = at.min(*first)).or_insert(at);
        }
    }
}

/// A client at work.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    clock: JoinHandle<()>,
    connections: Vec<JoinHandle<Outcome>>,
}

impl Load {
    /// Begins to ask a port of this host.
    pub fn start(port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (due, queue) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        let stopped = stop.clone();
        let clock = thread::spawn(move || {
            let begun = Instant::now();
            for number in 0u32.. {
                let at = begun + Duration::from_secs(1) * number / RATE;
                thread::sleep(at.saturating_duration_since(Instant::now()));
                if stopped.load(Ordering::Relaxed) || due.send(at).is_err() {
                    return;
                }
            }
        });
        let connections = (0..CONNECTIONS).map(|_| {
            let queue = queue.clone();
            thread::spawn(move || Connection { port, stream: None, outcome: Outcome::default() }.run(&queue))
        });
        Self { stop, clock, connections: connections.collect() }
    }

    /// Ends it, after the requests that are due.
    pub fn stop(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        self.clock.join().expect("the clock does not panic");
        let mut all = Outcome::default();
        for connection in self.connections {
            all.take(connection.join().expect("a connection does not panic"));
        }
        all
    }
}

/// One of the connections.
struct Connection {
    port: u16,
    stream: Option<BufReader<TcpStream>>,
    outcome: Outcome,
}

impl Connection {
    fn run(mut self, queue: &Mutex<Receiver<Instant>>) -> Outcome {
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(due) = next else { return self.outcome };
            match self.request() {
                Ok(Answer { status: 200, body, .. }) => {
                    self.outcome.latencies.push(due.elapsed());
                    self.outcome.first_served.entry(body).or_insert_with(now);
                }
                Ok(Answer { status, .. }) => self.fail(format!("status {status}")),
                Err(error) => self.fail(format!("{:#}", error.root_cause())),
            }
        }
    }

    fn fail(&mut self, reason: String) {
        *self.outcome.failures.entry(reason).or_default() += 1;
    }

    fn request(&mut self) -> Result<Answer> {
        if let Some(mut stream) = self.stream.take() {
            if has_ended(stream.get_ref()) {
                self.outcome.cut_idle += 1;
            } else {
                match exchange(&mut stream, "") {
                    Ok(answer) => return Ok(self.keep(stream, answer)),
                    Err(error) if is_cut(&error) => self.outcome.cut_busy += 1,
                    Err(error) => return Err(error),
                }
            }
        }
        let mut stream = connect(self.port)?;
        let answer = exchange(&mut stream, "")?;
        Ok(self.keep(stream, answer))
    }

    fn keep(&mut self, stream: BufReader<TcpStream>, answer: Answer) -> Answer {
        if answer.is_last {
            self.outcome.ended += 1;
        } else {
            self.stream = Some(stream);
        }
        answer
    }
}
