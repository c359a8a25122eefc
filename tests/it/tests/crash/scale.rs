//! Many merchants, and one merchant with many orders.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use expediter_fleet::merchants::Behaviour;
use expediter_harness::{NewOrder, World, eventually};

use super::long_tests;

const MERCHANTS: usize = 100_000;
const BUSY: usize = 1_000;

#[tokio::test(flavor = "multi_thread")]
async fn long_a_hundred_thousand_merchants() -> Result<()> {
    if !long_tests() {
        return Ok(());
    }
    let world = World::with(16).await?;
    let registered = Instant::now();
    for chunk in (0..MERCHANTS).collect::<Vec<_>>().chunks(256) {
        let merchants: Vec<_> = chunk
            .iter()
            .map(|n| world.merchant(&format!("m-{n}")))
            .collect();
        let puts = merchants.iter().map(|merchant| world.register(merchant));
        futures::future::try_join_all(puts).await?;
    }
    println!(
        "{MERCHANTS} merchants registered in {:?}",
        registered.elapsed()
    );
    for number in 0..BUSY {
        let merchant = format!("m-{}", number * (MERCHANTS / BUSY));
        world.publisher().offer(NewOrder::to(&merchant)).await?;
    }
    world.publisher().flush().await;
    let started = Instant::now();
    let node = world.node("node").set("store.cache", "64MiB").spawn()?;
    node.wait_ready(Duration::from_secs(60)).await?;
    let ready = started.elapsed();
    let first_rss = node.rss_mib()?;
    world.settled(Duration::from_secs(60)).await?;
    let rss = node.rss_mib()?;
    println!("ready after {ready:?}, {first_rss:.0} MiB; delivered: {rss:.0} MiB");
    println!("{:?}", world.oracle().judge().await?);
    node.check(&[]).await?;
    // The design's figures are 3 s and 300 MiB in a release build on an idle machine.
    ensure!(ready < Duration::from_secs(20), "ready after {ready:?}");
    ensure!(rss < 600.0, "{rss} MiB");
    Ok(())
}

/// What a hung merchant does not take waits on disk.
#[tokio::test(flavor = "multi_thread")]
async fn long_a_million_orders_wait() -> Result<()> {
    if !long_tests() {
        return Ok(());
    }
    const ORDERS: u64 = 1_000_000;
    let hour = Duration::from_secs(3_600);
    let world = World::with(4).await?;
    world.fleet.set("hung", Behaviour::hung())?;
    let mut merchant = world.merchant("hung");
    merchant.adapter.timeout = Duration::from_secs(600);
    merchant.limits.concurrency = 64;
    merchant.retry.deadline = Duration::from_secs(86_400);
    world.register(&merchant).await?;
    world.register(&world.merchant("fast")).await?;
    let mut node = world.node("node").start().await?;
    let idle = node.rss_mib()?;
    let published = Instant::now();
    for number in 0..ORDERS {
        let order = NewOrder::to("hung").body(format!("{{\"order\":{number:0>200}}}"));
        world.publisher().offer(order).await?;
    }
    world.publisher().flush().await;
    println!("{ORDERS} published in {:?}", published.elapsed());
    eventually("all are in the store", hour, async || {
        Ok(
            (node.metric("expediter_orders_stored").await? >= (ORDERS - 10_000) as f64)
                .then_some(()),
        )
    })
    .await?;
    let full = node.rss_mib()?;
    // Nobody else is held up.
    let asked = Instant::now();
    world.publish("fast", 100).await?;
    world.arrived("fast", 100, Duration::from_secs(5)).await?;
    println!(
        "idle {idle:.0} MiB, with a million {full:.0} MiB, others: {:?}",
        asked.elapsed()
    );
    node.kill9();
    world.fleet.set("hung", Behaviour::default())?;
    let restarted = Instant::now();
    node.spawn_again()?;
    node.wait_ready(Duration::from_secs(120)).await?;
    println!(
        "ready {:?} after the kill, {:.0} MiB",
        restarted.elapsed(),
        node.rss_mib()?
    );
    let drained = Instant::now();
    let outcomes = world.settled(hour).await?;
    println!(
        "drained in {:?}, {:.0} MiB",
        drained.elapsed(),
        node.rss_mib()?
    );
    println!(
        "{:?}",
        world.oracle().after_crashes().judge_with(&outcomes)?
    );
    node.check(&[]).await?;
    ensure!(full < idle + 400.0, "{full} MiB for a backlog on disk");
    Ok(())
}
