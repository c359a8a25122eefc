//! A broker that comes back without what it had acknowledged.

use expediter_ports::PublishFailure;
use expediter_types::{Record, Stamp};

use super::*;

async fn publish_all(connection: &Connection, shop: &MerchantId, ids: std::ops::Range<u32>) -> Seq {
    let mut last = 0;
    for n in ids {
        last = publish(connection, shop, &format!("o{n}")).await;
    }
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shorter_log_is_noticed_while_it_is_read() {
    let mut server = Server::start().await;
    let connection = server.connect().await;
    let host = Host::default();
    let node = start(&server, "a", &host).await;
    ready(&node, 16).await;
    let p = Partition(6);
    let shop = merchants_of(p, 1).remove(0);
    let survives = publish_all(&connection, &shop, 0..5).await;
    until("taken", || host.ids().len() == 5).await;
    server.kill();
    let snapshot = server.snapshot();
    server.run().await;
    publish_all(&connection, &shop, 5..10).await;
    until("taken", || host.ids().len() == 10).await;

    server.kill();
    server.restore(&snapshot, None);
    server.run().await;
    // More than were lost: the log is not shorter any more when it is looked at.
    publish_all(&connection, &shop, 20..28).await;
    until("noticed", || host.state().partitions[&p].starts.len() == 2).await;
    let recovered = host.last_start(p);
    assert_eq!(recovered.stamp.incarnation.counter, 2);
    assert_eq!(recovered.cut, survives);
    let taken = || {
        let state = host.state();
        let taken = &state.partitions[&p].taken;
        let ids = taken
            .iter()
            .map(|m| m.order.as_ref().unwrap().envelope.id.to_string());
        ids.collect::<Vec<_>>()
    };
    let new: Vec<_> = (20..28).map(|n| format!("o{n}")).collect();
    until("what took the place of the lost ones is read", || {
        taken().ends_with(&new)
    })
    .await;
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_proves_a_loss_without_a_store() {
    let mut server = Server::start().await;
    let connection = server.connect().await;
    let host = Host::default();
    let node = start(&server, "a", &host).await;
    ready(&node, 16).await;
    let p = Partition(6);
    let shop = merchants_of(p, 1).remove(0);
    let survives = publish_all(&connection, &shop, 0..5).await;
    until("taken", || host.ids().len() == 5).await;
    server.kill();
    let snapshot = server.snapshot();
    server.run().await;
    let last = publish_all(&connection, &shop, 5..10).await;
    until("taken", || host.ids().len() == 10).await;
    host.mark(p, last, &[], 0).await;
    let former: Stamp = host.last_start(p).stamp;
    node.leave().await;

    server.kill();
    server.restore(&snapshot, Some("ORDERS"));
    server.run().await;
    let fresh = Host::default();
    let node = start(&server, "b", &fresh).await;
    ready(&node, 16).await;
    let recovered = fresh.last_start(p);
    assert_eq!(recovered.replaced_epoch, former.token);
    assert_eq!(recovered.stamp.incarnation.counter, 2);
    assert_eq!((recovered.cut, recovered.low_water), (survives, survives));
    let new = publish(&connection, &shop, "new").await;
    assert!(new <= last, "its sequence was called finished once");
    until("it is read all the same", || fresh.ids() == ["new"]).await;
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_claims_are_taken_again() {
    let mut server = Server::start().await;
    let host = Host::default();
    let node = start(&server, "a", &host).await;
    ready(&node, 16).await;
    server.kill();
    let snapshot = server.snapshot();
    server.run().await;
    until("ready again", || node.status().ready()).await;
    node.leave().await;
    // A newer epoch than the snapshot knows.
    let node = start(&server, "a", &host).await;
    ready(&node, 16).await;
    let p = Partition(3);
    let token = host.last_start(p).stamp.token;
    server.kill();
    server.restore(&snapshot, None);
    server.run().await;
    until("claimed again", || {
        host.state().partitions[&p].starts.len() == 3
    })
    .await;
    let recovered = host.last_start(p);
    assert!(recovered.replaced.is_some(), "an older claim stands");
    assert_eq!(recovered.replaced_epoch, token, "the store knows better");
    until("ready", || node.status().ready()).await;
    node.leave().await;
}

/// With one partition every claim of an empty OUTCOMES has the same number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_that_is_over_writes_nothing_into_one_of_the_same_number() {
    let mut server = Server::start().await;
    let connection = server.connect().await;
    let topology = expediter_nats::Topology {
        partitions: Some(1),
        ..Default::default()
    };
    expediter_nats::ensure(&connection, &topology)
        .await
        .unwrap();
    let host = Host::default();
    let mut options = Options::new(NodeName::new("a").unwrap(), &server.url());
    options.topology = topology;
    let shared = Arc::new(host.clone());
    let known = Arc::new(Known::default());
    let node = Node::start(options, shared.clone(), known, shared.clone(), shared)
        .await
        .unwrap();
    ready(&node, 1).await;
    let (p, shop) = (Partition(0), merchant("luigis"));
    publish(&connection, &shop, "before").await;
    until("taken", || host.ids() == ["before"]).await;
    let former = host.last_start(p).stamp;
    let old = host.state().partitions[&p].log.clone().unwrap();

    server.kill();
    server.wipe();
    server.run().await;
    until("claimed again", || {
        host.state().partitions[&p].starts.len() == 2
    })
    .await;
    assert_eq!(host.last_start(p).stamp.token, former.token);
    let late = old.publish(1, Record::Outcomes(Vec::new())).await;
    assert!(
        matches!(late, Err(PublishFailure::Undecided(_))),
        "{late:?}"
    );
    publish(&connection, &shop, "after").await;
    until("taken", || host.ids() == ["before", "after"]).await;
    let record = host.finish(p, &["after"]).await;
    let context = async_nats::jetstream::new(connection.client().clone());
    let outcomes = context.get_stream("OUTCOMES").await.unwrap();
    let stored = outcomes.get_raw_message(record).await.unwrap();
    assert_eq!(stored.subject.as_str(), "outcomes.0");
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_taken_over_ends_the_node() {
    let server = Server::start().await;
    let connection = server.connect().await;
    let host = Host::default();
    let node = start(&server, "a", &host).await;
    ready(&node, 16).await;
    let other = expediter_wire::nodes::NodeRecord {
        node: NodeName::new("a").unwrap(),
        instance: "another".into(),
        version: "1".into(),
        started: 1_770_000_000_000,
        partitions: Vec::new(),
        leaving: false,
    };
    let value = expediter_wire::nodes::encode_node(&other);
    connection
        .client()
        .publish("$KV.NODES.n.a", value)
        .await
        .unwrap();
    let error = tokio::time::timeout(LONG, node.failed()).await.unwrap();
    assert_eq!(
        error.to_string(),
        "node name a is in use by instance another"
    );
    until("nothing runs", || host.running().is_empty()).await;
    assert!(!node.status().lease_fresh);
    let story = host.state().story.clone();
    assert_eq!(
        story.iter().filter(|(_, what)| *what == "fenced").count(),
        16
    );
    node.leave().await;
}
