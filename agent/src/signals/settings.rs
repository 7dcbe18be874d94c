//! Which signals are delivered, and when.

use std::{fmt, str::FromStr, time::Duration};

use rollcall_shared::{
    model::signal::{Delivery, Selector, Signal},
    process::time,
};

/// Which signals are delivered.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Signals")]
pub struct SignalSettings {
    /// Signals that consumers may send, to any container or to one: HUP or HUP:citus_master. A container's own label
    /// rollcall.signal=HUP,USR1 allows them too
    #[arg(
        long = "allow-signal",
        env = "ROLLCALL_ALLOW_SIGNALS",
        value_name = "SIGNAL[:CONTAINER],...",
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
    /// The containers that it may be sent to; any, where there is none.
    pub to: Option<Selector>,
}

impl From<Delivery> for Allowed {
    fn from(Delivery { signal, to }: Delivery) -> Self {
        Self { signal, to: Some(to) }
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
        let to = to.map(str::parse).transpose().map_err(|error| format!("{error}"))?;
        Ok(Self { signal, to: to.map(Selector::Container) })
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            Some(to) => write!(f, "{} to {to}", self.signal),
            None => self.signal.fmt(f),
        }
    }
}
