//! Shows what would change, as a diff, and touches nothing.

use std::fmt::Write as _;

use rollcall_shared::process::error::one_line;
use similar::TextDiff;
use tokio::time::Instant;

use super::{render::Rendered, worker};
use crate::{config::TargetConfig, roll::Selection};

/// Why it cannot be told what would change.
#[derive(Debug, thiserror::Error)]
#[error("target {target}: {reason}")]
pub struct DryRunError {
    target: String,
    reason: String,
}

/// The difference between a target's file and what it would be.
///
/// # Errors
/// It cannot be rendered, or the file cannot be read.
pub fn diff(target: &TargetConfig, selection: &Selection) -> Result<String, DryRunError> {
    let named = |reason: String| DryRunError { target: target.name.to_string(), reason };
    let now = Instant::now();
    let (mut renderer, installer) = worker::parts(target);
    let verdict = selection.verdict(now);
    let changes = renderer.changes(selection, &verdict);
    let Rendered { bytes, left_out, .. } =
        renderer.render(changes, now).map_err(|error| named(one_line(&error)))?;
    let installed = installer.installed().map_err(|error| named(one_line(&error)))?;
    let dest = target.file.dest.display();
    let (old, new) = (installed.as_deref().unwrap_or_default(), bytes.as_slice());
    let mut text = String::new();
    if installed.as_deref() == Some(new) {
        writeln!(text, "target {}: {dest} stays as it is", target.name).expect("a text takes it");
    } else {
        let (old, new) = (String::from_utf8_lossy(old), String::from_utf8_lossy(new));
        let from = if installed.is_some() { dest.to_string() } else { "/dev/null".to_owned() };
        let diff = TextDiff::from_lines(&*old, &*new);
        text.push_str(&diff.unified_diff().header(&from, &dest.to_string()).to_string());
    }
    for instance in left_out {
        writeln!(text, "target {}: leaves out {instance}", target.name).expect("a text takes it");
    }
    Ok(text)
}
