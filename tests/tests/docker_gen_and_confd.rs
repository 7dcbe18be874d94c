//! docker-gen on one host, and registrator with confd: the lines of the page on moving over, beside a real nginx.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rollcall_tests::{Container, DockerHost, Etcd, Program, docs, http, image, until};

const TIMEOUT: Duration = Duration::from_secs(20);
const TEMPLATE: &str = "upstream moving {\n\
    {% for i in instances if i.container.startswith('moving-web') %}    server {{ i.endpoint }};\n{% endfor %}\
    server 127.0.0.1:9 down;\n}\nserver { listen 80; location / { proxy_pass http://moving; } }\n";

/// An nginx by the name that the page has for it, with a folder for its configuration.
fn nginx(host: &DockerHost, conf: &Path) -> Result<(Container, String)> {
    let volume = format!("{}:/etc/nginx/conf.d", conf.display());
    let options = ["--name", "nginx", "--label", "rollcall.ignore=true", "--publish", "80", "-v", &volume];
    let nginx = host.run(&[&options[..], &[image::nginx()?]].concat())?;
    let url = format!("http://{}/", nginx.published(80)?);
    Ok((nginx, url))
}

fn worker(host: &DockerHost, name: &str, options: &[&str]) -> Result<Container> {
    let fixed = ["--name", name, "--hostname", name, "--publish", "80", "--env", "DRAIN_MS=0"];
    host.run(&[&fixed[..], options, &[image::worker()?]].concat())
}

/// A line of a page, with the program that it names.
fn program(line: &str, replaced: &[(&str, &str)]) -> Result<Command> {
    let words = docs::words(line, replaced)?;
    let mut command = match words[0].as_str() {
        "rollcall-agent" => Program::agent()?,
        "rollcall-consumer" => Program::consumer()?,
        other => anyhow::bail!("{other} is none of ours"),
    };
    command.args(&words[1..]).args(["--listen", "off"]);
    Ok(command)
}

#[test]
fn docker_gens_lines_reload_an_nginx_by_its_containers_name() -> Result<()> {
    let (host, dir) = (DockerHost::local()?, tempfile::tempdir()?);
    let conf = dir.path().join("conf.d");
    fs::create_dir(&conf)?;
    let (dest, template) = (conf.join("default.conf"), dir.path().join("nginx.jinja"));
    fs::write(&template, TEMPLATE)?;
    let (dest, template) = (dest.display().to_string(), template.display().to_string());
    let lines = docs::now("docker-gen")?;
    let (_nginx, url) = nginx(&host, &conf)?;
    let _worker = worker(&host, "moving-web-1", &["--env", "VIRTUAL_HOST=moving.example"])?;
    let places = [("/etc/nginx/conf.d/default.conf", dest.as_str()), ("nginx.jinja", template.as_str())];
    for (line, replaced, name) in
        [(&lines[0], &places[..], "nginx"), (&lines[1], &places[..1], "moving.example")]
    {
        let state = tempfile::tempdir()?;
        let mut command = program(line, replaced)?;
        command.arg("--state-dir").arg(state.path());
        let _consumer = Program::start("consumer", command)?;
        until("nginx serves the container", TIMEOUT, || {
            Ok(http::get_as(&url, name)?.body.trim() == "moving-web-1")
        })
        .with_context(|| fs::read_to_string(&dest).unwrap_or_default())?;
        fs::write(&dest, "")?;
    }
    Ok(())
}

#[test]
fn registrators_and_confds_lines_keep_registrators_keys_and_reload_by_a_command() -> Result<()> {
    let (host, etcd, dir) = (DockerHost::local()?, Etcd::start()?, tempfile::tempdir()?);
    let (dest, template) = (dir.path().join("web.conf"), dir.path().join("web.jinja"));
    let reloads = dir.path().join("reloads");
    fs::write(&template, TEMPLATE)?;
    let (endpoint, reload) = (etcd.endpoint(), format!("sh -c 'echo x >>{}'", reloads.display()));
    let lines = docs::now("registrator and confd")?;
    let agent = program(&lines[0], &[("http://10.0.0.1:2379", &endpoint)])?;
    let _agent = Program::start("agent", with(agent, &["--node", "h1", "--only-name", "^moving-web-2$"]))?;
    let (to, from) = (dest.display().to_string(), template.display().to_string());
    let replaced = [
        ("http://10.0.0.1:2379", endpoint.as_str()),
        ("/etc/nginx/conf.d/web.conf", &to),
        ("web.jinja", &from),
        ("nginx -s reload", &reload),
    ];
    let state = dir.path().join("state").display().to_string();
    let _consumer =
        Program::start("consumer", with(program(&lines[1], &replaced)?, &["--state-dir", &state]))?;
    let worker = worker(&host, "moving-web-2", &["--env", "SERVICE_NAME=moving"])?;
    let (port, key) = (worker.published(80)?.port(), "/services/moving/h1:moving-web-2:80");
    until("registrator's key is there", TIMEOUT, || {
        Ok(etcd.ctl().get(key)? == Some(format!("10.0.0.5:{port}")))
    })?;
    until("the file has it", TIMEOUT, || {
        Ok(fs::read_to_string(&dest).unwrap_or_default().contains(&format!("server 10.0.0.5:{port};")))
    })?;
    until("it was reloaded", TIMEOUT, || Ok(reloads.exists()))?;
    drop(worker);
    until("the key goes with the container", TIMEOUT, || Ok(etcd.ctl().get(key)?.is_none()))
}

fn with(mut command: Command, args: &[&str]) -> Command {
    command.args(args);
    command
}
