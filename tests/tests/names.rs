//! One name, several processes: who is refused, in which words, and what that costs the store.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use rollcall_tests::{DockerHost, Etcd, Program, until};

const TIMEOUT: Duration = Duration::from_secs(15);
/// For how long the writes are counted.
const WHILE: Duration = Duration::from_secs(12);

fn consumer(etcd: &Etcd, state: &Path, out: &Path) -> Result<Program> {
    let mut command = Program::consumer()?;
    command.args(["--etcd", &etcd.endpoint(), "--listen", "off", "--name", "nginx", "--format", "json"]);
    command.arg("--state-dir").arg(state).arg("--dest").arg(out);
    Program::start("consumer", command)
}

#[test]
fn a_second_consumer_of_the_name_is_refused_by_the_first_ones_host_and_neither_flaps() -> Result<()> {
    let (etcd, dir) = (Etcd::start()?, tempfile::tempdir()?);
    let path = |name: &str| dir.path().join(name);
    let mut first = consumer(&etcd, &path("state1"), &path("out1"))?;
    first.wait_log("claimed the name", TIMEOUT)?;
    // As a volume that was copied, or an image of a whole host: the same ID, in a folder of its own.
    fs::create_dir(path("state2"))?;
    fs::copy(path("state1/id"), path("state2/id"))?;
    let watch = etcd.ctl().watch("/rollcall/consumers/nginx")?;
    let mut others =
        [consumer(&etcd, &path("state2"), &path("out2"))?, consumer(&etcd, &path("state3"), &path("out3"))?];
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    for other in &mut others {
        let refused = other.wait_log("is held by", TIMEOUT)?;
        for part in ["consumer name nginx", &format!("on {host}"), "since 20"] {
            assert!(refused.contains(part), "{refused}");
        }
    }
    // Restart policies, at their worst.
    let until = Instant::now() + WHILE;
    while Instant::now() < until {
        let mut again = consumer(&etcd, &path("state4"), &path("out4"))?;
        again.wait_log("is held by", TIMEOUT)?;
        again.terminate(TIMEOUT)?;
    }
    // The copied ID asks the holder once, and it answers once; strangers write nothing.
    let events = watch.events()?;
    assert!(events.len() <= 4, "{} writes: {events:?}", events.len());
    assert_eq!(first.exited()?, None);
    assert!(!first.log().contains("taken"), "{}", first.log());
    for other in &mut others {
        assert_eq!(other.exited()?, None, "it renders all the same");
    }
    first.terminate(TIMEOUT)?;
    rollcall_tests::until("one of them has the name at once", Duration::from_secs(2), || {
        Ok(others.iter().any(|other| other.log().contains("claimed the name")))
    })?;
    Ok(())
}

#[test]
fn a_consumer_that_was_killed_and_is_there_again_has_its_name_within_seconds() -> Result<()> {
    let (etcd, dir) = (Etcd::start()?, tempfile::tempdir()?);
    let (state, out) = (dir.path().join("state"), dir.path().join("out"));
    let mut first = consumer(&etcd, &state, &out)?;
    first.wait_log("claimed the name", TIMEOUT)?;
    first.kill();
    let begun = Instant::now();
    consumer(&etcd, &state, &out)?.wait_log("claimed the name", TIMEOUT)?;
    // Its own lease would take 60 s to expire; a busy machine may take some seconds to start a process.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    Ok(())
}

#[test]
fn a_second_agent_of_the_same_engine_is_refused_each_time_and_the_first_one_stays() -> Result<()> {
    let (etcd, _host) = (Etcd::start()?, DockerHost::local()?);
    let agent = || -> Result<Program> {
        let mut command = Program::agent()?;
        command.args([
            "--etcd",
            &etcd.endpoint(),
            "--node",
            "h1",
            "--listen",
            "off",
            "--only-name",
            "^none$",
        ]);
        Program::start("agent", command)
    };
    let mut first = agent()?;
    first.wait_log("claimed the name", TIMEOUT)?;
    let watch = etcd.ctl().watch("/rollcall/nodes/h1")?;
    const TRIES: usize = 4;
    for _ in 0..TRIES {
        let mut second = agent()?;
        assert_eq!(second.wait(TIMEOUT)?.code(), Some(1));
        let refused = second.wait_log("the node name h1 is held", TIMEOUT)?;
        assert!(refused.contains("since 20"), "{refused}");
    }
    thread::sleep(Duration::from_millis(200));
    assert_eq!(first.exited()?, None);
    // Each of them asks once and is answered once.
    assert!(watch.events()?.len() <= 2 * TRIES, "{:?}", watch.events()?);
    until("its record is still its own", TIMEOUT, || Ok(etcd.ctl().get("/rollcall/nodes/h1")?.is_some()))
}
