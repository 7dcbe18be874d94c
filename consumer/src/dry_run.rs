//! Shows what would change, as a diff, and touches nothing.

use std::fmt::Write as _;

use similar::TextDiff;

use crate::{config::TargetSettings, press, render::Rendered, select::Selection};

/// The difference between a target's file and what it would be.
///
/// # Errors
/// A sentence, where it cannot be rendered or the file cannot be read.
pub fn diff(target: &TargetSettings, selection: &Selection) -> Result<String, String> {
    let named = |error: String| format!("target {}: {error}", target.name);
    let (mut renderer, installer) = press::parts(target);
    let Rendered { bytes, left_out, .. } =
        renderer.render(selection).map_err(|error| named(error.to_string()))?;
    let installed = installer.installed().map_err(|error| named(error.to_string()))?;
    let dest = target.dest.display();
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
