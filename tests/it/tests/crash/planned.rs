//! A node is stopped on purpose: nothing is sent twice, nothing is parked.

use std::time::Duration;

use anyhow::{Result, ensure};
use expediter_harness::World;

use super::shop;

const DRAIN: Duration = Duration::from_secs(30);

/// The drain deadline of the tests' nodes is 5 s, and nothing takes that long here.
const STOP: Duration = Duration::from_secs(6);

#[tokio::test(flavor = "multi_thread")]
async fn stopped_and_started_under_load() -> Result<()> {
    let world = World::start().await?;
    shop::open(&world).await?;
    let mut node = world.node("node").start().await?;
    let load = shop::rush(&world, 300);
    for _ in 0..3 {
        let before = world.fleet.stats().arrived;
        let flows = world
            .fleet
            .wait_until(DRAIN, |stats| stats.arrived > before + 400)
            .await;
        ensure!(flows, "nothing arrives");
        let code = node.terminate(STOP).await?;
        ensure!(code == 0, "exit code {code}");
        node.restart().await?;
    }
    load.stop().await;
    world.settled(DRAIN).await?;
    println!("{:?}", world.oracle().judge().await?);
    node.check(&[]).await
}
