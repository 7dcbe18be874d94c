//! Which container this process runs in, as the kernel tells.
//!
//! A consumer never touches Docker. It says in its record which container it runs in, and the agent that has this
//! container answers which stack that belongs to ([`rollcall_shared::model::consumer::ConsumerHome`]).

use std::fs;

use rollcall_shared::model::name::ContainerId;

/// What is known of the stack that the consumer's own container belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnStack {
    /// No target has asked for it.
    NotAsked,
    /// Its name, where it belongs to one.
    Known(Option<String>),
}

impl OwnStack {
    /// Its name, as far as it is known.
    pub fn name(&self) -> Option<&str> {
        match self {
            OwnStack::NotAsked => None,
            OwnStack::Known(name) => name.as_deref(),
        }
    }
}

/// The container that this process runs in, if it runs in one.
pub fn own_container() -> Option<ContainerId> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    container_of(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"))
}

/// Files that Docker and Podman mount into each container, from a folder named for it.
const MOUNTED_FILES: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];

/// The container that these files of /proc are of (proc_pid_mountinfo(5), cgroups(7)). One that shares another one's
/// network has that one's files; then its control group, where it can be seen, says which it is.
fn container_of(mountinfo: &str, cgroup: &str) -> Option<ContainerId> {
    let mounted = mountinfo.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let (root, mount_point) = (fields.next()?, fields.next()?);
        MOUNTED_FILES.contains(&mount_point).then(|| id_in(root)).flatten()
    });
    cgroup.lines().filter_map(id_in).chain(mounted).next()
}

/// The full ID that is a part of a path, such as `docker-<ID>.scope` or `<ID>`. Of several, the last: an engine that runs
/// in a container itself, or has its folder in a volume without a name, has that one's before it.
fn id_in(path: &str) -> Option<ContainerId> {
    /// The length of a full ID.
    const LENGTH: usize = 64;
    let part = path.split(['/', '-', '.']).rfind(|part| {
        part.len() == LENGTH && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    });
    part?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_container_is_found_by_the_files_that_are_mounted_or_by_the_control_group() {
        let (own, other) = ("0123456789abcdef".repeat(4), "fedcba9876543210".repeat(4));
        let mount = |root: &str, point: &str| format!("640 616 8:1 {root} {point} rw - ext4 /dev/sda1 rw\n");
        let hosts = mount(&format!("/var/lib/docker/containers/{own}/hosts"), "/etc/hosts");
        let elsewhere = mount(&format!("/var/lib/docker/containers/{other}/hosts"), "/srv/hosts");
        let podman = format!("/var/lib/containers/overlay-containers/{own}/userdata/hostname");
        let podman = mount(&podman, "/etc/hostname");
        let v1 = format!("12:cpu:/docker/{own}\n");
        let v2 = format!("0::/system.slice/docker-{own}.scope\n");
        let shared = mount(&format!("/var/lib/docker/containers/{other}/hosts"), "/etc/hosts");
        let nested = format!("/var/lib/docker/volumes/{other}/_data/containers/{own}/hostname");
        let nested = mount(&nested, "/etc/hostname");
        let nested_v1 = format!("12:cpu:/docker/{other}/docker/{own}\n");
        for (mountinfo, cgroup, is_found) in [
            (hosts.as_str(), "0::/\n", true),
            (&podman, "0::/\n", true),
            ("", &v1, true),
            ("", &v2, true),
            (&shared, &v2, true),
            (&nested, "0::/\n", true),
            ("", &nested_v1, true),
            (&elsewhere, "0::/user.slice\n", false),
            ("", "", false),
        ] {
            let found = container_of(mountinfo, cgroup).map(|id| id.to_string());
            assert_eq!(found.as_deref(), is_found.then_some(&own[..12]), "{mountinfo}{cgroup}");
        }
    }
}
