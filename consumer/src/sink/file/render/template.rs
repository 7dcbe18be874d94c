//! The user's template, in the Jinja language. It is read each time, and ends when its fuel does.

use std::{collections::BTreeMap, fs, path::Path};

use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value, context, value::Serde};
use rollcall_shared::model::name::{ServiceName, TargetName};

use super::{
    RenderError,
    block::{Block, Body},
    go,
    view::View,
};
use crate::roll::Row;

/// How many steps a template may take: some seconds' worth, and more than ten times what a roll of 100,000 needs.
const MAX_STEPS: u64 = 50_000_000;

const GO_TEMPLATE: &str = "this is a Go template, and Rollcall's are in Jinja's language: expected {% for %} and \
                           {{ name }}, see the README";

/// The name of the user's template within its environment; no included file can have it.
const MAIN: &str = "/";

/// A service's list, as templates see it.
pub(super) fn block(rows: &[&Row]) -> Block {
    let list = rows.iter().map(|row| Value::from(Serde(View::of(row)))).collect();
    Block { body: Body::List(list), instances: rows.len(), left_out: vec![], hosts: vec![] }
}

/// Checks that the template can be read and parsed.
pub(super) fn check(path: &Path) -> Result<(), RenderError> {
    environment(path).map(drop)
}

/// Fills the template in.
pub(super) fn fill(
    path: &Path,
    target: &TargetName,
    blocks: &[(&ServiceName, &Block)],
) -> Result<Vec<u8>, RenderError> {
    let environment = environment(path)?;
    let failed = |error| failed(path, &error);
    let instances: Vec<Value> = blocks.iter().flat_map(|(_, block)| block.list()).cloned().collect();
    let services: BTreeMap<&str, Value> = blocks
        .iter()
        .map(|(service, block)| (service.as_str(), block.list().iter().cloned().collect()))
        .collect();
    let target = context! { name => target.as_str() };
    let context = context! { instances, services, target };
    let template = environment.get_template(MAIN).map_err(failed)?;
    Ok(template.render(context).map_err(failed)?.into_bytes())
}

/// A strict environment with the user's template, whose folder is where it includes others from.
fn environment(path: &Path) -> Result<Environment<'static>, RenderError> {
    let source =
        fs::read_to_string(path).map_err(|source| RenderError::Read { path: path.to_owned(), source })?;
    if let Some(line) = go::line_of_tag(&source) {
        let reason = format!("line {line}: {GO_TEMPLATE}");
        return Err(RenderError::Template { path: path.to_owned(), reason });
    }
    let mut environment = Environment::new();
    environment.set_fuel(Some(MAX_STEPS));
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    let mut syntax = environment.syntax().to_builder();
    syntax.keep_trailing_newline(true).trim_blocks(true).lstrip_blocks(true);
    environment.set_syntax(syntax.build().expect("the usual delimiters do not contradict each other"));
    environment.set_loader(minijinja::path_loader(path.parent().unwrap_or(Path::new("."))));
    environment.add_template_owned(MAIN, source).map_err(|error| failed(path, &error))?;
    Ok(environment)
}

fn failed(path: &Path, error: &minijinja::Error) -> RenderError {
    let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    let what = match error.kind() {
        ErrorKind::OutOfFuel => format!("it takes more than {MAX_STEPS} steps"),
        kind => error.detail().map_or_else(|| kind.to_string(), ToOwned::to_owned),
    };
    let reason = format!("{line}{what}").replace(char::is_control, " ");
    RenderError::Template { path: path.to_owned(), reason }
}
