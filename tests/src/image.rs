//! The images that tests run, made once and kept by name in this machine's engine: a Debian base, pulled
//! where there is a registry and made by debootstrap where not, and on it nginx and PostgreSQL; and the
//! worker, from scratch.
//!
//! An image whose recipe has changed is made again: its label bears the recipe's hash.

use std::env::consts::ARCH;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};

use crate::docker_cli::local_command;
use crate::{leftovers, tool};

/// The base: Debian 12, minimal.
pub const BASE: &str = "debian:bookworm-slim";
/// nginx from Debian, laid out as its official image: `/etc/nginx/conf.d/*.conf`, logs on stdout and stderr,
/// no site.
pub const NGINX: &str = "rollcall-test-nginx";
/// nginx and HAProxy as Debian installs them on a host, without services that are started.
pub const PROXIES: &str = "rollcall-test-proxies";
/// PostgreSQL from Debian, without its compiler of queries (half of its size): data and configuration in
/// `/var/lib/postgresql/data`, everyone trusted, logs on stderr.
pub const POSTGRES: &str = "rollcall-test-postgres";
/// The worker (`tests/worker`): answers GET with its hostname on PORT (80), drains for DRAIN_MS (1500) on
/// SIGTERM.
pub const WORKER: &str = "rollcall-test-worker";

/// Rollcall's own images, by deploy/Dockerfile.
pub const AGENT: &str = "rollcall/agent:test";
/// See [`AGENT`].
pub const CONSUMER: &str = "rollcall/consumer:test";
/// The demo's etcd, by deploy/etcd.
pub const ETCD: &str = "rollcall/etcd:test";

/// What to give `nginx -g` so that its log tells of every reload ("reconfiguring").
pub const NGINX_NOTICES: &str = "daemon off; error_log /dev/stderr notice;";

const LABEL: &str = "harness.recipe";

const NGINX_RECIPE: &str = r#"FROM debian:bookworm-slim
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nginx-light \
 && rm -rf /var/lib/apt/lists/* /etc/nginx/sites-enabled/default \
 && ln -sf /dev/stdout /var/log/nginx/access.log \
 && ln -sf /dev/stderr /var/log/nginx/error.log
EXPOSE 80
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]
"#;

const PROXIES_RECIPE: &str = r#"FROM debian:bookworm-slim
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nginx-light haproxy \
 && rm -rf /var/lib/apt/lists/*
CMD ["sleep", "infinity"]
"#;

const POSTGRES_RECIPE: &str = r#"FROM debian:bookworm-slim
RUN mkdir -p /etc/postgresql-common /usr/share/man/man1 /usr/share/man/man7 \
 && echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf \
 && apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql \
 && rm -rf /var/lib/apt/lists/* /usr/lib/*/libLLVM* /usr/lib/postgresql/*/lib/*llvmjit* \
 && ln -s /usr/lib/postgresql/*/bin/* /usr/local/bin/
ENV PGDATA=/var/lib/postgresql/data
USER postgres
RUN initdb --auth=trust --encoding=UTF8 --no-sync >/dev/null \
 && echo "listen_addresses = '*'" >>"$PGDATA/postgresql.conf" \
 && echo 'host all all all trust' >>"$PGDATA/pg_hba.conf"
EXPOSE 5432
STOPSIGNAL SIGINT
HEALTHCHECK --interval=1s --timeout=5s --retries=30 CMD pg_isready -q
CMD ["postgres"]
"#;

/// What deploy/Dockerfile takes the binaries from.
const BINARIES: &str = "rollcall-test-binaries";

const BINARIES_RECIPE: &str = r#"FROM debian:bookworm-slim
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
COPY rollcall-agent rollcall-consumer /out/
"#;

const WORKER_RECIPE: &str = r#"FROM scratch
COPY rollcall-test-worker /worker
EXPOSE 80
CMD ["/worker"]
"#;

/// Makes sure of the base image, and gives its name.
///
/// # Errors
/// It can neither be pulled nor made.
pub fn base() -> Result<&'static str> {
    once(|| make_base().context("cannot make the base image"))?;
    Ok(BASE)
}

/// Makes sure of the nginx image, and gives its name.
///
/// # Errors
/// It cannot be built.
pub fn nginx() -> Result<&'static str> {
    once(|| on_base(NGINX, NGINX_RECIPE))?;
    Ok(NGINX)
}

/// Makes sure of the image with nginx and HAProxy, and gives its name.
///
/// # Errors
/// It cannot be built.
pub fn proxies() -> Result<&'static str> {
    once(|| on_base(PROXIES, PROXIES_RECIPE))?;
    Ok(PROXIES)
}

/// Makes sure of the PostgreSQL image, and gives its name.
///
/// # Errors
/// It cannot be built.
pub fn postgres() -> Result<&'static str> {
    once(|| on_base(POSTGRES, POSTGRES_RECIPE))?;
    Ok(POSTGRES)
}

/// Makes sure of the worker image, and gives its name.
///
/// # Errors
/// It cannot be built.
pub fn worker() -> Result<&'static str> {
    once(make_worker)?;
    Ok(WORKER)
}

/// Makes Rollcall's images of the present code, and gives the agent's and the consumer's names.
///
/// # Errors
/// They cannot be built.
pub fn rollcall() -> Result<(&'static str, &'static str)> {
    once(make_rollcall)?;
    Ok((AGENT, CONSUMER))
}

/// Makes sure of the demo's etcd, and gives its name.
///
/// # Errors
/// It cannot be built.
pub fn etcd() -> Result<&'static str> {
    once(|| {
        let context = tool::workspace().join("deploy/etcd");
        let hash = hash(&[&fs::read_to_string(context.join("Dockerfile"))?]);
        if is_made(ETCD, &hash)? {
            return Ok(());
        }
        make_base().context("cannot make the base image")?;
        build(ETCD, &hash, "", &context)
    })?;
    Ok(ETCD)
}

/// Makes one image at a time, in this process and among processes: the others then find it made.
fn once(make: impl FnOnce() -> Result<()>) -> Result<()> {
    static ONE: Mutex<()> = Mutex::new(());
    // A build that panicked leaves nothing half done that the next would not see.
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    fs::create_dir_all(tool::parts_dir())?;
    let lock = File::create(tool::parts_dir().join("images.lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    make()
}

fn on_base(name: &str, recipe: &str) -> Result<()> {
    let hash = hash(&[recipe]);
    if is_made(name, &hash)? {
        return Ok(());
    }
    make_base().context("cannot make the base image")?;
    eprintln!("harness: building the image {name}");
    // No context: the recipe comes on stdin.
    build(name, &hash, recipe, Path::new("-"))
}

fn make_worker() -> Result<()> {
    let sources = ["Cargo.toml", "src/lib.rs", "src/main.rs"].map(|file| {
        let path = tool::workspace().join("tests/worker").join(file);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    });
    let sources = sources.into_iter().collect::<Result<Vec<_>>>()?;
    let hash = hash(&[WORKER_RECIPE, &sources.concat()]);
    if is_made(WORKER, &hash)? {
        return Ok(());
    }
    eprintln!("harness: building the image {WORKER}");
    let built = static_build(&["--release", "--package", WORKER])?.join("release").join(WORKER);
    build_with(WORKER, &hash, WORKER_RECIPE, &[&built])
}

/// The static programs, without symbols, on nothing, as deploy/Dockerfile has it. cargo knows whether the code has
/// changed.
fn make_rollcall() -> Result<()> {
    let packages = ["--package", "rollcall-agent", "--package", "rollcall-consumer"];
    let built = static_build(&packages)?.join("debug");
    let stripped = tempfile::Builder::new().prefix(&leftovers::prefix()).tempdir()?;
    let programs = ["rollcall-agent", "rollcall-consumer"].map(|name| stripped.path().join(name));
    for program in &programs {
        let name = program.file_name().expect("it has one");
        tool::run(Command::new("strip").arg("-o").arg(program).arg(built.join(name)))?;
    }
    let recipe = tool::workspace().join("deploy/Dockerfile");
    let mut hash = DefaultHasher::new();
    fs::read(&recipe)?.hash(&mut hash);
    programs.iter().try_for_each(|program| fs::read(program).map(|bytes| bytes.hash(&mut hash)))?;
    let hash = format!("{:016x}", hash.finish());
    if is_made(AGENT, &hash)? && is_made(CONSUMER, &hash)? {
        return Ok(());
    }
    make_base().context("cannot make the base image")?;
    eprintln!("harness: building the images {AGENT} and {CONSUMER}");
    build_with(BINARIES, &hash, BINARIES_RECIPE, &programs.each_ref().map(|program| program.as_path()))?;
    for (image, target) in [(AGENT, "agent"), (CONSUMER, "consumer")] {
        let mut command = local_command()?;
        command.args(["build", "--quiet", "--target", target, "--tag", image, "--file"]).arg(&recipe);
        command.args(["--build-arg", &format!("BUILDER={BINARIES}"), "--label", &format!("{LABEL}={hash}")]);
        tool::run(command.arg(tool::workspace()))?;
    }
    // What they have replaced, and what the classic builder keeps of the Dockerfile's first stage. Some may be in use.
    let vendor = "label=org.opencontainers.image.vendor=Rollcall";
    let _ = tool::run(local_command()?.args(["image", "prune", "--force", "--filter", vendor]));
    Ok(())
}

/// Builds packages as static programs; gives the folder with the folders of the profiles.
fn static_build(options: &[&str]) -> Result<PathBuf> {
    // A folder of its own, so that it does not take turns with the workspace's build, whose flags differ.
    let (triple, target) = (format!("{ARCH}-unknown-linux-gnu"), tool::target_dir().join("static"));
    tool::run(
        Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--target", &triple, "--target-dir"])
            .arg(&target)
            .args(options)
            .current_dir(tool::workspace())
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env("RUSTFLAGS", "-C target-feature=+crt-static"),
    )?;
    Ok(target.join(triple))
}

/// Builds an image of a recipe that copies these files.
fn build_with(name: &str, hash: &str, recipe: &str, files: &[&Path]) -> Result<()> {
    let context = tempfile::Builder::new().prefix(&leftovers::prefix()).tempdir()?;
    for file in files {
        fs::copy(file, context.path().join(file.file_name().context("it has no name")?))?;
    }
    fs::write(context.path().join("Dockerfile"), recipe)?;
    build(name, hash, "", context.path())
}

fn make_base() -> Result<()> {
    if tool::run(local_command()?.args(["image", "inspect", BASE])).is_ok() {
        return Ok(());
    }
    let mut pull = tool::command("timeout")?;
    let docker = local_command()?;
    if tool::run(pull.arg("120").arg(docker.get_program()).args(docker.get_args()).args(["pull", BASE]))
        .is_ok()
    {
        return Ok(());
    }
    let tar = tool::parts_dir().join("bookworm-slim.tar");
    if !tar.exists() {
        tool::need_root()?;
        eprintln!("harness: making the base image by debootstrap, as it cannot be pulled");
        let work = tempfile::Builder::new().prefix("debootstrap.").tempdir_in(tool::parts_dir())?;
        let (root, whole) = (work.path().join("root"), work.path().join("whole.tar"));
        tool::run(tool::command("debootstrap")?.args(["--variant=minbase", "bookworm"]).arg(&root))?;
        // As in Debian's own image: a package being installed starts no service, and is not synced file by
        // file.
        fs::write(root.join("etc/dpkg/dpkg.cfg.d/docker-apt-speedup"), "force-unsafe-io\n")?;
        fs::write(root.join("usr/sbin/policy-rc.d"), "#!/bin/sh\nexit 101\n")?;
        tool::run(Command::new("chmod").arg("755").arg(root.join("usr/sbin/policy-rc.d")))?;
        let dead = ["var/cache/apt/*", "var/lib/apt/lists/*", "usr/share/doc/*", "usr/share/locale/*"];
        tool::run(
            tool::command("tar")?
                .args(dead.map(|path| format!("--exclude=./{path}")))
                .args(["--one-file-system", "--directory"])
                .arg(&root)
                .arg("--create")
                .arg("--file")
                .arg(&whole)
                .arg("."),
        )?;
        fs::rename(whole, &tar)?;
    }
    tool::run(local_command()?.args(["import", "--change", "CMD [\"bash\"]"]).arg(&tar).arg(BASE)).map(drop)
}

/// Whether the image is there and was made by this recipe.
fn is_made(name: &str, hash: &str) -> Result<bool> {
    let format = format!("{{{{index .Config.Labels \"{LABEL}\"}}}}");
    Ok(tool::run(local_command()?.args(["image", "inspect", "--format", &format, name]))
        .is_ok_and(|made| made == hash))
}

fn build(name: &str, hash: &str, input: &str, context: &Path) -> Result<()> {
    // The one of an older recipe would stay as a nameless one; it is in use, or not there, when this fails.
    let _ = tool::run(local_command()?.args(["image", "rm", name]));
    let mut command = local_command()?;
    command.args(["build", "--quiet", "--tag", name, "--label", &format!("{LABEL}={hash}")]).arg(context);
    let mut docker = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    docker.stdin.take().expect("it was piped above").write_all(input.as_bytes())?;
    let output = docker.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "docker build of {name} failed with {}:\n{said}", output.status);
    Ok(())
}

fn hash(texts: &[&str]) -> String {
    // Another compiler may hash otherwise, which only makes the image again.
    let mut hasher = DefaultHasher::new();
    texts.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
