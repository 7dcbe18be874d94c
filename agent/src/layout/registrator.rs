//! The layout of registrator's etcd backend: `<prefix>/<service>/<hostname>:<container>:<port>[:udp]` is
//! `address:port`; `<port>` is the container's own. The hostname is the node's name.
//!
//! Source: gliderlabs/registrator, `etcd/etcd.go` (the path, and `net.JoinHostPort` for the value) and
//! `bridge/bridge.go` (`service.ID`).

use rollcall_shared::model::instance::{Protocol, Status};

use super::{Entries, Layout, Subject, settings::Folder};

/// The entries of an instance. registrator looks at no health either.
pub fn entries(Subject { instance, node, .. }: &Subject<'_>, prefix: &Folder) -> Option<Entries> {
    if instance.status == Status::Draining {
        return None;
    }
    let protocol = match instance.protocol {
        Protocol::Tcp => "",
        Protocol::Udp => ":udp",
    };
    let (service, container, port) = (&instance.service, &instance.container, instance.container_port);
    let key = format!("{prefix}/{service}/{node}:{container}:{port}{protocol}");
    Some(Entries::new(Layout::Registrator, [(key, instance.endpoint().to_string())]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::testing::{instance, node, settings, shown};

    #[test]
    fn a_key_names_the_host_the_container_and_the_port_and_udp_where_it_is() {
        let (node, settings) = (node(), settings(&["--registrator-prefix", "/team/services"]));
        let laid_out = |port: &str, endpoint: &str| {
            let instance = instance(port, endpoint);
            let subject = Subject { instance: &instance, node: &node, bindings: &[] };
            shown(entries(&subject, &settings.registrator_prefix))
        };
        assert_eq!(laid_out("80/tcp", "10.0.0.5:8080"), ["/team/services/web/h1:web-1:80 10.0.0.5:8080"]);
        assert_eq!(laid_out("53/udp", "fd00::5:5353"), ["/team/services/web/h1:web-1:53:udp [fd00::5]:5353"]);
    }
}
