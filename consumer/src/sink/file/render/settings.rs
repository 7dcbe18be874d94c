//! What a format or a template can be told besides: each has a table of its own within its target's.

use std::collections::BTreeMap;

use rollcall_shared::process::setting::SettingError;

use super::{
    Content, Format,
    haproxy::{Haproxy, RawHaproxy},
    nginx::{Nginx, RawNginx},
    nginx_proxy::settings::{NginxProxy, RawNginxProxy},
    traefik::{RawTraefik, Traefik},
};
use crate::sink::haproxy::RuntimeConfig;

/// A target's own variables, which its template sees.
pub type Vars = BTreeMap<String, serde_json::Value>;

/// What the content of a target can be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RenderSettings {
    /// How the format `nginx-proxy` serves virtual hosts.
    pub nginx_proxy: NginxProxy,
    /// How the format `haproxy` serves its services.
    pub haproxy: Haproxy,
    /// How the format `traefik` routes to its services.
    pub traefik: Traefik,
    /// What the format `nginx-upstream` has in each upstream.
    pub nginx: Nginx,
    /// How HAProxy is told at run time, so that its formats give the same servers; `None` where it is not.
    pub runtime: Option<RuntimeConfig>,
    /// What a template sees as `vars`.
    pub vars: Vars,
}

/// The tables as they are written: `[target.nginx_proxy]`, `[target.haproxy]`, `[target.nginx]`, `[target.traefik]` and
/// `[target.vars]`.
#[derive(Debug, Clone, Default)]
pub struct RawRenderSettings {
    /// Settings of the format `nginx-proxy`.
    pub nginx_proxy: Option<RawNginxProxy>,
    /// Settings of the format `haproxy`.
    pub haproxy: Option<RawHaproxy>,
    /// Settings of the format `traefik`.
    pub traefik: Option<RawTraefik>,
    /// Settings of the format `nginx-upstream`.
    pub nginx: Option<RawNginx>,
    /// Variables of a template.
    pub vars: Option<Vars>,
}

impl RawRenderSettings {
    /// What they mean for this content.
    ///
    /// # Errors
    /// A table of something else, or a setting in it that cannot work.
    pub fn parse(self, content: &Content) -> Result<RenderSettings, SettingError> {
        let Self { nginx_proxy, haproxy, nginx, traefik, vars } = self;
        let needs = |is_given: bool, table: &str, fits: bool, expected: &str| {
            if is_given && !fits {
                Err(SettingError::new(table, "given", format!("{expected} beside it")))
            } else {
                Ok(())
            }
        };
        let is = |format| *content == Content::Format(format);
        needs(nginx_proxy.is_some(), "nginx_proxy", is(Format::NginxProxy), "format = \"nginx-proxy\"")?;
        needs(haproxy.is_some(), "haproxy", is(Format::Haproxy), "format = \"haproxy\"")?;
        needs(traefik.is_some(), "traefik", is(Format::Traefik), "format = \"traefik\"")?;
        needs(nginx.is_some(), "nginx", is(Format::NginxUpstream), "format = \"nginx-upstream\"")?;
        needs(vars.is_some(), "vars", matches!(content, Content::Template(_)), "template")?;
        Ok(RenderSettings {
            nginx_proxy: nginx_proxy.map(RawNginxProxy::parse).transpose()?.unwrap_or_default(),
            haproxy: haproxy.map(RawHaproxy::parse).transpose()?.unwrap_or_default(),
            traefik: traefik.map(RawTraefik::parse).transpose()?.unwrap_or_default(),
            nginx: nginx.map(RawNginx::parse).transpose()?.unwrap_or_default(),
            runtime: None,
            vars: vars.unwrap_or_default(),
        })
    }
}
