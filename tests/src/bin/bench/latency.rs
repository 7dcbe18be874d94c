//! From a container's start and end to the file, and to the signal.

use std::time::Duration;

use anyhow::Result;
use rollcall_tests::until;

use crate::engine::{self, Made};
use crate::figures::{Figures, heading};
use crate::floors::{self, Floors};
use crate::stage::{Mode, Stage};
use crate::watched;

/// Between two changes: longer than what gathers them.
pub const APART: Duration = Duration::from_millis(1100);

/// By then it is over, and nothing of the bench has run beside it but the threads that note when.
const OVER: Duration = Duration::from_millis(30);

const SOON: Duration = Duration::from_secs(10);

/// Measures and prints both modes, with one and with fifty others running.
pub fn run(runs: usize) -> Result<()> {
    for others in [1, 50] {
        println!("\n=== {others} other container{} running", if others == 1 { "" } else { "s" });
        let others: Vec<Made> = (0..others)
            .map(|number| Made::new(&format!("bench-other-{number}"), &[], serde_json::json!({}), &[]))
            .collect::<Result<_>>()?;
        others.iter().try_for_each(Made::start)?;
        let floors = floors::measure(runs)?;
        for (mode, name) in [(Mode::Etcd, "etcd on loopback"), (Mode::Embedded, "embedded")] {
            heading(name);
            measure(mode, runs, &floors)?;
        }
    }
    Ok(())
}

fn measure(mode: Mode, runs: usize, floors: &Floors) -> Result<()> {
    let stage = Stage::start(mode)?;
    let versions = watched::watch(&stage.file())?;
    let made = Made::new("bench-subject", &[], serde_json::json!({}), &[])?;
    let server = format!(":{} ", made.port);
    let listed = |text: &str| text.replace(';', " ").contains(&server);
    let mut start_to_file = Figures::default();
    let mut start_to_hup = Figures::default();
    let mut file_to_hup = Figures::default();
    let mut die_to_file = Figures::default();
    for _ in 0..runs {
        std::thread::sleep(APART);
        let heard = stage.hups()?.len();
        let since = engine::now();
        made.start()?;
        std::thread::sleep(OVER);
        let event = until("the event", SOON, || engine::past_event(since, &made.id, "start"))?;
        let version = watched::await_version(&versions, listed)?;
        start_to_file.add(version.at.saturating_sub(event.at));
        let hup = until("the signal", SOON, || Ok(stage.hups()?.get(heard).copied()))?;
        start_to_hup.add(hup.saturating_sub(event.at));
        file_to_hup.add(hup.saturating_sub(version.at));
        std::thread::sleep(APART);
        let since = engine::now();
        made.kill()?;
        std::thread::sleep(OVER);
        let event = until("the event", SOON, || engine::past_event(since, &made.id, "die"))?;
        let version = watched::await_version(&versions, |text| !listed(text))?;
        die_to_file.add(version.at.saturating_sub(event.at));
    }
    let (start, die, signal) = match mode {
        Mode::Etcd => (floors.start_to_file, floors.die_to_file, floors.file_to_signal),
        Mode::Embedded => {
            (floors.start_to_file_embedded, floors.die_to_file_embedded, floors.file_to_signal_embedded)
        }
    };
    start_to_file.print("start -> file", Some(start));
    die_to_file.print("die -> file", Some(die));
    start_to_hup.print("start -> SIGHUP received", Some(start_to_file.median() + signal));
    file_to_hup.print("file -> SIGHUP received", Some(signal));
    Ok(())
}
