//! HAProxy as a program that is told directly.

use std::{collections::BTreeSet, time::Duration};

use async_trait::async_trait;
use rollcall_shared::process::error::one_line;
use tokio::time::{self, Instant};
use tracing::{debug, info};

use super::{
    command::Reply,
    lock::{Lock, Locked},
    memory::Memory,
    observed::Observed,
    plan::{self, DYNAMIC_SINCE},
    server::{Owned, Place},
    settings::{Method, RuntimeConfig},
    socket::{Socket, SocketError},
    state::{self, Algorithm, Info, ServerState, Stat, StateError, Version},
    step::Step,
};
use crate::sink::{
    SinkError,
    program::{Desired, Plan, Program, Scope},
};

/// HAProxy, told over its unix socket.
///
/// The file beside and the socket are brought up side by side, by whoever owns both (see [`super`]). A new generation of
/// the file is to be notified, which reloads HAProxy, only for what a plan has under `reloads`; at most once
/// for each generation, as a reload that did not help does not help again. Otherwise the file is for the next start.
/// No two targets may have one socket: each would take the other's servers for its own that nobody wants any more.
#[derive(Debug)]
pub struct HaproxyProgram {
    config: RuntimeConfig,
    socket: Socket,
    lock: Lock,
    memory: Memory,
    known: Known,
    /// When to ask again who answers.
    ask_at: Instant,
}

/// Which process the sink is known to have dealt with: another one is news.
#[derive(Debug, Default)]
struct Known {
    /// The process that answered when everything was compared last; `None` where nobody did.
    process: Option<Info>,
    /// Whether another one has answered since, to a question about some services only.
    is_missed: bool,
    /// How often in a row nobody has answered since.
    misses: usize,
}

impl Known {
    /// Somebody has answered, or nobody has: whether the sink is to look for itself.
    fn is_news(&mut self, who: Option<Info>) -> bool {
        match (&self.process, who) {
            // It is about to end: its successor is waited for.
            (_, Some(info)) if info.is_stopping => false,
            (None, Some(_)) => true,
            (Some(process), Some(info)) => {
                let is_other = info.is_other(process);
                if !is_other {
                    (self.process, self.misses) = (Some(info), 0);
                }
                is_other
            }
            (None, None) => false,
            (Some(_), None) => {
                self.misses += 1;
                self.misses >= MISSES
            }
        }
    }
}

/// What HAProxy is asked with to learn whether it lets us change anything: it names no server, so nothing is changed.
const MAY_CHANGE: &str = "set server -";
/// With more backends than this, all are asked for at once.
const MANY: usize = 64;
/// How often HAProxy is asked whether it is still the same process.
const POLL: Duration = Duration::from_secs(1);
/// How often in a row nobody answers until the sink is to see for itself: a reload may take a moment.
const MISSES: usize = 2;
/// The oldest version with all that is asked for.
const OLDEST: (u32, u32) = (2, 2);

/// Why HAProxy cannot be told. All is tried again.
#[derive(Debug, thiserror::Error)]
enum HaproxyError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Locked(#[from] Locked),
    #[error(
        "HAProxy's socket {0} lets Rollcall change nothing: its line in the configuration needs `level admin`"
    )]
    Level(String),
    #[error("HAProxy {0} is too old: 2.2 or later is needed")]
    Old(Version),
    #[error("HAProxy's process {0} is about to end, and no other one answers yet")]
    Stopping(u32),
    #[error("HAProxy has refused `{command}`: {answer}")]
    Refused { command: String, answer: String },
}

/// Whether an error says that HAProxy's socket is not there: HAProxy does not run, or has not read the file that names it.
pub(super) fn is_absent(error: &SinkError) -> bool {
    matches!(error.downcast_ref(), Some(HaproxyError::Socket(SocketError::Absent(_))))
}

impl HaproxyProgram {
    /// The program that listens on the socket.
    pub fn new(config: RuntimeConfig) -> Self {
        let (socket, lock) = (Socket::new(config.socket.clone()), Lock::of(&config.socket));
        let (memory, known) = (Memory::default(), Known::default());
        Self { config, socket, lock, memory, known, ask_at: Instant::now() }
    }

    async fn read(&mut self, scope: &Scope) -> Result<Observed, HaproxyError> {
        let asked = self.asked(scope);
        let mut commands = vec!["show info".to_owned(), MAY_CHANGE.to_owned()];
        match &asked {
            Some(backends) => {
                commands.extend(backends.iter().map(|backend| format!("show servers state {backend}")));
            }
            None => commands.extend(["show backend", "show servers state"].map(str::to_owned)),
        }
        if *scope == Scope::All {
            // Nobody, unless somebody answers.
            self.known = Known::default();
        }
        let answers = self.socket.ask(&commands).await?;
        if let (Scope::All, Ok(info)) = (scope, Info::parse(&answers[0])) {
            // One that lets nothing be changed is tried again with backoff, and not because it answers.
            self.known.process = Some(info);
        }
        let info = self.check(&answers[0], &answers[1])?;
        if self.memory.meet(&info) {
            self.known.is_missed |= *scope != Scope::All;
            info!(version = %info.version, pid = info.pid, socket = %self.socket.path(), "HAProxy answers");
        }
        let (names, states) = match asked {
            Some(backends) => of_each(backends, &answers[2..])?,
            None => {
                (state::backends(&answers[2])?.into_iter().collect(), ServerState::parse_all(&answers[3])?)
            }
        };
        let names: BTreeSet<String> =
            names.into_iter().filter(|name| self.config.backend.service(name).is_some()).collect();
        let stat = self.stat(&info, &names, &states).await?;
        let backends = self.memory.observe(names, states, &stat, Instant::now());
        Ok(Observed { info, backends })
    }

    /// The backends to ask for; `None` for all that there are.
    fn asked(&self, scope: &Scope) -> Option<BTreeSet<String>> {
        let Scope::Services(services) = scope else { return None };
        let mut backends = self.memory.restless();
        backends.extend(services.iter().map(|service| self.config.backend.name(service)));
        (backends.len() <= MANY).then_some(backends)
    }

    fn check(&self, info: &str, may_change: &str) -> Result<Info, HaproxyError> {
        let Ok(info) = Info::parse(info) else { return Err(self.socket.nonsense().into()) };
        if may_change.contains("Permission denied") {
            return Err(HaproxyError::Level(self.socket.path().to_string()));
        }
        if info.version.branch < OLDEST {
            return Err(HaproxyError::Old(info.version));
        }
        if info.is_stopping {
            return Err(HaproxyError::Stopping(info.pid));
        }
        Ok(info)
    }

    /// The load of the servers that leave, and the algorithms of backends that are new.
    async fn stat(
        &mut self,
        info: &Info,
        names: &BTreeSet<String>,
        states: &[ServerState],
    ) -> Result<Stat, HaproxyError> {
        let unknown: Vec<_> =
            names.iter().filter(|name| !self.memory.algorithms.contains_key(*name)).collect();
        let mut commands = if unknown.len() > MANY {
            vec!["show stat -1 2 -1".to_owned()]
        } else {
            unknown.iter().map(|name| format!("show stat {name} 2 -1")).collect()
        };
        let leaves = |state: &&ServerState| {
            names.contains(&state.backend)
                && (state.is_forced_out() || state.drains())
                && Owned::parse(&state.name).is_some()
        };
        let restless: BTreeSet<u32> = states.iter().filter(leaves).map(|state| state.backend_id).collect();
        commands.extend(restless.iter().map(|id| format!("show stat {id} 4 -1")));
        let mut stat = Stat::default();
        if commands.is_empty() {
            return Ok(stat);
        }
        for answer in self.socket.ask(&commands).await? {
            stat.add(&answer)?;
        }
        let unclear = |name: &&&String| {
            stat.algorithms.get(**name).copied().unwrap_or(Algorithm::Unclear) == Algorithm::Unclear
        };
        let unclear: Vec<&String> = unknown.iter().filter(unclear).copied().collect();
        for name in &unknown {
            let algorithm = stat.algorithms.get(*name).copied().unwrap_or(Algorithm::Unclear);
            self.memory.algorithms.insert((*name).clone(), algorithm);
        }
        if self.config.method != Method::Slots && info.version.branch >= DYNAMIC_SINCE {
            self.probe(&unclear).await?;
        }
        Ok(stat)
    }

    /// Asks whether backends take servers whose algorithm may be either, by adding one without an address: one that is
    /// dynamic refuses it for the address, which it logs, and one that is static before it looks at that.
    async fn probe(&mut self, backends: &[&String]) -> Result<(), HaproxyError> {
        let commands: Vec<_> =
            backends.iter().map(|backend| format!("add server {backend}/rollcall")).collect();
        if commands.is_empty() {
            return Ok(());
        }
        for (backend, answer) in backends.iter().zip(self.socket.ask(&commands).await?) {
            let is_dynamic = answer.contains("expects <name> and <addr>");
            let algorithm = if is_dynamic { Algorithm::Dynamic } else { Algorithm::Static };
            debug!(%backend, ?algorithm, answer, "HAProxy's balance algorithm was asked for");
            self.memory.algorithms.insert((*backend).clone(), algorithm);
        }
        Ok(())
    }

    async fn take(&mut self, step: &Step) -> Result<(), HaproxyError> {
        self.lock.take()?;
        let commands = step.commands();
        let lines: Vec<_> = commands.iter().map(|command| command.text.clone()).collect();
        for (command, answer) in commands.iter().zip(self.socket.ask(&lines).await?) {
            self.learn(&step.place, &command.text, command.outcome(&answer))?;
        }
        Ok(())
    }

    fn learn(&mut self, place: &Place, command: &str, outcome: Reply) -> Result<(), HaproxyError> {
        match outcome {
            Reply::Done => {}
            // It is seen when it is observed, and tried again.
            Reply::NotYet => self.memory.postpone(place, Instant::now()),
            Reply::Never => drop(self.memory.pinned.insert(place.clone())),
            Reply::Refused(answer) if answer.contains("Permission denied") => {
                return Err(HaproxyError::Level(self.socket.path().to_string()));
            }
            Reply::Refused(answer) => {
                let answer = if answer.is_empty() { "it said nothing".to_owned() } else { answer };
                return Err(HaproxyError::Refused { command: command.to_owned(), answer });
            }
        }
        Ok(())
    }

    /// Who answers now.
    async fn who(&self) -> Result<Info, HaproxyError> {
        let answers = self.socket.ask(&["show info".to_owned()]).await?;
        Ok(Info::parse(&answers[0])?)
    }
}

/// The backends that are there, and their servers.
fn of_each(
    backends: BTreeSet<String>,
    answers: &[String],
) -> Result<(BTreeSet<String>, Vec<ServerState>), HaproxyError> {
    let (mut names, mut states) = (BTreeSet::new(), vec![]);
    for (backend, answer) in backends.into_iter().zip(answers) {
        if answer.contains("Can't find backend") {
            continue;
        }
        states.extend(ServerState::parse_all(answer)?);
        names.insert(backend);
    }
    Ok((names, states))
}

#[async_trait]
impl Program for HaproxyProgram {
    type Observed = Observed;
    type Step = Step;

    async fn observe(&mut self, scope: &Scope) -> Result<Observed, SinkError> {
        Ok(self.read(scope).await?)
    }

    fn plan(&self, desired: &Desired, observed: &Observed) -> Plan<Step> {
        plan::plan(&self.config, desired, observed).plan
    }

    async fn apply(&mut self, step: &Step) -> Result<(), SinkError> {
        Ok(self.take(step).await?)
    }

    /// Asks each second who answers: `show info` costs HAProxy less than 0.1 ms. A process is another one by its ID, or
    /// where it runs for less time than before, as process IDs are all alike in containers. One that could not be
    /// observed yet is another one as soon as it answers, and nobody is another one after a while.
    async fn restarted(&mut self) {
        while !self.known.is_missed {
            // Whoever is interrupted again and again still asks.
            time::sleep_until(self.ask_at).await;
            let who = self.who().await;
            self.ask_at = Instant::now() + POLL;
            if let Err(error) = &who {
                debug!(error = %one_line(error), "HAProxy does not say who it is");
            }
            if self.known.is_news(who.ok()) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
        task::JoinHandle,
    };

    use super::*;
    use crate::sink::haproxy::settings::RawRuntime;

    /// Answers as a HAProxy without backends does, which has this process ID.
    fn answer(socket: &std::path::Path, pid: u32, may_change: &'static str) -> JoinHandle<()> {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).expect("a socket");
        let info = format!("Name: HAProxy\nVersion: 2.8.1\nPid: {pid}\nUptime_sec: 60\nStopping: 0\n");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut asked = vec![0; 4096];
                let length = stream.read(&mut asked).await.unwrap_or_default();
                let text = String::from_utf8_lossy(&asked[..length]).into_owned();
                let mut answers = String::from("\n> ");
                for command in text.lines().skip(1).filter(|command| *command != "quit") {
                    answers += match command {
                        "show info" => &info,
                        MAY_CHANGE => may_change,
                        "show backend" => "# name\n",
                        "show servers state" => "1\n# be_id be_name\n",
                        _ => "Can't find backend.\n",
                    };
                    answers += "\n> ";
                }
                let _ = stream.write_all(answers.as_bytes()).await;
            }
        })
    }

    fn program() -> (HaproxyProgram, TempDir) {
        let dir = tempfile::tempdir().expect("a folder");
        let text = format!("socket = {:?}", dir.path().join("sock"));
        let raw: RawRuntime = ::toml::from_str(&text).expect("a table");
        (HaproxyProgram::new(raw.parse().expect("settings")), dir)
    }

    /// Whether it notices within some seconds that it has to look for itself.
    async fn notices(program: &mut HaproxyProgram) -> bool {
        time::timeout(POLL * 5 / 2, program.restarted()).await.is_ok()
    }

    #[tokio::test]
    async fn a_process_that_goes_or_comes_is_noticed_once() {
        let (mut program, dir) = program();
        let socket = dir.path().join("sock");
        program.observe(&Scope::All).await.expect_err("nobody answers");
        assert!(!notices(&mut program).await, "it is known");
        let first = answer(&socket, 1, "Permission denied\n");
        assert!(notices(&mut program).await, "somebody answers");
        program.observe(&Scope::All).await.expect_err("it lets nothing be changed");
        assert!(!notices(&mut program).await, "it still does not, and is tried with backoff");
        first.abort();
        let second = answer(&socket, 2, "");
        assert!(notices(&mut program).await, "it is another one");
        program.observe(&Scope::All).await.expect("it answers");
        assert!(!notices(&mut program).await);
        second.abort();
        assert!(notices(&mut program).await, "nobody answers any more");
        program.observe(&Scope::All).await.expect_err("nobody answers");
        assert!(!notices(&mut program).await, "it is known");
    }

    #[tokio::test]
    async fn a_process_that_answers_for_one_service_first_is_noticed_all_the_same() {
        let (mut program, dir) = program();
        let socket = dir.path().join("sock");
        let first = answer(&socket, 1, "");
        program.observe(&Scope::All).await.expect("it answers");
        first.abort();
        let _second = answer(&socket, 2, "");
        let only = Scope::Services(["web".parse().expect("a name")].into());
        program.observe(&only).await.expect("it answers");
        assert!(notices(&mut program).await, "nothing else was compared");
        program.observe(&Scope::All).await.expect("it answers");
        assert!(!notices(&mut program).await);
    }

    #[tokio::test]
    async fn a_process_that_goes_is_noticed_however_often_the_wait_is_interrupted() {
        let (mut program, dir) = program();
        let first = answer(&dir.path().join("sock"), 1, "");
        program.observe(&Scope::All).await.expect("it answers");
        first.abort();
        let interrupted = async { while time::timeout(POLL / 5, program.restarted()).await.is_err() {} };
        time::timeout(POLL * 4, interrupted).await.expect("it is noticed");
    }
}
