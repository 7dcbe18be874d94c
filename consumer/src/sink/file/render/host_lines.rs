//! The format `hosts`: lines of /etc/hosts, which give each container and each service its addresses.

use rollcall_shared::model::instance::Address;

use super::{
    block::{Block, Body},
    format,
};
use crate::roll::Row;

/// One service's lines.
pub(super) fn block(rows: &[&Row]) -> Block {
    let (mut lines, mut left_out, mut instances) = (vec![], vec![], 0);
    for row in rows {
        match line(row) {
            Ok(line) => {
                instances += 1;
                lines.push(line);
            }
            Err(reason) => left_out.push(format!("{}, {reason}", format::name(row))),
        }
    }
    lines.sort();
    // A container has a line only, however many of its ports there are.
    lines.dedup();
    Block { body: Body::Text(lines.concat()), instances, left_out, hosts: vec![] }
}

fn line(row: &Row) -> Result<String, &'static str> {
    let (container, service) = (row.instance.container.as_str(), row.instance.service.as_str());
    let ip = match &row.endpoint.address {
        Address::Name(_) => return Err("which is known by name only"),
        address if !format::is_reachable(address) => return Err("which nobody can reach"),
        Address::Ip(ip) => ip,
    };
    let names: Vec<_> = [container, service].into_iter().filter(|name| !is_of_this_host(name)).collect();
    match names[..] {
        [] => Err("whose name is that of every host itself"),
        [one, other] if one == other => Ok(format!("{ip} {one}\n")),
        _ => Ok(format!("{ip} {}\n", names.join(" "))),
    }
}

/// A name that means the host itself everywhere (RFC 6761, section 6.3): a container does not take it over.
fn is_of_this_host(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let name = name.trim_end_matches('.');
    let last = name.rsplit('.').next().unwrap_or(name);
    matches!(last, "localhost" | "localdomain" | "broadcasthost") || name.starts_with("ip6-")
}
