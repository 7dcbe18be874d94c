//! nginx's master and its workers, read from /proc (proc_pid_stat(5), proc_pid_cmdline(5)). All of this blocks.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use crate::sink::file::notify::pid_file;

/// nginx's master, by its pid file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Master {
    /// The file, which is read each time.
    pub pid_file: PathBuf,
}

/// Why nothing is known of nginx's workers.
#[derive(Debug, thiserror::Error)]
pub enum MasterError {
    /// The pid file cannot be read, or has no process ID.
    #[error(transparent)]
    PidFile(#[from] pid_file::PidFileError),
    /// There is no such process here.
    #[error(
        "process {pid} of the pid file {} cannot be seen: expected nginx's master, in the PID namespace of the consumer",
        path.display()
    )]
    NotHere {
        /// The file.
        path: PathBuf,
        /// The process.
        pid: i32,
        /// Why not.
        source: io::Error,
    },
    /// The process is another one.
    #[error(
        "process {pid} of the pid file {} is {title:?}: expected nginx's master, in the PID namespace of the consumer",
        path.display()
    )]
    Another {
        /// The file.
        path: PathBuf,
        /// The process.
        pid: i32,
        /// What it calls itself.
        title: String,
    },
}

/// One run of a worker: numbers of processes are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Worker {
    /// The process.
    pub pid: i32,
    /// When it was started, in clock ticks since the host was.
    pub started: u64,
}

/// A master's workers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Workers {
    /// Those that take connections.
    pub serving: BTreeSet<Worker>,
    /// Those that were told to shut down and still have connections.
    pub draining: BTreeSet<Worker>,
}

/// What a worker that takes connections calls itself.
const SERVING: &str = "nginx: worker process";
/// And one that does not any more.
const DRAINING: &str = "nginx: worker process is shutting down";
/// What the master calls itself, before its command line.
const MASTER: &str = "nginx: master process";
/// More of a title than this is not shown.
const MAX_SHOWN: usize = 60;

impl Master {
    /// Its workers as they are now.
    ///
    /// # Errors
    /// No master of nginx can be seen.
    pub fn workers(&self) -> Result<Workers, MasterError> {
        let pid = pid_file::read(&self.pid_file)?.as_raw_nonzero().get();
        let path = || self.pid_file.clone();
        let unseen = |source| MasterError::NotHere { path: path(), pid, source };
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let title = title(&proc).map_err(unseen)?;
        if !title.starts_with(MASTER) {
            let title = title.chars().take(MAX_SHOWN).collect();
            return Err(MasterError::Another { path: path(), pid, title });
        }
        // A process of one thread, as nginx is.
        let children = fs::read_to_string(proc.join(format!("task/{pid}/children"))).map_err(unseen)?;
        let children = children.split_whitespace().filter_map(|child| child.parse().ok());
        // One that has ended meanwhile is none.
        Ok(Workers::of(children.filter_map(|child| look(child).ok().flatten())))
    }
}

impl Workers {
    /// Those among processes, by what they call themselves.
    fn of(processes: impl Iterator<Item = (Worker, String)>) -> Self {
        let mut workers = Self::default();
        for (worker, title) in processes {
            match title.trim_end() {
                SERVING => drop(workers.serving.insert(worker)),
                DRAINING => drop(workers.draining.insert(worker)),
                // The cache's, and one that has not given itself a title yet.
                _ => {}
            }
        }
        workers
    }

    /// Whether others than `earlier` serve now, and none of those does any more: a reload replaces all of them, while the
    /// master also replaces a single one that crashed, and that one has read nothing new.
    pub fn have_replaced(&self, earlier: &Workers) -> bool {
        let is_known =
            |worker: &Worker| earlier.serving.contains(worker) || earlier.draining.contains(worker);
        !self.serving.is_empty() && !self.serving.iter().any(is_known)
    }
}

/// What a process calls itself. A zombie has no title.
fn title(proc: &Path) -> io::Result<String> {
    let cmdline = fs::read(proc.join("cmdline"))?;
    Ok(String::from_utf8_lossy(&cmdline).replace('\0', " ").trim_end().to_owned())
}

fn look(pid: i32) -> io::Result<Option<(Worker, String)>> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let stat = fs::read_to_string(proc.join("stat"))?;
    let started = pid_file::start_ticks(&stat);
    Ok(started.zip(title(&proc).ok()).map(|(started, title)| (Worker { pid, started }, title)))
}

#[cfg(test)]
mod tests {
    use rollcall_shared::process::error::one_line;

    use super::*;

    fn workers(processes: &[(i32, u64, &str)]) -> Workers {
        let process = |(pid, started, title): &(i32, u64, &str)| {
            (Worker { pid: *pid, started: *started }, (*title).to_owned())
        };
        Workers::of(processes.iter().map(process))
    }

    #[test]
    fn workers_are_told_apart_by_their_titles() {
        let found = workers(&[
            (10, 1, "nginx: worker process"),
            (11, 1, "nginx: worker process is shutting down"),
            (12, 1, "nginx: cache manager process"),
            (13, 1, "nginx: master process nginx -c worker process"),
            (14, 1, ""),
        ]);
        assert_eq!(found.serving, [Worker { pid: 10, started: 1 }].into());
        assert_eq!(found.draining, [Worker { pid: 11, started: 1 }].into());
    }

    #[test]
    fn a_reload_went_well_where_other_workers_serve_and_none_that_was_there() {
        let (serving, draining) = (SERVING, DRAINING);
        let before = workers(&[(10, 1, serving), (11, 2, draining)]);
        for (now, expected) in [
            (vec![(10, 1, serving)], false),
            (vec![(10, 1, draining)], false),
            (vec![(10, 1, draining), (12, 3, serving)], true),
            // Another worker has crashed, or those of before were not told to end yet.
            (vec![(10, 1, serving), (12, 3, serving)], false),
            // The number was given again.
            (vec![(10, 3, serving)], true),
            // It was there and has not called itself anything yet, or it ends again at once.
            (vec![(12, 3, "nginx: master process")], false),
            (vec![(12, 3, draining)], false),
            (vec![], false),
        ] {
            assert_eq!(workers(&now).have_replaced(&before), expected, "{now:?}");
        }
        assert!(before.have_replaced(&Workers::default()), "nginx was not there");
    }

    #[test]
    fn a_process_that_is_no_master_of_nginx_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let pid_file = dir.path().join("pid");
        let workers = |content: &str| {
            fs::write(&pid_file, content).expect("a file");
            Master { pid_file: pid_file.clone() }.workers().map_err(|error| one_line(&error))
        };
        let own = std::process::id();
        let another = workers(&own.to_string()).expect_err("it is a test");
        assert!(another.starts_with(&format!("process {own} of the pid file ")), "{another}");
        assert!(another.ends_with("in the PID namespace of the consumer"), "{another}");
        let nobody = workers("2147483647").expect_err("above the kernel's greatest ID");
        assert!(
            nobody.ends_with("in the PID namespace of the consumer: No such file or directory (os error 2)")
        );
        assert!(workers("x").expect_err("no number").ends_with("expected a process ID"));
    }
}
