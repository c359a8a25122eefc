//! An order's plain way: published, delivered, its outcome readable.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream;
use expediter_harness::{NewOrder, World};
use expediter_types::OutcomeKind;

use super::listener::Answer;
use super::{Listener, SOON, is, outcome, send, stream};

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_publish_is_delivered_and_its_outcome_is_readable() -> Result<()> {
    let world = World::start().await?;
    let merchant = Listener::start(|_, _| Answer::status(201)).await?;
    let mut luigis = world.merchant("luigis");
    luigis.adapter.url = merchant.url() + "?shop=9";
    world.register(&luigis).await?;
    let node = world.node("node").start().await?;

    let context = jetstream::new(world.connection.client().clone());
    let body = r#"{"pizza":"margherita"}"#;
    let ack = context.publish("orders.luigis", body.into()).await?.await?;
    let recorded = outcome(&world, ack.sequence, SOON).await?;
    is(&recorded, OutcomeKind::Delivered)?;

    let requests = merchant.requests();
    ensure!(requests.len() == 1, "{requests:?}");
    let request = &requests[0];
    ensure!(request.method == "POST" && request.path == "/orders?shop=9");
    ensure!(request.body == body.as_bytes());
    let id = request
        .header("expediter-order-id")
        .context("a derived id")?;
    ensure!(id.ends_with(&format!("-{}", ack.sequence)), "{id}");
    let expected = [
        ("expediter-merchant", "luigis"),
        ("expediter-attempt", "1"),
        ("idempotency-key", &format!("luigis/{id}")),
        ("content-type", "application/json"),
    ];
    for (name, value) in expected {
        ensure!(request.header(name) == Some(value), "{name}: {request:?}");
    }
    for name in ["ce-id", "expediter-generation", "expediter-test"] {
        ensure!(request.header(name).is_none(), "{name}: {request:?}");
    }
    let agent = request.header("user-agent").unwrap_or_default();
    ensure!(agent.starts_with("expediter/"), "{agent}");
    // The publisher had no trace, and without a collector none begins here.
    ensure!(request.header("traceparent").is_none(), "{request:?}");

    let outcome = recorded.outcome;
    ensure!(outcome.envelope.id.as_str() == id);
    ensure!(outcome.attempts.len() == 1 && outcome.attempts[0].status == Some(201));
    node.check(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_publisher_says_reaches_the_merchant() -> Result<()> {
    let world = World::start().await?;
    let merchant = Listener::start(|_, _| Answer::status(204)).await?;
    let mut native = world.merchant("native");
    native.adapter.url = merchant.url();
    native.adapter.method = "PUT".to_owned();
    let mut never = world.merchant("never");
    never.adapter.url = merchant.url();
    never.adapter.idempotency = expediter_types::Idempotency::None;
    world.register(&native).await?;
    world.register(&never).await?;
    let node = world.node("node").start().await?;

    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let order = |merchant: &str| {
        NewOrder::to(merchant)
            .id("4711")
            .key("table 7")
            .header("ce-type", "order.placed")
            .header("ce-source", "/shops/9")
            .header("ce-time", "2026-01-31T08:00:00Z")
            .header("content-type", "application/xml")
            .header("traceparent", parent.as_str())
            .header("x-mine", "not passed on")
            .body("<order/>")
    };
    world.publisher().send(order("native")).await?;
    let request = merchant.arrived(1, SOON).await?.remove(0);
    let expected = [
        ("expediter-order-id", Some("4711")),
        ("ce-id", Some("4711")),
        ("ce-specversion", Some("1.0")),
        ("ce-type", Some("order.placed")),
        ("ce-source", Some("/shops/9")),
        ("ce-time", Some("2026-01-31T08:00:00Z")),
        ("content-type", Some("application/xml")),
        ("idempotency-key", Some("native/4711")),
        ("x-mine", None),
    ];
    for (name, value) in expected {
        ensure!(request.header(name) == value, "{name}: {request:?}");
    }
    ensure!(request.method == "PUT" && request.body == "<order/>");
    let traced = request.header("traceparent").context("a trace")?;
    ensure!(traced.starts_with(&format!("00-{trace}-")), "{traced}");

    world.publisher().send(order("never")).await?;
    let request = merchant.arrived(2, SOON).await?.remove(1);
    ensure!(request.header("expediter-merchant") == Some("never"));
    ensure!(request.header("idempotency-key").is_none());
    let outcomes = world.settled(SOON).await?;
    let kept = outcomes.all().next().context("an outcome")?;
    let envelope = &kept.outcome.envelope;
    ensure!(envelope.key.as_deref() == Some("table 7"));
    ensure!(envelope.traceparent.as_deref() == Some(parent.as_str()));
    node.check(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_arrive_whole_up_to_what_the_log_takes() -> Result<()> {
    let world = World::start().await?;
    world.register(&world.merchant("large")).await?;
    let node = world.node("node").start().await?;
    let body: Vec<u8> = (0..900 << 10).map(|n: u32| (n % 251) as u8).collect();
    let order = NewOrder::to("large").body(body.clone());
    let accepted = world.publisher().send(order).await?;
    let empty = world
        .publisher()
        .send(NewOrder::to("large").body(""))
        .await?;
    // Room for a dead letter's envelope is kept free.
    let too_large = NewOrder::to("large").body(vec![b'x'; 1000 << 10]);
    let refused = world.publisher().send(too_large).await;
    ensure!(refused.is_err(), "{refused:?}");

    for seq in [accepted.seq, empty.seq] {
        is(&outcome(&world, seq, SOON).await?, OutcomeKind::Delivered)?;
    }
    let arrivals = world.fleet.arrivals("large");
    ensure!(arrivals.len() == 2, "{arrivals:?}");
    let large = arrivals.iter().find(|a| a.order_id == accepted.id);
    let large = large.context("the large one")?;
    ensure!(large.body_len == 900 << 10 && large.body_hash == accepted.hash);
    node.check(&[]).await
}

/// A large order survives as a dead letter, too, with its payload.
#[tokio::test(flavor = "multi_thread")]
async fn the_largest_dead_letter_has_its_payload() -> Result<()> {
    let world = World::start().await?;
    let merchant = Listener::start(|_, _| Answer::status(400).body("\u{1}".repeat(5_000))).await?;
    let mut refusing = world.merchant("refusing");
    refusing.adapter.url = merchant.url();
    world.register(&refusing).await?;
    let node = world.node("node").start().await?;
    let largest = stream(&world, "ORDERS").await?.get_info().await?;
    let largest = usize::try_from(largest.config.max_message_size)?;
    let value = "ä".repeat(500);
    let key = "k".repeat(256);
    let headers = 120 + 3 * (value.len() + 16) + key.len();
    let body = vec![b'x'; largest - headers - 300];
    let order = NewOrder::to("refusing")
        .key(key)
        .header("ce-type", value.as_str())
        .header("ce-source", value.as_str())
        .header("ce-time", value.as_str())
        .body(body.clone());
    let accepted = world.publisher().send(order).await?;
    let recorded = outcome(&world, accepted.seq, SOON).await?;
    super::is_dead(&recorded, expediter_types::DeadReason::Invalid)?;
    let (payload, excerpt) = recorded.dead.context("a dead letter")?;
    ensure!(payload == body && excerpt.len() <= 2048);
    node.check(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn many_merchants_many_orders_once_each() -> Result<()> {
    let world = World::with(16).await?;
    for n in 0..50 {
        world.register(&world.merchant(&format!("m-{n}"))).await?;
    }
    let node = world.node("node").start().await?;
    let publisher = world.publisher();
    for n in 0..5_000 {
        let order = NewOrder::to(&format!("m-{}", n % 50));
        publisher.offer(order).await?;
    }
    publisher.flush().await;
    world.settled(Duration::from_secs(30)).await?;
    let verdict = world.oracle().judge().await?;
    ensure!(verdict.accepted == 5_000 && verdict.delivered == 5_000);
    let finished = node.metric("expediter_orders_finished_total").await?;
    ensure!(finished == 5_000.0, "{finished}");
    let one = send(&world, "m-0").await?;
    is(
        &outcome(&world, one.seq, SOON).await?,
        OutcomeKind::Delivered,
    )?;
    node.check(&[]).await
}
