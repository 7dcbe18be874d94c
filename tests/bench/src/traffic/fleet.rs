//! The workers behind the proxy: some that stay, and lanes in which one comes and the one before it goes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::arrivals::Arrivals;
use crate::container::BenchContainer;

/// Workers that are there all the time, so that the service never is without.
const STAYING: usize = 4;
/// How many changes are made side by side.
const LANES: usize = 6;
/// How long a worker serves before the next one of its lane comes.
const SERVING_TIME: Duration = Duration::from_millis(500);

/// Starts the workers that stay.
pub fn staying() -> Result<Vec<BenchContainer>> {
    let all = (0..STAYING).map(|number| worker(&format!("bench-stays-{number}")));
    let all = all.collect::<Result<Vec<_>>>()?;
    all.iter().try_for_each(BenchContainer::start)?;
    Ok(all)
}

fn worker(name: &str) -> Result<BenchContainer> {
    BenchContainer::with(name, &[], &json!({ "rollcall.service": "web" }), &[])
}

/// Makes so many changes, half of them starts and half `docker stop`, and gives the full IDs of the workers that came.
pub fn change(changes: usize, arrivals: &Arrivals) -> Result<Vec<String>> {
    let next = AtomicUsize::new(0);
    let starts = changes.div_ceil(2);
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES).map(|_| scope.spawn(|| lane(&next, starts, arrivals))).collect();
        let mut all = vec![];
        for lane in lanes {
            all.extend(lane.join().expect("a lane does not panic")?);
        }
        Ok(all)
    })
}

fn lane(next: &AtomicUsize, starts: usize, arrivals: &Arrivals) -> Result<Vec<String>> {
    let (mut all, mut before) = (vec![], None::<BenchContainer>);
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= starts {
            break;
        }
        let container = worker(&format!("bench-comes-{number}"))?;
        arrivals.expect(&container);
        container.start()?;
        all.push(container.id.clone());
        if let Some(before) = before.replace(container) {
            before.stop()?;
        }
        thread::sleep(SERVING_TIME);
    }
    if let Some(last) = before {
        last.stop()?;
    }
    Ok(all)
}
