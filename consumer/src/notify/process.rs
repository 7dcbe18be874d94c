//! A signal to a process of this host, which its pid file names.

use std::{fs, path::PathBuf};

use rollcall_shared::signal::Signal;
use rustix::process::{Pid, kill_process};

/// Signals the process of a pid file.
#[derive(Debug)]
pub struct ProcessNotifier {
    /// The file, which is read each time.
    pub pid_file: PathBuf,
    /// The signal.
    pub signal: Signal,
}

impl ProcessNotifier {
    /// Sends the signal.
    pub(super) fn attempt(&self) -> Result<(), String> {
        let named = |why: String| format!("the pid file {}: {why}", self.pid_file.display());
        let text = fs::read_to_string(&self.pid_file).map_err(|error| named(error.to_string()))?;
        let pid = text.trim().parse().ok().filter(|pid| *pid > 1).and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| named(format!("{:?} is not a process ID", text.trim())))?;
        let signal = rustix::process::Signal::from_named_raw(self.signal.number())
            .ok_or_else(|| format!("the signal {} cannot be sent", self.signal))?;
        kill_process(pid, signal).map_err(|error| named(format!("process {}: {error}", pid.as_raw_nonzero())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(content: &str) -> Result<(), String> {
        let dir = tempfile::tempdir().expect("a folder");
        let pid_file = dir.path().join("pid");
        fs::write(&pid_file, content).expect("a file");
        ProcessNotifier { pid_file, signal: Signal::HUP }.attempt()
    }

    #[test]
    fn a_pid_file_that_names_no_process_is_refused() {
        for bad in ["", "0", "1", "-1", "-5", "x", "12 13", "99999999999"] {
            let error = attempt(bad).expect_err(bad);
            assert!(error.ends_with("is not a process ID"), "{error}");
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
