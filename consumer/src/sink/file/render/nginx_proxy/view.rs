//! The file as its template sees it: every text in it is nginx's.

use std::collections::HashSet;

use askama::Template as _;

use super::{
    declaration::{Candidate, Declaration, Proto},
    folders::Folders,
    host_name::{HostName, MAX_BYTES},
    path::{Location, VirtualPath},
    settings::{Folder, HttpsMethod, NginxProxy, StrictTransport},
    sites::{Place, Site, Sites},
};
use crate::sink::file::render::{RenderError, quoting};

/// A file, how many containers are served by it, and what it leaves out.
#[derive(Default)]
pub(in super::super) struct File {
    pub bytes: Vec<u8>,
    pub served: usize,
    pub left_out: Vec<String>,
}

/// The file of all instances whose containers declare hosts.
pub(in super::super) fn render<'c>(
    settings: &NginxProxy,
    folders: &Folders,
    candidates: impl IntoIterator<Item = &'c Candidate>,
) -> Result<File, RenderError> {
    let Sites { sites, served, left_out } = Sites::of(candidates);
    let look = Look { settings, folders };
    let mut upstreams = Upstreams::default();
    let hosts: Vec<Host> = sites.iter().map(|(name, site)| look.host(name, site, &mut upstreams)).collect();
    let redirects = if settings.www_redirect { look.redirects(&hosts) } else { vec![] };
    let names = hosts.len() + redirects.len();
    let file = NginxProxyFile {
        settings,
        names_max_size: (names * 2).next_power_of_two().max(512),
        names_bucket_size: (MAX_BYTES + 64).next_power_of_two(),
        proxy_conf: folders.conf.contains("proxy.conf").then(|| path(&settings.conf, "proxy.conf")),
        access_log: settings.access_log.clone(),
        fallback: look.fallback(&hosts),
        hosts,
        redirects,
    };
    let text = file.render().map_err(|error| RenderError::Format(error.into()))?;
    Ok(File { bytes: text.into_bytes(), served, left_out })
}

/// A file in a folder, as a parameter of nginx.
fn path(folder: &Folder, name: &str) -> String {
    quoting::nginx(&format!("{}/{name}", folder.path))
}

/// A file to include: nginx takes a star for any text, unless there is a backslash before it.
fn include(folder: &Folder, name: &str) -> String {
    path(folder, &name.replace('*', r"\*"))
}

/// Which clients are internal.
const INTERNAL_CONF: &str = "network_internal.conf";

/// The names of upstreams: each is there once, whatever hosts are called.
#[derive(Debug, Default)]
struct Upstreams(HashSet<String>);

impl Upstreams {
    /// As nginx-proxy calls them, so that included files can refer to them.
    fn name(&mut self, host: &HostName, path: &VirtualPath) -> String {
        let mut name = host.file_name();
        if path.location != Location::root() {
            name = format!("{name}-{}", path.hash());
        }
        while !self.0.insert(name.clone()) {
            name.push('_');
        }
        name
    }
}

/// What is decided by settings and files.
struct Look<'s> {
    settings: &'s NginxProxy,
    folders: &'s Folders,
}

impl Look<'_> {
    fn host(&self, name: &HostName, site: &Site<'_>, upstreams: &mut Upstreams) -> Host {
        let Self { settings, folders } = self;
        let file_name = name.file_name();
        let certificate = folders.certificate(name, site.cert_name.get());
        let method = match site.https_method.get().unwrap_or(settings.https_method) {
            // Without a certificate it would not be served at all.
            HttpsMethod::Redirect | HttpsMethod::NoHttp if certificate.is_none() => HttpsMethod::NoRedirect,
            method => method,
        };
        let hsts = site.hsts.get().unwrap_or(&settings.hsts);
        let places: Vec<PlaceView> =
            site.places.values().map(|place| self.place(name, &file_name, place, upstreams)).collect();
        Host {
            name: name.clone(),
            is_default: settings.default_host.as_ref() == Some(name),
            serves_http: matches!(method, HttpsMethod::NoRedirect | HttpsMethod::NoHttps),
            is_redirected: method == HttpsMethod::Redirect,
            serves_https: method != HttpsMethod::NoHttps,
            serves_acme: method == HttpsMethod::NoRedirect && !site.places.contains_key(&Location::acme()),
            has_root: site.places.contains_key(&Location::root()),
            hsts: hsts_of(method, hsts),
            certificate: certificate.map(|name| self.certificate(&name)),
            clients: self.clients(&file_name),
            include: self.included(&[&file_name, "default"]),
            places,
        }
    }

    fn certificate(&self, name: &str) -> Certificate {
        let file = |ending: &str| path(&self.settings.certs, &format!("{name}.{ending}"));
        let dhparam =
            self.folders.certs.contains(&format!("{name}.dhparam.pem")).then(|| file("dhparam.pem"));
        Certificate { crt: file("crt"), key: file("key"), dhparam }
    }

    /// Which clients' certificates are asked for.
    fn clients(&self, file_name: &str) -> Option<Clients> {
        let (certs, folder) = (&self.folders.certs, &self.settings.certs);
        let own = format!("{file_name}.ca.crt");
        let (ca, crl) = if certs.contains(&own) {
            (own, format!("{file_name}.crl.pem"))
        } else if certs.contains("ca.crt") {
            ("ca.crt".to_owned(), "ca.crl.pem".to_owned())
        } else {
            return None;
        };
        Some(Clients { ca: path(folder, &ca), crl: certs.contains(&crl).then(|| path(folder, &crl)) })
    }

    /// The first of the files that is there.
    fn included(&self, names: &[&str]) -> Option<String> {
        let found = names.iter().find(|name| self.folders.vhosts.contains(**name))?;
        Some(include(&self.settings.vhosts, found))
    }

    fn place(
        &self,
        host: &HostName,
        file_name: &str,
        place: &Place<'_>,
        upstreams: &mut Upstreams,
    ) -> PlaceView {
        let Self { settings, folders } = self;
        let Declaration { path: virtual_path, dest, proto, root, .. } = place.declaration;
        let of_path = format!("{file_name}_{}", virtual_path.hash());
        let mut overrides = vec![format!("{of_path}_location_override")];
        if virtual_path.location == Location::root() {
            overrides.push(format!("{file_name}_location_override"));
        }
        let own =
            [format!("{of_path}_location"), format!("{file_name}_location"), "default_location".to_owned()];
        let passwords = [&of_path, file_name].into_iter().find(|name| folders.htpasswd.contains(*name));
        PlaceView {
            parameters: virtual_path.parameters(),
            upstream: upstreams.name(host, virtual_path),
            proto: *proto,
            dest: dest.clone(),
            root: root.clone(),
            servers: place.servers.iter().map(|(endpoint, weight)| server(endpoint, *weight)).collect(),
            keepalive: place.servers.len() * 2,
            is_internal: place.is_internal,
            internal_conf: folders.conf.contains(INTERNAL_CONF).then(|| path(&settings.conf, INTERNAL_CONF)),
            passwords: passwords.map(|name| path(&settings.htpasswd, name)),
            replaced_by: self.included(&overrides.iter().map(String::as_str).collect::<Vec<_>>()),
            include: self.included(&own.each_ref().map(String::as_str)),
        }
    }

    /// What answers for unknown hosts: nothing where a host does.
    fn fallback(&self, hosts: &[Host]) -> Option<Fallback> {
        let has_default =
            |serves: fn(&Host) -> bool| hosts.iter().any(|host| host.is_default && serves(host));
        let is_https = hosts.is_empty() || hosts.iter().any(|host| host.serves_https);
        let http = !has_default(|host| host.serves_http || host.is_redirected);
        let https = is_https && !has_default(|host| host.serves_https);
        let certificate = self.folders.default_certificate().map(|name| self.certificate(&name));
        (http || https).then_some(Fallback { http, https, certificate })
    }

    /// `www.NAME` for each name that has no server for it.
    fn redirects(&self, hosts: &[Host]) -> Vec<Redirect> {
        let names: HashSet<String> = hosts.iter().map(|host| host.name.to_string()).collect();
        let is_served = |name: &str| {
            let parents = name.match_indices('.').map(|(at, _)| format!("*{}", &name[at..]));
            names.contains(name) || parents.into_iter().any(|parent| names.contains(&parent))
        };
        let exact = hosts.iter().filter_map(|host| Some((host, host.name.exact()?)));
        let redirect = exact.filter_map(|(host, to)| {
            let name: HostName = format!("www.{to}").parse().ok()?;
            if to.starts_with("www.") || is_served(&name.to_string()) {
                return None;
            }
            let certificate = self.folders.certificate(&name, None).map(|name| self.certificate(&name));
            let goes_to_https = host.serves_https && host.certificate.is_some() && !host.serves_http;
            Some(Redirect { name: name.to_string(), to: to.to_owned(), goes_to_https, certificate })
        });
        redirect.collect()
    }
}

/// A host that is served by HTTP as well keeps nobody away from that.
fn hsts_of(method: HttpsMethod, hsts: &StrictTransport) -> Option<String> {
    let StrictTransport(value) = hsts;
    let is_https_only = matches!(method, HttpsMethod::Redirect | HttpsMethod::NoHttp);
    value.as_deref().filter(|_| is_https_only).map(quoting::nginx)
}

fn server(endpoint: &rollcall_shared::model::instance::Endpoint, weight: u16) -> String {
    if weight == 1 { endpoint.to_string() } else { format!("{endpoint} weight={weight}") }
}

#[derive(askama::Template)]
#[template(path = "nginx-proxy.txt", escape = "none")]
struct NginxProxyFile<'s> {
    settings: &'s NginxProxy,
    names_max_size: usize,
    names_bucket_size: usize,
    proxy_conf: Option<String>,
    access_log: Option<String>,
    fallback: Option<Fallback>,
    hosts: Vec<Host>,
    redirects: Vec<Redirect>,
}

impl NginxProxyFile<'_> {
    /// The parameters of each `listen` for HTTP.
    fn http(&self, is_default: bool) -> Vec<String> {
        self.listen(self.settings.http_port, "", is_default)
    }

    /// The parameters of each `listen` for HTTPS.
    fn https(&self, is_default: bool) -> Vec<String> {
        self.listen(
            self.settings.https_port,
            if self.settings.http2 { " ssl http2" } else { " ssl" },
            is_default,
        )
    }

    fn listen(&self, port: u16, kind: &str, is_default: bool) -> Vec<String> {
        let addresses = [Some(""), self.settings.ipv6.then_some("[::]:")];
        let default = if is_default { " default_server" } else { "" };
        addresses.into_iter().flatten().map(|address| format!("{address}{port}{kind}{default}")).collect()
    }

    /// The port in addresses that clients are sent to.
    fn https_suffix(&self) -> String {
        if self.settings.https_port == 443 { String::new() } else { format!(":{}", self.settings.https_port) }
    }
}

/// A host's two servers: the one that redirects, and the one that serves.
struct Host {
    name: HostName,
    is_default: bool,
    serves_http: bool,
    is_redirected: bool,
    serves_https: bool,
    serves_acme: bool,
    has_root: bool,
    hsts: Option<String>,
    certificate: Option<Certificate>,
    clients: Option<Clients>,
    include: Option<String>,
    places: Vec<PlaceView>,
}

struct Certificate {
    crt: String,
    key: String,
    dhparam: Option<String>,
}

struct Clients {
    ca: String,
    crl: Option<String>,
}

struct PlaceView {
    parameters: String,
    upstream: String,
    proto: Proto,
    dest: String,
    root: String,
    servers: Vec<String>,
    keepalive: usize,
    is_internal: bool,
    internal_conf: Option<String>,
    passwords: Option<String>,
    replaced_by: Option<String>,
    include: Option<String>,
}

struct Fallback {
    http: bool,
    https: bool,
    certificate: Option<Certificate>,
}

struct Redirect {
    name: String,
    to: String,
    goes_to_https: bool,
    certificate: Option<Certificate>,
}
