//! Which etcd and how to reach it, by flags and etcdctl's own environment variables.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use etcd_client::{Certificate, Identity, TlsOptions};

use crate::{
    keys::Keys,
    process::{setting::SettingError, time},
};

/// How to reach etcd, and where in it Rollcall's keys are.
#[derive(Clone, clap::Args)]
#[command(next_help_heading = "etcd")]
pub struct EtcdSettings {
    /// etcd's client URLs, separated by commas
    #[arg(id = "etcd", long = "etcd", env = "ETCDCTL_ENDPOINTS", value_name = "URL,...", global = true)]
    #[arg(value_delimiter = ',', value_parser = endpoint)]
    pub endpoints: Vec<String>,
    /// PEM file of the authority that signed etcd's certificate [default: the system's]
    #[arg(long = "etcd-cacert", env = "ETCDCTL_CACERT", value_name = "FILE", global = true)]
    pub cacert: Option<PathBuf>,
    /// PEM file of our client certificate
    #[arg(long = "etcd-cert", env = "ETCDCTL_CERT", value_name = "FILE", global = true)]
    pub cert: Option<PathBuf>,
    /// PEM file of our client certificate's key
    #[arg(long = "etcd-key", env = "ETCDCTL_KEY", value_name = "FILE", global = true)]
    pub key: Option<PathBuf>,
    /// User, or user:password
    #[arg(long = "etcd-user", env = "ETCDCTL_USER", value_name = "USER[:PASSWORD]", global = true)]
    #[arg(hide_env_values = true)]
    pub user: Option<String>,
    /// Password of that user
    #[arg(long = "etcd-password", env = "ETCDCTL_PASSWORD", value_name = "PASSWORD", global = true)]
    #[arg(hide_env_values = true)]
    pub password: Option<String>,
    /// File with that user's password, which is read again at each login
    #[arg(long, env = "ROLLCALL_ETCD_PASSWORD_FILE", value_name = "FILE", global = true)]
    #[arg(conflicts_with = "password")]
    pub etcd_password_file: Option<PathBuf>,
    /// How long connecting to a member may take
    #[arg(long = "etcd-dial-timeout", env = "ETCDCTL_DIAL_TIMEOUT", value_name = "TIME", global = true)]
    #[arg(default_value = "2s", value_parser = time::parse)]
    pub dial_timeout: Duration,
    /// How long a request may take
    #[arg(
        long = "etcd-command-timeout",
        env = "ETCDCTL_COMMAND_TIMEOUT",
        value_name = "TIME",
        global = true
    )]
    #[arg(default_value = "5s", value_parser = time::parse)]
    pub command_timeout: Duration,
    /// What all of Rollcall's keys start with
    #[arg(long, env = "ROLLCALL_PREFIX", value_name = "PATH", default_value = "/rollcall", global = true)]
    pub prefix: Keys,
}

impl fmt::Debug for EtcdSettings {
    /// Without the user, which may have a password in it, and the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdSettings").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

/// Parses an endpoint: `http://host:port`, `https://host:port` or, as etcdctl takes it, `host:port`.
fn endpoint(text: &str) -> Result<String, String> {
    let authority = match text.split_once("://") {
        Some(("http" | "https", authority)) => authority.strip_suffix('/').unwrap_or(authority),
        Some(_) => return Err("expected http:// or https://".to_owned()),
        None => text,
    };
    let expected = || "expected host:port, such as http://10.0.0.1:2379".to_owned();
    let (host, port) = authority.rsplit_once(':').ok_or_else(expected)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    if host.is_empty() || !host.chars().all(plain) || !port.parse::<u16>().is_ok_and(|port| port != 0) {
        return Err(expected());
    }
    Ok(text.strip_suffix('/').unwrap_or(text).to_owned())
}

impl EtcdSettings {
    /// Checks that the settings fit together.
    ///
    /// # Errors
    /// The setting that cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        for (set, flag, needs, given) in [
            (self.cert.is_some(), "--etcd-cert", "--etcd-key", self.key.is_some()),
            (self.key.is_some(), "--etcd-key", "--etcd-cert", self.cert.is_some()),
            (self.password.is_some(), "--etcd-password", "--etcd-user", self.user.is_some()),
            (self.etcd_password_file.is_some(), "--etcd-password-file", "--etcd-user", self.user.is_some()),
        ] {
            if set && !given {
                return Err(SettingError::missing(needs, format!("it beside {flag}, or neither")));
            }
        }
        let tls = self.cacert.is_some() || self.cert.is_some();
        if let Some(plain) = self.endpoints.iter().find(|url| tls && url.starts_with("http://")) {
            return Err(SettingError::new("--etcd", plain, "https://, as a certificate is given"));
        }
        Ok(())
    }

    /// The first endpoint's host and port.
    pub fn first_host(&self) -> Option<&str> {
        let endpoint = self.endpoints.first()?;
        Some(endpoint.split_once("://").map_or(endpoint.as_str(), |(_, rest)| rest))
    }

    /// The user and the password, as they are now.
    pub(super) fn credentials(&self) -> Result<Option<(String, String)>, SettingError> {
        let Some(user) = &self.user else { return Ok(None) };
        // As etcdctl has it: a password of its own leaves the user's name whole.
        match (self.own_password()?, user.split_once(':')) {
            (Some(password), _) => Ok(Some((user.clone(), password))),
            (None, Some((user, password))) => Ok(Some((user.to_owned(), password.to_owned()))),
            (None, None) => Err(SettingError::new(
                "--etcd-user",
                format!("{user:?}"),
                "user:password, --etcd-password or --etcd-password-file",
            )),
        }
    }

    /// The password that is given beside the user.
    fn own_password(&self) -> Result<Option<String>, SettingError> {
        let Some(file) = &self.etcd_password_file else { return Ok(self.password.clone()) };
        let text = fs::read_to_string(file)
            .map_err(|error| SettingError::caused("--etcd-password-file", file.display(), error))?;
        let password = text.strip_suffix('\n').unwrap_or(&text);
        Ok(Some(password.strip_suffix('\r').unwrap_or(password).to_owned()))
    }

    /// The files of certificates.
    pub(super) fn certificates(&self) -> impl Iterator<Item = &Path> {
        [&self.cacert, &self.cert].into_iter().flatten().map(PathBuf::as_path)
    }

    /// How TLS is spoken, with the files as they are now; `None` where it is not.
    pub(super) fn tls(&self) -> Result<Option<TlsOptions>, SettingError> {
        let https = self.endpoints.iter().any(|url| url.starts_with("https://"));
        if !https && self.cacert.is_none() && self.cert.is_none() {
            return Ok(None);
        }
        let mut tls = TlsOptions::new();
        tls = match &self.cacert {
            Some(file) => tls.ca_certificate(Certificate::from_pem(read("--etcd-cacert", file)?)),
            None => tls.with_native_roots(),
        };
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            tls = tls.identity(Identity::from_pem(read("--etcd-cert", cert)?, read("--etcd-key", key)?));
        }
        Ok(Some(tls))
    }
}

fn read(flag: &str, file: &Path) -> Result<Vec<u8>, SettingError> {
    let pem = fs::read(file).map_err(|error| SettingError::caused(flag, file.display(), error))?;
    if !pem.windows(11).any(|bytes| bytes == b"-----BEGIN ") {
        return Err(SettingError::new(flag, file.display(), "a PEM file"));
    }
    Ok(pem)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        etcd: EtcdSettings,
    }

    #[test]
    fn a_password_is_taken_as_it_is_and_its_file_is_read_each_time() {
        let parse = |flags: &[&str]| Cli::parse_from([&["test", "--etcd=h:1"], flags].concat()).etcd;
        let is = |settings: &EtcdSettings, expected: &str| {
            let (user, password) = settings.credentials().expect("they can be read").expect("there are some");
            assert_eq!((user.as_str(), password.as_str()), ("me", expected));
        };
        is(&parse(&["--etcd-user=me:a:b $c \"d"]), "a:b $c \"d");
        is(&parse(&["--etcd-user=me", "--etcd-password=a:b"]), "a:b");
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("password");
        let settings = parse(&["--etcd-user=me", &format!("--etcd-password-file={}", file.display())]);
        assert!(settings.credentials().is_err(), "there is no file");
        for password in ["first", "second "] {
            fs::write(&file, format!("{password}\n")).expect("a file");
            is(&settings, password);
        }
    }

    #[test]
    fn no_password_is_shown() {
        let settings =
            Cli::parse_from(["test", "--etcd=h:1", "--etcd-user=me:hush", "--etcd-password=hush"]).etcd;
        assert!(!format!("{settings:?}").contains("hush"));
    }

    #[test]
    fn endpoints_are_urls_or_host_and_port() {
        for good in
            ["http://10.0.0.1:2379", "https://etcd-1.example:2379/", "localhost:2379", "http://[::1]:2379"]
        {
            assert!(endpoint(good).is_ok(), "{good} was refused");
        }
        for bad in
            ["", "ftp://h:1", "http://h", "http://h:0", "http://h:99999", "http://:2379", "http://a b:1"]
        {
            assert!(endpoint(bad).is_err(), "{bad:?} was taken");
        }
    }
}
