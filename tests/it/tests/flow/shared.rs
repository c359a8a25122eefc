//! Limits that merchants share over two nodes, measured at the merchants.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use expediter_fleet::merchants::{Arrival, Behaviour};
use expediter_harness::{NodeProcess, World, eventually};
use expediter_nats::Registry;
use expediter_types::{LimitScope, Scope};
use expediter_wire::registry::ScopeRegistration;

use super::SOON;

const BURST: u32 = 4;

async fn limit(world: &World, rate: &str, concurrency: Option<u32>) -> Result<()> {
    let registration = ScopeRegistration {
        scope: Scope {
            kind: LimitScope::Credential,
            id: "account".to_owned(),
            rates: vec![rate.parse().map_err(anyhow::Error::msg)?],
            burst: BURST,
            concurrency,
        },
        actor: "test".to_owned(),
        at: 0,
    };
    let registry = Registry::new(&world.connection);
    let before = registry.scope(LimitScope::Credential, "account").await?;
    let revision = before.map_or(0, |entry| entry.revision);
    registry.put_scope(&registration, revision).await?;
    Ok(())
}

/// Of all merchants, by time.
fn arrivals(world: &World, ids: &[String]) -> Vec<Arrival> {
    let all = ids.iter().flat_map(|id| world.fleet.arrivals(id));
    let mut all: Vec<Arrival> = all.collect();
    all.sort_by_key(|arrival| arrival.at_us);
    all
}

/// In no window more than the rate and the burst allow; what was late on the way is slack.
fn holds(arrivals: &[Arrival], per_second: f64) -> Result<()> {
    const SLACK: f64 = 0.15;
    let times: Vec<f64> = arrivals.iter().map(|a| a.at_us as f64 / 1e6).collect();
    for (first, start) in times.iter().enumerate() {
        for (count, end) in times[first..].iter().enumerate() {
            let allowed = f64::from(BURST) + per_second * (end - start + SLACK);
            ensure!(
                (count + 1) as f64 <= allowed + 1.0,
                "{} arrivals within {:.3} s, {allowed:.1} are allowed",
                count + 1,
                end - start
            );
        }
    }
    Ok(())
}

async fn two_nodes(world: &World) -> Result<(NodeProcess, NodeProcess)> {
    let first = world.node("first").start().await?;
    let second = world.node("second").start().await?;
    eventually("both nodes work", SOON, async || {
        let a = first.metric("expediter_partitions_owned").await?;
        let b = second.metric("expediter_partitions_owned").await?;
        Ok((a > 0.0 && b > 0.0 && a + b == 4.0).then_some(()))
    })
    .await?;
    Ok((first, second))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_limits_merchants_on_two_nodes() -> Result<()> {
    let world = World::start().await?;
    let (first, second) = two_nodes(&world).await?;
    limit(&world, "20/s", Some(3)).await?;
    let ids: Vec<String> = (0..12).map(|n| format!("branch-{n}")).collect();
    for id in &ids {
        let latency = Duration::from_millis(60);
        world.fleet.set(
            id,
            Behaviour {
                latency,
                ..Behaviour::default()
            },
        )?;
        let mut merchant = world.merchant(id);
        merchant.adapter.credential = Some("account".to_owned());
        world.register(&merchant).await?;
    }
    for id in &ids {
        world.publish(id, 60).await?;
    }
    // Both have a share once the first slices have been divided.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = arrivals(&world, &ids).len();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let all = arrivals(&world, &ids);
    let went = all.len() - before;
    println!("{went} of 200 in 10 s");
    holds(&all, 20.0)?;
    ensure!(went >= 180, "only {went} of 200 in 10 s");
    // Each takes 60 ms, so more than 3 within 50 ms would be more than 3 at once.
    let crowded = all
        .windows(4)
        .find(|four| four[3].at_us - four[0].at_us < 50_000);
    ensure!(crowded.is_none(), "{crowded:?}");
    for node in [&first, &second] {
        let waiting = node.metric("expediter_shared_limits_waiting").await?;
        ensure!(waiting > 0.0, "{} has nobody waiting", node.name());
    }

    // One dies: the other gets the rest within seconds.
    first.kill9();
    tokio::time::sleep(Duration::from_secs(7)).await;
    let before = arrivals(&world, &ids).len();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let went = arrivals(&world, &ids).len() - before;
    println!("{went} of 60 in 3 s after a node died");
    ensure!(went >= 48, "only {went} of 60 in 3 s");
    holds(&arrivals(&world, &ids), 20.0)?;

    // A change acts at once on what waits.
    let changed = Instant::now();
    limit(&world, "500/s", None).await?;
    world.settled(SOON).await?;
    println!("the rest took {:?}", changed.elapsed());
    world.oracle().after_crashes().judge().await?;
    second.check(&["lease"]).await
}

/// What one merchant is told of the account holds for the merchants of the account on every node.
#[tokio::test(flavor = "multi_thread")]
async fn a_429_for_a_credential_closes_it_on_all_nodes() -> Result<()> {
    let world = World::start().await?;
    let (first, second) = two_nodes(&world).await?;
    limit(&world, "500/s", None).await?;
    let ids: Vec<String> = (0..12).map(|n| format!("branch-{n}")).collect();
    for id in &ids {
        let mut merchant = world.merchant(id);
        merchant.adapter.credential = Some("account".to_owned());
        merchant.adapter.rate_limit_scope = LimitScope::Credential;
        world.register(&merchant).await?;
        // Both nodes have the lease of a slice, and would go on with it.
        world.publish(id, 1).await?;
    }
    world.settled(SOON).await?;
    let limited = Behaviour {
        headers: vec![("retry-after".to_owned(), "4".to_owned())],
        ..Behaviour::status(429)
    };
    world.fleet.set("branch-0", limited)?;
    world.publish("branch-0", 1).await?;
    world.arrived("branch-0", 2, SOON).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    world.fleet.set("branch-0", Behaviour::default())?;
    for id in &ids {
        world.publish(id, 1).await?;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let went = arrivals(&world, &ids).len();
    ensure!(went == 13, "{went} went while the account was closed");
    world.settled(SOON).await?;
    world.oracle().judge().await?;
    first.check(&[]).await?;
    second.check(&[]).await
}
