use std::collections::BTreeSet;

use expediter_core::recovery::Recovered;
use expediter_types::{ClaimState, Incarnation};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lonely_node_works_at_once_and_gives_all_back() {
    let server = Server::start().await;
    let host = Host::default();
    let begun = Instant::now();
    let node = start(&server, "a", &host).await;
    ready(&node, 16).await;
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );

    let connection = server.connect().await;
    let names: Vec<_> = (0..40).map(|n| merchant(&format!("shop-{n}"))).collect();
    for name in &names {
        publish(&connection, name, &format!("o-{name}")).await;
    }
    until("all orders are taken", || host.ids().len() == 40).await;
    for (partition, work) in &host.state().partitions {
        for message in &work.taken {
            let envelope = &message.order.as_ref().unwrap().envelope;
            assert_eq!(partition_of(envelope.merchant.as_str(), 16), *partition);
            assert_eq!(envelope.created, message.at);
        }
    }
    until("idle partitions know that nothing is there", || {
        host.state().partitions.values().all(|work| work.seen >= 40)
    })
    .await;

    let tokens: Vec<_> = host
        .state()
        .partitions
        .values()
        .map(|work| work.starts[0].stamp.token)
        .collect();
    node.leave().await;
    assert!(host.running().is_empty());
    let story = host.state().story.clone();
    assert_eq!(
        story
            .iter()
            .filter(|(_, what)| *what == "hand over")
            .count(),
        16
    );

    let node = start(&server, "a", &host).await;
    ready(&node, 16).await;
    for (work, token) in host.state().partitions.values().zip(tokens) {
        let recovered = work.starts.last().unwrap();
        assert_eq!(recovered.replaced_epoch, token);
        let replaced = recovered.replaced.as_ref().unwrap();
        assert!(matches!(replaced.state, ClaimState::Released { .. }));
    }
    assert_eq!(
        host.ids().len(),
        40,
        "nothing is read twice with a trusted store"
    );
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_share_and_hand_over() {
    let server = Server::start().await;
    let (one, two) = (Host::default(), Host::default());
    let first = start(&server, "a", &one).await;
    ready(&first, 16).await;
    let second = start(&server, "b", &two).await;
    let all: BTreeSet<_> = (0..16).map(Partition).collect();
    until("each works on its share", || {
        let (ones, twos) = (one.running(), two.running());
        let both: BTreeSet<_> = ones.iter().chain(&twos).copied().collect();
        !twos.is_empty() && !ones.is_empty() && ones.len() + twos.len() == 16 && both == all
    })
    .await;
    assert_eq!(
        one.state().fenced + two.state().fenced,
        0,
        "every partition was handed over"
    );

    let connection = server.connect().await;
    for n in 0..50 {
        publish(
            &connection,
            &merchant(&format!("shop-{n}")),
            &format!("o{n}"),
        )
        .await;
    }
    until("all is taken once", || {
        one.ids().len() + two.ids().len() == 50
    })
    .await;

    second.leave().await;
    until("the first has all again", || one.running().len() == 16).await;
    assert_eq!(first.status().live_nodes, 1);
    // What the second took and did not finish is the first's now.
    until("what was not finished is read again", || {
        one.ids().into_iter().collect::<BTreeSet<_>>().len() == 50
    })
    .await;
    first.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_in_use_is_refused() {
    let server = Server::start().await;
    let host = Host::default();
    let node = start(&server, "a", &host).await;
    ready(&node, 16).await;
    let other = Host::default();
    let refused = start_with(&server, "a", &other, &Known::default())
        .await
        .unwrap_err();
    assert!(matches!(refused, Error::NameInUse { .. }), "{refused}");
    assert!(
        refused
            .to_string()
            .starts_with("node name a is in use by instance"),
        "{refused}"
    );
    assert!(other.running().is_empty());
    assert!(node.status().ready());
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crashed_node_is_replaced_after_its_lease() {
    let server = Server::start().await;
    let (one, two) = (Host::default(), Host::default());
    let first = start(&server, "a", &one).await;
    ready(&first, 16).await;
    let second = start(&server, "b", &two).await;
    until("both work", || {
        let (ones, twos) = (one.running().len(), two.running().len());
        ones > 0 && twos > 0 && ones + twos == 16
    })
    .await;
    drop(first);
    let begun = Instant::now();
    until("the second has all", || two.running().len() == 16).await;
    let took = begun.elapsed();
    assert!(
        took > Duration::from_millis(1_500),
        "not before the lease ended: {took:?}"
    );
    second.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovery_knows_what_was_finished() {
    let server = Server::start().await;
    let connection = server.connect().await;
    let host = Host::default();
    let node = start(&server, "a", &host).await;
    ready(&node, 16).await;
    let p = Partition(5);
    let shop = merchants_of(p, 1).remove(0);
    let mut seqs = Vec::new();
    for n in 0..6 {
        seqs.push(publish(&connection, &shop, &format!("o{n}")).await);
    }
    until("taken", || host.ids().len() == 6).await;
    let covers = host.finish(p, &["o0", "o1"]).await;
    // So many that the mark needs parts.
    let many: Vec<Seq> = (0..500_000).map(|n| 1_000 + n * 7 + n % 5).collect();
    host.mark(p, seqs[1], &many, covers).await;
    host.finish(p, &["o3"]).await;
    host.attempts(p, &shop, seqs[4]).await;
    drop(node);

    // Another process by the same name, without a store.
    let fresh = Host::default();
    let node = start(&server, "a", &fresh).await;
    ready(&node, 16).await;
    let recovered: Recovered = fresh.last_start(p);
    assert_eq!(recovered.low_water, seqs[1]);
    let below: Vec<_> = recovered
        .finished
        .iter()
        .take_while(|seq| *seq < 1_000)
        .collect();
    assert_eq!(below, [seqs[3]]);
    assert_eq!(recovered.finished.len(), 500_001);
    assert_eq!(recovered.in_flight.len(), 1);
    assert_eq!(recovered.in_flight[0].1, seqs[4]);
    assert_eq!(recovered.repeats.len(), 3);
    assert_eq!(recovered.replaced_epoch, host.last_start(p).stamp.token);
    until("read from the low water", || {
        fresh.ids() == ["o2", "o3", "o4", "o5"]
    })
    .await;
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_marks_call_finished_is_deleted() {
    let server = Server::start().await;
    let connection = server.connect().await;
    let host = Host::default();
    let node = start(&server, "a", &host).await;
    ready(&node, 16).await;
    let publisher = OrderPublisher::new(&connection, 500);
    let shop = merchant("shop");
    for n in 0..2_000 {
        let headers = id_headers(&shop, &format!("o{n}"));
        publisher
            .publish(&shop, headers, "{}".into())
            .await
            .unwrap();
    }
    publisher.flush().await;
    until("taken", || host.ids().len() == 2_000).await;
    until("seen", || {
        host.state()
            .partitions
            .values()
            .all(|work| work.seen == 2_000)
    })
    .await;
    for p in (0..15).map(Partition) {
        host.mark(p, 1_990, &[], 0).await;
    }
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(host.state().purged, 0, "a partition has no mark yet");
    host.mark(Partition(15), 1_800, &[], 0).await;
    until("deleted below the smallest mark", || {
        host.state().purged == 1_799
    })
    .await;
    let created = host.last_start(Partition(0)).stamp.incarnation;
    assert_eq!(
        created,
        Incarnation {
            created: created.created,
            counter: 1
        }
    );
    node.leave().await;
}
