//! Control requests as NATS' service API carries them.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use expediter_nats::{ControlHandler, request, request_node};
use expediter_ports::BoxFuture;
use futures::StreamExt as _;
use futures::future::join_all;
use serde_json::Value;

use super::*;

/// Takes its time, and counts how many it answers at once.
#[derive(Debug, Clone, Default)]
struct Slow {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl ControlHandler for Slow {
    fn handle(&self, _: Partition, request: Bytes) -> BoxFuture<'static, Bytes> {
        let slow = self.clone();
        Box::pin(async move {
            let now = slow.now.fetch_add(1, Ordering::SeqCst) + 1;
            slow.most.fetch_max(now, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            slow.now.fetch_sub(1, Ordering::SeqCst);
            request
        })
    }

    fn handle_node(&self, request: Bytes) -> BoxFuture<'static, Bytes> {
        Box::pin(std::future::ready(request))
    }
}

async fn start_slow(server: &Server, name: &str, slow: &Slow) -> Node {
    let options = Options::new(NodeName::new(name).unwrap(), &server.url());
    let (host, known) = (Arc::new(Host::default()), Arc::new(Known::default()));
    Node::start(options, host.clone(), known, Arc::new(slow.clone()), host)
        .await
        .unwrap()
}

/// All answers to a question of the service API that come within a second, by service name.
async fn ask_all(connection: &Connection, subject: &str) -> Vec<Value> {
    let client = connection.client();
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.unwrap();
    client
        .publish_with_reply(subject.to_owned(), inbox, Bytes::new())
        .await
        .unwrap();
    let mut all = Vec::new();
    while let Ok(Some(answer)) = tokio::time::timeout(Duration::from_secs(1), answers.next()).await
    {
        // Nobody listens.
        if answer.status.is_none() {
            all.push(serde_json::from_slice(&answer.payload).unwrap());
        }
    }
    all
}

fn of<'a>(services: &'a [Value], name: &str) -> Vec<&'a Value> {
    let named = services.iter().filter(|service| service["name"] == name);
    named.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_api_shows_the_node_and_its_partitions() {
    let server = Server::start().await;
    let connection = server.connect().await;
    let slow = Slow::default();
    let node = start_slow(&server, "kitchen", &slow).await;
    ready(&node, 16).await;
    let deadline = Instant::now() + LONG;
    let services = loop {
        let services = ask_all(&connection, "$SRV.PING").await;
        if services.len() == 17 {
            break services;
        }
        assert!(Instant::now() < deadline, "{services:#?}");
    };
    assert_eq!(of(&services, "expediter-partition").len(), 16);
    let own = of(&services, "expediter-node")[0];
    assert_eq!(own["metadata"]["node"], "kitchen");
    assert_eq!(own["metadata"]["instance"], node.instance());

    let p = Partition(3);
    let within = Duration::from_secs(5);
    assert_eq!(
        request(&connection, p, "hello".into(), within)
            .await
            .unwrap(),
        "hello"
    );
    let name = NodeName::new("kitchen").unwrap();
    let answer = request_node(&connection, &name, "you".into(), within).await;
    assert_eq!(answer.unwrap(), "you");
    let nobody = NodeName::new("cellar").unwrap();
    let nobody = request_node(&connection, &nobody, "you".into(), within).await;
    assert!(matches!(nobody, Err(Error::NoNode { .. })), "{nobody:?}");

    let infos = ask_all(&connection, "$SRV.INFO.expediter-partition").await;
    let third = infos
        .iter()
        .find(|info| info["metadata"]["partition"] == "3");
    let third = third.expect("partition 3");
    assert_eq!(
        third["endpoints"][0]["subject"],
        "expediter.ctl.partition.3"
    );
    let epoch = third["metadata"]["epoch"].as_str().unwrap();
    assert_eq!(
        third["endpoints"][0]["queue_group"],
        format!("epoch-{epoch}")
    );
    let id = third["id"].as_str().unwrap();
    let stats = ask_all(&connection, &format!("$SRV.STATS.expediter-partition.{id}")).await;
    assert_eq!(stats[0]["endpoints"][0]["num_requests"], 1, "{stats:#?}");

    // What is given away has no endpoint any more, and what has ended no service.
    let other = start_slow(&server, "cellar", &slow).await;
    until("shared", || {
        let (one, two) = (node.status(), other.status());
        let shared = one.partitions.len() + two.partitions.len() == 16;
        shared && one.ready() && two.ready() && one.live_nodes == 2
    })
    .await;
    let deadline = Instant::now() + LONG;
    loop {
        let services = ask_all(&connection, "$SRV.PING.expediter-partition").await;
        let mut partitions: Vec<_> = services
            .iter()
            .map(|service| service["metadata"]["partition"].to_string())
            .collect();
        partitions.sort();
        partitions.dedup();
        if services.len() == 16 && partitions.len() == 16 {
            break;
        }
        assert!(Instant::now() < deadline, "{services:#?}");
    }
    other.leave().await;
    node.leave().await;
    assert_eq!(ask_all(&connection, "$SRV.PING").await, Vec::<Value>::new());
    let begun = Instant::now();
    let nobody = request(&connection, p, "hello".into(), LONG).await;
    assert!(matches!(nobody, Err(Error::NoOwner { .. })), "{nobody:?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_at_once_are_answered_some_at_a_time() {
    let server = Server::start().await;
    let connection = server.connect().await;
    let slow = Slow::default();
    let node = start_slow(&server, "kitchen", &slow).await;
    ready(&node, 16).await;
    let p = Partition(5);
    until("it answers", || {
        let asked = request(&connection, p, "x".into(), LONG);
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(asked).is_ok())
    })
    .await;
    // A former owner that hangs, and has not been noticed, gets every request as well.
    let hung = connection.client();
    let hung = hung
        .queue_subscribe("expediter.ctl.partition.5", "epoch-0".to_owned())
        .await
        .unwrap();
    let requests = (0..500).map(|n| {
        let connection = connection.clone();
        async move {
            let text = format!("request {n}");
            let answer = request(&connection, p, text.clone().into(), LONG).await;
            assert_eq!(answer.unwrap(), text);
        }
    });
    join_all(requests).await;
    drop(hung);
    assert_eq!(slow.most.load(Ordering::SeqCst), 32);
    node.leave().await;
}
