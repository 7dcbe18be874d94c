//! The floors: what Docker, etcd, the disk and a signal cost by themselves, on this machine, now.

use std::fs::{self, File};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use futures_util::StreamExt;
use rollcall_shared::store::{Op, Revision, Store, etcd::EtcdStore, settings::EtcdSettings};
use rollcall_tests::{Etcd, until};
use tempfile::TempDir;

use crate::engine::{self, Event, Made};
use crate::figures::{Figures, heading};
use crate::latency;

const SOON: Duration = Duration::from_secs(10);

/// The medians of the same steps without Rollcall, in ms.
#[derive(Debug, Clone, Copy)]
pub struct Floors {
    /// From a start to a file: the event, an inspection, an etcd put, a file when the watcher has it.
    pub start_to_file: f64,
    /// The same without etcd.
    pub start_to_file_embedded: f64,
    /// From an end to a file: the event, an etcd put, a file when the watcher has it.
    pub die_to_file: f64,
    /// The same without etcd.
    pub die_to_file_embedded: f64,
    /// From a started container's file to a signal: an etcd put, a signal when another watcher has it.
    pub file_to_signal: f64,
    /// The same without etcd.
    pub file_to_signal_embedded: f64,
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    etcd: EtcdSettings,
}

/// A store at an etcd.
pub fn store(etcd: &Etcd) -> Result<EtcdStore> {
    let Cli { etcd } = Cli::try_parse_from(["bench", "--etcd", &etcd.endpoint()])?;
    Ok(EtcdStore::new(etcd)?)
}

/// Measures and prints them, beside whatever else is running.
pub fn measure(runs: usize) -> Result<Floors> {
    let hand = Arc::new(Hand::new()?);
    let peers = Peers::start()?;
    let mut quiet = [Figures::default(), Figures::default(), Figures::default()];
    for _ in 0..runs {
        quiet[0].add(peers.put_to_watch()?);
        let began = engine::now();
        quiet[1].add(hand.write()? - began);
        let began = engine::now();
        hand.kill()?;
        quiet[2].add(hand.heard()? - began);
    }
    let (by_etcd, embedded) = (chain(runs, Some(&peers), &hand)?, chain(runs, None, &hand)?);
    heading("floors, when nothing else happens");
    quiet[0].print("etcd put to watch", None);
    quiet[1].print("2 KiB written, fsynced, renamed", None);
    quiet[2].print("signal to a process, received", None);
    heading("floors, in the wake of a start or an end");
    for (name, figures) in [
        ("start event delivery", &by_etcd.start_event),
        ("die event delivery", &by_etcd.die_event),
        ("inspect", &by_etcd.inspect),
        ("start, event to file by hand, with etcd", &by_etcd.start),
        ("start, event to file by hand, without", &embedded.start),
        ("die, event to file by hand, with etcd", &by_etcd.die),
        ("die, event to file by hand, without", &embedded.die),
        ("file to signal by hand, with etcd", &by_etcd.signal),
        ("file to signal by hand, without", &embedded.signal),
    ] {
        figures.print(name, None);
    }
    Ok(Floors {
        start_to_file: by_etcd.start.median(),
        start_to_file_embedded: embedded.start.median(),
        die_to_file: by_etcd.die.median(),
        die_to_file_embedded: embedded.die.median(),
        file_to_signal: by_etcd.signal.median(),
        file_to_signal_embedded: embedded.signal.median(),
    })
}

/// The steps from an event to a file and a signal, one after the other.
#[derive(Default)]
struct Chain {
    start_event: Figures,
    die_event: Figures,
    inspect: Figures,
    start: Figures,
    die: Figures,
    signal: Figures,
}

fn chain(runs: usize, peers: Option<&Peers>, hand: &Arc<Hand>) -> Result<Chain> {
    let mut chain = Chain::default();
    let events = engine::events()?;
    let mut docker = engine::Kept::new()?;
    let made = Made::new("bench-floor", &[], serde_json::json!({}), &[])?;
    for _ in 0..runs {
        std::thread::sleep(latency::APART);
        if let Some(peers) = peers {
            let by = hand.clone();
            peers.consumer.arm(move |etcd| {
                let file_at = by.write()?;
                etcd.put(SIGNAL)?;
                Ok(file_at)
            })?;
            let by = hand.clone();
            peers.agent.arm(move |_| by.kill().map(|()| engine::now()))?;
        }
        let (start_event, inspected, file_at, heard_at) =
            scoped_event(&made, Made::start, &events, "start", |event| {
                let asked = Instant::now();
                docker.inspect(&made.id)?;
                let inspected = asked.elapsed();
                let file_at = match peers {
                    Some(peers) => {
                        peers.etcd.put(FILE)?;
                        let file_at = peers.consumer.done()?;
                        peers.agent.done()?;
                        file_at
                    }
                    None => {
                        let file_at = hand.write()?;
                        hand.kill()?;
                        file_at
                    }
                };
                Ok((event.clone(), inspected, file_at, hand.heard()?))
            })?;
        hand.free();
        chain.inspect.add(inspected);
        chain.start_event.add(start_event.read_at.saturating_sub(start_event.at));
        chain.start.add(file_at.saturating_sub(start_event.at));
        chain.signal.add(heard_at.saturating_sub(file_at));
        std::thread::sleep(latency::APART);
        if let Some(peers) = peers {
            let by = hand.clone();
            peers.consumer.arm(move |_| by.write())?;
        }
        let (die_event, file_at) = scoped_event(&made, Made::kill, &events, "die", |event| {
            let file_at = match peers {
                Some(peers) => {
                    peers.etcd.put(FILE)?;
                    peers.consumer.done()?
                }
                None => hand.write()?,
            };
            Ok((event.clone(), file_at))
        })?;
        hand.free();
        chain.die_event.add(die_event.read_at.saturating_sub(die_event.at));
        chain.die.add(file_at.saturating_sub(die_event.at));
    }
    Ok(chain)
}

/// Acts on the container from another thread, so that the event is taken as soon as it comes and not when
/// Docker has answered.
fn scoped_event<T>(
    made: &Made,
    act: impl FnOnce(&Made) -> Result<()> + Send,
    events: &Receiver<Event>,
    action: &str,
    then: impl FnOnce(&Event) -> Result<T>,
) -> Result<T> {
    std::thread::scope(|scope| {
        let acting = scope.spawn(|| act(made));
        let done = engine::await_event(events, &made.id, action).and_then(|event| then(&event));
        acting.join().expect("acting does not panic")?;
        done
    })
}

/// A key whose change has a file written.
const FILE: &str = "/floor/file";
/// A key whose change has a signal sent.
const SIGNAL: &str = "/floor/signal";

/// An etcd and who meet there: a client for each step.
struct Peers {
    /// What the agent has to say.
    etcd: Client,
    /// Hears of it, as the consumer does.
    consumer: Peer,
    /// Hears of what that has to say, as the agent does.
    agent: Peer,
    _etcd: Etcd,
}

impl Peers {
    fn start() -> Result<Self> {
        let etcd = Etcd::start()?;
        let (consumer, agent) = (Peer::start(&etcd, FILE)?, Peer::start(&etcd, SIGNAL)?);
        Ok(Self { etcd: Client::new(&etcd)?, consumer, agent, _etcd: etcd })
    }

    fn put_to_watch(&self) -> Result<Duration> {
        self.consumer.arm(|_| Ok(engine::now()))?;
        let began = engine::now();
        self.etcd.put(FILE)?;
        Ok(self.consumer.done()?.saturating_sub(began))
    }
}

/// A client of an etcd.
struct Client {
    runtime: tokio::runtime::Runtime,
    store: EtcdStore,
}

impl Client {
    fn new(etcd: &Etcd) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, store: store(etcd)? })
    }

    fn put(&self, key: &str) -> Result<()> {
        let put = [Op::Put { key: key.to_owned(), value: vec![b'x'; 400] }];
        self.runtime.block_on(self.store.commit(&put, None, None))?;
        Ok(())
    }
}

/// What a peer does about a change; gives when it was done.
type Action = Box<dyn FnOnce(&Client) -> Result<Duration> + Send>;

/// A thread that awaits a change of its key, and then does what it was armed with.
struct Peer {
    armed: Sender<Action>,
    done: Receiver<Result<Duration>>,
}

impl Peer {
    fn start(etcd: &Etcd, key: &'static str) -> Result<Self> {
        let (armed, actions) = mpsc::channel::<Action>();
        let (sender, done) = mpsc::channel();
        let client = Client::new(etcd)?;
        let mut watch = client.runtime.block_on(client.store.watch(key, Revision(0)))?;
        std::thread::spawn(move || {
            for action in actions {
                let change = client.runtime.block_on(watch.next());
                let change = change.context("a change").and_then(|change| Ok(change?));
                if sender.send(change.and_then(|_| action(&client))).is_err() {
                    return;
                }
            }
        });
        Ok(Self { armed, done })
    }

    /// To be called before each change.
    fn arm(&self, action: impl FnOnce(&Client) -> Result<Duration> + Send + 'static) -> Result<()> {
        self.armed.send(Box::new(action)).ok().context("the peer has ended")
    }

    fn done(&self) -> Result<Duration> {
        self.done.recv_timeout(SOON)?
    }
}

/// What Rollcall does, by hand: a file, and a signal to a process that writes down when it has it, as the
/// bench's target does.
struct Hand {
    pid: rustix::process::Pid,
    dir: TempDir,
    /// The file that was replaced last: freeing it takes longer than the rename.
    replaced: Mutex<Option<File>>,
    /// How many signals were sent.
    sent: AtomicUsize,
    _made: Made,
}

impl Hand {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let binds = [format!("{}:/out", dir.path().display())];
        let labels = serde_json::json!({});
        let made = Made::new("bench-floor-target", &["HUP_LOG=/out/hups"], labels, &binds)?;
        made.start()?;
        let pid = made.inspect()?["State"]["Pid"].as_i64().context("a PID")?;
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("a PID")?;
        let hand = Self { pid, dir, replaced: Mutex::default(), sent: AtomicUsize::new(0), _made: made };
        until("it takes signals", SOON, || Ok(hand.dir.path().join("hups").exists()))?;
        Ok(hand)
    }

    /// Puts a file in place; gives when it was there.
    fn write(&self) -> Result<Duration> {
        let (staged, dest) = (self.dir.path().join("staged"), self.dir.path().join("dest"));
        let mut file = File::create(&staged)?;
        file.write_all(&[b'x'; 2048])?;
        file.sync_all()?;
        let replaced = File::open(&dest).ok();
        fs::rename(&staged, &dest)?;
        let at = engine::now();
        *self.replaced.lock().expect("nobody panics with it") = replaced;
        Ok(at)
    }

    /// Sends the signal.
    fn kill(&self) -> Result<()> {
        rustix::process::kill_process(self.pid, rustix::process::Signal::HUP)?;
        self.sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Frees the file that was replaced, once that is in nobody's way.
    fn free(&self) {
        self.replaced.lock().expect("nobody panics with it").take();
    }

    /// When the process had the signal that was sent last.
    fn heard(&self) -> Result<Duration> {
        let last = self.sent.load(Ordering::Relaxed) - 1;
        let line = until("the signal", SOON, || {
            let text = fs::read_to_string(self.dir.path().join("hups"))?;
            Ok(text.lines().nth(last).map(str::to_owned))
        })?;
        Ok(Duration::from_nanos(line.parse()?))
    }
}
