//! OUTCOMES fills up: attempts stop while there is still room for what is under way.

use std::time::Duration;

use anyhow::{Result, ensure};
use async_nats::jetstream;
use expediter_harness::{NodeProcess, World, eventually};
use expediter_nats::Topology;
use expediter_wire::subjects;

use super::{gauge, stream};

const ROOM: u64 = 8 << 20;
/// The node looks every few seconds.
const NOTICED: Duration = Duration::from_secs(30);
/// Of no partition of this world.
const FILLER: &str = "attempt.99.filler";

/// Publishes into OUTCOMES until that many percent of its room are taken.
async fn fill(world: &World, percent: u64) -> Result<()> {
    let context = jetstream::new(world.connection.client().clone());
    let stream = stream(world, subjects::OUTCOMES).await?;
    while stream.get_info().await?.state.bytes * 100 < ROOM * percent {
        let filler = vec![b'x'; 32 << 10];
        context.publish(FILLER, filler.into()).await?.await?;
    }
    Ok(())
}

async fn alarm(node: &NodeProcess, kind: &str, value: f64) -> Result<()> {
    let series = format!("expediter_alarms{{kind=\"{kind}\"}}");
    eventually(&series, NOTICED, || async {
        Ok((node.metric(&series).await? == value).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_outcomes_stops_attempts_until_there_is_room() -> Result<()> {
    let world = World::bare().await?;
    let topology = Topology {
        partitions: Some(4),
        orders_max_bytes: 1 << 30,
        outcomes_max_bytes: ROOM,
        ..Topology::default()
    };
    expediter_nats::ensure(&world.connection, &topology).await?;
    world.register(&world.merchant("luigis")).await?;
    let node = world.node("node").start().await?;
    world.publish("luigis", 20).await?;
    world.settled(NOTICED).await?;

    fill(&world, 82).await?;
    alarm(&node, "outcomes_filling", 1.0).await?;
    world.publish("luigis", 20).await?;
    world.settled(NOTICED).await?;
    alarm(&node, "outcomes_stopped", 0.0).await?;

    fill(&world, 96).await?;
    alarm(&node, "outcomes_stopped", 1.0).await?;
    let (status, page) = node.get("/readyz").await?;
    ensure!(
        status == 503 && page.contains("outcomes"),
        "{status} {page}"
    );
    let before = world.fleet.stats().arrived;
    world.publish("luigis", 20).await?;
    // Taken from the log, and kept.
    gauge(&node, "expediter_orders_taken_total", 60.0).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let arrived = world.fleet.stats().arrived - before;
    ensure!(arrived == 0, "{arrived} attempts");

    let outcomes = stream(&world, subjects::OUTCOMES).await?;
    outcomes.purge().filter(FILLER).await?;
    alarm(&node, "outcomes_stopped", 0.0).await?;
    world.settled(NOTICED).await?;
    alarm(&node, "outcomes_filling", 0.0).await?;
    let (status, page) = node.get("/readyz").await?;
    ensure!(status == 200, "{status} {page}");
    world.oracle().judge().await?;
    node.check(&["OUTCOMES is nearly full"]).await
}
