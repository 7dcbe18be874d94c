//! etcd between three clients, by hand: one writes, and two do something as soon as their key changes.

use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use rollcall_shared::store::{KeyRange, Op};
use rollcall_tests::Etcd;

use crate::client::Client;
use crate::clock::now;

/// How long to wait until a watcher has done its part.
const WATCHER_TIMEOUT: Duration = Duration::from_secs(10);

/// The key that stands for a registration.
const REGISTRATION: &str = "/floor/registration";
/// The key that stands for a signal request.
const REQUEST: &str = "/floor/request";

/// An etcd with a client for each of Rollcall's steps.
pub struct Relay {
    /// Writes what the agent registers.
    writer: Client,
    /// Watches the registration, as the consumer does.
    pub consumer: Watcher,
    /// Watches the signal request, as the agent does.
    pub agent: Watcher,
    _etcd: Etcd,
}

impl Relay {
    /// Starts etcd and the watchers.
    pub fn start() -> Result<Self> {
        let etcd = Etcd::start()?;
        let (consumer, agent) = (Watcher::start(&etcd, REGISTRATION)?, Watcher::start(&etcd, REQUEST)?);
        Ok(Self { writer: Client::new(&etcd)?, consumer, agent, _etcd: etcd })
    }

    /// Writes the registration.
    pub fn register(&self) -> Result<()> {
        put(&self.writer, REGISTRATION)
    }

    /// Measures the time from a put to its event at the watcher.
    pub fn put_to_watch(&self) -> Result<Duration> {
        self.consumer.arm(|_| Ok(now()))?;
        let began = now();
        self.register()?;
        Ok(self.consumer.done()?.saturating_sub(began))
    }
}

/// Writes the signal request.
pub fn request(client: &Client) -> Result<()> {
    put(client, REQUEST)
}

fn put(client: &Client, key: &str) -> Result<()> {
    client.commit(&[Op::Put { key: key.to_owned(), value: vec![b'x'; 400] }])
}

/// What a watcher does about a change; it returns when the measured part of it was done.
type Reaction = Box<dyn FnOnce(&Client) -> Result<Duration> + Send>;

/// A thread that waits for a change of its key, and then does what it was armed with.
pub struct Watcher {
    armed: Sender<Reaction>,
    done: Receiver<Result<Duration>>,
}

impl Watcher {
    fn start(etcd: &Etcd, key: &str) -> Result<Self> {
        let (armed, reactions) = mpsc::channel::<Reaction>();
        let (sender, done) = mpsc::channel();
        let client = Client::new(etcd)?;
        let mut watch = client.watch(&KeyRange::key(key.to_owned()))?;
        std::thread::spawn(move || {
            for reaction in reactions {
                let batch = client.block_on(watch.next()).context("the watch ended");
                let done = batch.and_then(|batch| Ok(batch?)).and_then(|_| reaction(&client));
                if sender.send(done).is_err() {
                    return;
                }
            }
        });
        Ok(Self { armed, done })
    }

    /// Says what to do about the next change. To be called before each change.
    pub fn arm(&self, reaction: impl FnOnce(&Client) -> Result<Duration> + Send + 'static) -> Result<()> {
        self.armed.send(Box::new(reaction)).ok().context("the watcher has ended")
    }

    /// Waits until that is done.
    pub fn done(&self) -> Result<Duration> {
        self.done.recv_timeout(WATCHER_TIMEOUT).context("the watcher is not done")?
    }
}
