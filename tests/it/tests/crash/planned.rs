//! A node is stopped on purpose: nothing is sent twice, nothing is parked.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use expediter_fleet::merchants::Behaviour;
use expediter_harness::World;
use expediter_types::{DeadReason, Idempotency, OutcomeKind};

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

/// What still runs at the drain deadline may have been received: it is sent again under its key
/// when nothing of it can be on the wire any more, or parked.
#[tokio::test(flavor = "multi_thread")]
async fn stopped_while_attempts_hang() -> Result<()> {
    const TIMEOUT: Duration = Duration::from_secs(4);
    let world = World::start().await?;
    for (id, idempotency) in [
        ("hung-native", Idempotency::Native),
        ("hung-none", Idempotency::None),
    ] {
        world.fleet.set(id, Behaviour::hung())?;
        let mut merchant = world.merchant(id);
        merchant.adapter.idempotency = idempotency;
        merchant.adapter.timeout = TIMEOUT;
        merchant.limits.concurrency = 3;
        world.register(&merchant).await?;
    }
    let mut node = world
        .node("node")
        .set("node.drain_deadline", "1s")
        .start()
        .await?;
    for id in ["hung-native", "hung-none"] {
        world.publish(id, 6).await?;
        world.arrived(id, 3, DRAIN).await?;
    }
    let code = node.terminate(Duration::from_secs(3)).await?;
    ensure!(code == 0, "exit code {code}");
    for id in ["hung-native", "hung-none"] {
        world.fleet.set(id, Behaviour::fast())?;
    }
    node.restart().await?;
    let outcomes = world.settled(DRAIN).await?;
    let verdict = world.oracle().after_crashes().judge_with(&outcomes)?;
    ensure!(
        verdict.delivered == 9 && verdict.ambiguous == 3,
        "{verdict:?}"
    );
    for recorded in outcomes.all() {
        let envelope = &recorded.outcome.envelope;
        let arrivals = world.fleet.arrivals(envelope.merchant.as_str());
        let mut times = arrivals
            .iter()
            .filter(|a| a.order_id == envelope.id.as_str());
        let first = times.next().context("it arrived")?;
        let Some(second) = times.next() else { continue };
        ensure!(
            recorded.outcome.kind == OutcomeKind::Delivered,
            "{:?}",
            recorded.outcome
        );
        let between = Duration::from_micros(second.at_us - first.at_us);
        ensure!(
            between >= TIMEOUT,
            "{} came again after {between:?}",
            envelope.id
        );
    }
    let parked = OutcomeKind::DeadLettered(DeadReason::Ambiguous);
    let parked = outcomes
        .all()
        .filter(|recorded| recorded.outcome.kind == parked);
    ensure!(parked.count() == 3, "what hung is not parked");
    node.check(&[]).await
}
