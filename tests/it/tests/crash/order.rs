//! Order over a restart.

use std::time::Duration;

use anyhow::{Result, ensure};
use expediter_fleet::merchants::Behaviour;
use expediter_harness::{NewOrder, World, eventually};
use expediter_types::Ordering;

const SOON: Duration = Duration::from_secs(20);

/// Half of the orders are in the store at the kill, the other half only in the log.
#[tokio::test(flavor = "multi_thread")]
async fn half_of_the_orders_are_not_in_the_store() -> Result<()> {
    let world = World::start().await?;
    let slow = Behaviour {
        latency: Duration::from_millis(60),
        ..Behaviour::default()
    };
    for (id, ordering) in [("queue", Ordering::Merchant), ("tables", Ordering::Order)] {
        world.fleet.set(id, slow.clone())?;
        let mut merchant = world.merchant(id);
        merchant.limits.ordering = ordering;
        world.register(&merchant).await?;
    }
    let mut node = world
        .node("node")
        .set("orders.spill_after", "300ms")
        .start()
        .await?;
    let publisher = world.publisher();
    let half = async |from: usize| -> Result<()> {
        for number in from..from + 30 {
            let key = format!("table-{}", number % 3);
            publisher.offer(NewOrder::to("queue").key(&key)).await?;
            publisher.offer(NewOrder::to("tables").key(&key)).await?;
        }
        publisher.flush().await;
        Ok(())
    };
    half(0).await?;
    eventually("the first half is in the store", SOON, async || {
        let stored = node.metric("expediter_orders_stored").await?;
        let waiting = node.metric("expediter_orders_waiting").await?;
        Ok((stored > 10.0 && stored == waiting).then_some(()))
    })
    .await?;
    half(30).await?;
    eventually("the second half is taken", SOON, async || {
        Ok((node.metric("expediter_orders_taken_total").await? >= 120.0).then_some(()))
    })
    .await?;
    node.kill9();
    let before = world.fleet.stats().arrived;
    ensure!(
        before < 80,
        "{before} of 120 arrived before the kill: nothing is left to order"
    );
    node.restart().await?;
    world.settled(SOON).await?;
    world.oracle().after_crashes().judge().await?;
    node.check(&[]).await
}
