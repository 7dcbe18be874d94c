//! PostgreSQL servers with an extension `citus` that stands in for Citus (`tests/citus`): no registry has the real one.
//!
//! They run as processes of this machine's PostgreSQL 15, from a copy of its programs whose folder of extensions has
//! one more. Each has data of its own, as Rollcall tells workers apart by the system identifier that initdb makes.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::{Container, DockerHost, Process, image, leftovers, port, tool, until};

/// The address that every server listens at.
pub const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// The database that has the extension.
pub const DATABASE: &str = "app";

const TIMEOUT: Duration = Duration::from_secs(20);
/// PostgreSQL refuses to run as root; this user is on every machine.
const NOBODY: u32 = 65534;

/// A PostgreSQL server, stopped when dropped.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    dir: TempDir,
    port: u16,
}

impl Postgres {
    /// Starts a server with data of its own and the database [`DATABASE`], with the extension `citus`.
    ///
    /// # Errors
    /// PostgreSQL is not installed, or does not start.
    pub fn citus() -> Result<Self> {
        let server = Self::plain()?;
        server.sql("CREATE EXTENSION citus CASCADE")?;
        // Who asks workers who they are, in deploy/examples.
        server.sql("CREATE ROLE rollcall_ask LOGIN")?;
        Ok(server)
    }

    /// The same without the extension.
    ///
    /// # Errors
    /// As [`Postgres::citus`].
    pub fn plain() -> Result<Self> {
        leftovers::clear();
        let dir = new_dir()?;
        let arguments =
            ["--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync", "--username=postgres"];
        tool::run(
            program(dir.path(), "initdb").args(arguments).arg("--pgdata").arg(dir.path().join("data")),
        )?;
        let server = Self::start(dir, port::free(HOST)?)?;
        server.sql_in("postgres", &format!("CREATE DATABASE {DATABASE}"))?;
        Ok(server)
    }

    /// Several of [`Postgres::citus`], started side by side.
    ///
    /// # Errors
    /// As [`Postgres::citus`].
    pub fn several(count: usize) -> Result<Vec<Self>> {
        let threads: Vec<_> = (0..count).map(|_| std::thread::spawn(Self::citus)).collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
    }

    /// A copy of a server's data at another port: as it is, or as a standby, which is read-only. The server is stopped
    /// for as long as it is copied.
    ///
    /// # Errors
    /// It cannot be stopped, copied or started.
    pub fn copy(&mut self, as_standby: bool) -> Result<Self> {
        self.stop()?;
        let dir = new_dir()?;
        let data = dir.path().join("data");
        tool::run(tool::command("cp")?.arg("--archive").arg(self.data()).arg(&data))?;
        if as_standby {
            File::create(data.join("standby.signal"))?;
        }
        self.start_again(self.port)?;
        Self::start(dir, port::free(HOST)?)
    }

    fn start(dir: TempDir, port: u16) -> Result<Self> {
        let process = launch(dir.path(), port)?;
        let server = Self { process, dir, port };
        server.wait()?;
        Ok(server)
    }

    fn wait(&self) -> Result<()> {
        until("PostgreSQL answers", TIMEOUT, || self.sql_in("postgres", "SELECT 1").map(|_| true))
            .with_context(|| self.process.log_tail(20))
    }

    /// Stops it; its clients are cut off.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.process.signal(Signal::INT)?;
        self.process.wait(TIMEOUT).map(drop)
    }

    /// Starts it again after [`Postgres::stop`], at this port.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_again(&mut self, port: u16) -> Result<()> {
        self.process = launch(self.dir.path(), port)?;
        self.port = port;
        self.wait()
    }

    /// Runs the server in a container of a host, listening at port 5432, from now on. This machine's PostgreSQL and the
    /// server's own data are mounted into an image that is small, as one with PostgreSQL would have to be copied to each
    /// host. The data is this value's, which is to be dropped after the container.
    ///
    /// # Errors
    /// It cannot be stopped, or the container is not started.
    pub fn run_on(&mut self, host: &DockerHost, options: &[&str]) -> Result<Container> {
        self.set_access("host all all all trust\n")?;
        self.stop()?;
        let own = format!("{0}:{0}", self.dir.path().display());
        let mut args = vec!["--user", "65534:65534", "--stop-signal", "SIGINT", "--volume", &own];
        for folder in ["/usr:/usr:ro", "/usr/lib:/lib:ro", "/usr/lib64:/lib64:ro"] {
            args.extend(["--volume", folder]);
        }
        args.extend(options);
        args.push(image::worker()?);
        let command = server(self.dir.path(), "0.0.0.0", 5432);
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
        args.extend(words.iter().map(String::as_str));
        host.run(&args)
    }

    /// Its port at [`HOST`].
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What libpq connects with: as the superuser `postgres`, without TLS.
    pub fn conninfo(&self) -> String {
        format!("host={HOST} port={} dbname={DATABASE} user=postgres sslmode=disable", self.port)
    }

    /// The folder of its data.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Runs SQL in [`DATABASE`] as the superuser, and gives its rows, the columns separated by `|`.
    ///
    /// # Errors
    /// The server refuses it.
    pub fn sql(&self, sql: &str) -> Result<String> {
        self.sql_in(DATABASE, sql)
    }

    fn sql_in(&self, database: &str, sql: &str) -> Result<String> {
        sql_at((HOST, self.port).into(), database, sql)
    }

    /// Replaces who may connect and how (pg_hba.conf), and has it read.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_access(&self, lines: &str) -> Result<()> {
        fs::write(self.data().join("pg_hba.conf"), lines)?;
        self.sql("SELECT pg_reload_conf()").map(drop)
    }

    /// Has it offer TLS with this certificate and key.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn set_tls(&self, certificate: &Path, key: &Path) -> Result<()> {
        for (from, name, mode) in [(certificate, "server.crt", 0o644), (key, "server.key", 0o600)] {
            let to = self.data().join(name);
            fs::copy(from, &to)?;
            fs::set_permissions(&to, fs::Permissions::from_mode(mode))?;
            chown(&to, Some(NOBODY), Some(NOBODY))?;
        }
        self.sql("ALTER SYSTEM SET ssl = on")?;
        self.sql("SELECT pg_reload_conf()").map(drop)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // It gives its shared memory back only if it ends in order.
        let _ = self.stop();
    }
}

fn new_dir() -> Result<TempDir> {
    let dir = tempfile::Builder::new().prefix(&leftovers::prefix()).tempdir()?;
    chown(dir.path(), Some(NOBODY), Some(NOBODY))?;
    install(dir.path())?;
    Ok(dir)
}

/// Runs SQL in [`DATABASE`] of the server at this address as the superuser, and gives its rows, the columns separated by
/// `|`.
///
/// # Errors
/// The server cannot be reached or refuses it.
pub fn sql(address: SocketAddr, sql: &str) -> Result<String> {
    sql_at(address, DATABASE, sql)
}

fn sql_at(address: SocketAddr, database: &str, sql: &str) -> Result<String> {
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    tool::run(
        tool::command("psql")?
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"])
            .args(["--host", &host, "--port", &port, "--username", "postgres"])
            .args(["--dbname", database, "--command", sql])
            .env("PGCONNECT_TIMEOUT", "5"),
    )
}

fn launch(dir: &Path, port: u16) -> Result<Process> {
    Process::start("postgres", server(dir, &HOST.to_string(), port), &dir.join("log"))
}

fn server(dir: &Path, listen: &str, port: u16) -> Command {
    let mut command = program(dir, "postgres");
    command.arg("-D").arg(dir.join("data")).args(["-h", listen, "-p", &port.to_string()]);
    for setting in ["unix_socket_directories=", "fsync=off", "max_connections=30", "shared_buffers=16MB"] {
        command.args(["-c", setting]);
    }
    command
}

/// A program of the copy of PostgreSQL in this folder, run by somebody who is not root.
fn program(dir: &Path, name: &str) -> Command {
    let mut command = Command::new(dir.join("lib/postgresql/15/bin").join(name));
    command.uid(NOBODY).gid(NOBODY).current_dir("/");
    command
}

/// Makes a copy of PostgreSQL, which finds its files relative to its programs. It is where whoever runs it can
/// reach it, which the workspace need not be.
fn install(root: &Path) -> Result<()> {
    let (programs, share) = (root.join("lib/postgresql/15/bin"), root.join("share/postgresql/15"));
    fs::create_dir_all(&programs)?;
    fs::create_dir_all(share.join("extension"))?;
    let debian = |part: &str| Path::new("/usr").join(part);
    symlink(debian("lib/postgresql/15/lib"), root.join("lib/postgresql/15/lib"))?;
    for folder in ["", "extension"] {
        let from = debian("share/postgresql/15").join(folder);
        for entry in
            fs::read_dir(&from).with_context(|| format!("{} not found: run tests/parts", from.display()))?
        {
            let entry = entry?;
            if entry.file_name() != "extension" {
                symlink(entry.path(), share.join(folder).join(entry.file_name()))?;
            }
        }
    }
    for name in ["initdb", "postgres"] {
        let from = debian("lib/postgresql/15/bin").join(name);
        fs::copy(&from, programs.join(name))
            .with_context(|| format!("{} not found: run tests/parts", from.display()))?;
    }
    for name in ["citus.control", "citus--12.1-1.sql"] {
        fs::copy(tool::workspace().join("tests/citus").join(name), share.join("extension").join(name))?;
    }
    Ok(())
}
