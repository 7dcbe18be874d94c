//! A signal to a process of this host that a pid file names, and that surely wrote it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use rollcall_shared::model::signal::Signal;
use rustix::{
    io::Errno,
    param::clock_ticks_per_second,
    process::{Pid, PidfdFlags, kill_process, pidfd_open, pidfd_send_signal},
};

/// Signals the process that a pid file names.
#[derive(Debug)]
pub struct PidFileNotifier {
    /// The file, which is read each time.
    pub pid_file: PathBuf,
    /// The signal.
    pub signal: Signal,
    /// The name that the process must have.
    pub process: Option<String>,
}

/// Why a process was not signalled. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    /// The file cannot be read.
    #[error("cannot read the pid file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file has no process ID.
    #[error("the pid file {} has {content:?}: expected a process ID", path.display())]
    NoPid {
        /// The file.
        path: PathBuf,
        /// What it has.
        content: String,
    },
    /// The process is not the one that wrote the file.
    #[error("process {pid} of the pid file {} {why}", path.display())]
    Another {
        /// The file.
        path: PathBuf,
        /// The process.
        pid: i32,
        /// How that can be seen.
        why: String,
    },
    /// The process cannot be signalled.
    #[error("cannot signal process {pid} of the pid file {}", path.display())]
    Signal {
        /// The file.
        path: PathBuf,
        /// The process.
        pid: i32,
        /// Why not.
        source: io::Error,
    },
}

impl PidFileNotifier {
    /// Sends the signal.
    pub(super) fn attempt(&self) -> Result<(), PidFileError> {
        let pid = read(&self.pid_file)?;
        let (number, path) = (pid.as_raw_nonzero().get(), &self.pid_file);
        let failed =
            |error: Errno| PidFileError::Signal { path: path.clone(), pid: number, source: error.into() };
        // First the handle, then the check: the process that was checked is the one that is signalled.
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            // Before Linux 5.3 there are no handles.
            Err(Errno::NOSYS) => None,
            opened => Some(opened.map_err(failed)?),
        };
        if let Some(why) = self.objection(number) {
            return Err(PidFileError::Another { path: path.clone(), pid: number, why });
        }
        let signal = rustix::process::Signal::from_named_raw(self.signal.number());
        let signal = signal.ok_or(Errno::INVAL).map_err(failed)?;
        match handle {
            Some(handle) => pidfd_send_signal(handle, signal),
            None => kill_process(pid, signal),
        }
        .map_err(failed)
    }

    /// Why the process is not the one that wrote the file, if that can be seen: numbers are used again. Ages are compared
    /// where no name is expected: a clock that is set ahead makes the file seem older than its process.
    fn objection(&self, pid: i32) -> Option<String> {
        let Some(expected) = &self.process else {
            let why = "is younger than the file, and no process is set that gives its name";
            return self.is_younger(pid).then(|| why.to_owned());
        };
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        let name = name.trim_end_matches('\n');
        (name.as_bytes() != &expected.as_bytes()[..expected.len().min(MAX_COMM_BYTES)])
            .then(|| format!("is {name:?}: expected {expected:?}"))
    }

    fn is_younger(&self, pid: i32) -> bool {
        let written = fs::metadata(&self.pid_file).and_then(|found| found.modified()).ok();
        let file_age = written.and_then(|written| written.elapsed().ok());
        process_age(pid).zip(file_age).is_some_and(|(process, file)| process + MAX_SKEW < file)
    }
}

/// The process ID that a pid file has.
pub(in crate::sink::file) fn read(path: &Path) -> Result<Pid, PidFileError> {
    let text =
        fs::read_to_string(path).map_err(|source| PidFileError::Read { path: path.to_owned(), source })?;
    let content = text.trim();
    let pid = content.parse().ok().filter(|pid| *pid > 1).and_then(Pid::from_raw);
    let shown = || content.chars().take(40).collect();
    pid.ok_or_else(|| PidFileError::NoPid { path: path.to_owned(), content: shown() })
}

/// How much younger than its file a process may seem: both ages are rounded.
const MAX_SKEW: Duration = Duration::from_secs(1);
/// Linux cuts the names of processes to this length.
const MAX_COMM_BYTES: usize = 15;

/// How long ago a process was started, by proc_pid_stat(5) and proc_uptime(5).
pub(in crate::sink::file) fn process_age(pid: i32) -> Option<Duration> {
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime = uptime.split(' ').next()?.parse().ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let started = start_ticks(&stat)? as f64 / clock_ticks_per_second() as f64;
    let started = Duration::try_from_secs_f64(started).ok()?;
    Some(Duration::try_from_secs_f64(uptime).ok()?.saturating_sub(started))
}

/// When a process was started, in clock ticks since its host was, by its line in /proc/PID/stat.
pub(in crate::sink::file) fn start_ticks(stat: &str) -> Option<u64> {
    // The name may have spaces and brackets; the start is the 20th word after it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use rollcall_shared::process::error::one_line;

    use super::*;

    fn attempt(content: &str) -> Result<(), String> {
        let dir = tempfile::tempdir().expect("a folder");
        let pid_file = dir.path().join("pid");
        fs::write(&pid_file, content).expect("a file");
        PidFileNotifier { pid_file, signal: Signal::HUP, process: None }
            .attempt()
            .map_err(|error| one_line(&error))
    }

    #[test]
    fn a_pid_file_that_names_no_process_is_refused() {
        for bad in ["", "0", "1", "-1", "-5", "x", "12 13", "99999999999"] {
            let error = attempt(bad).expect_err(bad);
            assert!(error.ends_with("expected a process ID"), "{error}");
        }
        // Above the kernel's greatest ID.
        assert!(attempt("2147483647\n").expect_err("nobody").ends_with("No such process (os error 3)"));
    }

    #[test]
    fn a_process_gets_the_signal() {
        use std::os::unix::process::ExitStatusExt;
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("a process");
        attempt(&format!("{}\n", child.id())).expect("it runs");
        let ended = child.wait().expect("it ends");
        assert_eq!(ended.signal(), Some(1));
    }

    #[test]
    fn a_process_that_is_younger_than_the_file_or_has_another_name_is_not_signalled() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("a process");
        let dir = tempfile::tempdir().expect("a folder");
        let pid_file = dir.path().join("pid");
        fs::write(&pid_file, child.id().to_string()).expect("a file");
        let notifier = |process: Option<&str>| PidFileNotifier {
            pid_file: pid_file.clone(),
            signal: Signal::HUP,
            process: process.map(ToOwned::to_owned),
        };
        // Right after its start, it has its parent's name.
        while fs::read_to_string(format!("/proc/{}/comm", child.id())).expect("it runs") != "sleep\n" {
            std::thread::yield_now();
        }
        let error = notifier(Some("nginx")).attempt().expect_err("it is another").to_string();
        assert!(error.ends_with("is \"sleep\": expected \"nginx\""), "{error}");
        let age = |seconds| {
            let file = fs::File::options().write(true).open(&pid_file).expect("a file");
            let written = std::time::SystemTime::now() - Duration::from_secs(seconds);
            file.set_modified(written).expect("it is ours");
        };
        age(3600);
        let error = notifier(None).attempt().expect_err("it is younger").to_string();
        assert!(error.contains("is younger than the file"), "{error}");
        assert!(child.try_wait().expect("a process").is_none(), "it was not signalled");
        notifier(Some("sleep")).attempt().expect("it is the one");
        assert!(!child.wait().expect("it ends").success());
    }
}
