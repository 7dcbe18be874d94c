//! The agent of a Podman engine, which speaks Docker's API in its own way.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rollcall_tests::{DockerHost, Etcd, Process, Program, image, tool, until};

const TIMEOUT: Duration = Duration::from_secs(20);
const INSTANCES: &str = "/rollcall/instances/h1/";

/// A Podman of its own, which goes with its containers when dropped.
struct Podman {
    dir: tempfile::TempDir,
    _service: Process,
}

impl Podman {
    fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut service = podman(dir.path())?;
        service.args(["system", "service", "--time=0", &socket(dir.path())]);
        let service = Process::start("podman", service, &dir.path().join("log"))?;
        let path = dir.path().join("podman.sock");
        until("podman listens", TIMEOUT, || Ok(path.exists()))?;
        Ok(Self { dir, _service: service })
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        tool::run(podman(self.dir.path())?.args(args))
    }

    fn load(&self, name: &str) -> Result<()> {
        let mut save =
            DockerHost::local()?.docker_command()?.args(["save", name]).stdout(Stdio::piped()).spawn()?;
        let image = save.stdout.take().expect("it was piped above");
        tool::run(podman(self.dir.path())?.args(["load", "--quiet"]).stdin(image))?;
        ensure!(save.wait()?.success(), "docker save {name} failed");
        Ok(())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Whatever stays goes with the machine.
        let _ = self.run(&["rm", "--all", "--force", "--time=0"]);
    }
}

fn podman(dir: &Path) -> Result<Command> {
    let mut command = tool::command("podman")?;
    command.arg("--root").arg(dir.join("root")).arg("--runroot").arg(dir.join("run"));
    command.args(["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=file"]);
    Ok(command)
}

fn socket(dir: &Path) -> String {
    format!("unix://{}/podman.sock", dir.display())
}

#[test]
fn containers_of_podman_are_withdrawn_by_their_end_and_a_killed_agent_takes_its_name_back() -> Result<()> {
    let (etcd, podman) = (Etcd::start()?, Podman::start()?);
    podman.load(image::worker()?)?;
    let start = || -> Result<Program> {
        let mut command = Program::agent()?;
        command.args(["--etcd", &etcd.endpoint(), "--node", "h1", "--listen", "off"]);
        // No list comes while the test lasts: what is seen is seen by its event.
        command.args(["--advertise", "10.9.8.7", "--refresh", "5m", "--ttl", "10m"]);
        command.args(["--docker-host", &socket(podman.dir.path())]);
        let mut agent = Program::start("agent", command)?;
        agent.wait_log("claimed the name", TIMEOUT)?;
        Ok(agent)
    };
    let keys = || etcd.ctl().keys(INSTANCES);
    let mut first = start()?;
    // Limits that this machine lets even root set.
    let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];
    let port = ["--network", "host", "--env", "PORT=4797", "--label", "rollcall.port=4797"];
    let name = ["run", "--detach", "--name", "w1"];
    podman.run(&[&name[..], &limits, &port, &[image::WORKER]].concat())?;
    until("it is registered", TIMEOUT, || Ok(keys()?.len() == 1))?;
    first.kill();
    let mut second = start()?;
    second.wait_log("adopted=true", TIMEOUT)?;
    podman.run(&["kill", "--signal", "KILL", "w1"])?;
    until("it is withdrawn", TIMEOUT, || Ok(keys()?.is_empty()))?;
    podman.run(&["start", "w1"]).context("it starts again")?;
    until("it is registered again", TIMEOUT, || Ok(keys()?.len() == 1))
}
