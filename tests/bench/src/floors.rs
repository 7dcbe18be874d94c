//! The floors: what Docker, etcd, the disk and a signal cost by themselves, on this machine, now.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;

use crate::bare_target::BareTarget;
use crate::clock::now;
use crate::container::BenchContainer;
use crate::docker::Connection;
use crate::event::{Action, Event, EventStream};
use crate::figures::{Figures, heading};
use crate::latency::CHANGE_INTERVAL;
use crate::relay::{self, Relay};
use crate::setup::Mode;

/// The medians of Rollcall's steps without Rollcall, in ms.
#[derive(Debug, Clone, Copy)]
pub struct Floors {
    /// From a start to the file: the event, an inspection, with etcd a put and its watch event, the file.
    pub start_to_file: f64,
    /// From an end to the file: the event, with etcd a put and its watch event, the file.
    pub die_to_file: f64,
    /// From a started container's file to the signal: with etcd a put and its watch event, the signal.
    pub file_to_signal: f64,
}

impl Floors {
    /// Measures and prints them, beside whatever else is running.
    pub fn measure(mode: Mode, runs: usize) -> Result<Self> {
        let mut steps = Steps::new(mode)?;
        for _ in 0..runs {
            std::thread::sleep(CHANGE_INTERVAL);
            steps.start()?;
            std::thread::sleep(CHANGE_INTERVAL);
            steps.die()?;
        }
        heading(&format!("floors after a change, {}", mode.title()));
        for (name, figures) in [
            ("start event delivery", &steps.start_event),
            ("die event delivery", &steps.die_event),
            ("inspect", &steps.inspect),
            ("start, event to file by hand", &steps.start_to_file),
            ("die, event to file by hand", &steps.die_to_file),
            ("file to signal by hand", &steps.file_to_signal),
        ] {
            figures.print(name, None);
        }
        Ok(Self {
            start_to_file: steps.start_to_file.median(),
            die_to_file: steps.die_to_file.median(),
            file_to_signal: steps.file_to_signal.median(),
        })
    }
}

/// Measures and prints the single steps while nothing else happens.
pub fn measure_quiet(runs: usize) -> Result<()> {
    let (target, relay) = (BareTarget::start()?, Relay::start()?);
    let (mut put, mut file, mut signal) = (Figures::default(), Figures::default(), Figures::default());
    for _ in 0..runs {
        put.add(relay.put_to_watch()?);
        let began = now();
        file.add(target.write()?.saturating_sub(began));
        let began = now();
        target.signal()?;
        signal.add(target.received_at()?.saturating_sub(began));
    }
    heading("floors, when nothing else happens");
    put.print("etcd put to watch", None);
    file.print("2 KiB written, fsynced, renamed", None);
    signal.print("signal to a process, received", None);
    Ok(())
}

/// The steps from an event to a file and a signal, one after the other, and their figures.
struct Steps {
    target: Arc<BareTarget>,
    /// etcd between them, in that mode.
    relay: Option<Relay>,
    docker: Connection,
    events: EventStream,
    container: BenchContainer,
    start_event: Figures,
    die_event: Figures,
    inspect: Figures,
    start_to_file: Figures,
    die_to_file: Figures,
    file_to_signal: Figures,
}

impl Steps {
    fn new(mode: Mode) -> Result<Self> {
        let relay = match mode {
            Mode::Etcd => Some(Relay::start()?),
            Mode::Embedded => None,
        };
        Ok(Self {
            target: Arc::new(BareTarget::start()?),
            relay,
            docker: Connection::open()?,
            events: EventStream::open()?,
            container: BenchContainer::new("bench-floor")?,
            start_event: Figures::default(),
            die_event: Figures::default(),
            inspect: Figures::default(),
            start_to_file: Figures::default(),
            die_to_file: Figures::default(),
            file_to_signal: Figures::default(),
        })
    }

    /// Starts the container; an inspection, the file and the signal follow from the event.
    fn start(&mut self) -> Result<()> {
        let Self { target, relay, docker, events, container, .. } = self;
        if let Some(relay) = relay {
            let file = target.clone();
            relay.consumer.arm(move |client| {
                let file_at = file.write()?;
                relay::request(client)?;
                Ok(file_at)
            })?;
            let signalled = target.clone();
            relay.agent.arm(move |_| signalled.signal().map(|()| now()))?;
        }
        let (event, (inspected, file_at)) = on_event(container, Action::Start, events, || {
            let asked = Instant::now();
            docker.inspect(&container.id)?;
            let inspected = asked.elapsed();
            let file_at = match relay {
                Some(relay) => {
                    relay.register()?;
                    let file_at = relay.consumer.done()?;
                    relay.agent.done()?;
                    file_at
                }
                None => {
                    let file_at = target.write()?;
                    target.signal()?;
                    file_at
                }
            };
            Ok((inspected, file_at))
        })?;
        let received_at = target.received_at()?;
        target.free_replaced();
        self.inspect.add(inspected);
        self.start_event.add(event.read_at.saturating_sub(event.at));
        self.start_to_file.add(file_at.saturating_sub(event.at));
        self.file_to_signal.add(received_at.saturating_sub(file_at));
        Ok(())
    }

    /// Kills the container; the file follows from the event.
    fn die(&mut self) -> Result<()> {
        let Self { target, relay, events, container, .. } = self;
        if let Some(relay) = relay {
            let file = target.clone();
            relay.consumer.arm(move |_| file.write())?;
        }
        let (event, file_at) = on_event(container, Action::Die, events, || match relay {
            Some(relay) => {
                relay.register()?;
                relay.consumer.done()
            }
            None => target.write(),
        })?;
        target.free_replaced();
        self.die_event.add(event.read_at.saturating_sub(event.at));
        self.die_to_file.add(file_at.saturating_sub(event.at));
        Ok(())
    }
}

/// Acts on the container from another thread, so that `then` follows from the event and not from Docker's answer.
fn on_event<T>(
    container: &BenchContainer,
    action: Action,
    events: &EventStream,
    then: impl FnOnce() -> Result<T>,
) -> Result<(Event, T)> {
    std::thread::scope(|scope| {
        let acting = scope.spawn(|| container.act(action));
        let done = events.wait(&container.id, action).and_then(|event| Ok((event, then()?)));
        acting.join().expect("acting does not panic")?;
        done
    })
}
