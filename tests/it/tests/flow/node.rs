//! A node as those see it who run it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream;
use expediter_fleet::merchants::Behaviour;
use expediter_harness::{NewOrder, World, eventually};
use expediter_types::Idempotency;

use super::{SOON, send, stream};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_waits_for_nats_and_then_works() -> Result<()> {
    let world = World::bare().await?;
    world.broker().kill9();
    let node = world.node("node").spawn()?;
    eventually("alive", SOON, || async {
        Ok((node.get("/livez").await?.0 == 200).then_some(()))
    })
    .await?;
    let (status, page) = node.get("/readyz").await?;
    ensure!(status == 503 && page.contains("nats"), "{status} {page}");
    let (status, _) = node.get("/metrics").await?;
    ensure!(status == 200);
    ensure!(node.get("/nothing").await?.0 == 404);
    world.broker().restart().await?;
    world.reconnected(SOON).await?;
    node.wait_ready(Duration::from_secs(20)).await?;
    // It made the streams itself: with as many partitions as the default says.
    ensure!(super::partitions(&world).await? == 16);
    world.register(&world.merchant("luigis")).await?;
    send(&world, "luigis").await?;
    world.settled(SOON).await?;
    world.oracle().judge().await?;
    node.check(&[]).await?;
    ensure!(node.terminate(Duration::from_secs(15)).await? == 0);
    node.log().check(&[])
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_can_be_read_and_add_up() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    world.fleet.set("refusing", Behaviour::rejecting())?;
    world.fleet.set("flaky", Behaviour::flaky())?;
    for id in ["luigis", "refusing", "flaky"] {
        world.register(&world.merchant(id)).await?;
        world.publish(id, 20).await?;
    }
    world.settled(SOON).await?;
    super::gauge(&node, "expediter_orders_waiting", 0.0).await?;
    super::gauge(&node, "expediter_merchants_registered", 3.0).await?;
    for (name, value) in [
        ("expediter_orders_taken_total", 60.0),
        (
            "expediter_orders_finished_total{outcome=\"delivered\"}",
            40.0,
        ),
        (
            "expediter_orders_finished_total{outcome=\"dead_lettered\"}",
            20.0,
        ),
        (
            "expediter_orders_dead_lettered_total{reason=\"invalid\"}",
            20.0,
        ),
        ("expediter_orders_unaccounted", 0.0),
        ("expediter_partitions_owned", 4.0),
        ("expediter_invariant_violations_total", 0.0),
    ] {
        let found = node.metric(name).await?;
        ensure!(found == value, "{name} is {found}, not {value}");
    }
    let attempts = node
        .metric("expediter_attempts_total{class=\"retry\"}")
        .await?;
    ensure!(attempts >= 4.0, "{attempts}");
    let (_, page) = node.get("/metrics").await?;
    let mut families = 0;
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            families += 1;
            ensure!(rest.starts_with("expediter_"), "{line}");
        } else if !line.starts_with('#') && !line.is_empty() {
            let value = line.rsplit(' ').next().context("a value")?;
            ensure!(value.parse::<f64>().is_ok(), "{line}");
            ensure!(!line.contains("luigis"), "a label of merchants: {line}");
        }
    }
    ensure!(families > 30, "{families} families");
    node.check(&[]).await
}

/// Streams of other settings are somebody's decision: the node says what differs and does not start.
#[tokio::test(flavor = "multi_thread")]
async fn streams_of_other_settings_are_refused() -> Result<()> {
    let world = World::bare().await?;
    let context = jetstream::new(world.connection.client().clone());
    let config = jetstream::stream::Config {
        name: "ORDERS".to_owned(),
        subjects: vec!["orders.*".to_owned()],
        max_age: Duration::from_secs(3600),
        ..Default::default()
    };
    context.create_stream(config).await?;
    let node = world.node("node").spawn()?;
    let code = node.wait_exit(SOON).await?;
    ensure!(code == 1, "{code}");
    let log: String = node
        .log()
        .lines()
        .iter()
        .map(|l| l.text.clone() + "\n")
        .collect();
    for part in ["ORDERS", "max_age", "3600s", "partition("] {
        ensure!(log.contains(part), "{part} is missing:\n{log}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_in_use_is_refused() -> Result<()> {
    let world = World::start().await?;
    let first = world.node("node").start().await?;
    let second = world.node("node").files("second").spawn()?;
    let code = second.wait_exit(Duration::from_secs(20)).await?;
    ensure!(code == 1, "{code}");
    ensure!(!second.log().find("node").is_empty());
    first.check(&[]).await
}

/// When everything is finished, the log is compacted down to what proves its identity.
#[tokio::test(flavor = "multi_thread")]
async fn finished_orders_leave_the_log() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").set("orders.mark_every", "500ms");
    let node = node.start().await?;
    for n in 0..8 {
        world.register(&world.merchant(&format!("m-{n}"))).await?;
    }
    let publisher = world.publisher();
    // A purge is worth its cost from a thousand messages on.
    for n in 0..1_600 {
        let order = NewOrder::to(&format!("m-{}", n % 8)).body("x".repeat(500));
        publisher.offer(order).await?;
    }
    publisher.flush().await;
    world.settled(SOON).await?;
    let orders = stream(&world, "ORDERS").await?;
    let kept = eventually("the log is compacted", Duration::from_secs(14), || async {
        let state = orders.get_info().await?.state;
        Ok((state.messages <= 600).then_some(state))
    });
    let kept = kept.await?;
    ensure!(kept.last_sequence == 1_600, "{kept:?}");
    let purged = node.metric("expediter_log_purged_total").await?;
    ensure!(purged >= 1_000.0, "{purged}");
    ensure!(node.metric("expediter_mark_age_seconds").await? < 10.0);
    // And it goes on.
    send(&world, "m-0").await?;
    world.settled(SOON).await?;
    world.oracle().judge().await?;
    node.check(&[]).await
}

/// One merchant that does not finish anything keeps its own orders in the log, not the others', when
/// the log has little room left.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: just test-long"]
async fn long_a_stuck_merchant_does_not_keep_the_log() -> Result<()> {
    let world = World::bare().await?;
    let node = world.node("node").set("orders.mark_every", "500ms");
    // Small enough that the log is soon short of room.
    let node = node.set("nats.orders_max_bytes", "64MiB");
    let node = node.start().await?;
    world.fleet.set("stuck", Behaviour::status(503))?;
    world.register(&world.merchant("stuck")).await?;
    world.publish("stuck", 20).await?;
    for n in 0..8 {
        world.register(&world.merchant(&format!("m-{n}"))).await?;
    }
    let publisher = world.publisher();
    for n in 0..60_000 {
        let order = NewOrder::to(&format!("m-{}", n % 8)).body("x".repeat(500));
        publisher.offer(order).await?;
    }
    publisher.flush().await;
    let orders = stream(&world, "ORDERS").await?;
    let kept = eventually("the log is compacted", Duration::from_secs(90), || async {
        let state = orders.get_info().await?.state;
        ensure!(state.messages < 25_000, "{} are kept", state.messages);
        Ok(Some(()))
    });
    kept.await?;
    world.fleet.set("stuck", Behaviour::fast())?;
    world.settled(SOON).await?;
    world.oracle().judge().await?;
    node.check(&[]).await
}

/// SIGTERM: what is in flight ends, what waits stays, the exit code is 0, and the next start goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_stops_in_order() -> Result<()> {
    let world = World::start().await?;
    let mut node = world.node("node").start().await?;
    let slow = Behaviour {
        latency: Duration::from_secs(2),
        ..Behaviour::default()
    };
    world.fleet.set("slow", slow)?;
    let mut merchant = world.merchant("slow");
    merchant.adapter.idempotency = Idempotency::None;
    merchant.limits.concurrency = 5;
    world.register(&merchant).await?;
    world.publish("slow", 20).await?;
    world.arrived("slow", 5, SOON).await?;
    ensure!(node.terminate(Duration::from_secs(15)).await? == 0);
    // Attempts in flight were waited for: nobody has to find out what became of them.
    let stats = world.fleet.merchant_stats("slow");
    ensure!(stats.arrived == 5 && stats.answered_2xx() == 5, "{stats:?}");
    world.fleet.set("slow", Behaviour::fast())?;
    node.restart().await?;
    world.settled(SOON).await?;
    let verdict = world.oracle().judge().await?;
    ensure!(
        verdict.delivered == 20 && verdict.repeated == 0,
        "{verdict:?}"
    );
    node.check(&[]).await
}

/// Without a free file descriptor no attempt can begin. That is no fault of the merchant or its
/// order: no attempt is used, the node says that it is not ready, and goes on by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_connect_by_its_own_fault_is_not_ready() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let mut merchant = world.merchant("luigis");
    merchant.retry.max_attempts = 1;
    world.register(&merchant).await?;
    // The registration is followed before there are no more files.
    super::gauge(&node, "expediter_merchants_registered", 1.0).await?;
    let usual = node.limit_open_files(3)?;
    world.publish("luigis", 3).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    node.limit_open_files(usual)?;
    let (status, page) = node.get("/readyz").await?;
    ensure!(
        status == 503 && page.contains("own fault"),
        "{status} {page}"
    );
    node.wait_ready(Duration::from_secs(15)).await?;
    world.settled(SOON).await?;
    // With one attempt an order, all are delivered: the ones that could not begin did not count.
    let verdict = world.oracle().judge().await?;
    ensure!(
        verdict.delivered == 3 && verdict.repeated == 0,
        "{verdict:?}"
    );
    let local = node
        .metric("expediter_attempts_total{class=\"local\"}")
        .await?;
    ensure!(local >= 1.0, "{local}");
    node.check(&[]).await
}

/// What a cluster is scaled by: orders that wait for the node, not for their merchant.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_waits_for_the_node_asks_for_more_nodes() -> Result<()> {
    const HELD: &str = "expediter_orders_held_by_node";
    let world = World::start().await?;
    let node = world.node("node").set_toml("node.in_flight", "10");
    let node = node.start().await?;
    // A long backlog of a merchant that takes nothing now.
    world.fleet.set("refusing", Behaviour::status(401))?;
    world.register(&world.merchant("refusing")).await?;
    world.publish("refusing", 2_000).await?;
    eventually("all is read", SOON, async || {
        let waiting = node.metric("expediter_orders_waiting").await?;
        Ok((waiting == 2_000.0 && node.metric(HELD).await? == 0.0).then_some(()))
    })
    .await?;
    // More merchants at once than the node may serve.
    for n in 0..30 {
        let id = format!("slow-{n}");
        world.fleet.set(&id, Behaviour::slow())?;
        world.register(&world.merchant(&id)).await?;
        world.publish(&id, 3).await?;
    }
    eventually("they wait for the node", SOON, async || {
        Ok((node.metric(HELD).await? >= 15.0).then_some(()))
    })
    .await?;
    for n in 0..30 {
        world.fleet.set(&format!("slow-{n}"), Behaviour::fast())?;
    }
    eventually("the node has caught up", SOON, async || {
        Ok((node.metric(HELD).await? == 0.0).then_some(()))
    })
    .await
}
