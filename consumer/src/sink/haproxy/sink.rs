//! The sink of HAProxy: the file that its next start reads, and its socket, side by side.
//!
//! Neither waits for the other: a check that is slow keeps no server out, and a HAProxy that is down keeps its file from
//! nothing. HAProxy is reloaded, by the target's notifier, only for what cannot be told at run time, and once for each
//! file.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use rollcall_shared::process::error::one_line;
use tokio::{sync::watch, time::Instant};

use super::{
    HaproxyConfig, HaproxyProgram,
    program::is_absent,
    reloads::{Ask, Reloads},
};
use crate::{
    config::TargetConfig,
    roll::Selection,
    sink::{
        Applied, Content, Equipment, Sink, SinkError,
        file::{FileSink, notify::Told},
        program::Reconciler,
    },
    state_dir::StateDir,
    target::{generation::Generation, state::Acked},
};

/// How soon a socket that is not there is looked for again, if nothing tells before.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// Keeps a HAProxy and its file.
#[derive(Debug)]
pub struct HaproxySink {
    file: FileSink,
    runtime: Reconciler<HaproxyProgram>,
    /// Kept where there is somebody to notify.
    reloads: Option<Reloads>,
}

impl HaproxySink {
    /// A sink for a target that was checked.
    pub fn open(target: &TargetConfig, config: &HaproxyConfig, state_dir: Arc<StateDir>) -> Self {
        let program = HaproxyProgram::new(config.runtime.clone());
        Self {
            file: FileSink::open(target, &config.file, state_dir.clone()),
            runtime: Reconciler::new(program, target, state_dir),
            reloads: config.file.notify.as_ref().map(|_| Reloads::new(target.pace)),
        }
    }
}

#[async_trait]
impl Sink for HaproxySink {
    fn equip(&mut self, equipment: Equipment) {
        self.file.equip(equipment);
    }

    fn told(&self) -> Option<Told> {
        self.file.told()
    }

    async fn apply(&mut self, selection: &watch::Receiver<Selection>) -> Result<Applied, SinkError> {
        // The socket first: rendering the file, on another thread, takes longer.
        let (runtime, file) = tokio::join!(self.runtime.reconcile(selection), self.file.apply(selection));
        match runtime {
            Ok((runtime, reloads)) => Ok(self.combined(file?, runtime, &reloads)),
            Err(error) if is_absent(&error) => Ok(self.without_socket(file?, one_line(&*error))),
            Err(error) => Err(error),
        }
    }

    async fn disturbed(&mut self) {
        self.runtime.disturbed().await;
    }

    async fn remember(&mut self, acked: Option<(Generation, Acked)>) -> Result<(), SinkError> {
        self.runtime.remember(None).await?;
        self.file.remember(acked).await
    }
}

impl HaproxySink {
    /// What has become of both.
    fn combined(&mut self, file: Applied, runtime: Applied, reloads: &[String]) -> Applied {
        let is_written = [&file, &runtime].iter().any(|applied| matches!(applied, Applied::Written(_)));
        let (file, runtime) = match (file, runtime) {
            (held @ Applied::Held { .. }, _) | (_, held @ Applied::Held { .. }) => return held,
            (
                Applied::Written(file) | Applied::Unchanged(file),
                Applied::Written(runtime) | Applied::Unchanged(runtime),
            ) => (file, runtime),
        };
        let mut content = Content {
            refused: [file.refused, runtime.refused].concat(),
            notes: together(file.notes, runtime.notes),
            look_again: [file.look_again, runtime.look_again].into_iter().flatten().min(),
            ..file
        };
        self.ask_reload(&mut content, reloads);
        if is_written { Applied::Written(content) } else { Applied::Unchanged(content) }
    }

    /// What has become of the file where there is no socket: a HAProxy that runs has not read yet where it is to be.
    fn without_socket(&mut self, file: Applied, error: String) -> Applied {
        let (mut content, is_written) = match file {
            held @ Applied::Held { .. } => return held,
            Applied::Written(content) => (content, true),
            Applied::Unchanged(content) => (content, false),
        };
        let again = Instant::now() + RETRY_DELAY;
        content.look_again = Some(content.look_again.map_or(again, |at| at.min(again)));
        content.refused.push(error.clone());
        self.ask_reload(&mut content, &[error]);
        if is_written { Applied::Written(content) } else { Applied::Unchanged(content) }
    }

    /// Has HAProxy reloaded for these reasons, if there are any; nobody is notified otherwise.
    fn ask_reload(&mut self, content: &mut Content, reloads: &[String]) {
        content.is_quiet = true;
        let asked = self.reloads.as_mut().map(|all| all.ask(content.generation, reloads, Instant::now()));
        let who = match asked {
            None => "only a reload of HAProxy brings it, and the target has no notify",
            Some(Ask::Never) => "",
            Some(Ask::Reload(generation)) => {
                // What was acked of another generation is nobody's business.
                content.acked = content.acked.take().filter(|_| generation == content.generation);
                (content.generation, content.is_quiet) = (generation, false);
                "HAProxy is told to reload, which brings it if HAProxy reads this file"
            }
            Some(Ask::Later(due)) => {
                content.look_again = Some(content.look_again.map_or(due, |at| at.min(due)));
                "HAProxy is told to reload soon"
            }
        };
        if !reloads.is_empty() {
            content.refused.push(who.to_owned());
        }
    }
}

/// What both tell, each line once: both tell of what a service keeps.
fn together(mut file: Vec<String>, runtime: Vec<String>) -> Vec<String> {
    for note in runtime {
        if !file.contains(&note) {
            file.push(note);
        }
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_file_and_socket_both_tell_is_told_once() {
        let notes = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            together(notes("kept-a kept-b left-out"), notes("kept-a kept-b by-hand")),
            notes("kept-a kept-b left-out by-hand")
        );
    }
}
