//! From a container's start and end to the file, and to the signal, when changes are about a second apart.

use std::time::Duration;

use anyhow::Result;
use rollcall_tests::until;

use crate::clock::now;
use crate::container::BenchContainer;
use crate::event::{Action, EVENT_TIMEOUT, Event, past_events};
use crate::figures::{Figures, heading};
use crate::file_watch::{FileWatch, Version};
use crate::floors::Floors;
use crate::setup::{Mode, Setup};

/// The time between two changes: none waits because of the one before.
pub const CHANGE_INTERVAL: Duration = Duration::from_millis(1100);

/// By then the file and the signal are there. Until then nothing of the bench runs but the threads that take times.
const QUIET_TIME: Duration = Duration::from_millis(30);

/// How long to wait for the target's signal.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Measures and prints one mode.
pub fn run(mode: Mode, runs: usize, floors: &Floors) -> Result<()> {
    let setup = Setup::start(mode)?;
    let file = FileWatch::start(&setup.consumer.dest())?;
    let container = BenchContainer::new("bench-subject")?;
    let lists = |version: &Version| Ok(version.ports()?.contains(&container.port));
    let (mut start_to_file, mut die_to_file) = (Figures::default(), Figures::default());
    let (mut start_to_signal, mut file_to_signal) = (Figures::default(), Figures::default());
    for _ in 0..runs {
        std::thread::sleep(CHANGE_INTERVAL);
        let before = setup.received_signals()?.len();
        let event = change(&container, Action::Start)?;
        let version = file.wait(lists)?;
        start_to_file.add(version.at.saturating_sub(event.at));
        let signal = until("the target has the signal", RECEIVE_TIMEOUT, || {
            Ok(setup.received_signals()?.get(before).copied())
        })?;
        start_to_signal.add(signal.saturating_sub(event.at));
        file_to_signal.add(signal.saturating_sub(version.at));
        std::thread::sleep(CHANGE_INTERVAL);
        let event = change(&container, Action::Die)?;
        let version = file.wait(|version| lists(version).map(|lists| !lists))?;
        die_to_file.add(version.at.saturating_sub(event.at));
    }
    heading(mode.title());
    start_to_file.print("start -> file", Some(floors.start_to_file));
    die_to_file.print("die -> file", Some(floors.die_to_file));
    let floor = start_to_file.median() + floors.file_to_signal;
    start_to_signal.print("start -> SIGHUP received", Some(floor));
    file_to_signal.print("file -> SIGHUP received", Some(floors.file_to_signal));
    Ok(())
}

/// Acts on a container, and asks for the event when everything is over.
fn change(container: &BenchContainer, action: Action) -> Result<Event> {
    let since = now();
    container.act(action)?;
    std::thread::sleep(QUIET_TIME);
    until("Docker has the event", EVENT_TIMEOUT, || {
        let events = past_events(since)?;
        Ok(events.into_iter().find(|event| event.id == container.id && event.action == action))
    })
}
