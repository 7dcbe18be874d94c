//! A signal to a process of this host that a pid file names.

use std::{fs, io, path::PathBuf};

use rollcall_shared::model::signal::Signal;
use rustix::{
    io::Errno,
    process::{Pid, kill_process},
};

/// Signals the process that a pid file names.
#[derive(Debug)]
pub struct PidFileNotifier {
    /// The file, which is read each time.
    pub pid_file: PathBuf,
    /// The signal.
    pub signal: Signal,
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
        let path = || self.pid_file.clone();
        let text = fs::read_to_string(&self.pid_file)
            .map_err(|source| PidFileError::Read { path: path(), source })?;
        let content = text.trim();
        let pid = content.parse().ok().filter(|pid| *pid > 1).and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| PidFileError::NoPid {
            path: path(),
            content: content.chars().take(40).collect(),
        })?;
        let sent = match rustix::process::Signal::from_named_raw(self.signal.number()) {
            Some(signal) => kill_process(pid, signal),
            None => Err(Errno::INVAL),
        };
        sent.map_err(|error| PidFileError::Signal {
            path: path(),
            pid: pid.as_raw_nonzero().get(),
            source: error.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use rollcall_shared::process::error::one_line;

    use super::*;

    fn attempt(content: &str) -> Result<(), String> {
        let dir = tempfile::tempdir().expect("a folder");
        let pid_file = dir.path().join("pid");
        fs::write(&pid_file, content).expect("a file");
        PidFileNotifier { pid_file, signal: Signal::HUP }.attempt().map_err(|error| one_line(&error))
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
}
