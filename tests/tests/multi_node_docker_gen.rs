//! docker-gen on several nodes, replaced: a real Swarm of three, and the stack of deploy/examples as it is shipped.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use rollcall_tests::{Bridge, DockerHost, Swarm, docs, image, tool, until};

const TIMEOUT: Duration = Duration::from_secs(60);

/// Two services of another stack, one of which is on another node than nginx. The workers say their host names.
const APPS: &str = r#"
version: "3.8"
services:
  a:
    image: rollcall-test-worker
    hostname: a-{{.Task.Slot}}
    networks: [proxy]
    environment: {VIRTUAL_HOST: "a.example,*.a.example"}
    deploy: {endpoint_mode: dnsrr, placement: {constraints: ["node.hostname == host-2"]}}
  b:
    image: rollcall-test-worker
    hostname: b-{{.Task.Slot}}
    networks: [proxy]
    labels: {VIRTUAL_HOST: b.example}
    environment: {PORT: "8080", VIRTUAL_PORT: "8080"}
    deploy: {endpoint_mode: dnsrr, placement: {constraints: ["node.hostname == host-3"]}}
networks:
  proxy: {external: true}
"#;

/// The shipped stack, with what only a test changes: etcd's network is not encrypted, as not every kernel has the cipher,
/// and each node's engine has its socket elsewhere, as all of them are on one machine.
fn stack(dir: &Path, hosts: &[DockerHost]) -> Result<PathBuf> {
    let examples = tool::workspace().join("deploy/examples");
    for name in ["nginx-proxy-swarm.toml", "nginx-check"] {
        fs::copy(examples.join(name), dir.join(name))?;
    }
    for (number, host) in hosts.iter().enumerate() {
        symlink(host.socket(), dir.join(format!("host-{}.sock", number + 1)))?;
    }
    let mut text = fs::read_to_string(examples.join("nginx-proxy.stack.yml"))?;
    let socket = format!("{}/{{{{.Node.Hostname}}}}.sock:/var", dir.display());
    for (shipped, tested) in
        [(", driver_opts: {encrypted: \"\"}", ""), ("/var/run/docker.sock:/var", socket.as_str())]
    {
        assert!(text.contains(shipped), "the stack has {shipped}");
        text = text.replace(shipped, tested);
    }
    let file = dir.join("stack.yml");
    fs::write(&file, text)?;
    Ok(file)
}

/// What nginx answers to a request for a host: the status and the body.
fn ask(host: &DockerHost, name: &str) -> Result<String> {
    let mut curl = tool::command("curl")?;
    curl.args(["--silent", "--max-time", "2", "--write-out", "%{http_code}", "--header"]);
    curl.args([&format!("Host: {name}"), &format!("http://{}/", host.ip())]);
    tool::run(&mut host.run_in_netns(curl)?)
}

#[test]
fn a_stack_on_a_swarm_serves_the_virtual_hosts_of_all_nodes() -> Result<()> {
    let (agent, consumer) = image::rollcall()?;
    let (bridge, dir) = (Bridge::start()?, tempfile::tempdir()?);
    let hosts = DockerHost::start_several(3, &bridge)?;
    let images: [&[&str]; 3] = [
        &[agent, consumer, image::etcd()?, image::nginx()?],
        &[agent, image::worker()?],
        &[agent, image::worker()?],
    ];
    for (host, images) in hosts.iter().zip(images) {
        images.iter().try_for_each(|image| host.load_image(image))?;
    }
    let swarm = Swarm::start(&hosts)?;
    // As the page on moving over has it.
    let lines = docs::now("docker-gen on several nodes")?.remove(0);
    let [update, deploy] = lines.lines().collect::<Vec<_>>()[..] else { panic!("{lines}") };
    let update = docs::words(update, &[("docker ", "")])?;
    hosts[0].docker(&update.iter().map(String::as_str).collect::<Vec<_>>())?;
    assert_eq!(deploy, "docker stack deploy -c deploy/examples/nginx-proxy.stack.yml proxy");
    let settings = [("ROLLCALL_TAG", "test"), ("NGINX_IMAGE", image::NGINX)];
    swarm.deploy("proxy", &stack(dir.path(), &hosts)?, &settings)?;
    until("nginx answers for nobody", TIMEOUT, || Ok(ask(&hosts[0], "a.example")?.ends_with("503")))?;

    let apps = dir.path().join("apps.yml");
    fs::write(&apps, APPS)?;
    swarm.deploy("apps", &apps, &[])?;
    for (name, worker) in [("a.example", "a-1"), ("www.a.example", "a-1"), ("b.example", "b-1")] {
        until(&format!("{name} is served"), TIMEOUT, || {
            Ok(ask(&hosts[0], name)? == format!("{worker}\n200"))
        })?;
    }
    assert!(ask(&hosts[0], "other.example")?.ends_with("503"));

    // A container that is no service, by its label; and what ends leaves.
    let alone =
        ["--network", "proxy", "--hostname", "alone", "--env", "VIRTUAL_HOST=c.example", image::WORKER];
    let alone = hosts[1].run(&alone)?;
    until("a container that is no service is served", TIMEOUT, || {
        Ok(ask(&hosts[0], "c.example")? == "alone\n200")
    })?;
    drop(alone);
    until("it is not any more", TIMEOUT, || Ok(ask(&hosts[0], "c.example")?.ends_with("503")))?;
    hosts[0].docker(&["service", "scale", "--detach", "apps_b=2"])?;
    until("both tasks are asked", TIMEOUT, || {
        let answers = (0..8).map(|_| ask(&hosts[0], "b.example")).collect::<Result<Vec<_>>>()?;
        Ok(["b-1\n200", "b-2\n200"].iter().all(|wanted| answers.iter().any(|answer| answer == wanted)))
    })?;
    assert_eq!(ask(&hosts[0], "a.example")?, "a-1\n200");
    Ok(())
}
