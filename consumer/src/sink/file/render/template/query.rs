//! Filters that choose and group instances by anything that they have. A key is named part by part, as
//! `"labels", "com.example.role"`: labels have dots in them, at which Jinja's own `groupby` and `selectattr` would cut.

use std::collections::BTreeMap;

use minijinja::{
    Environment, Error, ErrorKind, Value,
    value::{Kwargs, Rest, ValueKind},
};

use super::patterns::Patterns;

/// Makes the filters known.
pub(super) fn add_to(environment: &mut Environment<'_>, patterns: &Patterns) {
    environment.add_filter("group_by", group_by);
    for (name, is_wanted) in [("where", true), ("where_not", false)] {
        let patterns = patterns.clone();
        environment.add_filter(name, move |list: Value, path: Rest<Value>, kwargs: Kwargs| {
            choose(&list, &path, &kwargs, is_wanted, &patterns)
        });
    }
}

/// What a value has at the path, if it has it.
fn at(value: &Value, path: &[Value]) -> Result<Option<Value>, Error> {
    let mut found = value.clone();
    for key in path {
        found = found.get_item(key)?;
        if found.is_undefined() || found.is_none() {
            return Ok(None);
        }
    }
    Ok(Some(found))
}

fn needs_path(filter: &str, path: &[Value]) -> Result<(), Error> {
    if path.is_empty() {
        let expected = format!("{filter} has no key: expected such as {filter}(\"labels\", \"role\")");
        return Err(Error::new(ErrorKind::MissingArgument, expected));
    }
    Ok(())
}

/// Pairs of a value and the list of those that have it, in the order of the values. What does not have the key is in no
/// list, or in that of `default`. With `split`, a text is several values.
fn group_by(list: Value, path: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    needs_path("group_by", &path)?;
    let (default, split): (Option<Value>, Option<String>) = (kwargs.get("default")?, kwargs.get("split")?);
    kwargs.assert_all_used()?;
    let mut groups = BTreeMap::<Value, Vec<Value>>::new();
    for item in list.try_iter()? {
        let Some(found) = at(&item, &path)?.or_else(|| default.clone()) else { continue };
        for key in keys(found, split.as_deref())? {
            groups.entry(key).or_default().push(item.clone());
        }
    }
    Ok(groups.into_iter().map(|(key, list)| Value::from(vec![key, Value::from(list)])).collect())
}

/// The values that a value stands for. A list is each of its own: an instance has several tags.
fn keys(found: Value, split: Option<&str>) -> Result<Vec<Value>, Error> {
    match (split, found.as_str()) {
        (Some(split), Some(text)) => {
            let parts = text.split(split).map(str::trim).filter(|part| !part.is_empty());
            Ok(parts.map(Value::from).collect())
        }
        _ if found.kind() == ValueKind::Seq => Ok(found.try_iter()?.collect()),
        _ => Ok(vec![found]),
    }
}

/// What has the key, with the value if one is given: `equals`, one of `any_of`, or a text that `matches`.
fn choose(
    list: &Value,
    path: &[Value],
    kwargs: &Kwargs,
    is_wanted: bool,
    patterns: &Patterns,
) -> Result<Value, Error> {
    needs_path(if is_wanted { "where" } else { "where_not" }, path)?;
    let (equals, any_of): (Option<Value>, Option<Value>) = (kwargs.get("equals")?, kwargs.get("any_of")?);
    let matches: Option<String> = kwargs.get("matches")?;
    kwargs.assert_all_used()?;
    let mut chosen = vec![];
    for item in list.try_iter()? {
        let fits = match at(&item, path)? {
            None => false,
            Some(found) => {
                equals.as_ref().is_none_or(|equals| found == *equals)
                    && match &any_of {
                        None => true,
                        Some(any_of) => any_of.try_iter()?.any(|one| one == found),
                    }
                    && match &matches {
                        None => true,
                        Some(pattern) => patterns.get(pattern)?.is_match(&found.to_string()),
                    }
            }
        };
        if fits == is_wanted {
            chosen.push(item);
        }
    }
    Ok(chosen.into())
}
