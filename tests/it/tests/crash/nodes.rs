//! Two nodes: one joins, one leaves, one sleeps and wakes up, one has the wrong name.

use std::time::Duration;

use anyhow::{Result, ensure};
use expediter_harness::{NodeProcess, World, eventually};

use super::shop;

const DRAIN: Duration = Duration::from_secs(30);
const PARTITIONS: u16 = 8;

/// Waits until the node works on so many partitions.
async fn owns(node: &NodeProcess, is_it: impl Fn(f64) -> bool) -> Result<f64> {
    eventually("partitions move", DRAIN, async || {
        let owned = node.metric("expediter_partitions_owned").await?;
        Ok(is_it(owned).then_some(owned))
    })
    .await
}

async fn more_arrive(world: &World, more: u64) -> Result<()> {
    let before = world.fleet.stats().arrived;
    let flows = world
        .fleet
        .wait_until(DRAIN, |stats| stats.arrived >= before + more)
        .await;
    ensure!(flows, "no {more} orders arrive");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_joins_and_one_leaves() -> Result<()> {
    let all = f64::from(PARTITIONS);
    let world = World::with(PARTITIONS).await?;
    shop::open(&world).await?;
    let first = world.node("first").start().await?;
    let load = shop::rush(&world, 200);
    more_arrive(&world, 100).await?;
    let second = world.node("second").start().await?;
    let moved = owns(&second, |owned| owned > 0.0).await?;
    owns(&first, |owned| owned == all - moved).await?;
    more_arrive(&world, 200).await?;
    let code = first.terminate(Duration::from_secs(6)).await?;
    ensure!(code == 0, "exit code {code}");
    owns(&second, |owned| owned == all).await?;
    more_arrive(&world, 200).await?;
    load.stop().await;
    world.settled(DRAIN).await?;
    // Planned: no repeats, nothing parked.
    println!("{:?}", world.oracle().judge().await?);
    first.check(&[]).await?;
    second.check(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_used_once() -> Result<()> {
    let world = World::start().await?;
    shop::open(&world).await?;
    let node = world.node("kitchen").start().await?;
    let load = shop::rush(&world, 100);
    more_arrive(&world, 50).await?;
    let double = world.node("kitchen").files("double").spawn()?;
    let code = double.wait_exit(DRAIN).await?;
    ensure!(code != 0, "the second kitchen ends as if all were well");
    let said = double.log();
    ensure!(
        !said.find("node name kitchen is in use").is_empty(),
        "unclear: {}",
        said.tail(5)
    );
    more_arrive(&world, 50).await?;
    load.stop().await;
    world.settled(DRAIN).await?;
    println!("{:?}", world.oracle().judge().await?);
    node.check(&[]).await
}

/// A node that was stopped longer than its lease is no owner any more, and learns it at its first
/// write.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_owner_wakes_up() -> Result<()> {
    let all = f64::from(PARTITIONS);
    let world = World::with(PARTITIONS).await?;
    shop::open(&world).await?;
    let sleeper = world.node("sleeper").start().await?;
    let other = world.node("other").start().await?;
    owns(&other, |owned| owned > 0.0).await?;
    let had = owns(&sleeper, |owned| owned > 0.0 && owned < all).await?;
    let load = shop::rush(&world, 200);
    more_arrive(&world, 200).await?;
    sleeper.pause()?;
    owns(&other, |owned| owned == all).await?;
    more_arrive(&world, 300).await?;
    sleeper.resume()?;
    eventually("the sleeper is refused", DRAIN, async || {
        let fenced = sleeper.metric("expediter_fenced_total").await?;
        Ok((fenced >= 1.0).then_some(()))
    })
    .await?;
    // It comes back in order, and both share the work again.
    owns(&sleeper, |owned| owned == had).await?;
    owns(&other, |owned| owned == all - had).await?;
    more_arrive(&world, 200).await?;
    load.stop().await;
    world.settled(DRAIN).await?;
    println!("{:?}", world.oracle().after_crashes().judge().await?);
    ensure!(sleeper.is_running() && other.is_running(), "a node ended");
    sleeper.check(&["claim stands"]).await?;
    other.check(&["lease ended"]).await
}
