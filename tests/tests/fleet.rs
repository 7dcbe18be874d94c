//! Many nodes on one etcd: watching costs only what is addressed to whoever watches.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use clap::Parser;
use futures_util::StreamExt;
use rollcall_shared::{
    keys::{Key, Keys},
    model::name::{ConsumerName, NodeName, TargetId},
    store::{Op, Store, Watch, etcd::EtcdStore, settings::EtcdSettings},
};
use rollcall_tests::Etcd;

const NODES: usize = 1000;
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    etcd: EtcdSettings,
}

fn node(number: usize) -> NodeName {
    format!("h{number}").parse().expect("a name")
}

fn consumer(number: usize) -> ConsumerName {
    format!("c{number}").parse().expect("a name")
}

fn target(number: usize) -> TargetId {
    TargetId { consumer: consumer(number), target: "proxy".parse().expect("a name") }
}

fn put(keys: &Keys, key: &Key) -> [Op; 1] {
    [Op::Put { key: keys.format(key), value: b"{}".to_vec() }]
}

/// How many events of a watch are there by now.
async fn drain(watch: &mut Watch, quiet: Duration) -> Result<usize> {
    let mut events = 0;
    while let Ok(batch) = tokio::time::timeout(quiet, watch.next()).await {
        events += batch.context("the watch goes on")??.changes.len();
    }
    Ok(events)
}

/// A thousand nodes, each with a proxy and the proxy's consumer: an agent watches the requests to its node, a consumer
/// the acks of the node that has its receiver. One request and its ack are one event at one agent and one at one
/// consumer.
#[tokio::test]
async fn a_request_and_its_ack_reach_one_agent_and_one_consumer_of_a_thousand() -> Result<()> {
    let etcd = Etcd::start()?;
    let Cli { etcd: settings } = Cli::try_parse_from(["test", &format!("--etcd={}", etcd.endpoint())])?;
    let keys = settings.prefix.clone();
    let store = Arc::new(EtcdStore::new(settings)?);
    let start = store.list(&keys.consumers()).await?.position;
    let (mut agents, mut consumers) = (Vec::new(), Vec::new());
    for number in 0..NODES {
        agents.push(store.watch(&keys.signals_to(&node(number)), start).await?);
        consumers.push(store.watch(&keys.acks_to(&node(number), &consumer(number)), start).await?);
    }
    let sent = || etcd.metric("etcd_debugging_mvcc_events_total");
    let before = sent()?;
    store.commit(&put(&keys, &Key::Signal(node(7), target(7))), None, None).await?;
    store.commit(&put(&keys, &Key::Acks(node(7), target(7))), None, None).await?;
    // Both arrive at whom they are addressed to, and by then at whoever else they would.
    for watch in [&mut agents[7], &mut consumers[7]] {
        let batch = tokio::time::timeout(TIMEOUT, watch.next()).await?.context("an event")??;
        assert_eq!(batch.changes.len(), 1);
    }
    assert_eq!(sent()? - before, 2.0, "as etcd counts them");
    let mut others = 0;
    for watch in agents.iter_mut().chain(&mut consumers) {
        others += drain(watch, Duration::from_millis(1)).await?;
    }
    assert_eq!(others, 0, "nobody else is told");
    Ok(())
}
