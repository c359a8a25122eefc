//! The network between a node and the broker.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use async_nats::jetstream;
use expediter_harness::{Link, NodeProcess, World};
use expediter_wire::subjects;
use futures::TryStreamExt as _;

use super::shop;

const DRAIN: Duration = Duration::from_secs(60);
const PARTITIONS: u16 = 8;

async fn through(world: &World, name: &str, link: &Link) -> Result<NodeProcess> {
    let node = world.node(name);
    node.set_toml("nats.servers", format!("[{:?}]", link.url()))
        .start()
        .await
}

/// An owner loses NATS for a while, but not its merchants, and another takes over. What it was at is
/// sent once more at most, with the same key, and not at all to merchants that would not know it again.
async fn cut_off(away: Duration) -> Result<()> {
    let world = World::with(PARTITIONS).await?;
    shop::open(&world).await?;
    let link = Link::to(world.broker().port()).await?;
    let lonely = through(&world, "lonely", &link).await?;
    let other = world.node("other").start().await?;
    other.owns(DRAIN, |owned| owned > 0.0).await?;
    lonely
        .owns(DRAIN, |owned| owned > 0.0 && owned < f64::from(PARTITIONS))
        .await?;
    let load = shop::rush(&world, 150);
    world.arrived("native-fast", 30, DRAIN).await?;
    link.cut();
    let begun = Instant::now();
    other
        .owns(DRAIN, |owned| owned == f64::from(PARTITIONS))
        .await?;
    let (status, _) = lonely.get("/readyz").await?;
    ensure!(status == 503, "ready without a broker");
    tokio::time::sleep(away.saturating_sub(begun.elapsed())).await;
    link.heal();
    lonely.owns(DRAIN, |owned| owned > 0.0).await?;
    load.stop().await;
    world.settled(DRAIN).await?;
    println!("{:?}", world.oracle().after_crashes().judge().await?);
    ensure!(lonely.is_running() && other.is_running(), "a node ended");
    lonely
        .check(&[
            "connection to NATS is lost",
            "expected INFO",
            "claim stands",
            "lease",
            "NATS is away",
        ])
        .await?;
    other.check(&["lease ended"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_is_cut_off_and_another_takes_over() -> Result<()> {
    cut_off(Duration::from_secs(12)).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: just test-long"]
async fn long_an_owner_is_cut_off_for_more_than_a_minute() -> Result<()> {
    cut_off(Duration::from_secs(75)).await
}

/// The broker has sent an order, and the connection ends before the node reads it. Nothing new is
/// published that would show the gap.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_on_the_way_when_the_connection_ended_arrives() -> Result<()> {
    let world = World::with(1).await?;
    world.register(&world.merchant("luigis")).await?;
    let link = Link::to(world.broker().port()).await?;
    let node = through(&world, "node", &link).await?;
    world.publish("luigis", 5).await?;
    world.arrived("luigis", 5, DRAIN).await?;
    link.hold();
    world.publish("luigis", 3).await?;
    // The broker has sent them by now.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let arrived = world.fleet.merchant_stats("luigis").arrived;
    ensure!(arrived == 5, "nothing was on the way: {arrived} arrived");
    link.cut();
    link.heal();
    world.arrived("luigis", 8, Duration::from_secs(10)).await?;
    world.settled(DRAIN).await?;
    world.oracle().judge().await?;
    node.check(&["connection to NATS is lost"]).await
}

/// Somebody tidies up and deletes the readers of the node.
#[tokio::test(flavor = "multi_thread")]
async fn readers_that_somebody_deletes_are_made_again() -> Result<()> {
    let world = World::with(4).await?;
    shop::open(&world).await?;
    let node = world.node("node").start().await?;
    let load = shop::rush(&world, 100);
    world.arrived("native-fast", 10, DRAIN).await?;
    let context = jetstream::new(world.connection.client().clone());
    for _ in 0..2 {
        for name in [subjects::ORDERS, "KV_MERCHANTS", "KV_NODES", "KV_CONTROL"] {
            let stream = context.get_stream_no_info(name).await?;
            let readers: Vec<String> = stream.consumer_names().try_collect().await?;
            ensure!(!readers.is_empty(), "nobody reads {name}");
            for reader in readers {
                stream.delete_consumer(&reader).await?;
            }
        }
        let before = world.fleet.stats().arrived;
        let flows = world.fleet.wait_until(Duration::from_secs(10), |stats| {
            stats.arrived >= before + 100
        });
        ensure!(flows.await, "nothing arrives any more");
    }
    // What is decided is still followed.
    world.register(&world.merchant("late")).await?;
    world.publish("late", 3).await?;
    world.arrived("late", 3, Duration::from_secs(10)).await?;
    load.stop().await;
    world.settled(DRAIN).await?;
    world.oracle().judge().await?;
    node.check(&[]).await
}
