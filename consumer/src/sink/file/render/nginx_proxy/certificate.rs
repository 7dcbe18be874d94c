//! Which certificate a virtual host has, as nginx-proxy looks for it.

use super::{folders::Folders, host_name::HostName};

/// The certificate for hosts that have none.
const DEFAULT: &str = "default";

impl Folders {
    /// Whether there are a certificate and its key of this name.
    fn has_certificate(&self, name: &str) -> bool {
        ["crt", "key"].iter().all(|ending| self.certs.contains(&format!("{name}.{ending}")))
    }

    /// The name of the default certificate, if it is there.
    pub(super) fn default_certificate(&self) -> Option<String> {
        self.has_certificate(DEFAULT).then(|| DEFAULT.to_owned())
    }

    /// The name of a host's certificate. One that is `wanted` by name is the only one that is looked for.
    pub(super) fn certificate(&self, host: &HostName, wanted: Option<&str>) -> Option<String> {
        if let Some(wanted) = wanted {
            return self.has_certificate(wanted).then(|| wanted.to_owned());
        }
        let own = match host {
            HostName::Plain(name) => self.certificate_of(name),
            HostName::Regex(_) => None,
        };
        own.or_else(|| self.default_certificate())
    }

    /// The host's own, or the one of its parent domain, which is one for all below it.
    fn certificate_of(&self, name: &str) -> Option<String> {
        let parent = name.split_once('.').map(|(_, parent)| parent).filter(|parent| parent.contains('.'));
        [Some(name), parent].into_iter().flatten().find(|name| self.has_certificate(name)).map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_found_by_the_hosts_name_its_parents_or_as_the_default() {
        let pair = |name: &str| [format!("{name}.crt"), format!("{name}.key")];
        let certs = ["example.com", "a.example.com", "shared", "com"].iter().flat_map(|name| pair(name));
        let certs = certs.chain(["half.crt".to_owned()]).collect();
        let mut folders = Folders { certs, ..Folders::default() };
        let of = |folders: &Folders, host: &str, wanted| {
            folders.certificate(&host.parse().expect("a name"), wanted)
        };
        for (host, wanted, expected) in [
            ("a.example.com", None, Some("a.example.com")),
            ("b.example.com", None, Some("example.com")),
            ("*.example.com", None, Some("example.com")),
            ("x.b.example.com", None, None),
            ("other.com", None, None),
            ("a.example.com", Some("shared"), Some("shared")),
            ("a.example.com", Some("half"), None),
            ("~^a$", None, None),
        ] {
            assert_eq!(of(&folders, host, wanted).as_deref(), expected, "{host} {wanted:?}");
        }
        folders.certs.extend(pair("default"));
        for host in ["other.com", "~^a$"] {
            assert_eq!(of(&folders, host, None).as_deref(), Some("default"));
        }
        assert_eq!(of(&folders, "other.com", Some("half")), None);
    }
}
