//! What is checked where a container does not say.

use std::str::FromStr;

/// What is checked where a container does not say.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(next_help_heading = "Checks")]
pub struct CheckSettings {
    /// When a container is ready that has neither a HEALTHCHECK nor a check of its own: at once (none), or when its
    /// port has taken a TCP connection (tcp). Until then it is starting
    #[arg(long, env = "ROLLCALL_READY", value_name = "WHEN", default_value = "none", global = true)]
    pub ready: Ready,
}

/// When a container is ready that has no check.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ready {
    /// At once.
    #[default]
    None,
    /// When its port has taken a TCP connection.
    Tcp,
}

impl FromStr for Ready {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Ready::None),
            "tcp" => Ok(Ready::Tcp),
            _ => Err("expected none or tcp".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_way_to_be_ready_is_refused() {
        assert_eq!("tcp".parse(), Ok(Ready::Tcp));
        assert_eq!("http".parse::<Ready>(), Err("expected none or tcp".to_owned()));
    }
}
