//! A user's command: its words, run without a shell and within a time-out.
//!
//! Commands check staged files and notify targets. After the time-out the whole process group is told to end, and killed
//! soon after.

use std::{
    ffi::OsStr,
    fmt,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{ExitStatus, Stdio},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rollcall_shared::{
    model::check::{DEST, FILE},
    process::time,
};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
};

/// A command as words; `{file}` and `{dest}` in them stand for the file (where it is staged, for a check) and for where it
/// goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    program: String,
    arguments: Vec<String>,
}

/// Why a command was not a success. It may be, when it is run again.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It cannot be started.
    #[error("cannot run {program}")]
    Start {
        /// The program.
        program: String,
        /// Why not.
        source: std::io::Error,
    },
    /// It ended otherwise than with the exit code 0.
    #[error("{program} ended with {status}{said}")]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: String,
        /// A colon and the first line of its output, if there is one.
        said: String,
    },
    /// It took too long.
    #[error("{program} took more than {}{said}", time::show(*timeout))]
    TimedOut {
        /// The program.
        program: String,
        /// The time that it had.
        timeout: Duration,
        /// A colon and the first line of its output, if there is one.
        said: String,
    },
}

impl FromStr for CommandLine {
    type Err = String;

    /// Splits words as a shell does, with its quotes, and nothing else of it.
    fn from_str(text: &str) -> Result<Self, String> {
        let words = shlex::split(text).ok_or_else(|| format!("{text:?} has a quote without its end"))?;
        Self::from_words(words)
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.program)?;
        self.arguments.iter().try_for_each(|word| write!(f, " {word}"))
    }
}

/// How much of a command's output is kept, in bytes: enough for a first line.
const MAX_KEPT_BYTES: usize = 4096;

/// How long the rest of its output is waited for after a command has ended: a child of it may hold the pipe open.
const OUTPUT_TIMEOUT: Duration = Duration::from_millis(50);

/// How long a command that took too long may clear up.
const TERM_TIMEOUT: Duration = Duration::from_secs(1);

impl CommandLine {
    /// A command of these words.
    ///
    /// # Errors
    /// There is no word.
    pub fn from_words(words: Vec<String>) -> Result<Self, String> {
        let mut words = words.into_iter();
        let program = words.next().filter(|program| !program.is_empty());
        let program = program.ok_or_else(|| "expected a program and its arguments".to_owned())?;
        Ok(Self { program, arguments: words.collect() })
    }

    /// Its words as they are written, of which the first is the program.
    pub fn to_words(&self) -> Vec<String> {
        [&self.program].into_iter().chain(&self.arguments).cloned().collect()
    }

    /// Its words for these files, of which the first is the program.
    fn words(&self, file: &Path, dest: &Path) -> Vec<String> {
        let (file, dest) = (file.to_string_lossy(), dest.to_string_lossy());
        let words = [&self.program].into_iter().chain(&self.arguments);
        words.map(|word| word.replace(FILE, &file).replace(DEST, &dest)).collect()
    }

    /// Whether it names the file.
    pub fn names_file(&self) -> bool {
        self.program.contains(FILE) || self.arguments.iter().any(|word| word.contains(FILE))
    }

    /// Runs it for the staged `file` that goes to `dest`, and ends it after the time-out. It is killed when it is not waited
    /// for any more.
    ///
    /// # Errors
    /// Any end but the exit code 0.
    pub async fn run(&self, file: &Path, dest: &Path, timeout: Duration) -> Result<(), CommandError> {
        self.run_with(file, dest, timeout, []).await
    }

    /// The same with these variables in its environment.
    ///
    /// # Errors
    /// As [`CommandLine::run`].
    pub async fn run_with<'v>(
        &self,
        file: &Path,
        dest: &Path,
        timeout: Duration,
        variables: impl IntoIterator<Item = (&'v str, &'v str)>,
    ) -> Result<(), CommandError> {
        let [program, arguments @ ..] = &self.words(file, dest)[..] else { unreachable!("it has a program") };
        let program = program.clone();
        let mut command = Command::new(&program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_private(name)) {
            command.env_remove(name);
        }
        command.envs(variables);
        let started = command.spawn();
        let started = started.map_err(|source| CommandError::Start { program: program.clone(), source })?;
        let mut group = Group(started);
        let errors = Output::of(group.0.stderr.take());
        let output = Output::of(group.0.stdout.take());
        let ended = tokio::time::timeout(timeout, group.0.wait()).await;
        if let Ok(Ok(status)) = &ended
            && status.success()
        {
            return Ok(());
        }
        let said = match errors.first_line().await {
            Some(line) => Some(line),
            None => output.first_line().await,
        };
        // Afterwards: what it says when it is told to end is no reason.
        if ended.is_err() {
            group.end().await;
        }
        let said = said.map(|line| format!(": {line}")).unwrap_or_default();
        Err(match ended {
            Ok(Ok(status)) => CommandError::Failed { program, status: show(status), said },
            Ok(Err(source)) => CommandError::Start { program, source },
            Err(_) => CommandError::TimedOut { program, timeout, said },
        })
    }
}

/// Whether a command must not see this variable: Rollcall's own settings and etcdctl's, as some are secrets.
fn is_private(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b"ROLLCALL_") || name.starts_with(b"ETCDCTL_")
}

fn show(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// A command at work and all that it started, as far as that is in its process group. They end together when it is
/// dropped before its end.
struct Group(Child);

impl Group {
    /// Its first process is reaped last: until then, the group's number is no other one's.
    async fn end(&mut self) {
        self.signal(Signal::TERM);
        tokio::time::sleep(TERM_TIMEOUT).await;
        self.signal(Signal::KILL);
        // It may be gone already; then there is nothing left to end.
        let _ = self.0.kill().await;
    }

    fn signal(&self, signal: Signal) {
        // It has no ID any more once it has ended.
        let group = self.0.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(group) = group {
            let killed = kill_process_group(group, signal);
            tracing::debug!(?killed, ?signal, "ended a command that was not waited for any more");
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Reads a command's output, so that it never waits for a reader, and keeps the beginning.
struct Output {
    kept: Arc<Mutex<Vec<u8>>>,
    reader: tokio::task::JoinHandle<()>,
}

impl Output {
    fn of(pipe: Option<impl AsyncRead + Unpin + Send + 'static>) -> Self {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let keep = kept.clone();
        let reader = tokio::spawn(async move {
            let Some(mut pipe) = pipe else { return };
            let mut chunk = [0; MAX_KEPT_BYTES];
            while let Ok(read @ 1..) = pipe.read(&mut chunk).await {
                let mut kept = keep.lock().unwrap_or_else(PoisonError::into_inner);
                let room = MAX_KEPT_BYTES - kept.len();
                kept.extend_from_slice(&chunk[..read.min(room)]);
            }
        });
        Self { kept, reader }
    }

    /// The first line that is not empty, without control characters; one that only warns counts where there is no other.
    async fn first_line(self) -> Option<String> {
        let _ = tokio::time::timeout(OUTPUT_TIMEOUT, self.reader).await;
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&kept);
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        // HAProxy begins with its version, and nginx with what it will refuse some day.
        let only_warns =
            |line: &&str| ["[NOTICE]", "[WARNING]", "[warn]"].iter().any(|level| line.contains(level));
        let line = lines.clone().find(|line| !only_warns(line)).or_else(|| lines.next())?;
        Some(line.replace(char::is_control, " "))
    }
}

#[cfg(test)]
mod tests {
    use rollcall_shared::process::error::one_line;

    use super::*;

    async fn run(command: &str, timeout: Duration) -> Result<(), String> {
        let command: CommandLine = command.parse().expect("a command");
        command
            .run(Path::new("/etc/hostname"), Path::new("/etc/motd"), timeout)
            .await
            .map_err(|error| one_line(&error))
    }

    #[tokio::test]
    async fn what_only_warns_is_not_taken_for_the_reason() {
        let said =
            run("sh -c 'echo [NOTICE] version 2.8; echo; echo [ALERT] bad; exit 1'", Duration::from_secs(10))
                .await;
        assert_eq!(said.expect_err("it fails"), "sh ended with exit code 1: [ALERT] bad");
        let said = run("sh -c 'echo [WARNING] old; exit 1'", Duration::from_secs(10)).await;
        assert_eq!(said.expect_err("it fails"), "sh ended with exit code 1: [WARNING] old");
    }

    #[tokio::test]
    async fn a_commands_first_words_are_told_where_it_fails() {
        let second = Duration::from_secs(5);
        assert_eq!(run("test -e {file}", second).await, Ok(()));
        assert_eq!(run("false", second).await, Err("false ended with exit code 1".to_owned()));
        assert_eq!(
            run("sh -c 'echo; echo oh no >&2; exit 3'", second).await,
            Err("sh ended with exit code 3: oh no".to_owned())
        );
        let missing = run("/no/such/program", second).await.expect_err("there is none");
        assert!(missing.starts_with("cannot run /no/such/program: No such file"), "{missing}");
    }

    #[test]
    fn a_file_and_where_it_goes_stand_for_their_words() {
        let command: CommandLine = "check {file} --as={dest}".parse().expect("a command");
        assert_eq!(command.words(Path::new("/a/.b"), Path::new("/a/b")), ["check", "/a/.b", "--as=/a/b"]);
    }

    #[test]
    fn settings_of_ours_and_of_etcdctl_are_no_commands_business() {
        for (name, expected) in [
            ("ROLLCALL_DEST", true),
            ("ETCDCTL_PASSWORD", true),
            ("ETCDCTL_KEY", true),
            ("PATH", false),
            ("DOCKER_HOST", false),
        ] {
            assert_eq!(is_private(OsStr::new(name)), expected, "{name}");
        }
    }

    #[tokio::test]
    async fn a_command_that_is_not_waited_for_any_more_ends_with_its_children() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("child");
        let command: CommandLine =
            format!("sh -c 'sleep 60 & echo $! > {0}.new; mv {0}.new {0}; wait'", file.display())
                .parse()
                .expect("a command");
        let running = tokio::spawn(async move {
            command.run(Path::new("/x"), Path::new("/x"), Duration::from_secs(60)).await
        });
        let child = loop {
            if let Ok(child) = std::fs::read_to_string(&file) {
                break child.trim().to_owned();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        running.abort();
        let stat = || std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        for _ in 0..1000 {
            // Nobody may have reaped it yet.
            if stat().split(' ').nth(2).is_none_or(|state| state == "Z") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the child goes on: {}", stat());
    }

    #[tokio::test]
    async fn a_command_that_takes_too_long_is_killed_with_its_children() {
        let timeout = Duration::from_millis(200);
        let marker = tempfile::tempdir().expect("a folder");
        let touch = marker.path().join("late");
        let command = format!("sh -c '(sleep 1; touch {}) & sleep 20'", touch.display());
        let late = run(&command, timeout).await.expect_err("it takes too long");
        assert_eq!(late, "sh took more than 200ms");
        tokio::time::sleep(Duration::from_millis(1200)).await;
        assert!(!touch.exists(), "a child went on");
    }

    #[tokio::test]
    async fn a_command_that_takes_too_long_may_clear_up() {
        let dir = tempfile::tempdir().expect("a folder");
        let copy = dir.path().join("copy");
        let command = format!("sh -c 'trap \"rm {0}; exit\" TERM; touch {0}; sleep 20'", copy.display());
        let late = run(&command, Duration::from_secs(1)).await.expect_err("it takes too long");
        assert_eq!(late, "sh took more than 1s");
        assert!(!copy.exists());
        let deaf = run("sh -c 'trap \"\" TERM; sleep 20'", Duration::from_millis(200)).await;
        assert_eq!(deaf, Err("sh took more than 200ms".to_owned()));
    }

    #[test]
    fn words_are_split_without_a_shell() {
        let command: CommandLine = "nginx -t -c '{file}'".parse().expect("a command");
        assert!(command.names_file());
        assert_eq!(command.to_string(), "nginx -t -c {file}");
        assert!("".parse::<CommandLine>().is_err());
        assert!("sh -c 'x".parse::<CommandLine>().is_err());
    }
}
