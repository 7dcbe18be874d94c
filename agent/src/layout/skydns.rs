//! The layout of SkyDNS, which CoreDNS's etcd plugin serves: `/skydns/local/rollcall/<service>/<label>` is the record
//! `<label>.<service>.rollcall.local`; the path is the name turned round. Asked for `<service>.rollcall.local`, CoreDNS
//! answers with all records below it: an A or AAAA record where the host is an address, a CNAME where it is a name, and
//! an SRV record with the port.
//!
//! Source: coredns/coredns, `plugin/etcd/msg/service.go` (the fields), `plugin/etcd/msg/path.go` (the path) and
//! `plugin/etcd/etcd.go` (what is looked up, and the TTL).

use rollcall_shared::model::instance::Status;
use serde::Serialize;

use super::{
    Entries, Layout, Subject,
    settings::{Domain, Folder, is_label},
};

/// How long resolvers keep a record, in seconds: a container goes at any time. Without it CoreDNS would take what is
/// left of the lease or, before version 1.12.4, the lease's ID.
const TTL_SECONDS: u32 = 5;
/// As CoreDNS has it where none is given.
const PRIORITY: u16 = 10;
/// The longest name, in bytes as it is written (RFC 1035).
const MAX_NAME_BYTES: usize = 253;

/// What CoreDNS reads.
#[derive(Debug, Serialize)]
struct Record {
    host: String,
    port: u16,
    priority: u16,
    weight: u16,
    ttl: u32,
}

/// The folder of a domain's records, which ends with a slash.
pub fn folder(prefix: &Folder, domain: &Domain) -> String {
    let labels: Vec<&str> = domain.labels().iter().rev().map(String::as_str).collect();
    format!("{prefix}/{}/", labels.join("/"))
}

/// The entries of an instance, below the domain's folder; `None` while it should not be used, as whoever asks for a name
/// sees no status.
///
/// # Errors
/// Why its service's name cannot be one of DNS.
pub fn entries(subject: &Subject<'_>, folder: &str) -> Result<Option<Entries>, String> {
    let instance = subject.instance;
    let service = instance.service.as_str().to_ascii_lowercase();
    let labels: Vec<&str> = service.split('.').rev().collect();
    if !labels.iter().all(|label| is_label(label)) {
        return Err(format!("the service's name {service} is no DNS name"));
    }
    let (id, port, protocol) = (instance.id, instance.container_port, instance.protocol);
    let key = format!("{folder}{}/{id}-{port}-{protocol}", labels.join("/"));
    if key.len() > MAX_NAME_BYTES {
        return Err(format!("the service's name {service} is too long for a DNS name"));
    }
    if instance.status != Status::Passing {
        return Ok(None);
    }
    let record = Record {
        host: instance.address.to_string(),
        port: instance.port,
        priority: PRIORITY,
        weight: instance.weight,
        ttl: TTL_SECONDS,
    };
    let value = serde_json::to_string(&record).expect("a record of plain fields cannot fail to serialize");
    Ok(Some(Entries::new(Layout::Skydns, [(key, value)])))
}

#[cfg(test)]
mod tests {
    use rollcall_shared::model::instance::Instance;

    use super::*;
    use crate::layout::testing::{self, node, settings, shown};

    fn laid_out(instance: &Instance, flags: &[&str]) -> Result<Vec<String>, String> {
        let (node, settings) = (node(), settings(flags));
        let subject = Subject { instance, node: &node, bindings: &[] };
        entries(&subject, &folder(&settings.skydns_prefix, &settings.skydns_domain)).map(shown)
    }

    fn of_service(service: &str) -> Instance {
        let service = service.parse().expect("a name");
        Instance { service, ..testing::instance("80/tcp", "10.0.0.5:8080") }
    }

    #[test]
    fn the_path_is_the_name_turned_round_and_the_value_is_what_coredns_reads() {
        let value = r#"{"host":"10.0.0.5","port":8080,"priority":10,"weight":1,"ttl":5}"#;
        let web = testing::instance("80/tcp", "10.0.0.5:8080");
        let expected = format!("/skydns/local/rollcall/web/0123456789ab-80-tcp {value}");
        assert_eq!(laid_out(&web, &[]), Ok(vec![expected]));
        let flags = ["--skydns-prefix", "/dns", "--skydns-domain", "Example.ORG"];
        let expected = format!("/dns/org/example/api/web/0123456789ab-80-tcp {value}");
        assert_eq!(laid_out(&of_service("Web.api"), &flags), Ok(vec![expected]));
        let six = laid_out(&testing::instance("80/tcp", "fd00::5:8080"), &[]).expect("a record");
        assert!(six[0].contains(r#""host":"fd00::5","port":8080"#), "{six:?}");
    }

    #[test]
    fn a_name_that_dns_cannot_have_is_left_out_with_the_reason() {
        for (service, reason) in [
            ("web..api", "no DNS name"),
            ("web.", "no DNS name"),
            (&*"x".repeat(64), "no DNS name"),
            (&*["x"; 120].join("."), "too long"),
        ] {
            let refused = laid_out(&of_service(service), &[]).expect_err("it cannot be looked up");
            assert!(refused.contains(reason), "{refused}");
        }
    }

    #[test]
    fn only_what_passes_is_found_by_name() {
        let found = |status: Status| {
            let instance = Instance { status, ..of_service("web") };
            !laid_out(&instance, &[]).expect("a name").is_empty()
        };
        assert_eq!(Status::ALL.map(found), [false, true, false, false]);
    }
}
