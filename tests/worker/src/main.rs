//! The worker: serves its hostname on PORT (80), and on SIGTERM goes on serving for DRAIN_MS (1500) before it
//! exits 0. On SIGHUP it appends the time, in nanoseconds since 1970, as a line to HUP_LOG, if that is set.

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::net::{Ipv6Addr, TcpListener};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{env, fs, process, thread};

use signal_hook::consts::{SIGHUP, SIGTERM};
use signal_hook::iterator::Signals;

fn main() -> Result<(), Box<dyn Error>> {
    let port: u16 = setting("PORT", 80)?;
    let drain = Duration::from_millis(setting("DRAIN_MS", 1500)?);
    // The kernel's own word, so that it is the container's and not the host's.
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname")?;

    // Before the port opens: whoever sees it open may stop us.
    let mut signals = Signals::new([SIGTERM, SIGHUP])?;
    let mut hups = env::var_os("HUP_LOG")
        .map(|path| File::options().append(true).create(true).open(path))
        .transpose()?;
    thread::spawn(move || {
        for signal in signals.forever() {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970");
            match (signal, &mut hups) {
                (SIGHUP, Some(log)) => writeln!(log, "{}", now.as_nanos()).expect("the log takes a line"),
                (SIGHUP, None) => {}
                _ => {
                    thread::sleep(drain);
                    process::exit(0);
                }
            }
        }
    });
    // [::] takes IPv4 as well, unless the container has no IPv6 at all.
    let listener =
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)))?;
    rollcall_test_worker::serve(&listener, &hostname)?;
    Ok(())
}

/// The number in `name`, or `default` where it is not set.
fn setting<N: std::str::FromStr>(name: &str, default: N) -> Result<N, Box<dyn Error>>
where
    N::Err: Error + 'static,
{
    match env::var(name) {
        Ok(text) => Ok(text.parse()?),
        Err(_) => Ok(default),
    }
}
