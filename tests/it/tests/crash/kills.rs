//! kill -9 under load.

use std::time::Duration;

use anyhow::{Result, ensure};
use expediter_harness::{Verdict, World};

use super::shop;

/// Kills and restarts the node so often while orders come, then lets everything drain and judges.
async fn kill_loop(kills: u32, per_second: u32, drain: Duration) -> Result<Verdict> {
    let world = World::start().await?;
    shop::open(&world).await?;
    let mut node = world.node("node").start().await?;
    let load = shop::rush(&world, per_second);
    for kill in 0..kills {
        // Not always in the same phase of marks and spills.
        let more = 50 + u64::from(kill * 377 % 1_000);
        let before = world.fleet.stats().arrived;
        let flows = world
            .fleet
            .wait_until(Duration::from_secs(30), |s| s.arrived > before + more);
        ensure!(flows.await, "nothing arrives after {kill} kills");
        node.kill9();
        if kill % 3 == 2 {
            // Also while it is starting: opening the store, claiming, recovering.
            node.spawn_again()?;
            tokio::time::sleep(Duration::from_millis(u64::from(kill * 53 % 300))).await;
            node.kill9();
        }
        node.restart().await?;
    }
    load.stop().await;
    world.settled(drain).await?;
    let verdict = world.oracle().after_crashes().judge().await?;
    node.check(&[]).await?;
    println!("{kills} kills: {verdict:?}");
    Ok(verdict)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again() -> Result<()> {
    let verdict = kill_loop(7, 400, Duration::from_secs(25)).await?;
    ensure!(verdict.delivered > verdict.accepted / 2, "{verdict:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: just test-long"]
async fn long_killed_fifty_times() -> Result<()> {
    kill_loop(50, 400, Duration::from_secs(120)).await?;
    Ok(())
}
