//! `expediter top` against two nodes.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use expediter_fleet::merchants::Behaviour;
use expediter_harness::{World, eventually};

use super::{FAILED, OK, USAGE, run};

const SOON: Duration = Duration::from_secs(10);

/// Merchants of both nodes, the longest waiting order first, and nobody who has nothing to do.
#[tokio::test(flavor = "multi_thread")]
async fn top_shows_who_is_busy_on_all_nodes() -> Result<()> {
    let world = World::start().await?;
    let first = world.node("first").start().await?;
    let second = world.node("second").start().await?;
    eventually("both nodes work", SOON, async || {
        let a = first.metric("expediter_partitions_owned").await?;
        let b = second.metric("expediter_partitions_owned").await?;
        Ok((a > 0.0 && b > 0.0).then_some(()))
    })
    .await?;
    world.register(&world.merchant("idle")).await?;
    world.publish("idle", 1).await?;
    for n in 0..8 {
        let id = format!("stuck-{n}");
        world.fleet.set(&id, Behaviour::hung())?;
        let mut merchant = world.merchant(&id);
        merchant.group = if n < 2 { "pizza" } else { "soup" }.to_owned();
        merchant.limits.concurrency = 2;
        merchant.limits.rates = vec!["50/s".parse().map_err(anyhow::Error::msg)?];
        merchant.limits.burst = 50;
        world.register(&merchant).await?;
        world.publish(&id, 3 + n).await?;
        world.arrived(&id, 2, SOON).await?;
    }
    let rows = eventually("all are seen", SOON, async || {
        let rows = run(&world, &["top", "--json"])
            .await?
            .exits(OK)?
            .objects()?;
        let seen = |row: &serde_json::Value| row["in_flight"] == 2 && row["oldest_s"].is_u64();
        Ok((rows.len() == 8 && rows.iter().all(seen)).then_some(rows))
    })
    .await?;
    let merchants: Vec<_> = rows.iter().map(|row| row["merchant"].as_str()).collect();
    ensure!(!merchants.contains(&Some("idle")), "{merchants:?}");
    let last = rows.iter().find(|row| row["merchant"] == "stuck-7");
    let last = last.context("stuck-7 is missing")?;
    ensure!(last["backlog"] == 10 && last["limit"] == "50/s", "{last}");
    ensure!(
        last["limit_per_minute"] == 3_000 && last["state"] == "active",
        "{last}"
    );

    let by_backlog = run(&world, &["top", "--sort", "backlog", "--json"]).await?;
    let by_backlog = by_backlog.exits(OK)?.objects()?;
    let backlogs: Vec<_> = by_backlog
        .iter()
        .map(|row| row["backlog"].as_u64())
        .collect();
    ensure!(backlogs.is_sorted_by(|a, b| a >= b), "{backlogs:?}");
    let pizza = run(&world, &["top", "--group", "pizza"]).await?.exits(OK)?;
    ensure!(
        pizza.out.contains("stuck-1") && !pizza.out.contains("stuck-2"),
        "{pizza:?}"
    );
    pizza.says(&["MERCHANT", "BACKLOG", "2 merchants"])?;
    run(&world, &["top", "--interval", "10ms"])
        .await?
        .exits(USAGE)?
        .tells(&["200ms"])?;
    for n in 0..8 {
        world
            .fleet
            .set(&format!("stuck-{n}"), Behaviour::default())?;
    }
    first.check(&[]).await?;
    second.check(&[]).await
}

/// An empty list would read as: all is well.
#[tokio::test(flavor = "multi_thread")]
async fn top_fails_where_no_node_answers() -> Result<()> {
    let world = World::start().await?;
    for json in [&["--json"][..], &[]] {
        run(&world, &[&["top", "--once"], json].concat())
            .await?
            .exits(FAILED)?
            .tells(&["no node answers", "expediter serve"])?;
    }
    Ok(())
}
