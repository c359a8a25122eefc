//! Order over a restart, when the store has a part of the orders.

use std::time::Duration;

use anyhow::{Result, ensure};
use expediter_fleet::merchants::Behaviour;
use expediter_harness::{NewOrder, NodeProcess, World, eventually};
use expediter_types::Ordering;

const SOON: Duration = Duration::from_secs(20);
const MERCHANTS: [(&str, Ordering); 2] =
    [("queue", Ordering::Merchant), ("tables", Ordering::Order)];

/// Slow ones, so that most orders wait.
async fn open(world: &World, mailbox: u32) -> Result<()> {
    let slow = Behaviour {
        latency: Duration::from_millis(250),
        ..Behaviour::default()
    };
    for (id, ordering) in MERCHANTS {
        world.fleet.set(id, slow.clone())?;
        let mut merchant = world.merchant(id);
        merchant.limits.ordering = ordering;
        merchant.limits.concurrency = 4;
        merchant.limits.mailbox = mailbox;
        world.register(&merchant).await?;
    }
    Ok(())
}

async fn publish(world: &World, node: &NodeProcess, count: usize) -> Result<()> {
    let publisher = world.publisher();
    for number in 0..count {
        for (id, _) in MERCHANTS {
            let key = format!("table-{}", number % 3);
            publisher.offer(NewOrder::to(id).key(key)).await?;
        }
    }
    publisher.flush().await;
    let all = world.ledger.len() as f64;
    eventually("all are taken", SOON, async || {
        Ok((node.metric("expediter_orders_taken_total").await? >= all).then_some(()))
    })
    .await
}

async fn kill_and_judge(world: &World, node: &mut NodeProcess) -> Result<()> {
    node.kill9();
    let (arrived, all) = (world.fleet.stats().arrived, world.ledger.len());
    ensure!(
        arrived < all as u64 / 2,
        "{arrived} of {all} arrived before the kill"
    );
    for (id, _) in MERCHANTS {
        world.fleet.set(id, Behaviour::flaky())?;
    }
    node.restart().await?;
    world.settled(SOON).await?;
    println!("{:?}", world.oracle().after_crashes().judge().await?);
    node.check(&[]).await
}

/// The store has the older half; the newer half is only in the log.
#[tokio::test(flavor = "multi_thread")]
async fn the_newer_half_is_not_in_the_store() -> Result<()> {
    let world = World::start().await?;
    open(&world, 200).await?;
    let mut node = world
        .node("node")
        .set("orders.spill_after", "100ms")
        .start()
        .await?;
    publish(&world, &node, 30).await?;
    // Nothing tells that a mailbox was written to the store; it is looked at once a second.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    publish(&world, &node, 30).await?;
    kill_and_judge(&world, &mut node).await
}

/// The mailbox, with the older ones, is only in the log; what did not fit is in the store.
#[tokio::test(flavor = "multi_thread")]
async fn the_older_half_is_not_in_the_store() -> Result<()> {
    let world = World::start().await?;
    open(&world, 25).await?;
    let mut node = world
        .node("node")
        .set("orders.spill_after", "1m")
        .start()
        .await?;
    publish(&world, &node, 60).await?;
    eventually("the rest is in the store", SOON, async || {
        Ok((node.metric("expediter_orders_stored").await? >= 30.0).then_some(()))
    })
    .await?;
    kill_and_judge(&world, &mut node).await
}
