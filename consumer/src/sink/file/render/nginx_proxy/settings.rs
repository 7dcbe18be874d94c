//! The settings of the format `nginx-proxy`: `[target.nginx_proxy]`. They take the place of nginx-proxy's own
//! environment.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use rollcall_shared::process::setting::SettingError;
use serde::Deserialize;

use super::host_name::HostName;
use crate::config::toml::parsed;

/// How a virtual host is served over HTTP and HTTPS, where it has a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HttpsMethod {
    /// HTTP is redirected to HTTPS.
    Redirect,
    /// By both.
    NoRedirect,
    /// By HTTPS only.
    NoHttp,
    /// By HTTP only.
    NoHttps,
}

impl FromStr for HttpsMethod {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "redirect" => Ok(HttpsMethod::Redirect),
            "noredirect" => Ok(HttpsMethod::NoRedirect),
            "nohttp" => Ok(HttpsMethod::NoHttp),
            "nohttps" => Ok(HttpsMethod::NoHttps),
            _ => Err("redirect, noredirect, nohttp or nohttps"),
        }
    }
}

/// The value of the header `Strict-Transport-Security` (RFC 6797), or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StrictTransport(pub(super) Option<String>);

impl FromStr for StrictTransport {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "=;, -".contains(c);
        match text {
            "off" => Ok(Self(None)),
            _ if text.len() <= 200 && text.starts_with("max-age=") && text.chars().all(fits) => {
                Ok(Self(Some(text.to_owned())))
            }
            _ => Err("off, or max-age=SECONDS and what may follow it"),
        }
    }
}

/// A folder: where it is looked at, and where nginx has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// As the consumer sees it.
    pub dir: PathBuf,
    /// As nginx sees it.
    pub path: String,
}

/// How virtual hosts are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NginxProxy {
    /// The host that answers for unknown ones.
    pub default_host: Option<HostName>,
    /// Whether `www.NAME` is redirected to `NAME`.
    pub www_redirect: bool,
    /// Where HTTP is served.
    pub http_port: u16,
    /// Where HTTPS is served.
    pub https_port: u16,
    /// Whether IPv6 is listened on as well.
    pub ipv6: bool,
    /// Whether HTTP/2 is offered on HTTPS.
    pub http2: bool,
    /// How hosts are served that do not say it.
    pub https_method: HttpsMethod,
    /// For hosts that do not say it.
    pub hsts: StrictTransport,
    /// Whether what a proxy before this one says of its clients is passed on.
    pub trust_downstream_proxy: bool,
    /// The access log; none leaves it to nginx's own configuration.
    pub access_log: Option<String>,
    /// Certificates and keys.
    pub certs: Folder,
    /// Files to include, by host.
    pub vhosts: Folder,
    /// Files of passwords, by host.
    pub htpasswd: Folder,
    /// nginx's own folder, for proxy.conf and network_internal.conf.
    pub conf: Folder,
}

impl Default for NginxProxy {
    fn default() -> Self {
        RawNginxProxy::default().parse().expect("the defaults fit together")
    }
}

/// The settings as they are written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawNginxProxy {
    #[serde(default, deserialize_with = "parsed")]
    default_host: Option<HostName>,
    #[serde(default)]
    www_redirect: bool,
    http_port: Option<u16>,
    https_port: Option<u16>,
    #[serde(default)]
    ipv6: bool,
    http2: Option<bool>,
    https_method: Option<HttpsMethod>,
    #[serde(default, deserialize_with = "parsed")]
    hsts: Option<StrictTransport>,
    trust_downstream_proxy: Option<bool>,
    access_log: Option<String>,
    certs_dir: Option<PathBuf>,
    certs_path: Option<String>,
    vhost_dir: Option<PathBuf>,
    vhost_path: Option<String>,
    htpasswd_dir: Option<PathBuf>,
    htpasswd_path: Option<String>,
    conf_dir: Option<PathBuf>,
    conf_path: Option<String>,
}

impl RawNginxProxy {
    /// What it means.
    ///
    /// # Errors
    /// A port 0, or a path that nginx cannot be given.
    pub fn parse(self) -> Result<NginxProxy, SettingError> {
        let access_log = self.access_log.unwrap_or_else(|| "/var/log/nginx/access.log".to_owned());
        Ok(NginxProxy {
            default_host: self.default_host,
            www_redirect: self.www_redirect,
            http_port: port("http_port", self.http_port.unwrap_or(80))?,
            https_port: port("https_port", self.https_port.unwrap_or(443))?,
            ipv6: self.ipv6,
            http2: self.http2.unwrap_or(true),
            https_method: self.https_method.unwrap_or(HttpsMethod::Redirect),
            hsts: self.hsts.unwrap_or(StrictTransport(Some("max-age=31536000".to_owned()))),
            trust_downstream_proxy: self.trust_downstream_proxy.unwrap_or(true),
            access_log: if access_log == "off" { None } else { Some(path("access_log", access_log)?) },
            certs: folder("certs", "/etc/nginx/certs", self.certs_dir, self.certs_path)?,
            vhosts: folder("vhost", "/etc/nginx/vhost.d", self.vhost_dir, self.vhost_path)?,
            htpasswd: folder("htpasswd", "/etc/nginx/htpasswd", self.htpasswd_dir, self.htpasswd_path)?,
            conf: folder("conf", "/etc/nginx", self.conf_dir, self.conf_path)?,
        })
    }
}

fn port(name: &str, port: u16) -> Result<u16, SettingError> {
    if port == 0 { Err(SettingError::new(format!("nginx_proxy.{name}"), 0, "1 to 65535")) } else { Ok(port) }
}

fn folder(
    name: &str,
    default: &str,
    dir: Option<PathBuf>,
    path: Option<String>,
) -> Result<Folder, SettingError> {
    let dir = dir.unwrap_or_else(|| default.into());
    let path = self::path(&format!("{name}_path"), path.unwrap_or_else(|| default.to_owned()))?;
    Ok(Folder { dir, path: path.trim_end_matches('/').to_owned() })
}

/// A path that means one file to nginx, without variables and wildcards.
fn path(name: &str, path: String) -> Result<String, SettingError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "/_.-+@:=,".contains(c);
    if Path::new(&path).is_absolute() && path.chars().all(fits) {
        return Ok(path);
    }
    let expected = "a path from the root, of letters, digits and any of /_.-+@:=,";
    Err(SettingError::new(format!("nginx_proxy.{name}"), path, expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NginxProxy, String> {
        let raw: RawNginxProxy = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        raw.parse().map_err(|error| error.to_string())
    }

    #[test]
    fn the_folders_are_those_of_nginx_proxy_unless_they_are_elsewhere() {
        let NginxProxy { certs, vhosts, .. } =
            parse("certs_dir = \"/data\"\nvhost_path = \"/v/\"").expect("settings");
        assert_eq!(certs, Folder { dir: "/data".into(), path: "/etc/nginx/certs".to_owned() });
        assert_eq!(vhosts, Folder { dir: "/etc/nginx/vhost.d".into(), path: "/v".to_owned() });
        assert_eq!(parse("access_log = \"off\"").expect("settings").access_log, None);
    }

    #[test]
    fn a_setting_that_cannot_work_is_refused_with_what_was_expected() {
        for (text, expected) in [
            ("default_host = \"a b\"", "expected a host name, "),
            ("http_port = 0", "nginx_proxy.http_port is 0: expected 1 to 65535"),
            ("certs_path = \"/a;b\"", "nginx_proxy.certs_path is /a;b: expected a path from the root"),
            ("hsts = \"on\"", "off, or max-age=SECONDS"),
            ("https_method = \"no\"", "unknown variant `no`"),
            ("defaulthost = \"a\"", "unknown field `defaulthost`"),
        ] {
            let error = parse(text).expect_err("it cannot work");
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
