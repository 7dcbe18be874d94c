//! Which layouts are written, and where.

use std::{fmt, net::IpAddr, str::FromStr};

use rollcall_shared::{
    keys::{Keys, PrefixError},
    process::setting::SettingError,
};

use super::Layout;

/// Which layouts are written, and where.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Layouts")]
pub struct LayoutSettings {
    /// Keys for the readers of other tools, which are written beside Rollcall's own
    #[arg(id = "layout", long = "layout", env = "ROLLCALL_LAYOUTS", value_name = "NAME,...", global = true)]
    #[arg(value_delimiter = ',')]
    pub layouts: Vec<Layout>,
    /// What the keys of the layout containers start with
    #[arg(long, env = "ROLLCALL_CONTAINERS_PREFIX", value_name = "PATH", default_value = "/containers")]
    #[arg(global = true)]
    pub containers_prefix: Folder,
    /// Host of ports published on every address, in the layout containers [default: as of --advertise]
    #[arg(long, env = "ROLLCALL_CONTAINERS_HOST", value_name = "IP", global = true)]
    pub containers_host: Option<IpAddr>,
    /// What the keys of the layout registrator start with
    #[arg(long, env = "ROLLCALL_REGISTRATOR_PREFIX", value_name = "PATH", default_value = "/services")]
    #[arg(global = true)]
    pub registrator_prefix: Folder,
    /// What the keys of the layout skydns start with: CoreDNS's `path`
    #[arg(long, env = "ROLLCALL_SKYDNS_PREFIX", value_name = "PATH", default_value = "/skydns")]
    #[arg(global = true)]
    pub skydns_prefix: Folder,
    /// Domain of the layout skydns
    #[arg(long, env = "ROLLCALL_SKYDNS_DOMAIN", value_name = "DOMAIN", default_value = "rollcall.local")]
    #[arg(global = true)]
    pub skydns_domain: Domain,
}

impl Default for LayoutSettings {
    /// No layout, and the flags' own defaults.
    fn default() -> Self {
        Self {
            layouts: Vec::new(),
            containers_prefix: Folder("/containers".to_owned()),
            containers_host: None,
            registrator_prefix: Folder("/services".to_owned()),
            skydns_prefix: Folder("/skydns".to_owned()),
            skydns_domain: Domain(vec!["rollcall".to_owned(), "local".to_owned()]),
        }
    }
}

impl LayoutSettings {
    /// Checks that no layout's keys are among another's or among Rollcall's own.
    ///
    /// # Errors
    /// The setting that cannot work.
    pub fn check(&self, keys: &Keys) -> Result<(), SettingError> {
        if let Some(ip) = self.containers_host.filter(IpAddr::is_unspecified) {
            return Err(SettingError::new("--containers-host", ip, "one address, not all of them"));
        }
        let mut taken = vec![("--prefix", format!("{keys}/"))];
        for layout in self.layouts() {
            let (flag, folder) = (layout.prefix_flag(), self.folder(layout));
            for (other, others) in &taken {
                if folder.starts_with(others) || others.starts_with(&folder) {
                    let expected = format!("a folder apart from {others}, of {other}");
                    return Err(SettingError::new(flag, folder, expected));
                }
            }
            taken.push((flag, folder));
        }
        Ok(())
    }
}

impl Layout {
    fn prefix_flag(self) -> &'static str {
        match self {
            Layout::Containers => "--containers-prefix",
            Layout::Registrator => "--registrator-prefix",
            Layout::Skydns => "--skydns-prefix",
        }
    }
}

/// A folder of keys, such as `/containers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder(String);

impl FromStr for Folder {
    type Err = PrefixError;
    fn from_str(text: &str) -> Result<Self, PrefixError> {
        Ok(Self(text.parse::<Keys>()?.to_string()))
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A DNS domain: its labels, in lower case, as CoreDNS looks names up so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain(Vec<String>);

impl Domain {
    /// The labels, the top-level domain last.
    pub fn labels(&self) -> &[String] {
        &self.0
    }
}

impl FromStr for Domain {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let labels: Vec<String> =
            text.strip_suffix('.').unwrap_or(text).split('.').map(str::to_lowercase).collect();
        // A name is at most 253 bytes, and what is in front of the domain needs room.
        if text.len() > MAX_DOMAIN_BYTES || !labels.iter().all(|label| is_label(label)) {
            return Err(format!(
                "expected a domain of at most {MAX_DOMAIN_BYTES} bytes, such as rollcall.local"
            ));
        }
        Ok(Self(labels))
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

const MAX_DOMAIN_BYTES: usize = 128;
/// The longest label of a name (RFC 1035).
const MAX_LABEL_BYTES: usize = 63;

/// Whether a text is one label of a DNS name.
pub(super) fn is_label(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    (1..=MAX_LABEL_BYTES).contains(&text.len()) && text.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::testing::settings;

    fn refusal(flags: &[&str]) -> Option<String> {
        let keys: Keys = "/rollcall".parse().expect("a prefix");
        settings(flags).check(&keys).err().map(|error| error.to_string())
    }

    #[test]
    fn no_layout_is_among_anothers_keys_or_rollcalls_own() {
        assert_eq!(refusal(&["--layout", "containers,registrator,skydns"]), None);
        let expected = "--containers-prefix is /rollcall/instances/: expected a folder apart from /rollcall/, of \
                        --prefix";
        let flags = ["--layout", "containers", "--containers-prefix", "/rollcall/instances"];
        assert_eq!(refusal(&flags).as_deref(), Some(expected));
        let flags = ["--layout", "containers,registrator", "--registrator-prefix", "/containers/a"];
        assert!(refusal(&flags).is_some_and(|error| error.contains("of --containers-prefix")));
        // What is not asked for has no keys.
        assert_eq!(refusal(&["--layout", "containers", "--registrator-prefix", "/containers/a"]), None);
    }

    #[test]
    fn a_fallback_is_one_address() {
        let refused = refusal(&["--layout", "containers", "--containers-host", "0.0.0.0"]);
        assert_eq!(
            refused.as_deref(),
            Some("--containers-host is 0.0.0.0: expected one address, not all of them")
        );
    }

    #[test]
    fn a_domain_is_labels_in_lower_case() {
        assert_eq!("Rollcall.Local.".parse::<Domain>().expect("a domain").to_string(), "rollcall.local");
        for bad in ["", ".", "a..b", "a/b", "a b", &"x".repeat(64), &"x.".repeat(70)] {
            assert!(bad.parse::<Domain>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn the_default_is_that_of_the_flags() {
        assert_eq!(format!("{:?}", settings(&[])), format!("{:?}", LayoutSettings::default()));
    }
}
