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
        let to = match to {
            None => vec![],
            Some(label) if label.contains('=') => {
                vec![Selector::label(label.parse().map_err(|error| format!("{error}"))?)]
            }
            Some(name) => {
                let container = name.parse().map_err(|error| format!("{error}"))?;
                vec![Selector::container(container), Selector::service(name)]
            }
        };
        Ok(Self { signal, to })
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to: Vec<String> = self.to.iter().map(Selector::to_string).collect();
        match to.as_slice() {
            [] => self.signal.fmt(f),
            to => write!(f, "{} to {}", self.signal, to.join(" or ")),
        }
    }
}
