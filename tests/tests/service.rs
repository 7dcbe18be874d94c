//! The programs as services: what they tell the service manager, what SIGHUP does, and the units that ship.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rollcall_tests::{DockerHost, Etcd, Program, http, port, tool, until};
use rustix::process::Signal;

const TIMEOUT: Duration = Duration::from_secs(15);

/// A service manager: what it is told on its socket.
struct Manager {
    lines: mpsc::Receiver<String>,
    told: Vec<String>,
}

impl Manager {
    /// Has a command tell it things.
    fn of(command: &mut Command, dir: &Path) -> Result<Self> {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path)?;
        command.env("NOTIFY_SOCKET", path).env("WATCHDOG_USEC", "200000");
        let (sender, lines) = mpsc::channel();
        // It always listens, as a real one does. The thread ends with the process.
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read) = socket.recv(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..read]).into_owned();
                text.lines().for_each(|line| drop(sender.send(line.to_owned())));
            }
        });
        Ok(Self { lines, told: Vec::new() })
    }

    /// Waits until it is told a line that begins so, after what was waited for before.
    fn wait(&mut self, line: &str) -> Result<String> {
        until(&format!("it is told {line}"), TIMEOUT, || {
            self.told.extend(self.lines.try_iter());
            let Some(found) = self.told.iter().position(|told| told.starts_with(line)) else {
                return Ok(None);
            };
            Ok(self.told.drain(..=found).next_back())
        })
    }
}

/// A consumer of the file `targets.toml` of a folder, and where it says whether it is ready.
fn consumer(etcd: &Etcd, dir: &Path) -> Result<(Command, String)> {
    let listen = format!("127.0.0.1:{}", port::free(Ipv4Addr::LOCALHOST.into())?);
    let mut command = Program::consumer()?;
    command.args(["--etcd", &etcd.endpoint(), "--listen", &listen, "--name", "c1", "--state-dir"]);
    command.arg(dir.join("state")).arg("--config").arg(dir.join("targets.toml"));
    Ok((command, format!("http://{listen}/readyz")))
}

fn target(dir: &Path, name: &str) -> String {
    format!("[[target]]\nname = \"{name}\"\ndest = \"{}\"\nformat = \"json\"\n", dir.join(name).display())
}

#[test]
fn a_consumer_is_ready_reloads_refuses_lives_and_stops_as_its_service_manager_is_told() -> Result<()> {
    let (etcd, dir) = (Etcd::start()?, tempfile::tempdir()?);
    let (dir, config) = (dir.path(), dir.path().join("targets.toml"));
    fs::write(&config, target(dir, "one"))?;
    let (mut command, readyz) = consumer(&etcd, dir)?;
    let mut manager = Manager::of(&mut command, dir)?;
    let mut program = Program::start("consumer", command)?;
    manager.wait("READY=1")?;
    manager.wait("STATUS=ready")?;
    manager.wait("WATCHDOG=1")?;
    fs::write(&config, target(dir, "one") + &target(dir, "two"))?;
    program.signal(Signal::HUP)?;
    manager.wait("RELOADING=1")?;
    manager.wait("MONOTONIC_USEC=")?;
    manager.wait("READY=1")?;
    until("the new target is there", TIMEOUT, || Ok(dir.join("two").exists()))?;
    fs::write(&config, "[[target]]\nname = 7\n")?;
    program.signal(Signal::HUP)?;
    manager.wait("READY=1")?;
    let refused = program.wait_log("the new settings are refused", TIMEOUT)?;
    assert!(refused.contains("line 2"), "{refused}");
    let noted = || Ok(http::get(&readyz)?.body.contains("a reload was refused"));
    until("the refusal is noted", TIMEOUT, noted)?;
    assert_eq!(http::get(&readyz)?.status, 200, "what runs works");
    fs::write(&config, target(dir, "one"))?;
    program.signal(Signal::HUP)?;
    until("the refusal is forgotten", TIMEOUT, || Ok(!noted()?))?;
    program.signal(Signal::TERM)?;
    manager.wait("STOPPING=1")?;
    assert_eq!(program.wait(TIMEOUT)?.code(), Some(0));
    Ok(())
}

#[test]
fn a_state_folder_that_is_read_only_or_full_keeps_no_file_from_being_written_and_is_reported() -> Result<()> {
    for mount in [
        "mount --bind state state && mount -o remount,ro,bind state",
        "mount -t tmpfs -o nr_inodes=1 none state",
    ] {
        let (etcd, dir) = (Etcd::start()?, tempfile::tempdir()?);
        let dir = dir.path();
        fs::create_dir(dir.join("state"))?;
        fs::write(dir.join("targets.toml"), target(dir, "one"))?;
        let (consumer, readyz) = consumer(&etcd, dir)?;
        let mut command = tool::command("unshare")?;
        command.args(["--mount", "sh", "-c", &format!("{mount} && exec \"$@\""), "sh"]);
        command.arg(consumer.get_program()).args(consumer.get_args()).current_dir(dir);
        let mut program = Program::start("consumer", command)?;
        until("it is reported", TIMEOUT, || {
            let answer = http::get(&readyz)?;
            Ok(answer.status == 503 && answer.body.contains("cannot write --state-dir"))
        })?;
        until("its file is there", TIMEOUT, || Ok(dir.join("one").exists()))?;
        program.wait_log("claimed the name", TIMEOUT)?;
        assert_eq!(program.terminate(TIMEOUT)?.code(), Some(0));
    }
    Ok(())
}

#[test]
fn an_agent_is_ready_once_it_has_claimed_its_name_and_outlives_sighup() -> Result<()> {
    let (etcd, dir, _host) = (Etcd::start()?, tempfile::tempdir()?, DockerHost::local()?);
    let mut command = Program::agent()?;
    command.args(["--etcd", &etcd.endpoint(), "--node", "h1", "--listen", "off", "--only-name", "^none$"]);
    let mut manager = Manager::of(&mut command, dir.path())?;
    let mut program = Program::start("agent", command)?;
    manager.wait("READY=1")?;
    manager.wait("WATCHDOG=1")?;
    program.signal(Signal::HUP)?;
    manager.wait("RELOADING=1")?;
    manager.wait("READY=1")?;
    manager.wait("WATCHDOG=1")?;
    program.signal(Signal::TERM)?;
    manager.wait("STOPPING=1")?;
    assert_eq!(program.wait(TIMEOUT)?.code(), Some(0));
    Ok(())
}

#[test]
fn the_units_that_ship_have_nothing_that_systemd_does_not_know() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for name in ["rollcall-agent", "rollcall-consumer"] {
        let unit = format!("{name}.service");
        let shipped = fs::read_to_string(tool::workspace().join("deploy/systemd").join(&unit))?;
        // The program is not installed here.
        let program = format!("/usr/local/bin/{name}");
        assert!(shipped.contains(&program));
        fs::write(dir.path().join(&unit), shipped.replace(&program, "/bin/true"))?;
        let mut command = tool::command("systemd-analyze")?;
        let output = command.args(["verify", "--man=no"]).arg(dir.path().join(&unit)).output()?;
        let said = String::from_utf8(output.stderr).context("it speaks UTF-8")?;
        let about_ours: Vec<&str> = said.lines().filter(|line| line.contains(&unit)).collect();
        assert_eq!(about_ours, [""; 0]);
        assert!(output.status.success(), "{said}");
    }
    Ok(())
}

#[test]
fn a_docker_socket_that_is_closed_to_the_process_is_told_with_what_opens_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("docker.sock");
    let _listener = UnixListener::bind(&socket)?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o660))?;
    let agent = Program::agent()?;
    let mut command = tool::command("setpriv")?;
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(agent.get_program());
    command.args([
        "--etcd",
        "http://127.0.0.1:1",
        "--listen",
        "off",
        "--advertise",
        "10.0.0.1",
        "--wait",
        "0s",
    ]);
    command.arg("--docker-host").arg(format!("unix://{}", socket.display()));
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("permission denied, as the socket belongs to group 0"), "{said}");
    assert!(said.contains("--group-add 0") && said.contains("--user 0"), "{said}");
    assert_eq!(output.status.code(), Some(1));
    Ok(())
}

#[test]
fn every_environment_variable_that_is_empty_counts_as_not_given() -> Result<()> {
    for (command, args, expected) in [
        (Program::agent as fn() -> Result<Command>, vec![], "--etcd (ETCDCTL_ENDPOINTS) is not given"),
        (
            Program::consumer,
            vec!["--etcd", "http://127.0.0.1:1"],
            "--config is not given: expected it, or --dest",
        ),
    ] {
        let help = String::from_utf8(command()?.arg("--help").output()?.stdout)?;
        let variables: Vec<&str> =
            help.split("[env: ").skip(1).filter_map(|rest| rest.split(['=', ']']).next()).collect();
        assert!(variables.len() > 20, "{help}");
        let empty = variables.iter().map(|name| (*name, ""));
        let output = command()?.args(args).envs(empty).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(expected), "{said}");
        assert_eq!(output.status.code(), Some(2));
    }
    Ok(())
}
