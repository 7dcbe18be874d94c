//! HAProxy under traffic: told at its socket. Its master would reload it, if the consumer asked for that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rollcall_tests::haproxy::{Version, ask};

use super::arrivals::HEADER;

/// The command that runs it in the foreground, as a master and its worker.
///
/// The file that it starts with has a rule that no rendered file has: a request that names a server gets to that one, if
/// it takes clients. The consumer writes its own file over it, which only a reload would read.
pub fn command(dir: &Path, dest: &Path, port: u16) -> Result<Command> {
    let named = format!("req.hdr({HEADER})");
    fs::write(dest, format!("backend web\n    use-server %[{named}] if {{ {named} -m found }}\n"))?;
    // As the format haproxy has it, but for the log.
    let text = format!(
        "global\n    stats socket {} mode 600 level admin expose-fd listeners\n    nbthread 2\n\
         defaults\n    mode http\n    option forwardfor\n    timeout connect 5s\n    timeout client 50s\n    \
         timeout server 50s\n    timeout http-keep-alive 60s\n    retries 3\n    option redispatch 1\n    \
         retry-on conn-failure\n    default-server inter 2s fastinter 500ms fall 3 rise 2\n\
         frontend http\n    bind 127.0.0.1:{port}\n    default_backend web\n",
        socket(dir).display()
    );
    fs::write(dir.join("haproxy.cfg"), text)?;
    let mut command = Version::V2_8.command()?;
    command.args(["-W", "-p"]).arg(pid_file(dir)).arg("-f").arg(dir.join("haproxy.cfg")).arg("-f").arg(dest);
    Ok(command)
}

/// The consumer's target for it, in TOML, but for the file's name.
pub fn target(dir: &Path) -> String {
    let (pid_file, socket) = (pid_file(dir), socket(dir));
    format!(
        "format = \"haproxy-backend\"\nsink = \"haproxy\"\nselect = {{ service = \"web\" }}\n\
         [target.runtime]\nsocket = {socket:?}\n\
         [target.notify]\npid_file = {pid_file:?}\nprocess = \"haproxy\"\nsignal = \"USR2\"\n"
    )
}

/// Its socket of level admin.
pub fn socket(dir: &Path) -> PathBuf {
    dir.join("sock")
}

fn pid_file(dir: &Path) -> PathBuf {
    dir.join("pid")
}

/// What it says of itself and of the backend, on one line.
pub fn account(socket: &Path) -> Result<String> {
    let info = ask(socket, "show info")?;
    let field = |name: &str| -> Result<&str> {
        let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.with_context(|| format!("no {name} in {info}"))
    };
    let stat = ask(socket, "show stat web 2 -1")?;
    let mut lines = stat.lines();
    let header = lines.next().and_then(|line| line.strip_prefix("# ")).context("it has a header")?;
    let row: Vec<_> = lines.next().context("it has the backend")?.split(',').collect();
    let count = |name: &str| -> Result<&str> {
        let index = header.split(',').position(|column| column == name).with_context(|| name.to_owned())?;
        row.get(index).copied().with_context(|| name.to_owned())
    };
    Ok(format!(
        "process {} for {} s; connections to servers that failed {}, answers that failed {}, retries {}, sent to \
         another server {}",
        field("Pid")?,
        field("Uptime_sec")?,
        count("econ")?,
        count("eresp")?,
        count("wretr")?,
        count("wredis")?
    ))
}
