use expediter_nats::Registry;
use expediter_ports::PublishFailure;
use expediter_types::{Merchant, Record};
use expediter_wire::registry::Registration;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_lost_its_claim_is_refused() {
    let server = Server::start().await;
    let connection = server.connect().await;
    let host = Host::default();
    let node = start(&server, "a", &host).await;
    ready(&node, 16).await;
    let p = Partition(2);
    let token = host.last_start(p).stamp.token;
    // A claim of a node that does not live.
    let mut claim = host
        .last_start(p)
        .replaced
        .unwrap_or_else(|| expediter_types::Claim {
            node: NodeName::new("ghost").unwrap(),
            instance: "gone".into(),
            state: expediter_types::ClaimState::Held,
            replaces: token,
            incarnation: host.last_start(p).stamp.incarnation,
            cut: 0,
            at: 1,
            crashes: Default::default(),
        });
    claim.replaces = token;
    let mut headers = HeaderMap::new();
    headers.insert(
        "Nats-Expected-Last-Subject-Sequence",
        token.to_string().as_str(),
    );
    let context = async_nats::jetstream::new(connection.client().clone());
    let payload = expediter_wire::records::encode_claim(&claim);
    let ack = context
        .publish_with_headers("claim.2", headers, payload)
        .await
        .unwrap();
    let stands = ack.await.unwrap().sequence;

    let record = Record::Outcomes(Vec::new());
    let refused = host.publish(p, record).await.unwrap_err();
    assert_eq!(refused, PublishFailure::Fenced { current: stands });
    until("stopped as fenced", || {
        host.state().story.contains(&(p, "fenced"))
    })
    .await;
    until("claimed again from the dead", || {
        host.state().partitions[&p].starts.len() == 2
    })
    .await;
    assert_eq!(host.last_start(p).replaced_epoch, stands);
    assert_eq!(host.state().fenced, 1);
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_loses_nothing_for_the_intake() {
    let mut server = Server::start().await;
    let connection = server.connect().await;
    let host = Host::default();
    let node = start(&server, "a", &host).await;
    ready(&node, 16).await;
    let publisher = OrderPublisher::new(&connection, 100);
    let mut acks = Vec::new();
    for n in 0..3_000 {
        let shop = merchant(&format!("shop-{}", n % 50));
        let headers = id_headers(&shop, &format!("o{n}"));
        acks.push(
            publisher
                .publish(&shop, headers, "{}".into())
                .await
                .unwrap(),
        );
        if n == 1_000 || n == 2_000 {
            server.kill();
            server.run().await;
        }
    }
    for ack in acks {
        ack.wait().await.unwrap();
    }
    until("all are taken once", || host.ids().len() == 3_000).await;
    until("ready again", || node.status().ready()).await;
    assert!(
        host.state()
            .partitions
            .values()
            .all(|work| work.starts.len() == 1)
    );
    assert_eq!(host.state().incarnations, 0);
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_comes_back_empty_is_noticed() {
    let mut server = Server::start().await;
    let connection = server.connect().await;
    let (host, known) = (Host::default(), Known::default());
    let node = start_with(&server, "a", &host, &known).await.unwrap();
    ready(&node, 16).await;
    let merchant_entry = Registration {
        merchant: Merchant::to(merchant("luigis"), "http://luigis/"),
        actor: "ann".into(),
        at: 1_770_000_000_000,
        rolled_back_from: None,
    };
    Registry::new(&connection)
        .put(&merchant_entry, 0)
        .await
        .unwrap();
    until("registered", || known.urls().contains_key("luigis")).await;
    let p = Partition(4);
    let shop = merchants_of(p, 1).remove(0);
    for n in 0..3 {
        publish(&connection, &shop, &format!("o{n}")).await;
    }
    until("taken", || host.ids().len() == 3).await;
    let before = host.last_start(p).stamp;

    server.kill();
    server.wipe();
    server.run().await;
    until("noticed", || host.state().partitions[&p].starts.len() == 2).await;
    let recovered = host.last_start(p);
    assert_eq!(recovered.stamp.incarnation.counter, 2);
    assert_ne!(
        recovered.stamp.incarnation.created,
        before.incarnation.created
    );
    assert_eq!((recovered.cut, recovered.low_water), (0, 0));
    assert_eq!(
        recovered.replaced_epoch, before.token,
        "the store is all there is"
    );
    assert_eq!(host.state().partitions[&p].lost.len(), 1);

    let (orders, log) = {
        let state = host.state();
        let work = &state.partitions[&p];
        let orders = work
            .taken
            .iter()
            .map(|message| message.order.clone().unwrap());
        (orders.collect::<Vec<_>>(), work.log.clone().unwrap())
    };
    log.republish(orders.clone()).await.unwrap();
    log.republish(orders.clone()).await.unwrap();
    until("read again, once", || host.ids().len() == 6).await;
    {
        let state = host.state();
        for (order, message) in orders.iter().zip(&state.partitions[&p].taken[3..]) {
            let back = &message.order.as_ref().unwrap().envelope;
            let origin = back.origin.unwrap();
            assert_eq!(
                (origin.incarnation, origin.seq),
                (before.incarnation, order.seq)
            );
            assert_eq!(
                (&back.id, back.created),
                (&order.envelope.id, order.envelope.created)
            );
        }
    }
    until("all partitions go on", || {
        node.status().ready()
            && host
                .state()
                .partitions
                .values()
                .all(|work| work.starts.len() == 2)
    })
    .await;
    let registry = Registry::new(&connection);
    let deadline = Instant::now() + LONG;
    let restored = loop {
        if let Ok(Some(entry)) = registry.get(&merchant("luigis")).await {
            break entry;
        }
        assert!(Instant::now() < deadline, "the registry was not put back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(known.urls().contains_key("luigis"), "never forgotten here");
    assert!(
        restored.registration.actor.contains("node a"),
        "{}",
        restored.registration.actor
    );
    publish(&connection, &shop, "o9").await;
    until("orders flow", || {
        host.ids().last().is_some_and(|id| id == "o9")
    })
    .await;
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_orders_do_not_wait_behind_a_long_past() {
    let server = Server::start().await;
    let connection = server.connect().await;
    let topology = expediter_nats::Topology::default();
    expediter_nats::ensure(&connection, &topology)
        .await
        .unwrap();
    let p = Partition(1);
    let shops = merchants_of(p, 2);
    let publisher = OrderPublisher::new(&connection, 1_000);
    for n in 0..8_000 {
        let headers = id_headers(&shops[0], &format!("old{n}"));
        publisher
            .publish(&shops[0], headers, "{}".into())
            .await
            .unwrap();
    }
    publisher.flush().await;
    let host = Host::default();
    host.state().slow = Duration::from_millis(100);
    let node = start(&server, "a", &host).await;
    until("running", || host.running().contains(&p)).await;
    until("the past is read", || host.state().partitions[&p].seen > 0).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let new = publish(&connection, &shops[1], "new").await;
    until("the new order comes", || {
        host.state().partitions[&p].fresh.contains(&new)
    })
    .await;
    assert!(
        host.state().partitions[&p].seen < new,
        "before the past is read"
    );
    until("all is read", || host.state().partitions[&p].seen >= new).await;
    assert_eq!(host.ids().len(), 8_001);
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_panics_is_begun_again_and_the_others_go_on() {
    let server = Server::start().await;
    let connection = server.connect().await;
    let host = Host::default();
    let node = start(&server, "a", &host).await;
    ready(&node, 16).await;
    host.state().panics = true;
    let shop = merchant("luigis");
    let partition = Partition(partition_of(shop.as_str(), 16).0);
    publish(&connection, &shop, "o-1").await;
    until("the order is taken by a second start", || {
        host.ids() == ["o-1"]
    })
    .await;
    let story: Vec<_> = {
        let state = host.state();
        let story = state.story.iter().skip(16);
        story.copied().collect()
    };
    // The first one's work is ended before the next begins, and no other partition's.
    assert_eq!(story, [(partition, "fenced"), (partition, "start")]);
    ready(&node, 16).await;
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_panics_ends_the_node() {
    let server = Server::start().await;
    let connection = server.connect().await;
    let host = Host::default();
    let node = start(&server, "a", &host).await;
    ready(&node, 16).await;
    let registration = Registration {
        merchant: Merchant::to(merchant("poison"), "http://127.0.0.1:1/"),
        actor: "ann".into(),
        at: 1_770_000_000_000,
        rolled_back_from: None,
    };
    let registry = Registry::new(&connection);
    registry.put(&registration, 0).await.unwrap();
    let error = tokio::time::timeout(LONG, node.failed()).await.unwrap();
    assert_eq!(
        error.to_string(),
        "the node's task registry has failed: provoked"
    );
    until("nothing runs", || host.running().is_empty()).await;
    node.leave().await;
}
