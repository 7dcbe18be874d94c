//! The floors: what Docker, etcd, the disk and a signal cost by themselves, on this machine, now.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use futures_util::StreamExt;
use rollcall_shared::store::{Op, Revision, Store, Watch, etcd::EtcdStore, settings::EtcdSettings};
use rollcall_tests::{Etcd, until};
use tempfile::TempDir;

use crate::engine::{self, Event, Made};
use crate::figures::{Figures, heading};
use crate::latency;

const SOON: Duration = Duration::from_secs(10);

/// The medians, in ms.
#[derive(Debug, Clone, Copy)]
pub struct Floors {
    /// From a start to a file, by the same steps without Rollcall: the event, an inspection, an etcd put seen by
    /// a watcher, the file.
    pub start_to_file: f64,
    /// The same without etcd.
    pub start_to_file_embedded: f64,
    /// From an end to a file: the event, an etcd put seen by a watcher, the file.
    pub die_to_file: f64,
    /// The same without etcd.
    pub die_to_file_embedded: f64,
    /// An etcd put seen by a watcher, once a started container's file is there.
    pub signal_round: f64,
    /// A signal to a process, after that.
    pub kill: f64,
    /// A signal to a process, after the file where there is no etcd.
    pub kill_embedded: f64,
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
    let etcd = Round::new()?;
    let dir = tempfile::tempdir()?;
    let listener = Listener::start()?;
    let mut quiet = [Figures::default(), Figures::default(), Figures::default()];
    for _ in 0..runs {
        quiet[0].add(etcd.put_to_watch()?);
        quiet[1].add(write(dir.path())?);
        quiet[2].add(listener.signal()?);
    }
    let chain = |with_etcd: bool| chain(runs, with_etcd.then_some(&etcd), &listener, dir.path());
    let (by_etcd, embedded) = (chain(true)?, chain(false)?);
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
        ("etcd put to watch, after the file", &by_etcd.signal_round),
        ("signal to a process, received, after that", &by_etcd.kill),
        ("signal to a process, after the file", &embedded.kill),
    ] {
        figures.print(name, None);
    }
    Ok(Floors {
        start_to_file: by_etcd.start.median(),
        start_to_file_embedded: embedded.start.median(),
        die_to_file: by_etcd.die.median(),
        die_to_file_embedded: embedded.die.median(),
        signal_round: by_etcd.signal_round.median(),
        kill: by_etcd.kill.median(),
        kill_embedded: embedded.kill.median(),
    })
}

/// The steps from an event to a file, one after the other.
#[derive(Default)]
struct Chain {
    start_event: Figures,
    die_event: Figures,
    inspect: Figures,
    start: Figures,
    die: Figures,
    signal_round: Figures,
    kill: Figures,
}

fn chain(runs: usize, etcd: Option<&Round>, listener: &Listener, dir: &Path) -> Result<Chain> {
    let mut chain = Chain::default();
    let events = engine::events()?;
    let made = Made::new("bench-floor", &[], serde_json::json!({}), &[])?;
    let finish = || -> Result<Duration> {
        if let Some(etcd) = etcd {
            etcd.put_to_watch()?;
        }
        write(dir)?;
        Ok(engine::now())
    };
    for _ in 0..runs {
        std::thread::sleep(latency::APART);
        let start = scoped_event(&made, Made::start, &events, "start", |event| {
            let asked = Instant::now();
            made.inspect()?;
            chain.inspect.add(asked.elapsed());
            chain.start_event.add(event.read_at.saturating_sub(event.at));
            let file_at = finish()?;
            if let Some(etcd) = etcd {
                chain.signal_round.add(etcd.put_to_watch()?);
            }
            chain.kill.add(listener.signal()?);
            Ok(file_at.saturating_sub(event.at))
        })?;
        chain.start.add(start);
        std::thread::sleep(latency::APART);
        let die = scoped_event(&made, Made::kill, &events, "die", |event| {
            chain.die_event.add(event.read_at.saturating_sub(event.at));
            Ok(finish()?.saturating_sub(event.at))
        })?;
        chain.die.add(die);
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

/// An etcd with a writer and a watcher.
struct Round {
    runtime: tokio::runtime::Runtime,
    writer: EtcdStore,
    watch: Mutex<Watch>,
    _etcd: Etcd,
}

impl Round {
    fn new() -> Result<Self> {
        let etcd = Etcd::start()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (writer, reader) = (store(&etcd)?, store(&etcd)?);
        let watch = runtime.block_on(reader.watch("/floor/", Revision(0)))?;
        Ok(Self { runtime, writer, watch: Mutex::new(watch), _etcd: etcd })
    }

    /// From the put to when the watcher has it, which is before the writer has its answer.
    fn put_to_watch(&self) -> Result<Duration> {
        let mut watch = self.watch.lock().expect("nobody panics with it");
        let began = Instant::now();
        let put = [Op::Put { key: "/floor/key".to_owned(), value: vec![b'x'; 400] }];
        let seen = async {
            let seen = watch.next().await;
            (seen, began.elapsed())
        };
        let (written, (seen, took)) =
            self.runtime.block_on(async { tokio::join!(self.writer.commit(&put, None, None), seen) });
        written?;
        seen.context("a change")??;
        Ok(took)
    }
}

fn write(dir: &Path) -> Result<Duration> {
    let (staged, dest) = (dir.join("staged"), dir.join("dest"));
    let began = Instant::now();
    let mut file = File::create(&staged)?;
    file.write_all(&[b'x'; 2048])?;
    file.sync_all()?;
    fs::rename(&staged, &dest)?;
    Ok(began.elapsed())
}

/// A process of our own that writes down when it is signalled, as the bench's target does.
struct Listener {
    pid: rustix::process::Pid,
    log: PathBuf,
    _made: Made,
    _dir: TempDir,
}

impl Listener {
    fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let log = dir.path().join("hups");
        let binds = [format!("{}:/out", dir.path().display())];
        let labels = serde_json::json!({});
        let made = Made::new("bench-floor-target", &["HUP_LOG=/out/hups"], labels, &binds)?;
        made.start()?;
        let pid = made.inspect()?["State"]["Pid"].as_i64().context("a PID")?;
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("a PID")?;
        until("it takes signals", SOON, || Ok(log.exists()))?;
        Ok(Self { pid, log, _made: made, _dir: dir })
    }

    /// From a signal to when the process has it.
    fn signal(&self) -> Result<Duration> {
        let lines =
            || fs::read_to_string(&self.log).map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
        let heard = lines()?.len();
        let began = engine::now();
        rustix::process::kill_process(self.pid, rustix::process::Signal::HUP)?;
        let line = until("the signal", SOON, || Ok(lines()?.get(heard).cloned()))?;
        Ok(Duration::from_nanos(line.parse()?).saturating_sub(began))
    }
}
