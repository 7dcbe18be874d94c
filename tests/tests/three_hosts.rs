//! Three Docker hosts with addresses of their own and an etcd of three members. The consumer on host 1 renders
//! for an nginx on host 3; no Docker socket is shared.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use rollcall_tests::{Bridge, Container, DockerHost, EtcdCluster, Program, image, tool, until};

const TIMEOUT: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_secs(5);

fn on(host: &DockerHost, mut command: Command, name: &str, args: &[&str]) -> Result<Program> {
    command.args(args).args(["--ttl", "5s", "--refresh", "1s", "--listen", "off"]);
    Program::start(name, host.run_in_netns(command)?)
}

#[test]
fn an_nginx_on_one_host_serves_the_workers_of_three_and_is_signalled_from_another() -> Result<()> {
    let bridge = Bridge::start()?;
    let hosts = DockerHost::start_several(3, &bridge)?;
    let cluster = EtcdCluster::start_on(&hosts)?;
    let endpoints = cluster.endpoints().join(",");

    let mut agents = Vec::new();
    for (number, host) in hosts.iter().enumerate() {
        let (node, socket) = (format!("h{}", number + 1), host.docker_host());
        // Other tools' keys beside its own: all nodes share their folders.
        let layouts = ["--layout", "containers,registrator,skydns"];
        let args = ["--etcd", &endpoints, "--node", &node, "--docker-host", &socket];
        let args = [&args[..], &layouts[..]].concat();
        agents.push(on(host, Program::agent()?, &node, &args)?);
        host.load_image(image::worker()?)?;
    }
    for agent in &mut agents {
        agent.wait_log("claimed the name", TIMEOUT)?;
    }

    // The folder stands for the volume that a consumer and its target share, as on NFS; the target's host is
    // another one, and so is the engine that signals it.
    let dir = tempfile::tempdir()?;
    let upstream = dir.path().join("upstream.conf");
    fs::write(dir.path().join("site.conf"), "server { listen 80; location / { proxy_pass http://web; } }\n")?;
    let targets = dir.path().join("targets.toml");
    fs::write(
        &targets,
        format!(
            "[[target]]\nname = \"proxy\"\ndest = \"{}\"\nformat = \"nginx-upstream\"\n\
             [target.select]\nservice = \"web\"\n[target.notify]\nlabel = \"role=proxy\"\nsignal = \"HUP\"\n",
            upstream.display()
        ),
    )?;
    let (config, state) = (targets.display().to_string(), dir.path().display().to_string());
    let args = ["--etcd", &endpoints, "--name", "c1", "--config", &config, "--state-dir", &state];
    let _consumer = on(&hosts[0], Program::consumer()?, "consumer", &args)?;
    until("an empty upstream is rendered", TIMEOUT, || Ok(upstream.exists()))?;

    hosts[2].load_image(image::nginx()?)?;
    let volume = format!("{}:/etc/nginx/conf.d", dir.path().display());
    let labels =
        ["--label", "role=proxy", "--label", "rollcall.signal=HUP", "--label", "rollcall.ignore=true"];
    let proxy = [
        &labels[..],
        &["--publish", "80", "--volume", &volume, image::nginx()?, "nginx", "-g", image::NGINX_NOTICES],
    ]
    .concat();
    let proxy = hosts[2].run(&proxy)?;
    let url = format!("http://{}/", proxy.published(80)?);
    let served = |wanted: &[&str]| -> Result<bool> {
        let mut names: Vec<String> = (0..24).map(|_| ask(&hosts[2], &url)).collect::<Result<_>>()?;
        names.sort();
        names.dedup();
        Ok(names == wanted)
    };

    let worker = |host: &DockerHost, name: &str| -> Result<Container> {
        let label = "rollcall.service=web";
        host.run(&["--hostname", name, "--label", label, "--publish", "80", image::worker()?])
    };
    let _workers: Vec<Container> =
        hosts.iter().zip(["w1", "w2", "w3"]).map(|(host, name)| worker(host, name)).collect::<Result<_>>()?;
    until("the workers of all three serve", TIMEOUT, || served(&["w1", "w2", "w3"]))?;
    // How many keys there are of each layout: three workers are one service.
    let laid_out = || -> Result<[usize; 3]> {
        let count = |prefix: &str| Ok::<_, anyhow::Error>(cluster.ctl().keys(prefix)?.len());
        Ok([count("/containers/")?, count("/services/web/")?, count("/skydns/local/rollcall/web/")?])
    };
    until("they are in every layout", TIMEOUT, || Ok(laid_out()? == [6, 3, 3]))?;
    let listed = || -> Result<usize> { Ok(fs::read_to_string(&upstream)?.matches("server 10.").count()) };

    hosts[1].cut_off()?;
    let cut = Instant::now();
    until("those of host 2 are forgotten", TIMEOUT, || Ok(listed()? == 2))?;
    // A lease that is refreshed every second is at most that old when it is cut off.
    until("in the layouts as well", TIMEOUT, || Ok(laid_out()? == [4, 2, 2]))?;
    assert!(cut.elapsed() >= TTL - Duration::from_secs(2), "after {:?}", cut.elapsed());
    until("the others serve", TIMEOUT, || served(&["w1", "w3"]))?;
    hosts[1].heal()?;
    until("all three serve again", TIMEOUT, || served(&["w1", "w2", "w3"]))?;
    until("and are in every layout again", TIMEOUT, || Ok(laid_out()? == [6, 3, 3]))?;

    let reloads = proxy.logs()?.matches("reconfiguring").count();
    assert!(reloads >= 3, "{reloads} reloads");
    // A gracefully stopped agent takes its host's workers with it, at once.
    agents[1].terminate(TIMEOUT)?;
    until("the others serve", TTL, || served(&["w1", "w3"]))
}

fn ask(host: &DockerHost, url: &str) -> Result<String> {
    let mut curl = tool::command("curl")?;
    curl.args(["--silent", "--fail", "--max-time", "2", url]);
    Ok(tool::run(&mut host.run_in_netns(curl)?)?.trim().to_owned())
}
