//! The broker's side of a node against a real nats-server, with a host that only takes notes.

mod audit;
mod clients;
mod control;
mod credentials;
mod faults;
mod host;
mod losses;
mod nodes;
mod server;

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use expediter_nats::{Connection, Error, Node, Options, OrderPublisher};
use expediter_types::{MerchantId, NodeName, Partition, Seq};
use expediter_wire::subjects::partition_of;
use tokio::time::Instant;

use host::{Host, Known};
use server::Server;

/// Far above what anything takes, for a busy machine.
const LONG: Duration = Duration::from_secs(30);

async fn start(server: &Server, name: &str, host: &Host) -> Node {
    start_with(server, name, host, &Known::default())
        .await
        .unwrap()
}

async fn start_with(
    server: &Server,
    name: &str,
    host: &Host,
    known: &Known,
) -> Result<Node, Error> {
    let options = Options::new(NodeName::new(name).unwrap(), &server.url());
    let host = Arc::new(host.clone());
    Node::start(
        options,
        host.clone(),
        Arc::new(known.clone()),
        host.clone(),
        host,
    )
    .await
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {LONG:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn ready(node: &Node, partitions: usize) {
    until("the node is ready", || {
        let status = node.status();
        status.ready() && status.partitions.len() == partitions
    })
    .await;
}

fn merchant(name: &str) -> MerchantId {
    MerchantId::new(name).unwrap()
}

/// Names of merchants that are in that partition of 16.
fn merchants_of(partition: Partition, count: usize) -> Vec<MerchantId> {
    let names = (0..).map(|n| format!("m{n}"));
    let there = names.filter(|name| partition_of(name, 16) == partition);
    there.take(count).map(|name| merchant(&name)).collect()
}

async fn publish(connection: &Connection, merchant: &MerchantId, id: &str) -> Seq {
    let publisher = OrderPublisher::new(connection, 1);
    let ack = publisher
        .publish(merchant, id_headers(merchant, id), "{}".into())
        .await
        .unwrap();
    ack.wait().await.unwrap().seq
}

fn id_headers(merchant: &MerchantId, id: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", format!("{merchant}/{id}").as_str());
    headers.insert("ce-id", id);
    headers
}
