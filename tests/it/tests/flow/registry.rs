//! Merchants come, change and go while orders flow.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use expediter_fleet::merchants::Behaviour;
use expediter_harness::{NodeProcess, World, eventually};
use expediter_types::{Idempotency, OutcomeKind};
use expediter_wire::control::MerchantState;

use super::listener::Answer;
use super::{Listener, SOON, is, is_open, outcome, send, stands};

/// A second, as promised, and what a busy machine needs besides.
const FOLLOWED: Duration = Duration::from_secs(3);

/// Waits until no merchant has an actor.
pub(super) async fn all_let_go(node: &NodeProcess) -> Result<()> {
    super::gauge(node, "expediter_merchants_active", 0.0).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_merchant_is_followed_at_once() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    for n in 0..5 {
        let id = format!("new-{n}");
        world.register(&world.merchant(&id)).await?;
        let start = Instant::now();
        let order = send(&world, &id).await?;
        is(
            &outcome(&world, order.seq, SOON).await?,
            OutcomeKind::Delivered,
        )?;
        ensure!(start.elapsed() < FOLLOWED, "{:?}", start.elapsed());
    }
    super::gauge(&node, "expediter_merchants_registered", 5.0).await?;
    node.check(&[]).await
}

/// Another address holds for the next attempt, also for orders that wait already.
#[tokio::test(flavor = "multi_thread")]
async fn another_address_is_followed_with_the_backlog() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let broken = Listener::start(|_, _| Answer::status(503)).await?;
    let mended = Listener::start(|_, _| Answer::status(200)).await?;
    let mut moving = world.merchant("moving");
    moving.adapter.url = broken.url();
    world.register(&moving).await?;
    world.publish("moving", 200).await?;
    broken.arrived(200, SOON).await?;
    moving.adapter.url = mended.url();
    let start = Instant::now();
    world.register(&moving).await?;
    mended.arrived(1, SOON).await?;
    ensure!(start.elapsed() < FOLLOWED, "{:?}", start.elapsed());
    world.settled(SOON).await?;
    let requests = mended.requests();
    ensure!(requests.len() == 200, "{} arrived", requests.len());
    // What was on its way when the manifest changed may still have gone to the old address.
    let old = broken.requests();
    let late = old.iter().filter(|r| r.at > start + FOLLOWED).count();
    ensure!(late == 0, "{late} went to the old address");
    node.check(&[]).await
}

/// A limit acts at once on a backlog, in both directions.
#[tokio::test(flavor = "multi_thread")]
async fn another_limit_acts_at_once_on_a_backlog() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let slow = Behaviour {
        latency: Duration::from_millis(50),
        ..Behaviour::default()
    };
    world.fleet.set("limited", slow)?;
    let mut limited = world.merchant("limited");
    limited.limits.rates = Vec::from_iter("1/min".parse().ok());
    limited.limits.concurrency = 20;
    world.register(&limited).await?;
    world.publish("limited", 500).await?;
    stands(&world, "limited", SOON, |s| s.backlog >= 490).await?;
    limited.limits.rates = Vec::new();
    let start = Instant::now();
    world.register(&limited).await?;
    world.arrived("limited", 100, SOON).await?;
    ensure!(start.elapsed() < FOLLOWED, "{:?}", start.elapsed());
    // And back: what is in flight ends, then it is slow.
    limited.limits.rates = Vec::from_iter("2/s".parse().ok());
    limited.limits.concurrency = 1;
    world.register(&limited).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = world.fleet.merchant_stats("limited").arrived;
    ensure!(before < 500, "too fast to tell");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = world.fleet.merchant_stats("limited");
    ensure!(after.arrived - before <= 6, "{before} {after:?}");
    ensure!(after.in_flight <= 1, "{after:?}");
    limited.limits.rates = Vec::new();
    limited.limits.concurrency = 50;
    world.register(&limited).await?;
    world.settled(SOON).await?;
    world.oracle().judge().await?;
    node.check(&[]).await
}

/// A deleted merchant's orders wait their grace; registered again, it goes on where it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_merchant_comes_back_with_its_backlog() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    world.fleet.set("fickle", Behaviour::status(503))?;
    let mut fickle = world.merchant("fickle");
    fickle.adapter.idempotency = Idempotency::None;
    world.register(&fickle).await?;
    let orders = world.publish("fickle", 50).await?;
    world.arrived("fickle", 50, SOON).await?;
    world.delete("fickle").await?;
    stands(&world, "fickle", SOON, |s| {
        s.state == MerchantState::Unknown
    })
    .await?;
    let at_rest = eventually("the fleet is left alone", SOON, || async {
        let before = world.fleet.merchant_stats("fickle").arrived;
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        Ok((world.fleet.merchant_stats("fickle").arrived == before).then_some(()))
    });
    at_rest.await?;
    ensure!(is_open(&world, &orders[0]).await?);
    world.fleet.set("fickle", Behaviour::fast())?;
    world.register(&fickle).await?;
    world.settled(SOON).await?;
    let verdict = world.oracle().judge().await?;
    ensure!(verdict.delivered == 50, "{verdict:?}");
    node.check(&[]).await
}

/// An actor exists only while its merchant has work.
#[tokio::test(flavor = "multi_thread")]
async fn idle_actors_are_let_go_and_made_again() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").set("orders.idle_after", "1s");
    let node = node.start().await?;
    for n in 0..30 {
        world
            .register(&world.merchant(&format!("idle-{n}")))
            .await?;
    }
    ensure!(node.metric("expediter_merchants_active").await? == 0.0);
    for _ in 0..2 {
        for n in 0..30 {
            send(&world, &format!("idle-{n}")).await?;
        }
        world.settled(SOON).await?;
        all_let_go(&node).await?;
    }
    // One whose actor is let go follows a change, too.
    let moved = Listener::start(|_, _| Answer::status(200)).await?;
    let mut merchant = world.merchant("idle-0");
    merchant.adapter.url = moved.url();
    world.register(&merchant).await?;
    send(&world, "idle-0").await?;
    moved.arrived(1, FOLLOWED).await?;
    world.settled(SOON).await?;
    node.check(&[]).await
}

/// Far more orders than fit in memory wait in the store, and go when they can, in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_backlog_goes_through_the_store() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let hung = Behaviour {
        latency: Duration::from_secs(4),
        ..Behaviour::default()
    };
    world.fleet.set("queue", hung)?;
    let mut queue = world.merchant("queue");
    queue.limits.ordering = expediter_types::Ordering::Merchant;
    queue.limits.mailbox = 16;
    world.register(&queue).await?;
    world.register(&world.merchant("beside")).await?;
    let publisher = world.publisher();
    for _ in 0..3_000 {
        publisher
            .offer(expediter_harness::NewOrder::to("queue"))
            .await?;
    }
    publisher.flush().await;
    eventually("most are in the store", SOON, || async {
        let stored = node.metric("expediter_orders_stored").await?;
        Ok((stored > 2_500.0).then_some(()))
    })
    .await?;
    let beside = send(&world, "beside").await?;
    is(
        &outcome(&world, beside.seq, FOLLOWED).await?,
        OutcomeKind::Delivered,
    )?;
    world.fleet.set("queue", Behaviour::default())?;
    world.settled(Duration::from_secs(30)).await?;
    let verdict = world.oracle().judge().await?;
    ensure!(verdict.delivered == 3_001, "{verdict:?}");
    node.check(&[]).await
}
