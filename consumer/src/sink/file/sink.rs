//! The file sink: renders a selection, stages it, has it checked and installs it. What blocks runs on another thread.
//!
//! It notifies nobody; it remembers what was acked, and so knows which change a file is that it finds.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use rollcall_shared::process::{error::one_line, setting::SettingError, time};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use tokio_util::task::TaskTracker;

use super::{
    Check, FileConfig,
    check::{
        ContainerChecker, Place,
        container::{Checked, ContainerCheckError},
    },
    command::CommandError,
    install::{Batch, InstallError, Staged, files::Reader},
    isolate::{Next, Search},
    isolated::Isolated,
    notify::Told,
    read_back::{self, ReadBack},
    render::RenderError,
    verify::{Probe, Verify},
    worker::{Made, Worker},
};
use crate::{
    config::TargetConfig,
    roll::{Row, Selection},
    sink::{self, Applied, Equipment, Sink, SinkError},
    state_dir::StateDir,
    target::{generation::Generation, state::Acked},
};

/// How long rendering or installing may take before the target says that it waits for them. They go on: a file system
/// that hangs cannot be left otherwise.
const WORK_TIMEOUT: Duration = Duration::from_secs(10);

/// How long nginx has for the reload before, ere the next file is installed.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(1);
/// How often that is looked at.
const RELOAD_INTERVAL: Duration = Duration::from_millis(20);

/// How long the instances are looked for that a check refuses.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(120);

/// Why a selection did not become a file. It is tried again, with the next selection or after a while.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Rendering failed.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// The check refused the staged file.
    #[error("the check refuses the new file")]
    Check(#[from] CommandError),
    /// The staged file did not pass where it is checked in containers.
    #[error("the new file is not installed")]
    ContainerCheck(#[from] ContainerCheckError),
    /// Installing failed.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// What was installed cannot be read again.
    #[error("cannot read the installed file")]
    Installed(#[source] std::io::Error),
    /// What was acked could not be remembered.
    #[error("cannot write the target's state in --state-dir")]
    State(#[from] std::io::Error),
    /// Rendering or installing takes too long, and goes on.
    #[error("rendering or installing takes more than {}", time::show(WORK_TIMEOUT))]
    Slow,
}

impl FileError {
    /// Whether a check has seen the file and refuses it.
    fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Check(CommandError::Failed { .. })
                | Self::ContainerCheck(ContainerCheckError::Refused { .. })
        )
    }
}

/// Keeps one file.
#[derive(Debug)]
pub struct FileSink {
    /// Has the worker whenever it is not at work on another thread.
    worker: oneshot::Receiver<Worker>,
    check: Option<Check>,
    /// Whether instances are left out for which the check refuses the file.
    isolates: bool,
    /// How the file is verified once its reader has it.
    verify: Option<Verify>,
    /// How the program that follows the file is asked whether it has it.
    read_back: Option<ReadBack>,
    dest: PathBuf,
    /// Reads what was installed.
    reader: Reader,
    /// Checks in containers, where that is wanted.
    checker: Option<ContainerChecker>,
    /// What a notify command is told by.
    told: Option<Told>,
    /// Counts what it does on other threads, which goes on when nobody waits for it any more.
    tasks: TaskTracker,
}

impl FileSink {
    /// Checks what can be known to be wrong before there is a roll.
    ///
    /// # Errors
    /// A setting that cannot work.
    pub fn check(target: &TargetConfig, file: &FileConfig) -> Result<(), SettingError> {
        Worker::check(target, file).map_err(|error| error.within(&format!("target {}: ", target.name)))
    }

    /// A sink for a target that was checked.
    pub fn open(target: &TargetConfig, file: &FileConfig, state_dir: Arc<StateDir>) -> Self {
        let (give_back, worker) = oneshot::channel();
        let worker_of = Worker::open(target, file, state_dir);
        let (told, reader) = (worker_of.told(), worker_of.reader());
        give_back.send(worker_of).expect("the receiver is there");
        let check = file.check.clone();
        let isolates = check.as_ref().is_some_and(|check| check.isolates);
        let FileConfig { verify, read_back, dest, .. } = file.clone();
        let tasks = TaskTracker::new();
        Self { worker, check, isolates, verify, read_back, dest, reader, checker: None, told, tasks }
    }

    /// Works on another thread, once what was begun there before is done.
    async fn work<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Worker) -> T + Send + 'static,
    ) -> Result<T, FileError> {
        let deadline = Instant::now() + WORK_TIMEOUT;
        let returned = tokio::time::timeout_at(deadline, &mut self.worker).await;
        let mut worker = returned.map_err(|_| FileError::Slow)?.expect("it is back after every work");
        let (give_back, back) = oneshot::channel();
        self.worker = back;
        let at_work = self.tasks.token();
        let working = tokio::task::spawn_blocking(move || {
            let _at_work = at_work;
            let done = work(&mut worker);
            // Nobody wants it back when the sink has gone.
            let _ = give_back.send(worker);
            done
        });
        match tokio::time::timeout_at(deadline, working).await.map_err(|_| FileError::Slow)? {
            Ok(done) => Ok(done),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is going down, and this task with it.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// Waits a moment until nginx has taken the file that is there, where it was not verified yet: the workers that it
    /// starts for that one would be taken for those of the next.
    async fn await_reload(&mut self) -> Result<(), FileError> {
        let Some(Verify { probe: Probe::Nginx(master), .. }) = self.verify.clone() else { return Ok(()) };
        let deadline = Instant::now() + RELOAD_TIMEOUT;
        while Instant::now() < deadline {
            let master = master.clone();
            let is_under_way = move |worker: &mut Worker| {
                let before = worker.workers_before().filter(|_| worker.is_to_be_verified());
                before.is_some_and(|before| master.workers().is_ok_and(|now| !now.have_replaced(&before)))
            };
            if !self.work(is_under_way).await? {
                break;
            }
            tokio::time::sleep(RELOAD_INTERVAL).await;
        }
        Ok(())
    }

    async fn write(&mut self, selection: watch::Receiver<Selection>) -> Result<Applied, FileError> {
        self.await_reload().await?;
        let now = Instant::now();
        let selected = selection.clone();
        match self.work(move |worker| worker.make(&selected, now)).await?? {
            Made::Done(applied) => Ok(applied),
            Made::Staged(mut draft, staged) => {
                match self.examine(&staged).await {
                    Ok(note) => draft.notes.extend(note),
                    Err(refusal) if self.isolates && refusal.is_refusal() => {
                        drop(staged);
                        return self.isolate(selection, refusal).await;
                    }
                    Err(error) => return Err(error),
                }
                self.work(move |worker| worker.install(draft, staged)).await?.map(Applied::Written)
            }
        }
    }

    /// Looks for the instances for which the check refuses the file, and installs it without them.
    ///
    /// # Errors
    /// The refusal, where no few instances are to blame; then everything is left as it was.
    async fn isolate(
        &mut self,
        selection: watch::Receiver<Selection>,
        refusal: FileError,
    ) -> Result<Applied, FileError> {
        let begun = Instant::now();
        let find = move |worker: &mut Worker| (worker.suspects(&selection, begun), worker.isolated().clone());
        let ((snapshot, rows), before) = self.work(find).await?;
        self.search(snapshot, &rows, before, refusal).await
    }

    async fn search(
        &mut self,
        snapshot: Selection,
        rows: &[Row],
        before: Isolated,
        mut refusal: FileError,
    ) -> Result<Applied, FileError> {
        let (begun, selection) = (Instant::now(), watch::Sender::new(snapshot));
        let (mut search, mut found, mut tried) = (Search::new(rows.len()), before, None);
        let mut offenders = vec![];
        while let Next::Try(out) = search.next() {
            if begun.elapsed() > SEARCH_TIMEOUT {
                return Err(refusal);
            }
            let mut isolated = found.clone();
            for place in out.iter().filter(|place| !found.has(&rows[**place])) {
                isolated.insert(&rows[*place], String::new());
            }
            let selection = selection.subscribe();
            let make = move |worker: &mut Worker| worker.make_without(isolated, &selection, begun);
            let made = self.work(make).await??;
            let passed = match &made {
                // As it was before: it has passed then, or was taken without a check.
                Made::Done(_) => Ok(None),
                Made::Staged(_, staged) => self.examine(staged).await,
            };
            let has_passed = passed.is_ok();
            match passed {
                Ok(_) => tried = Some(made),
                Err(error) if error.is_refusal() => refusal = error,
                Err(error) => return Err(error),
            }
            if let Some(offender) = search.take(has_passed) {
                let reason = one_line(&refusal);
                found.insert(&rows[offender], reason.clone());
                offenders.push((&rows[offender], reason));
            }
        }
        if matches!(search.next(), Next::Found(_)) {
            for (Row { id, instance, .. }, reason) in offenders {
                let (service, container) = (&instance.service, &instance.container);
                tracing::warn!(%service, %container, node = %id.node, reason, "left out, as the check refuses it");
            }
        }
        match (search.next(), tried) {
            (Next::Found(_), Some(Made::Done(applied))) => {
                self.work(Worker::end_search).await?;
                Ok(applied)
            }
            (Next::Found(_), Some(Made::Staged(draft, staged))) => {
                let install = move |worker: &mut Worker| {
                    worker.end_search();
                    worker.install(draft, staged)
                };
                self.work(install).await?.map(Applied::Written)
            }
            _ => Err(refusal),
        }
    }

    /// Has staged files checked, one after another; gives what is worth a look, on one line, where they may be installed.
    async fn examine(&mut self, batch: &Batch) -> Result<Option<String>, FileError> {
        let mut note = None;
        for staged in &batch.staged {
            note = self.examine_one(staged).await?.or(note);
        }
        Ok(note)
    }

    async fn examine_one(&mut self, staged: &Staged) -> Result<Option<String>, FileError> {
        let Some(Check { command, timeout, place, isolates: _ }) = &self.check else { return Ok(None) };
        match (place, &mut self.checker) {
            (Place::Here, _) => {
                command.run(staged.path(), staged.dest(), *timeout).await?;
                Ok(None)
            }
            (Place::Containers { to, .. }, Some(checker)) => {
                let checked = checker.run(staged.path(), staged.dest()).await?;
                Ok((checked == Checked::ByNobody)
                    .then(|| format!("installed unchecked, as {to} does not run")))
            }
            (Place::Containers { to, .. }, None) => {
                let reason = format!("agents for {to} cannot be asked");
                Err(ContainerCheckError::NotRun(reason).into())
            }
        }
    }
}

#[async_trait]
impl Sink for FileSink {
    fn equip(&mut self, Equipment { tasks, checker }: Equipment) {
        (self.tasks, self.checker) = (tasks, checker);
    }

    fn told(&self) -> Option<Told> {
        self.told.clone()
    }

    async fn apply(&mut self, selection: &watch::Receiver<Selection>) -> Result<Applied, SinkError> {
        Ok(self.write(selection.clone()).await?)
    }

    async fn verify(&mut self) -> Result<(), SinkError> {
        let Some(verify) = self.verify.clone() else { return Ok(()) };
        let look = |worker: &mut Worker| worker.is_to_be_verified().then(|| worker.workers_before());
        let Some(before) = self.work(look).await? else { return Ok(()) };
        let verified = verify.run(&self.dest, before.as_ref()).await;
        let failure = verified.as_ref().err().map(|error| format!("verify: {}", one_line(error)));
        self.work(move |worker| worker.on_verified(failure)).await??;
        Ok(verified?)
    }

    fn read_back(&self) -> Option<sink::Question> {
        let (config, reader) = (self.read_back.clone()?, self.reader.clone());
        Some(sink::Question::new(async move {
            let reading = tokio::task::spawn_blocking(move || reader.read_all());
            let installed = reading.await?.map_err(FileError::Installed)?;
            Ok(read_back::read_back(&config, &installed).await?)
        }))
    }

    async fn remember(&mut self, acked: Option<(Generation, Acked)>) -> Result<(), SinkError> {
        Ok(self.work(move |worker| worker.remember(acked)).await??)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::OpenOptionsExt, path::Path};

    use super::*;
    use crate::{roll::Select, target::loss_guard::GuardSettings, testing};

    /// A template that nobody can read to its end, as on a file system that hangs, and what makes it go on.
    struct Hanging {
        sink: FileSink,
        selection: watch::Sender<Selection>,
        template: std::path::PathBuf,
        _dir: tempfile::TempDir,
    }

    fn hanging() -> Hanging {
        let dir = tempfile::tempdir().expect("a folder");
        let (config, template) = (dir.path().join("config.toml"), dir.path().join("list.j2"));
        fs::write(&template, "").expect("a file");
        let (dest, path) = (dir.path().join("file"), template.display());
        let target = format!("[[target]]\nname = \"web\"\ndest = {dest:?}\ntemplate = \"{path}\"\n");
        fs::write(&config, target).expect("a file");
        let target = crate::config::toml::read(&config).expect("a target").remove(0);
        let sink =
            FileSink::open(&target, target.sink.file().expect("a file"), testing::state_dir(dir.path()));
        fs::remove_file(&template).expect("a file");
        rustix::fs::mkfifoat(rustix::fs::CWD, &template, 0o600.into()).expect("a pipe");
        let mut selection = Selection::new(Select::default().into(), GuardSettings::default());
        selection.apply(&testing::come([(testing::id(1), testing::instance(1, "web"))]), Instant::now());
        Hanging { sink, selection: watch::Sender::new(selection), template, _dir: dir }
    }

    /// Opens the pipe to write, which succeeds once somebody reads, and puts a file there for the next reader.
    fn mend(template: &Path) -> fs::File {
        let mut options = fs::File::options();
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        options.write(true).custom_flags(nonblock);
        let writer = loop {
            match options.open(template) {
                Ok(writer) => break writer,
                Err(_) => std::thread::yield_now(),
            }
        };
        fs::remove_file(template).expect("a pipe");
        fs::write(template, "mended").expect("a file");
        writer
    }

    #[tokio::test]
    async fn the_roll_goes_on_while_a_template_is_rendered() {
        let Hanging { mut sink, selection, template, _dir } = hanging();
        let receiver = selection.subscribe();
        let applying = tokio::spawn(async move { sink.apply(&receiver).await.map(drop) });
        let writer = tokio::task::spawn_blocking(move || mend(&template)).await.expect("it is read");
        let told = tokio::task::spawn_blocking(move || {
            selection.send_modify(|selection| {
                selection.apply(&testing::come([]), Instant::now());
            });
        });
        tokio::time::timeout(Duration::from_secs(5), told).await.expect("nobody holds it").expect("no panic");
        assert!(!applying.is_finished());
        drop(writer);
        applying.await.expect("no panic").expect("it renders");
    }

    #[tokio::test(start_paused = true)]
    async fn a_template_on_a_file_system_that_hangs_is_told_and_rendered_once_it_is_there() {
        let Hanging { mut sink, selection, template, _dir } = hanging();
        let receiver = selection.subscribe();
        for _ in 0..2 {
            let slow = {
                let applying = sink.apply(&receiver);
                // The clock stands still while another thread is at work, unless it is told to go on.
                let (slow, ()) = tokio::join!(applying, tokio::time::advance(WORK_TIMEOUT));
                slow.expect_err("nobody writes").to_string()
            };
            assert_eq!(slow, "rendering or installing takes more than 10s");
        }
        drop(mend(&template));
        // What went on meanwhile has installed it, and is told now.
        let Applied::Unchanged(content) = sink.apply(&receiver).await.expect("it was rendered") else {
            panic!("it is there")
        };
        assert_eq!(content.instances, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_goes_on_on_another_thread_counts_as_under_way_when_nobody_waits_for_it_any_more() {
        let Hanging { mut sink, selection, template, _dir } = hanging();
        let tasks = TaskTracker::new();
        sink.equip(Equipment { tasks: tasks.clone(), checker: None });
        let receiver = selection.subscribe();
        let (slow, ()) = tokio::join!(sink.apply(&receiver), tokio::time::advance(WORK_TIMEOUT));
        slow.expect_err("nobody writes");
        drop(sink);
        tasks.close();
        assert!(!tasks.is_empty(), "it may install the file yet");
        drop(mend(&template));
        tasks.wait().await;
    }
}
