//! Shows what would change, as a diff, and touches nothing. What would be staged is checked in the folder of temporary
//! files.

use std::fmt::Write as _;

use similar::TextDiff;
use tokio::{sync::watch, time::Instant};

use super::{
    Check, FileConfig,
    check::Place,
    install::{Contents, Installer},
    notes,
    render::Rendered,
    sink::FileError,
    worker,
};
use crate::{
    config::TargetConfig,
    roll::{Hold, Selection},
    sink::preview::{Outcome, Preview},
};

/// What the target's file would become. `has_matched` says whether an earlier run has found something that matches.
pub async fn preview(
    target: &TargetConfig,
    file: &FileConfig,
    selection: &watch::Receiver<Selection>,
    has_matched: bool,
) -> Preview {
    let mut text = String::new();
    let outcome = look(target, file, selection, has_matched, &mut text).await.map_err(Into::into);
    Preview { text, outcome }
}

async fn look(
    target: &TargetConfig,
    file: &FileConfig,
    selection: &watch::Receiver<Selection>,
    has_matched: bool,
    text: &mut String,
) -> Result<Outcome, FileError> {
    let now = Instant::now();
    let (mut renderer, files) = worker::parts(target, file, None);
    worker::seed(&mut renderer, &files);
    let (changes, verdict, mismatch, kept) = {
        let selection = selection.borrow();
        let verdict = selection.verdict(now);
        let may_empty = has_matched || target.allow_empty;
        let mismatch = if may_empty { None } else { selection.mismatch() };
        (renderer.changes(&selection, &verdict), verdict, mismatch, selection.kept_notes())
    };
    let mut say = |line: String| writeln!(text, "target {}: {line}", target.name).expect("a text takes it");
    let dest = file.dest.display();
    if let Some(Hold { reason, .. }) = verdict.floor {
        say(format!("{dest} stays as it is: {reason}"));
        return Ok(Outcome::Same);
    }
    let Rendered { bytes, each, left_out, keeps_hosts, .. } = renderer.render(changes, now)?;
    verdict.services.into_values().for_each(|hold| say(hold.reason));
    kept.into_iter().for_each(&mut say);
    left_out.into_iter().for_each(|instance| say(format!("leaves out {instance}")));
    if keeps_hosts {
        say(notes::KEPT.to_owned());
    }
    let contents = if files.are_many() { Contents::Each(each) } else { Contents::One(bytes) };
    if let Some(reason) = mismatch {
        let is_held = files.loses_content(&contents)?;
        say(if is_held { format!("{dest} stays as it is: {}", notes::unmatched(&reason)) } else { reason });
        if is_held {
            return Ok(Outcome::Same);
        }
    }
    if files.are_many() {
        // Which files are ours is in the state folder, which is left alone.
        say("files of services that have gone are not looked for".to_owned());
    }
    let mut changed = vec![];
    for (installer, bytes) in files.each(&contents) {
        if installer.differs(bytes)? {
            changed.push((installer, bytes));
        } else {
            say(format!("{} stays as it is", installer.dest.display()));
        }
    }
    for (installer, bytes) in &changed {
        text.push_str(&diff(installer, bytes)?);
    }
    if changed.is_empty() {
        return Ok(Outcome::Same);
    }
    match &file.check {
        Some(Check { command, timeout, place: Place::Here, isolates: _ }) => {
            for (installer, bytes) in &changed {
                let staged = installer.stage_elsewhere(bytes)?;
                command.run(staged.path(), staged.dest(), *timeout).await?;
            }
        }
        // They see nothing that is not staged beside the destination.
        Some(Check { place: Place::Containers { to, .. }, .. }) => {
            writeln!(text, "target {}: not checked here, but in {to}", target.name).expect("a text takes it");
        }
        None => {}
    }
    Ok(Outcome::Changed)
}

/// The difference between the file and the bytes.
fn diff(installer: &Installer, bytes: &[u8]) -> Result<String, FileError> {
    let (installed, dest) = (installer.installed()?, installer.dest.display().to_string());
    if installed.as_deref() == Some(bytes) {
        return Ok(format!("{dest}: the mode or the owner would be set\n"));
    }
    let from = if installed.is_some() { dest.clone() } else { "/dev/null".to_owned() };
    let old = String::from_utf8_lossy(installed.as_deref().unwrap_or_default()).into_owned();
    let new = String::from_utf8_lossy(bytes);
    let diff = TextDiff::from_lines(&*old, &*new);
    Ok(diff.unified_diff().header(&from, &dest).to_string())
}
