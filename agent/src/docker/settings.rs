//! How to reach Docker, by flags and Docker's own environment variables.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use rollcall_shared::process::time;

/// How to reach Docker.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Docker")]
pub struct DockerSettings {
    /// Docker's socket or address [default: the first there is of /var/run/docker.sock, /run/docker.sock and
    /// /tmp/docker.sock]
    #[arg(long, env = "DOCKER_HOST", value_name = "URL", global = true)]
    pub docker_host: Option<String>,
    /// Talk TLS to a tcp:// address, and check its certificate
    #[arg(long, env = "DOCKER_TLS_VERIFY", global = true)]
    #[arg(value_parser = clap::builder::FalseyValueParser::new())]
    pub docker_tls_verify: bool,
    /// Folder of ca.pem, cert.pem and key.pem [default: ~/.docker]
    #[arg(long, env = "DOCKER_CERT_PATH", value_name = "DIR", global = true)]
    pub docker_cert_path: Option<PathBuf>,
    /// API version to speak, such as 1.41 [default: the newest that both sides know]
    #[arg(long, env = "DOCKER_API_VERSION", value_name = "VERSION", global = true)]
    pub docker_api_version: Option<ApiVersion>,
    /// How long registrations stay while Docker cannot be reached
    #[arg(long, env = "ROLLCALL_DOCKER_GRACE", value_name = "TIME", default_value = "60s", global = true)]
    #[arg(value_parser = time::parse)]
    pub docker_grace: Duration,
}

/// A version of Docker's API.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    /// The number before the dot.
    pub major: usize,
    /// The number behind it.
    pub minor: usize,
}

impl FromStr for ApiVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('.').map(|(major, minor)| (major.parse(), minor.parse()));
        match numbers {
            Some((Ok(major), Ok(minor))) => Ok(Self { major, minor }),
            _ => Err("expected a version such as 1.41".to_owned()),
        }
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}
