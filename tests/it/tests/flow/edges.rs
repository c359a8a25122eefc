//! Where two promises meet: changes, restarts and times that cross.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_nats::{HeaderMap, jetstream};
use expediter_fleet::merchants::{Behaviour, Ending, Step};
use expediter_harness::{NewOrder, World};
use expediter_types::{AttemptClass, ClassifyRule, Idempotency, Ordering, OutcomeKind, Predicate};

use super::{SOON, is, is_closed, outcome, send, stands};

/// With a 2xx the merchant has said all that counts, however it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_two_hundred_with_a_strange_body_is_delivered() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let cases = [
        ("cut", Ending::Cut),
        ("endless", Ending::Endless),
        ("trickle", Ending::Trickle(Duration::from_millis(200))),
    ];
    for (id, ending) in cases {
        for ruled in [false, true] {
            let id = format!("{id}-{}", if ruled { "ruled" } else { "plain" });
            let behaviour = Behaviour {
                ending,
                body: "x".repeat(5_000),
                ..Behaviour::default()
            };
            world.fleet.set(&id, behaviour)?;
            let mut merchant = world.merchant(&id);
            merchant.adapter.idempotency = Idempotency::None;
            merchant.adapter.timeout = Duration::from_secs(2);
            if ruled {
                // The body has to be looked at, which has its bounds.
                merchant.adapter.classify = vec![ClassifyRule {
                    when: vec![Predicate::Json("$.error".to_owned(), None)],
                    class: AttemptClass::Rejected,
                }];
            }
            world.register(&merchant).await?;
            let order = send(&world, &id).await?;
            let recorded = outcome(&world, order.seq, SOON).await?;
            is(&recorded, OutcomeKind::Delivered)?;
            let took = recorded.outcome.attempts[0].took_ms;
            ensure!(took < 3_000, "{id} took {took} ms");
        }
    }
    node.check(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_generations_and_tests_reach_the_merchant() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    world.register(&world.merchant("luigis")).await?;
    // Without ce-id the message id is the order's; any visible character is legal.
    let context = jetstream::new(world.connection.client().clone());
    for id in ["plain", r#"a"b\c/<>{}%00;'`|~"#] {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", id);
        let ack = context.publish_with_headers("orders.luigis", headers, "{}".into());
        let seq = ack.await?.await?.sequence;
        let recorded = outcome(&world, seq, SOON).await?;
        is(&recorded, OutcomeKind::Delivered)?;
        ensure!(recorded.outcome.envelope.id.as_str() == id);
        let arrivals = world.fleet.arrivals("luigis");
        ensure!(
            arrivals.last().is_some_and(|a| a.order_id == id),
            "{arrivals:?}"
        );
    }
    // The next generation of an order goes again, under the same key.
    let order = |generation: &str| {
        NewOrder::to("luigis")
            .id("4711")
            .body("x")
            .header("Expediter-Generation", generation)
            .repeatable()
    };
    for generation in ["1", "2", "2"] {
        let accepted = world.publisher().send(order(generation)).await?;
        outcome(&world, accepted.seq, SOON).await?;
    }
    let arrivals = world.fleet.arrivals("luigis");
    let keys: Vec<_> = arrivals[2..]
        .iter()
        .map(|a| a.idempotency_key.clone())
        .collect();
    ensure!(keys.len() == 2 && keys[0] == keys[1], "{keys:?}");
    node.check(&[]).await
}

/// How long to stay away is the merchant's to say, within bounds; another manifest does not undo it.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_to_wait_is_bounded_and_outlives_a_change() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").set("http.retry_after_max", "3s");
    let node = node.start().await?;
    let limited = Step::status(429).header("retry-after", "86400");
    world
        .fleet
        .set("greedy", Behaviour::default().scripted(vec![limited]))?;
    let mut greedy = world.merchant("greedy");
    greedy.limits.concurrency = 1;
    world.register(&greedy).await?;
    let start = Instant::now();
    world.publish("greedy", 5).await?;
    stands(&world, "greedy", SOON, is_closed).await?;
    greedy.name = "Still greedy".to_owned();
    greedy.limits.concurrency = 5;
    world.register(&greedy).await?;
    world.arrived("greedy", 2, SOON).await?;
    ensure!(
        start.elapsed() > Duration::from_millis(2_800),
        "{:?}",
        start.elapsed()
    );
    world.settled(SOON).await?;
    world.oracle().judge().await?;
    node.check(&[]).await
}

/// Half of the orders wait for a time when the merchant becomes ordered: they have their places.
#[tokio::test(flavor = "multi_thread")]
async fn a_merchant_becomes_ordered_with_a_backlog() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    world.fleet.set("tidy", Behaviour::status(503))?;
    let mut tidy = world.merchant("tidy");
    tidy.retry.initial = Duration::from_secs(2);
    tidy.retry.max = Duration::from_secs(2);
    tidy.limits.mailbox = 16;
    world.register(&tidy).await?;
    let orders = world.publish("tidy", 100).await?;
    world.arrived("tidy", 60, SOON).await?;
    tidy.limits.ordering = Ordering::Merchant;
    world.register(&tidy).await?;
    let status = stands(&world, "tidy", SOON, |s| s.in_flight <= 1).await?;
    ensure!(status.backlog == 100, "{status:?}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    world.fleet.clear();
    world.fleet.set("tidy", Behaviour::fast())?;
    world.settled(SOON).await?;
    let arrivals = world.fleet.arrivals("tidy");
    let seq = |id: &str| orders.iter().find(|order| order.id == id).map(|o| o.seq);
    let taken = arrivals.iter().filter(|arrival| arrival.is_taken());
    let seqs: Vec<_> = taken.map(|arrival| seq(&arrival.order_id)).collect();
    ensure!(seqs.len() == 100 && seqs.is_sorted(), "{seqs:?}");
    // And back.
    tidy.limits.ordering = Ordering::None;
    world.register(&tidy).await?;
    world.publish("tidy", 50).await?;
    world.settled(SOON).await?;
    node.check(&[]).await
}

/// What waits for its time waits over a restart, in its place.
#[tokio::test(flavor = "multi_thread")]
async fn times_and_places_survive_a_restart() -> Result<()> {
    let world = World::start().await?;
    let mut node = world.node("node").start().await?;
    for id in ["any", "queue"] {
        let mut merchant = world.merchant(id);
        if id == "queue" {
            merchant.limits.ordering = Ordering::Merchant;
        }
        world.register(&merchant).await?;
    }
    let publisher = world.publisher();
    for id in ["any", "queue"] {
        for (name, wait) in [
            ("a", Some("6s")),
            ("b", None),
            ("c", Some("7s")),
            ("d", None),
        ] {
            let mut order = NewOrder::to(id).id(format!("{id}-{name}"));
            if let Some(wait) = wait {
                order = order.header("Expediter-Not-Before", wait);
            }
            publisher.send(order).await?;
        }
    }
    let start = Instant::now();
    world.arrived("any", 2, SOON).await?;
    ensure!(node.terminate(Duration::from_secs(15)).await? == 0);
    node.restart().await?;
    ensure!(start.elapsed() < Duration::from_secs(5), "too slow to tell");
    ensure!(world.fleet.stats().arrived == 2);
    world.settled(SOON).await?;
    let ids = |merchant: &str| {
        let arrivals = world.fleet.arrivals(merchant);
        let last = |id: &str| id.chars().last().unwrap_or(' ');
        arrivals
            .iter()
            .map(|a| last(&a.order_id))
            .collect::<String>()
    };
    ensure!(
        ["bdac", "dbac"].contains(&ids("any").as_str()),
        "{}",
        ids("any")
    );
    ensure!(ids("queue") == "abcd", "{}", ids("queue"));
    world.oracle().judge().await?;
    node.check(&[]).await
}

/// A node without its broker is alive and not ready, and ends when it is told to.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_its_broker_still_obeys() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").set("node.drain_deadline", "1s");
    let node = node.start().await?;
    world.register(&world.merchant("luigis")).await?;
    send(&world, "luigis").await?;
    world.settled(SOON).await?;
    world.broker().kill9();
    let unready = expediter_harness::eventually("not ready", SOON, || async {
        Ok((node.get("/readyz").await?.0 == 503).then_some(()))
    });
    unready.await?;
    ensure!(node.get("/livez").await?.0 == 200);
    let code = node
        .terminate(Duration::from_secs(20))
        .await
        .context("it does not end")?;
    ensure!(code == 0 || code == 1, "{code}");
    Ok(())
}
