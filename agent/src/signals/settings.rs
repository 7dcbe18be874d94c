//! Which signals are delivered, and when.

use std::{fmt, str::FromStr, time::Duration};

use rollcall_shared::{
    model::{
        selector::Selector,
        signal::{Delivery, Signal},
    },
    process::time,
};

/// Which signals are delivered.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Signals")]
pub struct SignalSettings {
    /// Signals that consumers may send: to any container (HUP), to a container or the containers of a service by name
    /// (HUP:proxy), or to those with a label (HUP:role=proxy). A container's own label rollcall.signal=HUP,USR1 allows
    /// them too
    #[arg(
        long = "allow-signal",
        env = "ROLLCALL_ALLOW_SIGNALS",
        value_name = "SIGNAL[:NAME|:LABEL=VALUE],...",
        global = true
    )]
    #[arg(value_delimiter = ',')]
    pub allow: Vec<Allowed>,
    /// How old a container must be before it is signalled, so that its handler is in place
    #[arg(long, env = "ROLLCALL_SIGNAL_SETTLE", value_name = "TIME", default_value = "1s", global = true)]
    #[arg(value_parser = time::parse)]
    pub signal_settle: Duration,
}

/// A signal that may be sent, and to which containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// The signal.
    pub signal: Signal,
    /// The containers that it may be sent to: those that one of these means; any, where there is none.
    pub to: Vec<Selector>,
}

impl From<Delivery> for Allowed {
    fn from(Delivery { signal, to }: Delivery) -> Self {
        Self { signal, to: vec![to] }
    }
}

impl FromStr for Allowed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (signal, to) = match text.split_once(':') {
            Some((signal, to)) => (signal, Some(to)),
            None => (text, None),
        };
        let signal = signal.parse().map_err(|error| format!("{error}"))?;
        Ok(Self { signal, to: to.map(containers).transpose()?.unwrap_or_default() })
    }
}

/// The containers that a rule means: those with a label and its value, or those that have a name or are of a service of
/// that name.
///
/// # Errors
/// Neither a label nor a name.
pub(crate) fn containers(text: &str) -> Result<Vec<Selector>, String> {
    if text.contains('=') {
        return Ok(vec![Selector::label(text.parse().map_err(|error| format!("{error}"))?)]);
    }
    let container = text.parse().map_err(|error| format!("{error}"))?;
    Ok(vec![Selector::container(container), Selector::service(text)])
}

/// Shows what a rule allows, and the containers that it means.
pub(crate) fn show_containers(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    preposition: &str,
    to: &[Selector],
) -> fmt::Result {
    let to: Vec<String> = to.iter().map(Selector::to_string).collect();
    match to.as_slice() {
        [] => f.write_str(what),
        to => write!(f, "{what} {preposition} {}", to.join(" or ")),
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show_containers(f, &self.signal.to_string(), "to", &self.to)
    }
}
