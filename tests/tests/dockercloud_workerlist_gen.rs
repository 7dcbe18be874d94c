//! citusdata/dockercloud-workerlist-gen: the workers of one stack on three Docker hosts, and its masters, with a second
//! stack beside it whose services have the same names.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rollcall_tests::{Bridge, Container, DockerHost, EtcdCluster, Program, docs, image, until};

const TIMEOUT: Duration = Duration::from_secs(30);

/// A container of a service of a stack, labelled as Compose does.
fn run(host: &DockerHost, stack: &str, service: &str, rest: &[&str]) -> Result<Container> {
    let (name, project, service) = (
        format!("{stack}_{service}_1"),
        format!("com.docker.compose.project={stack}"),
        format!("com.docker.compose.service={service}"),
    );
    host.run(&[&["--name", &name, "--label", &project, "--label", &service], rest].concat())
}

fn worker(host: &DockerHost, stack: &str) -> Result<Container> {
    let options = ["--label", "com.citusdata.role=Worker", "--env", "PORT=5432", "--publish", "5432"];
    run(host, stack, "worker", &[&options[..], &["--env", "DRAIN_MS=0", image::worker()?]].concat())
}

/// A master, which notes each SIGHUP in a file of its configuration's folder.
fn master(host: &DockerHost, stack: &str, folder: &str) -> Result<Container> {
    let volume = format!("{folder}:/etc/citus");
    let options = ["--volume", &volume, "--env", "HUP_LOG=/etc/citus/hups"];
    run(host, stack, "master", &[&options[..], &[image::worker()?]].concat())
}

fn agent(host: &DockerHost, node: &str, endpoints: &str) -> Result<Program> {
    let (socket, mut command) = (host.docker_host(), Program::agent()?);
    // What is let out needs no flag; that the masters may be signalled is said once.
    let line = docs::now("dockercloud-workerlist-gen")?.remove(0);
    let words = docs::words(&line, &[("http://10.0.0.1:2379", endpoints)])?;
    assert_eq!(words[0], "rollcall-agent");
    command.args(&words[1..]).args(["--node", node, "--docker-host", &socket, "--listen", "off"]);
    Program::start(node, host.run_in_netns(command)?)
}

#[test]
fn the_workers_of_its_own_stack_are_listed_and_its_masters_signalled_and_no_others() -> Result<()> {
    let bridge = Bridge::start()?;
    let hosts = DockerHost::start_several(3, &bridge)?;
    let cluster = EtcdCluster::start_on(&hosts)?;
    let endpoints = cluster.endpoints().join(",");
    let (_, consumer) = image::rollcall()?;
    hosts.iter().try_for_each(|host| host.load_image(image::worker()?))?;
    hosts[0].load_image(consumer)?;
    let _others = [agent(&hosts[1], "h2", &endpoints)?, agent(&hosts[2], "h3", &endpoints)?];

    let folders: Vec<tempfile::TempDir> = (0..3).map(|_| tempfile::tempdir()).collect::<Result<_, _>>()?;
    let folder = |number: usize| folders[number].path().display().to_string();
    let hups = |number: usize| -> usize {
        fs::read_to_string(folders[number].path().join("hups")).unwrap_or_default().lines().count()
    };
    let _masters = [
        master(&hosts[0], "shop", &folder(0))?,
        master(&hosts[1], "shop", &folder(1))?,
        master(&hosts[1], "blog", &folder(2))?,
    ];
    let shop = [worker(&hosts[1], "shop")?, worker(&hosts[2], "shop")?];
    let _blog = worker(&hosts[2], "blog")?;

    // As on the page on moving over.
    let config = docs::now("dockercloud-workerlist-gen")?.remove(1);
    for said in
        ["'/var/run/docker.sock:/tmp/docker.sock'", "volumes_from: ['master']", "{ETCDCTL_ENDPOINTS: "]
    {
        assert!(config.contains(said), "{config}");
    }
    let socket = format!("{}:/tmp/docker.sock", hosts[0].socket().display());
    let etcd = format!("ETCDCTL_ENDPOINTS={endpoints}");
    let options = ["-v", &socket, "--volumes-from", "shop_master_1", "-e", &etcd, "-e", "DEBUG=true"];
    let config = run(
        &hosts[0],
        "shop",
        "config",
        &[&options[..], &[consumer, "dockercloud-workerlist-gen"]].concat(),
    )?;
    let list = folders[0].path().join("pg_worker_list.conf");
    until("it says that its stack is not known without an agent on its host", TIMEOUT, || {
        Ok(config.logs()?.contains("own stack is not known: expected an agent on this host, or --stack NAME"))
    })
    .with_context(|| config.logs().unwrap_or_default())?;
    assert!(!list.exists() && (hups(0), hups(1), hups(2)) == (0, 0, 0), "nothing is done before");

    let _agent = agent(&hosts[0], "h1", &endpoints)?;
    let lists = |workers: &[&Container]| {
        let expected = workers.iter().map(|worker| Ok(format!("{}\n", worker.published(5432)?)));
        let mut expected: Vec<String> = expected.collect::<Result<_>>()?;
        expected.iter_mut().for_each(|line| *line = line.replace(':', " "));
        expected.sort();
        until(&format!("the list has {expected:?}"), TIMEOUT, || {
            let found = fs::read_to_string(&list)?;
            ensure!(found == expected.concat(), "it has {found:?}");
            Ok(true)
        })
        .with_context(|| config.logs().unwrap_or_default())
    };
    lists(&[&shop[0], &shop[1]])?;
    until("both masters of the stack were sent SIGHUP", TIMEOUT, || Ok(hups(0) > 0 && hups(1) > 0))?;
    let before = (hups(0), hups(1));
    shop[1].kill("KILL")?;
    lists(&[&shop[0]])?;
    until("both masters know", TIMEOUT, || Ok(hups(0) > before.0 && hups(1) > before.1))?;
    assert_eq!(hups(2), 0, "the master of another stack was signalled");
    assert!(config.logs()?.contains("DEBUG"), "DEBUG=true has debug logs");
    Ok(())
}
