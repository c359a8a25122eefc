//! The broker dies, is away for a while, or comes back empty.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use expediter_fleet::merchants::Behaviour;
use expediter_harness::{Outcomes, World, eventually};
use expediter_nats::Registry;
use expediter_ports::DecisionSubject;
use expediter_types::{DeadReason, Idempotency, OutcomeKind};
use expediter_wire::Rfc3339;
use expediter_wire::control::{Decision, MerchantDecision, MerchantState};

use super::shop;

const DRAIN: Duration = Duration::from_secs(40);

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
async fn killed_and_started_again() -> Result<()> {
    let world = World::start().await?;
    shop::open(&world).await?;
    let node = world.node("node").start().await?;
    let load = shop::rush(&world, 200);
    for _ in 0..3 {
        more_arrive(&world, 300).await?;
        world.broker().kill9();
        world.broker().restart().await?;
    }
    more_arrive(&world, 300).await?;
    load.stop().await;
    world.settled(DRAIN).await?;
    ensure!(node.is_running(), "the node ended");
    println!("{:?}", world.oracle().judge().await?);
    node.check(&["the connection to NATS is lost"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn away_for_ten_seconds() -> Result<()> {
    let world = World::start().await?;
    shop::open(&world).await?;
    let node = world.node("node").start().await?;
    let load = shop::rush(&world, 100);
    more_arrive(&world, 200).await?;
    world.broker().terminate().await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    ensure!(node.is_running(), "the node does not stand it");
    let (status, _) = node.get("/readyz").await?;
    ensure!(status == 503, "ready without a broker");
    let (status, _) = node.get("/livez").await?;
    ensure!(status == 200, "a restart would not help");
    world.broker().restart().await?;
    more_arrive(&world, 200).await?;
    load.stop().await;
    world.settled(DRAIN).await?;
    println!("{:?}", world.oracle().judge().await?);
    node.check(&["the connection to NATS is lost"]).await
}

/// Everything that JetStream held is gone. What the node still has is published again.
#[tokio::test(flavor = "multi_thread")]
async fn comes_back_empty() -> Result<()> {
    let world = World::start().await?;
    shop::open(&world).await?;
    for (id, idempotency) in [
        ("closed-native", Idempotency::Native),
        ("closed-none", Idempotency::None),
    ] {
        world.fleet.set(id, Behaviour::status(503))?;
        let mut merchant = world.merchant(id);
        merchant.adapter.idempotency = idempotency;
        // Long enough for all of them to wait at the same time: those in the mailbox do not count.
        merchant.retry.initial = Duration::from_secs(5);
        merchant.retry.max = Duration::from_secs(5);
        world.register(&merchant).await?;
    }
    let node = world
        .node("node")
        .set("orders.spill_after", "300ms")
        .start()
        .await?;
    let stored = world.publish("closed-native", 40).await?;
    let parked = world.publish("closed-none", 20).await?;
    world.register(&world.merchant("paused")).await?;
    let registry = Registry::new(&world.connection);
    let paused = DecisionSubject::Merchant("paused".parse()?);
    let decision = |state, at| MerchantDecision {
        state,
        reason: "kitchen fire".to_owned(),
        actor: "ann".to_owned(),
        at: Rfc3339(at),
    };
    let pause = decision(Decision::Paused, 1_770_000_000_000);
    registry.decide(&paused, &pause, 0).await?;
    crate::flow::stands(&world, "paused", DRAIN, |status| {
        status.state == MerchantState::Paused
    })
    .await?;
    world.publish("paused", 5).await?;
    eventually("all are in the store", DRAIN, async || {
        Ok((node.metric("expediter_orders_stored").await? == 65.0).then_some(()))
    })
    .await?;
    world.empty_broker().await?;
    // By every partition: what one that has not noticed it yet delivers is delivered once more, with
    // the same key, as nothing says that it was.
    eventually("the loss is noticed", DRAIN, async || {
        let changes = node
            .metric("expediter_log_incarnation_changes_total")
            .await?;
        Ok((changes >= 4.0).then_some(()))
    })
    .await?;
    let alarm = node.metric("expediter_alarms{kind=\"log_lost\"}").await?;
    ensure!(alarm == 1.0, "no alarm");
    eventually("the merchants are put back", DRAIN, async || {
        let back = registry.list().await?.len();
        Ok((back == shop::COUNT + 3).then_some(()))
    })
    .await?;
    let revision = eventually("the pause is put back", DRAIN, async || {
        let (back, revision) = registry.decision(&paused).await?;
        Ok((back.as_ref() == Some(&pause)).then_some(revision))
    })
    .await?;
    for id in ["closed-native", "closed-none"] {
        world.fleet.set(id, Behaviour::fast())?;
    }
    // The work goes on, with the sequences of a new log.
    let new = world.publish("native-fast", 30).await?;
    let outcomes = eventually("all have an outcome", DRAIN, async || {
        let outcomes = Outcomes::read(&world.connection).await?;
        let has = outcomes
            .all()
            .map(|recorded| recorded.outcome.envelope.id.to_string());
        let has: HashSet<String> = has.collect();
        let all = stored.iter().chain(&parked).chain(&new);
        let missing: Vec<&str> = all
            .map(|order| order.id.as_str())
            .filter(|id| !has.contains(*id))
            .collect();
        ensure!(missing.is_empty(), "without one: {missing:?}");
        Ok(Some(outcomes))
    })
    .await?;
    ensure!(outcomes.wrong().is_empty(), "{:?}", outcomes.wrong());
    let mut by_order = HashMap::new();
    for recorded in outcomes.all() {
        let envelope = &recorded.outcome.envelope;
        let order = (envelope.merchant.to_string(), envelope.id.to_string());
        let before = by_order.insert(order, recorded);
        ensure!(before.is_none(), "two outcomes of {}", envelope.id);
    }
    for order in stored.iter().chain(&parked).chain(&new) {
        let recorded = by_order.get(&(order.merchant.clone(), order.id.clone()));
        let kind = recorded.map(|recorded| recorded.outcome.kind);
        // Nobody knows any more whether an attempt was under way when the marks were lost.
        let expected = match order.merchant.as_str() {
            "closed-none" => OutcomeKind::DeadLettered(DeadReason::Ambiguous),
            _ => OutcomeKind::Delivered,
        };
        ensure!(kind == Some(expected), "{} ended as {kind:?}", order.id);
        let taken = world.fleet.arrivals(&order.merchant);
        let taken = taken
            .iter()
            .filter(|a| a.order_id == order.id && a.is_taken())
            .count();
        let expected = usize::from(expected == OutcomeKind::Delivered);
        ensure!(taken == expected, "{} was taken {taken} times", order.id);
    }
    let arrived = world.fleet.merchant_stats("paused").arrived;
    ensure!(arrived == 0, "{arrived} orders went to a paused merchant");
    let resume = decision(Decision::Resumed, 1_770_000_060_000);
    registry.decide(&paused, &resume, revision).await?;
    world.arrived("paused", 5, DRAIN).await?;
    let outcomes_lost = node
        .metric("expediter_alarms{kind=\"outcomes_lost\"}")
        .await?;
    ensure!(outcomes_lost == 1.0, "no alarm for OUTCOMES");
    node.check(&[
        "the connection to NATS is lost",
        "published lost orders again",
        "the broker has lost",
        "the broker lost",
        "the broker is another one or lost",
        "the log is not the one that was read",
        "OUTCOMES has lost records",
        "OUTCOMES came back shorter",
    ])
    .await
}

/// The broker's disk is restored from a copy that is some seconds old. What was published since and
/// waits in the node's store is published again, and what was delivered since does not come twice.
#[tokio::test(flavor = "multi_thread")]
async fn restored_from_an_old_copy() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").set("orders.spill_after", "300ms");
    let node = node.start().await?;
    for id in ["well", "closed"] {
        let mut merchant = world.merchant(id);
        merchant.retry.initial = Duration::from_secs(5);
        merchant.retry.max = Duration::from_secs(5);
        world.register(&merchant).await?;
    }
    world.fleet.set("closed", Behaviour::status(503))?;
    let early = world.publish("closed", 10).await?;
    world.publish("well", 10).await?;
    world.arrived("well", 10, DRAIN).await?;
    // What the copy does not know to be delivered would be delivered again, with its key.
    eventually("their outcomes are recorded", DRAIN, async || {
        let outcomes = Outcomes::read(&world.connection).await?;
        Ok((outcomes.len() == 10).then_some(()))
    })
    .await?;
    let copy = world.dir().join("copy");
    let broker = world.broker();
    broker.kill9();
    copy_dir(broker.store_dir(), &copy)?;
    broker.restart().await?;
    world.reconnected(DRAIN).await?;

    let late = world.publish("closed", 20).await?;
    world.publish("well", 20).await?;
    world.arrived("well", 30, DRAIN).await?;
    eventually("all are in the store", DRAIN, async || {
        Ok((node.metric("expediter_orders_stored").await? == 30.0).then_some(()))
    })
    .await?;
    broker.kill9();
    fs::remove_dir_all(broker.store_dir())?;
    copy_dir(&copy, broker.store_dir())?;
    broker.restart().await?;
    world.reconnected(DRAIN).await?;
    eventually("the loss is noticed", DRAIN, async || {
        let alarm = node.metric("expediter_alarms{kind=\"log_lost\"}").await?;
        Ok((alarm == 1.0).then_some(()))
    })
    .await?;
    world.fleet.set("closed", Behaviour::fast())?;
    let taken = || -> Vec<String> {
        let arrivals = world.fleet.arrivals("closed").into_iter();
        let taken = arrivals.filter(|arrival| arrival.is_taken());
        taken.map(|arrival| arrival.order_id).collect()
    };
    eventually("all are delivered", DRAIN, async || {
        let taken: HashSet<String> = taken().into_iter().collect();
        let all = early
            .iter()
            .chain(&late)
            .all(|order| taken.contains(&order.id));
        Ok(all.then_some(()))
    })
    .await?;
    ensure!(taken().len() == 30, "some were delivered twice");
    // New orders go, too.
    world.publish("well", 5).await?;
    world.arrived("well", 35, DRAIN).await?;
    ensure!(world.fleet.merchant_stats("well").arrived == 35);
    ensure!(node.is_running(), "the node ended");
    Ok(())
}

fn copy_dir(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_dir(&entry.path(), &to)?,
            false => drop(fs::copy(entry.path(), to)?),
        }
    }
    Ok(())
}

/// The node's machine and the broker's lose power at the same moment, and the node is up first.
#[tokio::test(flavor = "multi_thread")]
async fn killed_together_with_the_node() -> Result<()> {
    let world = World::start().await?;
    shop::open(&world).await?;
    let mut node = world.node("node").start().await?;
    let load = shop::rush(&world, 200);
    for round in 0..3 {
        more_arrive(&world, 200 + 100 * round).await?;
        node.kill9();
        world.broker().kill9();
        node.spawn_again()?;
        eventually("the node asks for NATS", DRAIN, async || {
            let (status, page) = node.get("/readyz").await?;
            Ok((status == 503 && page.contains("NATS")).then_some(()))
        })
        .await?;
        world.broker().restart().await?;
        node.wait_ready(DRAIN).await?;
    }
    more_arrive(&world, 200).await?;
    load.stop().await;
    world.settled(DRAIN).await?;
    println!("{:?}", world.oracle().after_crashes().judge().await?);
    node.check(&["the connection to NATS is lost"]).await
}
