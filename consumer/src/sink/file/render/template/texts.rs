//! Filters and functions for texts: quotes, hashes, JSON and the environment.

use std::env;

use minijinja::{Environment, Error, ErrorKind, Value, value::Serde};
use sha1::{Digest, Sha1};

use crate::sink::file::render::quoting::Program;

/// Variables that may hold secrets of the consumer.
const SECRETS: [&str; 2] = ["ROLLCALL_", "ETCDCTL_"];

/// Makes the filters and functions known.
pub(super) fn add_to(environment: &mut Environment<'_>) {
    let programs = [
        ("nginx", Program::Nginx),
        ("haproxy", Program::Haproxy),
        ("sql", Program::Sql),
        ("shell", Program::Shell),
    ];
    for (name, program) in programs {
        environment
            .add_filter(name, move |text: &Value, instead: Option<String>| quote(program, text, instead));
    }
    environment.add_filter("sha1", sha1);
    environment.add_filter("fromjson", from_json);
    environment.add_function("env", variable);
}

/// In the program's quotes. What cannot be quoted is an error, or quoted as the other text that is given.
fn quote(program: Program, text: &Value, instead: Option<String>) -> Result<String, Error> {
    if text.is_undefined() {
        return Err(ErrorKind::UndefinedError.into());
    }
    let quoted = match (program.quote(&text.to_string()), instead) {
        (Err(_), Some(instead)) => program.quote(&instead),
        (quoted, _) => quoted,
    };
    quoted.map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

fn sha1(text: &str) -> String {
    Sha1::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_json(text: &str) -> Result<Value, Error> {
    let value: serde_json::Value = serde_json::from_str(text)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, "the text is no JSON").with_source(error))?;
    Ok(Value::from(Serde(value)))
}

/// A variable of the consumer's environment. One that is not set is undefined, unless a default is given.
fn variable(name: &str, default: Option<Value>) -> Result<Value, Error> {
    if SECRETS.iter().any(|start| name.to_ascii_uppercase().starts_with(start)) {
        let text = format!("{name} is not shown to templates, as it may hold a secret");
        return Err(Error::new(ErrorKind::InvalidOperation, text));
    }
    Ok(env::var(name).map(Value::from).unwrap_or(default.unwrap_or(Value::UNDEFINED)))
}
