//! HAProxy 2.6 and 2.8, told over their sockets: servers come, change and go without a reload, and nobody is cut off.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rollcall_consumer::roll::Row;
use rollcall_consumer::sink::haproxy::lines::lines;
use rollcall_consumer::sink::haproxy::observed::Observed;
use rollcall_consumer::sink::haproxy::{HaproxyProgram, RawRuntime, RuntimeConfig};
use rollcall_consumer::sink::program::{Desired, Plan, Program, Scope};
use rollcall_shared::model::instance::{Address, Instance, InstanceId, Protocol, Status};
use rollcall_shared::process::error::one_line;
use rollcall_tests::haproxy::Version;
use rollcall_tests::{Haproxy, port, until};

/// The number's own instance.
fn row(number: usize, service: &str, at: SocketAddr) -> Result<Row> {
    let container = format!("{number:012x}");
    let instance: Instance = serde_json::from_value(serde_json::json!({
        "v": 1, "service": service, "container": format!("{service}-{number}"), "id": container, "image": "x",
        "address": at.ip(), "port": at.port(), "protocol": "tcp", "container_port": 80, "status": "passing",
        "started_at": "2026-01-01T00:00:00Z",
    }))?;
    let id =
        InstanceId { node: "h1".parse()?, container: container.parse()?, port: 80, protocol: Protocol::Tcp };
    Ok(Row { id: Arc::new(id), endpoint: instance.endpoint(), instance: Arc::new(instance), since: 0 })
}

fn with(row: &Row, change: impl FnOnce(&mut Instance)) -> Row {
    let mut instance = (*row.instance).clone();
    change(&mut instance);
    Row { endpoint: instance.endpoint(), instance: Arc::new(instance), ..row.clone() }
}

fn name(row: &Row) -> String {
    format!("h1:{}:80:{}", row.instance.container, row.id.container)
}

fn all(rows: &[Row]) -> Desired {
    let mut services = BTreeMap::<_, Vec<Row>>::new();
    for row in rows {
        services.entry(row.instance.service.clone()).or_default().push(row.clone());
    }
    Desired { scope: Scope::All, services }
}

fn only(service: &str, rows: &[Row]) -> Result<Desired> {
    let scope = Scope::Services([service.parse()?].into());
    Ok(Desired { scope, services: [(service.parse()?, rows.to_vec())].into() })
}

fn program(socket: &Path, rest: &str) -> Result<HaproxyProgram> {
    let raw: RawRuntime = toml::from_str(&format!("socket = {socket:?}\n{rest}"))?;
    Ok(HaproxyProgram::new(raw.parse()?))
}

async fn observe(program: &mut HaproxyProgram, scope: &Scope) -> Result<Observed> {
    program.observe(scope).await.map_err(|error| anyhow::anyhow!(one_line(&*error)))
}

/// One round, as the reconciler does it: what is left to do after it, without steps.
async fn round(program: &mut HaproxyProgram, desired: &Desired) -> Result<Plan<String>> {
    let observed = observe(program, &desired.scope).await?;
    for step in program.plan(desired, &observed).steps {
        program.apply(&step).await.map_err(|error| anyhow::anyhow!("{step}: {}", one_line(&*error)))?;
    }
    let observed = observe(program, &desired.scope).await?;
    let Plan { steps, refusals, notes, reloads, look_again } = program.plan(desired, &observed);
    ensure!(steps.is_empty(), "there is more to do: {}", steps[0]);
    Ok(Plan { steps: vec![], refusals, notes, reloads, look_again })
}

/// Rounds until nothing is to be looked at again.
async fn settle(program: &mut HaproxyProgram, desired: &Desired) -> Result<()> {
    let begun = Instant::now();
    while let Some(pause) = round(program, desired).await?.look_again {
        ensure!(begun.elapsed() < Duration::from_secs(30), "it never settles");
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

/// What a server of a container answers, and how: its name, or for `/slow` a long download.
#[derive(Debug)]
struct Server {
    at: SocketAddr,
    ends: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
}

/// What a long download has in all, in steps of 50 ms.
const CHUNKS: usize = 80;

impl Server {
    fn start(name: &str) -> Result<Self> {
        Self::start_at(
            name,
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port::free(Ipv4Addr::LOCALHOST.into())?),
        )
    }

    fn start_at(name: &str, at: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(at)?;
        listener.set_nonblocking(true)?;
        let (ends, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (ending, counted, name) = (ends.clone(), served.clone(), name.to_owned());
        thread::spawn(move || {
            while !ending.load(Ordering::SeqCst) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let (name, counted) = (name.clone(), counted.clone());
                        thread::spawn(move || serve(stream, &name, &counted));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Ok(Self { at, ends, served })
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        // The listener is closed by the time that a new one can be made.
        let _ = until("its port is free", Duration::from_secs(5), || Ok(TcpListener::bind(self.at).is_ok()));
    }
}

/// Serves a connection, which is kept.
fn serve(stream: TcpStream, name: &str, served: &AtomicUsize) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    let mut read = BufReader::new(stream.try_clone()?);
    let mut write = stream;
    loop {
        let mut first = String::new();
        if read.read_line(&mut first)? == 0 {
            return Ok(());
        }
        let mut line = String::new();
        while read.read_line(&mut line)? > 2 {
            line.clear();
        }
        served.fetch_add(1, Ordering::SeqCst);
        if first.contains("/slow") {
            write.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {CHUNKS}\r\n\r\n").as_bytes())?;
            for _ in 0..CHUNKS {
                write.write_all(b"x")?;
                thread::sleep(Duration::from_millis(50));
            }
        } else {
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
            write.write_all(answer.as_bytes())?;
        }
    }
}

/// The status and the body of an answer.
fn get(port: u16, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).context("a status")?.parse()?;
    Ok((status, answer.split_once("\r\n\r\n").context("a body")?.1.to_owned()))
}

/// A frontend for each backend: the ports in the order of the backends.
fn config(backends: &[(&str, &str)]) -> Result<(String, Vec<u16>)> {
    let (mut text, mut ports) = (String::new(), vec![]);
    for (name, body) in backends {
        let port = port::free(Ipv4Addr::LOCALHOST.into())?;
        text += &format!(
            "frontend {name}-front\n    bind 127.0.0.1:{port}\n    default_backend {name}\n\nbackend {name}\n{body}\n\n"
        );
        ports.push(port);
    }
    Ok((text, ports))
}

/// Runs a test on each version, in a folder of its own.
async fn on_each<F: AsyncFn(Version, &Path) -> Result<()>>(test: F) -> Result<()> {
    for version in Version::ALL {
        let dir = tempfile::tempdir()?;
        test(version, dir.path()).await.with_context(|| format!("{version:?}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn servers_come_change_and_go_without_a_reload_or_a_failed_request() -> Result<()> {
    on_each(async |version, dir| {
        let (text, ports) = config(&[("web", "")])?;
        let haproxy = Haproxy::start(version, dir, &text)?;
        let pid = haproxy.pid();
        let mut program = program(&haproxy.socket(), "")?;
        let servers = [Server::start("a")?, Server::start("b")?];
        let rows = [row(1, "web", servers[0].at)?, row(2, "web", servers[1].at)?];
        let begun = Instant::now();
        round(&mut program, &all(&rows[..1])).await?;
        assert_eq!(get(ports[0], "/")?, (200, "a".to_owned()));
        println!("{version:?}: added and served after {:?}", begun.elapsed());

        // A client throughout.
        let (ends, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (ending, counted, port) = (ends.clone(), failed.clone(), ports[0]);
        let client = thread::spawn(move || {
            let mut asked = 0;
            while !ending.load(Ordering::SeqCst) {
                asked += 1;
                let is_served = get(port, "/").is_ok_and(|(status, _)| status == 200);
                counted.fetch_add(usize::from(!is_served), Ordering::SeqCst);
                thread::sleep(Duration::from_millis(2));
            }
            asked
        });
        let heavy = with(&rows[1], |instance| instance.weight = 7);
        round(&mut program, &all(&[rows[0].clone(), heavy.clone()])).await?;
        let at = heavy.endpoint.port.to_string();
        let expected = [name(&heavy), "127.0.0.1".to_owned(), at, "0".to_owned(), "7".to_owned()];
        assert!(haproxy.servers("web")?.contains(&expected), "{:?}", haproxy.servers("web")?);
        settle(&mut program, &all(std::slice::from_ref(&heavy))).await?;
        assert_eq!(haproxy.servers("web")?.len(), 1, "the first one is deleted");
        settle(&mut program, &all(&rows)).await?;
        assert_eq!(haproxy.servers("web")?.len(), 2);
        ends.store(true, Ordering::SeqCst);
        let asked = client.join().expect("it does not panic");
        println!("{version:?}: {asked} requests, {} failed", failed.load(Ordering::SeqCst));
        assert_eq!(failed.load(Ordering::SeqCst), 0);
        assert_eq!(haproxy.pid(), pid);

        // Nothing is to be done twice, and nothing is asked that changes anything.
        let observed = observe(&mut program, &Scope::All).await?;
        let plan = program.plan(&all(&rows), &observed);
        assert!(plan.steps.is_empty() && plan.reloads.is_empty());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_long_download_goes_on_while_its_server_leaves() -> Result<()> {
    on_each(async |version, dir| {
        let (text, ports) = config(&[("web", "")])?;
        let haproxy = Haproxy::start(version, dir, &text)?;
        let mut program = program(&haproxy.socket(), "drain_timeout = \"1s\"")?;
        let server = Server::start("a")?;
        let rows = [row(1, "web", server.at)?];
        round(&mut program, &all(&rows)).await?;
        let port = ports[0];
        let download = thread::spawn(move || get(port, "/slow"));
        until("it has begun", Duration::from_secs(5), || Ok(server.served() == 1))?;
        let mut seen = vec![];
        let begun = Instant::now();
        while let Some(pause) = round(&mut program, &all(&[])).await?.look_again {
            ensure!(
                begun.elapsed() < Duration::from_secs(30),
                "it never leaves: {:?}",
                haproxy.servers("web")?
            );
            seen.extend(haproxy.servers("web")?.into_iter().map(|[.., admin, _]| admin));
            tokio::time::sleep(pause).await;
        }
        let (status, body) = download.join().expect("it does not panic")?;
        assert_eq!((status, body.len()), (200, CHUNKS), "it is not cut");
        seen.dedup();
        // To drain, then into maintenance though it serves still, then gone.
        assert_eq!((&seen[..], haproxy.servers("web")?.len()), (&["8".to_owned(), "1".to_owned()][..], 0));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_an_operator_made_stays_and_what_he_did_to_ours_is_put_back() -> Result<()> {
    on_each(async |version, dir| {
        let (text, _) = config(&[("web", "    server hand 127.0.0.1:9\n")])?;
        let haproxy = Haproxy::start(version, dir, &text)?;
        let mut program = program(&haproxy.socket(), "")?;
        let server = Server::start("a")?;
        let rows = [row(1, "web", server.at)?];
        let done = round(&mut program, &all(&rows)).await?;
        assert_eq!(
            done.notes,
            ["backend web has servers that Rollcall did not make, and leaves alone: hand"]
        );
        haproxy.ask("add server web/late 127.0.0.1:10; set server web/hand weight 0")?;
        let before = haproxy.servers("web")?;
        let place = format!("web/{}", name(&rows[0]));
        for edit in [
            format!("set server {place} state maint"),
            format!("set server {place} state drain"),
            format!("set server {place} weight 77"),
            format!("set server {place} addr 127.0.0.9 port 9"),
            format!("disable health {place}"),
            format!("set server {place} state maint;del server {place}"),
        ] {
            haproxy.ask(&edit)?;
            round(&mut program, &only("web", &rows)?).await.with_context(|| edit.clone())?;
            let by_name = |mut servers: Vec<[String; 5]>| {
                servers.sort();
                servers
            };
            assert_eq!(by_name(haproxy.servers("web")?), by_name(before.clone()), "{edit}");
        }
        // What its own checks say stands: nobody answers there, and nothing is done about it.
        drop(server);
        until("it is down", Duration::from_secs(10), || {
            Ok(haproxy.ask("show servers state web")?.contains(&format!("{} 127.0.0.1 0 0", name(&rows[0]))))
        })?;
        let observed = observe(&mut program, &Scope::All).await?;
        assert!(program.plan(&all(&rows), &observed).steps.is_empty());
        settle(&mut program, &all(&[])).await?;
        let left: Vec<_> = haproxy.servers("web")?.into_iter().map(|[name, ..]| name).collect();
        assert_eq!(left, ["hand", "late"]);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_restart_and_a_reload_are_noticed_and_made_good() -> Result<()> {
    on_each(async |version, dir| {
        let (text, ports) = config(&[("web", "")])?;
        let mut haproxy = Haproxy::start(version, dir, &text)?;
        let mut program = program(&haproxy.socket(), "")?;
        let server = Server::start("a")?;
        let rows = [row(1, "web", server.at)?];
        round(&mut program, &all(&rows)).await?;
        let still = tokio::time::timeout(Duration::from_millis(2500), program.restarted()).await;
        assert!(still.is_err(), "it is the same");
        for reload in [true, false] {
            if reload {
                haproxy.reload()?
            } else {
                haproxy.restart()?
            }
            assert!(haproxy.servers("web")?.is_empty(), "its servers are gone");
            tokio::time::timeout(Duration::from_secs(5), program.restarted()).await?;
            round(&mut program, &all(&rows)).await?;
            assert_eq!(get(ports[0], "/")?, (200, "a".to_owned()));
        }
        haproxy.stop();
        let error = observe(&mut program, &Scope::All).await.expect_err("it is gone").to_string();
        assert!(error.starts_with("Nobody listens on HAProxy's socket "), "{error}");
        Ok(())
    })
    .await
}

/// The `server` lines that the formats write for these instances.
fn in_the_file(rows: &[Row], runtime: &RuntimeConfig) -> String {
    let lines = lines(&rows.iter().collect::<Vec<_>>(), Some(runtime));
    lines.into_iter().map(|line| format!("    server {line}\n")).collect()
}

#[tokio::test]
async fn a_restart_finds_in_the_file_what_the_socket_had_made() -> Result<()> {
    on_each(async |version, dir| {
        let servers = [Server::start("a")?, Server::start("b")?];
        let named = with(&row(3, "web", "127.0.0.1:9".parse()?)?, |instance| {
            instance.address = Address::Name("nowhere.invalid".parse().expect("a name"));
        });
        let rows = [
            row(1, "web", servers[0].at)?,
            row(2, "web", servers[1].at)?,
            Row { endpoint: named.instance.endpoint(), ..named },
        ];
        for (index, settings) in
            ["", "server_options = \"maxconn 5\"", "method = \"slots\"\nslots = 2"].into_iter().enumerate()
        {
            let dir = dir.join(index.to_string());
            fs::create_dir(&dir)?;
            let raw: RawRuntime =
                toml::from_str(&format!("socket = {:?}\n{settings}", dir.join("admin.sock")))?;
            let runtime = raw.parse()?;
            let (text, _) = config(&[("web", &in_the_file(&rows, &runtime))])?;
            let haproxy = Haproxy::start(version, &dir, &text)?;
            let mut program = HaproxyProgram::new(runtime);
            let observed = observe(&mut program, &Scope::All).await?;
            let plan = program.plan(&all(&rows), &observed);
            assert_eq!(plan, Plan::default(), "{settings}");
            // Slots are there twice as often as they were set, as there are three instances.
            let count = if settings.contains("slots") { 4 } else { 3 };
            assert_eq!(haproxy.servers("web")?.len(), count);
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_server_of_the_file_leaves_as_one_that_was_added_does() -> Result<()> {
    on_each(async |version, dir| {
        let rows = [row(1, "web", "127.0.0.1:9".parse()?)?, row(2, "web", "127.0.0.1:10".parse()?)?];
        let raw: RawRuntime = toml::from_str("socket = \"/unused\"")?;
        let used = format!(
            "{}    use-server {} if {{ path /used }}\n",
            in_the_file(&rows, &raw.parse()?),
            name(&rows[1])
        );
        let haproxy = Haproxy::start(version, dir, &config(&[("web", &used)])?.0)?;
        let mut program = program(&haproxy.socket(), "")?;
        settle(&mut program, &all(&[])).await?;
        // The configuration refers to the other one, which HAProxy does not delete.
        let left: Vec<_> =
            haproxy.servers("web")?.into_iter().map(|[name, _, _, admin, _]| (name, admin)).collect();
        assert_eq!(left, [(name(&rows[1]), "1".to_owned())]);
        let done = round(&mut program, &all(&[])).await?;
        let place = name(&rows[1]);
        assert!(done.notes[0].starts_with(&format!("server web/{place} stays in maintenance")), "{done:?}");
        // It comes back as its instance does.
        round(&mut program, &all(&rows[1..])).await?;
        assert_eq!(haproxy.servers("web")?[0][3], "0");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_cannot_be_told_is_said_on_one_line() -> Result<()> {
    on_each(async |version, dir| {
        let (text, _) = config(&[("web", "")])?;
        let haproxy = Haproxy::start(version, dir, &text)?;
        let rows = [row(1, "zoo", "127.0.0.1:9".parse()?)?];
        let mut told = program(&haproxy.socket(), "")?;
        for desired in [all(&rows), only("zoo", &rows)?] {
            let done = round(&mut told, &desired).await?;
            assert_eq!(done.refusals, ["HAProxy has no backend zoo"]);
            assert_eq!(done.reloads, ["backend zoo is new"]);
        }
        let error = async |socket: &Path| -> Result<String> {
            let error = observe(&mut program(socket, "")?, &Scope::All).await;
            Ok(error.err().context("it cannot be told")?.to_string())
        };
        let user = haproxy.user_socket();
        assert_eq!(
            error(&user).await?,
            format!(
                "HAProxy's socket {} lets Rollcall change nothing: its line in the configuration needs `level admin`",
                user.display()
            )
        );
        let absent = dir.join("absent.sock");
        let expected = format!("HAProxy's socket {} is not there: HAProxy does not run", absent.display());
        assert!(error(&absent).await?.starts_with(&expected));
        let stranger = dir.join("stranger.sock");
        let listener = std::os::unix::net::UnixListener::bind(&stranger)?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = (&stream).write_all(b"220 mail.example.com ESMTP\r\n");
            }
        });
        assert_eq!(error(&stranger).await?, format!("What answers on {} is not HAProxy", stranger.display()));
        // An option that no server knows is refused, and nothing is left of it.
        let mut wrong = program(&haproxy.socket(), "server_options = \"check bogus\"")?;
        let rows = [row(1, "web", "127.0.0.1:9".parse()?)?];
        let error = round(&mut wrong, &all(&rows)).await.expect_err("it is refused").to_string();
        assert!(error.contains("unknown keyword 'bogus'"), "{error}");
        assert!(haproxy.servers("web")?.is_empty());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn static_algorithms_have_slots_which_are_filled_drained_and_free_again() -> Result<()> {
    on_each(async |version, dir| {
        let slots = "    balance source\n    server-template rollcall-slot- 1-2 127.0.0.1:9 check inter 2s disabled\n";
        let (text, ports) = config(&[("web", slots)])?;
        let haproxy = Haproxy::start(version, dir, &text)?;
        let mut program = program(&haproxy.socket(), "")?;
        let servers = [Server::start("a")?, Server::start("b")?, Server::start("c")?];
        let rows: Vec<Row> =
            (0..3).map(|index| row(index + 1, "web", servers[index].at)).collect::<Result<_>>()?;
        let done = round(&mut program, &all(&rows[..1])).await?;
        assert_eq!(
            done.notes,
            ["backend web has its servers in slots: its balance algorithm takes no servers at run time"]
        );
        assert_eq!(get(ports[0], "/")?, (200, "a".to_owned()));
        let full = round(&mut program, &all(&rows)).await?;
        assert_eq!(full.refusals, ["backend web has no free slot for 1 instances: it has 2, all taken"]);
        assert_eq!(full.reloads, ["backend web has no free slot among its 2, and the file has more"]);
        // One leaves, its slot is free in the end, and the one that waited has it.
        settle(&mut program, &all(&rows[1..2])).await?;
        let done = round(&mut program, &all(&rows[1..])).await?;
        assert!(done.refusals.is_empty() && done.look_again.is_none(), "{done:?}");
        let mut at: Vec<_> = haproxy.servers("web")?.into_iter().map(|[_, _, port, admin, _]| (port, admin)).collect();
        at.sort();
        let mut expected: Vec<_> = rows[1..].iter().map(|row| row.endpoint.port.to_string()).collect();
        expected.sort();
        assert!(at.iter().map(|(port, _)| port).eq(&expected), "{at:?}");
        // `disabled` in the file (4) does not count once it is in service.
        assert!(at.iter().all(|(_, admin)| admin == "4"), "{at:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn consistent_hashing_takes_servers_and_map_based_hashing_does_not() -> Result<()> {
    on_each(async |version, dir| {
        let (text, _) = config(&[
            ("map", "    balance source\n"),
            ("ring", "    balance source\n    hash-type consistent\n"),
            ("any", "    balance random\n"),
            ("first", "    balance first\n"),
        ])?;
        let haproxy = Haproxy::start(version, dir, &text)?;
        let mut program = program(&haproxy.socket(), "")?;
        let at = "127.0.0.1:9".parse()?;
        let rows = [row(1, "map", at)?, row(2, "ring", at)?, row(3, "any", at)?, row(4, "first", at)?];
        let done = round(&mut program, &all(&rows)).await?;
        assert_eq!(done.refusals.len(), 1, "{done:?}");
        assert!(done.refusals[0].starts_with("backend map has no place for 1 instances"), "{done:?}");
        let counts = ["map", "ring", "any", "first"]
            .map(|backend| haproxy.servers(backend).map_or(9, |all| all.len()));
        assert_eq!(counts, [0, 1, 1, 1]);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_address_that_another_service_has_taken_gets_no_request_of_the_old_one() -> Result<()> {
    on_each(async |version, dir| {
        let (text, ports) = config(&[("web", ""), ("api", "")])?;
        let haproxy = Haproxy::start(version, dir, &text)?;
        let mut program = program(&haproxy.socket(), "")?;
        let old = Server::start("web")?;
        let at = old.at;
        round(&mut program, &all(&[row(1, "web", at)?])).await?;
        assert_eq!(get(ports[0], "/")?.1, "web");
        // It leaves, and drains still as the other one comes to its address.
        round(&mut program, &only("web", &[])?).await?;
        drop(old);
        let new = Server::start_at("api", at)?;
        round(&mut program, &only("api", &[row(2, "api", at)?])?).await?;
        assert_eq!(haproxy.servers("web")?[0][3], "1", "it is in maintenance");
        assert_eq!(get(ports[0], "/")?.0, 503);
        assert_eq!(get(ports[1], "/")?, (200, "api".to_owned()));
        assert_eq!(new.served(), 1);
        settle(&mut program, &all(&[row(2, "api", at)?])).await?;
        assert!(haproxy.servers("web")?.is_empty());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_server_drains_with_its_instance_and_names_may_be_as_long_as_they_like() -> Result<()> {
    on_each(async |version, dir| {
        let (text, _) = config(&[("web", "")])?;
        let haproxy = Haproxy::start(version, dir, &text)?;
        let mut program = program(&haproxy.socket(), "")?;
        let server = Server::start("a")?;
        let long: String = ["_", &"x.-_".repeat(63)].concat();
        let rename = |instance: &mut Instance| instance.container = long.parse().expect("a name");
        let mut rows = vec![with(&row(1, "web", server.at)?, rename), row(2, "web", "[::1]:9".parse()?)?];
        round(&mut program, &all(&rows)).await?;
        rows[0] = with(&rows[0], |instance| instance.status = Status::Draining);
        let done = round(&mut program, &all(&rows)).await?;
        assert!(done.look_again.is_none());
        let states = |haproxy: &Haproxy| -> Result<Vec<_>> {
            Ok(haproxy.servers("web")?.into_iter().map(|[name, ip, _, admin, _]| (name, ip, admin)).collect())
        };
        let expected = |admin: &str| {
            vec![
                (name(&rows[0]), "127.0.0.1".to_owned(), admin.to_owned()),
                (name(&rows[1]), "::1".to_owned(), "0".to_owned()),
            ]
        };
        assert_eq!(states(&haproxy)?, expected("8"));
        let back = [with(&rows[0], |instance| instance.status = Status::Passing), rows[1].clone()];
        round(&mut program, &all(&back)).await?;
        assert_eq!(states(&haproxy)?, expected("0"));
        settle(&mut program, &all(&[])).await?;
        assert!(haproxy.servers("web")?.is_empty());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn one_change_costs_the_same_among_many_backends() -> Result<()> {
    on_each(async |version, dir| {
        let cost = async |backends: usize| -> Result<Duration> {
            let dir = dir.join(backends.to_string());
            fs::create_dir(&dir)?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
            let text: String = (0..backends).map(|number| format!("backend s{number}\n")).collect();
            let haproxy = Haproxy::start(version, &dir, &text)?;
            let mut program = program(&haproxy.socket(), "server_options = \"\"")?;
            let rows: Vec<_> = (0..backends)
                .map(|number| {
                    let [high, low] = u16::try_from(number)?.to_be_bytes();
                    row(number + 1, &format!("s{number}"), SocketAddr::from(([127, 1, high, low], 9)))
                })
                .collect::<Result<_>>()?;
            let begun = Instant::now();
            round(&mut program, &all(&rows)).await?;
            println!("{version:?}: {backends} servers added in {:?}", begun.elapsed());
            let mut times = vec![];
            for weight in 2..40 {
                let heavy = with(&rows[0], |instance| instance.weight = weight);
                let begun = Instant::now();
                round(&mut program, &only("s0", &[heavy])?).await?;
                times.push(begun.elapsed());
            }
            times.sort();
            Ok(times[times.len() / 2])
        };
        let (few, many) = (cost(10).await?, cost(2_000).await?);
        println!("{version:?}: one change takes {few:?} among 10 and {many:?} among 2,000");
        if many > few * 3 {
            bail!("one change takes {few:?} among 10 and {many:?} among 2,000");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn whatever_address_a_stranger_registers_is_taken_and_keeps_nobody_out() -> Result<()> {
    const ADDRESSES: [&str; 8] = [
        "::ffff:10.0.0.1",
        "::ffff:0.0.0.0",
        "fe80::1",
        "::10.0.0.1",
        "::1",
        "0.1.2.3",
        "127.255.255.255",
        "64:ff9b::1.2.3.4",
    ];
    on_each(async |version, dir| {
        let (text, _) = config(&[("web", ""), ("3", ""), ("_.-", "")])?;
        let haproxy = Haproxy::start(version, dir, &text)?;
        let mut program = program(&haproxy.socket(), "")?;
        for (place, address) in ADDRESSES.iter().enumerate() {
            for service in ["web", "3", "_.-"] {
                let at = SocketAddr::new(address.parse()?, 65535);
                let stranger = with(&row(place + 2, service, at)?, |instance| instance.weight = u16::MAX);
                let rows = [stranger, row(place + 100, service, at)?, row(1, "web", "127.0.0.1:9".parse()?)?];
                round(&mut program, &all(&rows)).await.with_context(|| format!("{service} at {at}"))?;
            }
        }
        Ok(())
    })
    .await
}
