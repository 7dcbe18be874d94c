//! nginx under traffic: it includes the file, and is reloaded for each change.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use rollcall_tests::tool;

/// The command that runs it in the foreground.
pub fn command(dir: &Path, dest: &Path, port: u16) -> Result<Command> {
    fs::write(dest, "upstream web {\n    server 127.0.0.1:9 down;\n}\n")?;
    let text = format!(
        "daemon off; user root; worker_processes 2; pid nginx.pid; error_log stderr notice;\n\
         events {{}}\nhttp {{\n  access_log off;\n  include {dest:?};\n  server {{\n    \
         listen 127.0.0.1:{port} backlog=1024;\n    location / {{ proxy_pass http://web; proxy_http_version 1.1; \
         proxy_set_header Connection \"\"; }}\n  }}\n}}\n"
    );
    fs::write(dir.join("nginx.conf"), text)?;
    let mut command = Command::new(tool::part("nginx-1.31/nginx")?);
    command.arg("-p").arg(dir).args(["-c", "nginx.conf"]);
    Ok(command)
}

/// The consumer's target for it, in TOML, but for the file's name.
pub fn target(dir: &Path) -> String {
    let pid_file = dir.join("nginx.pid");
    format!(
        "format = \"nginx-upstream\"\nselect = {{ service = \"web\" }}\n\
         [target.notify]\npid_file = {pid_file:?}\nprocess = \"nginx\"\nsignal = \"HUP\"\n"
    )
}
