//! What `--dry-run` shows of a target: what would change, and nothing is touched.

use tokio::sync::watch;

use super::{
    SinkError,
    citus::CitusProgram,
    file::dry_run,
    haproxy::HaproxyProgram,
    program::{self, Program},
    settings::SinkConfig,
};
use crate::{config::TargetConfig, roll::Selection};

/// What a target would come to.
#[derive(Debug)]
pub struct Preview {
    /// What to show, in lines.
    pub text: String,
    /// What would become of it.
    pub outcome: Result<Outcome, SinkError>,
}

/// What would become of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It stays as it is.
    Same,
    /// It would change.
    Changed,
}

/// What the target would become. `has_matched` says whether an earlier run has found something that matches.
pub async fn preview(
    target: &TargetConfig,
    selection: &watch::Receiver<Selection>,
    has_matched: bool,
) -> Preview {
    match &target.sink {
        SinkConfig::File(file) => dry_run::preview(target, file, selection, has_matched).await,
        SinkConfig::Haproxy(haproxy) => {
            let Preview { mut text, outcome: file } =
                dry_run::preview(target, &haproxy.file, selection, has_matched).await;
            let mut program = HaproxyProgram::new(haproxy.runtime.clone());
            let runtime = of_program(&mut program, target, selection, has_matched, &mut text).await;
            let outcome = file.and_then(|file| Ok(file.max(runtime?)));
            Preview { text, outcome }
        }
        SinkConfig::Citus(citus) => {
            let mut program = CitusProgram::new((**citus).clone());
            let mut text = String::new();
            let outcome = of_program(&mut program, target, selection, has_matched, &mut text).await;
            Preview { text, outcome }
        }
        SinkConfig::Http(_) => {
            let text = format!("target {}: is served, and rendered anew at each start\n", target.name);
            Preview { text, outcome: Ok(Outcome::Same) }
        }
    }
}

async fn of_program<P: Program>(
    program: &mut P,
    target: &TargetConfig,
    selection: &watch::Receiver<Selection>,
    has_matched: bool,
    text: &mut String,
) -> Result<Outcome, SinkError> {
    let mut say = |line: String| *text += &format!("target {}: {line}\n", target.name);
    program::preview(program, target, selection, has_matched, &mut say).await
}
