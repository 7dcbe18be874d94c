//! The user's template, in the Jinja language. It is read each time, and ends when its fuel does. docs/templates.md has
//! what it sees, and every filter that is not Jinja's own.

mod patterns;
mod query;
mod texts;

use std::{collections::BTreeMap, fs, path::Path};

use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value, context, value::Serde};
use rollcall_shared::{
    model::name::{ServiceName, TargetName},
    store::Revision,
};

use self::patterns::Patterns;
use super::{
    RenderError,
    block::{Block, Body},
    go,
    settings::Vars,
    view::View,
};
use crate::roll::Row;

/// How many steps a template may take: some seconds' worth, and more than ten times what a roll of 100,000 needs.
const MAX_STEPS: u64 = 50_000_000;

const GO_TEMPLATE: &str = "this is a Go template, and Rollcall's are in Jinja's language: expected {% for %} and \
                           {{ name }}, as docs/templates.md has them beside Go's";

/// The name of the user's template within its environment; no included file can have it.
const MAIN: &str = "/";

/// What a template sees beside the instances.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'f> {
    pub target: &'f TargetName,
    pub vars: &'f Vars,
    pub revision: Revision,
}

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
    Facts { target, vars, revision }: Facts<'_>,
    blocks: &[(&ServiceName, &Block)],
) -> Result<Vec<u8>, RenderError> {
    let environment = environment(path)?;
    let failed = |error| failed(path, &error);
    let instances: Vec<Value> = blocks.iter().flat_map(|(_, block)| block.list()).cloned().collect();
    let services: BTreeMap<&str, Value> = blocks
        .iter()
        .map(|(service, block)| (service.as_str(), block.list().iter().cloned().collect()))
        .collect();
    let nodes = nodes(&instances);
    let target = context! { name => target.as_str() };
    let revision = revision.0;
    let context = context! { instances, services, nodes, revision, target, vars => Serde(vars) };
    let template = environment.get_template(MAIN).map_err(failed)?;
    Ok(template.render(context).map_err(failed)?.into_bytes())
}

/// The nodes that have instances, by name, with their own.
fn nodes(instances: &[Value]) -> Vec<Value> {
    let mut nodes = BTreeMap::<String, Vec<Value>>::new();
    for instance in instances {
        let name = instance.get_attr("node").map(|node| node.to_string()).unwrap_or_default();
        nodes.entry(name).or_default().push(instance.clone());
    }
    nodes.into_iter().map(|(name, instances)| context! { name, instances }).collect()
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
    // Errors know the expression that failed.
    environment.set_debug(true);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    let mut syntax = environment.syntax().to_builder();
    syntax.keep_trailing_newline(true).trim_blocks(true).lstrip_blocks(true);
    environment.set_syntax(syntax.build().expect("the usual delimiters do not contradict each other"));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    let patterns = Patterns::default();
    query::add_to(&mut environment, &patterns);
    patterns::add_to(&mut environment, &patterns);
    texts::add_to(&mut environment);
    environment.set_loader(minijinja::path_loader(path.parent().unwrap_or(Path::new("."))));
    environment.add_template_owned(MAIN, source).map_err(|error| failed(path, &error))?;
    Ok(environment)
}

/// Where and why it failed: the file, if it is not the template itself, the line, and the expression.
fn failed(path: &Path, error: &minijinja::Error) -> RenderError {
    let file = error.name().filter(|name| *name != MAIN).map(|name| format!("{name}: ")).unwrap_or_default();
    let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    let what = match error.kind() {
        ErrorKind::OutOfFuel => format!("it takes more than {MAX_STEPS} steps"),
        kind => error.detail().map_or_else(|| kind.to_string(), ToOwned::to_owned),
    };
    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    let place = text_of_line(error).map(|line| format!(", in {line}")).unwrap_or_default();
    let reason = format!("{file}{line}{what}{source}{place}").replace(char::is_control, " ");
    RenderError::Template { path: path.to_owned(), reason }
}

/// The line that failed, as it is written, where the error does not have the expression itself.
fn text_of_line(error: &minijinja::Error) -> Option<String> {
    /// How much of it is shown, in characters.
    const MAX_SHOWN: usize = 120;
    if matches!(error.kind(), ErrorKind::OutOfFuel | ErrorKind::UndefinedError) {
        return None;
    }
    let line = error.template_source()?.lines().nth(error.line()?.checked_sub(1)?)?.trim();
    (!line.is_empty()).then(|| line.chars().take(MAX_SHOWN).collect())
}

#[cfg(test)]
mod tests;
