//! The docker command line, pointed at one engine whatever the environment says.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::tool;

/// The docker CLI, pointed at an engine's socket.
pub(crate) fn docker_command(socket: &Path) -> Result<Command> {
    let mut command = tool::command("docker")?;
    for name in
        ["DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_API_VERSION"]
    {
        command.env_remove(name);
    }
    command.arg("--host").arg(format!("unix://{}", socket.display()));
    Ok(command)
}

/// The docker CLI, pointed at this machine's own engine.
pub(crate) fn local_command() -> Result<Command> {
    docker_command(&local_socket())
}

/// This machine's own engine's socket.
pub(crate) fn local_socket() -> PathBuf {
    let named = std::env::var("DOCKER_HOST").ok();
    named.as_deref().and_then(|host| host.strip_prefix("unix://")).unwrap_or("/var/run/docker.sock").into()
}

/// Removes every container of an engine.
pub(crate) fn remove_containers(socket: &Path) -> Result<()> {
    let ids = tool::run(docker_command(socket)?.args(["ps", "--all", "--quiet"]))?;
    if !ids.is_empty() {
        tool::run(docker_command(socket)?.args(["rm", "--force", "--volumes"]).args(ids.lines()))?;
    }
    Ok(())
}
