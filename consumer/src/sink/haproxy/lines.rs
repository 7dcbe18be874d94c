//! The `server` lines of the file beside: what a restart finds is what the socket would have made.

use rollcall_shared::model::{instance::Address, name::ServiceName};

use super::{
    server::{name, slot_name, weight},
    settings::{Method, RuntimeConfig},
};
use crate::roll::Row;

/// Where a slot points that nobody has; it is disabled.
const NOWHERE: &str = "127.0.0.1:9";

/// The backend of a service.
pub fn backend(service: &ServiceName, runtime: Option<&RuntimeConfig>) -> String {
    runtime.map_or_else(|| service.to_string(), |config| config.backend.name(service))
}

/// The lines of these servers, each without the word `server`.
pub fn lines(rows: &[&Row], runtime: Option<&RuntimeConfig>) -> Vec<String> {
    let options = runtime.map_or("check", |config| config.server_options.as_str());
    let line = |name: String, row: &Row| {
        // A name may resolve only once its container is there; HAProxy would refuse to start without.
        let later = match row.endpoint.address {
            Address::Name(_) => " init-addr libc,none",
            Address::Ip(_) => "",
        };
        format!("{name} {} weight {} {options}", row.endpoint, weight(row)).trim_end().to_owned() + later
    };
    let Some(RuntimeConfig { method: Method::Slots, slots, .. }) = runtime else {
        return rows.iter().map(|row| line(name(row), row)).collect();
    };
    let taken = rows.iter().enumerate().map(|(index, row)| line(slot_name(index + 1), row));
    let free = (rows.len()..enough(*slots, rows.len())).map(|index| {
        format!("{} {NOWHERE} {options}", slot_name(index + 1)).trim_end().to_owned() + " disabled"
    });
    taken.chain(free).collect()
}

/// How many slots a backend has for so many instances: what is set, doubled as often as needed.
pub fn enough(slots: usize, instances: usize) -> usize {
    let mut slots = slots.max(1);
    while slots < instances {
        slots *= 2;
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_doubled_until_all_have_one() {
        assert_eq!([enough(4, 0), enough(4, 4), enough(4, 5), enough(4, 17)], [4, 4, 8, 32]);
    }
}
