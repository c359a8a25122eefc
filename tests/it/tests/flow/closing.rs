//! Answers that concern the whole merchant: it is closed, its orders are kept.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, ensure};
use expediter_fleet::merchants::{Behaviour, Step};
use expediter_harness::World;
use expediter_types::{ClosedBecause, Idempotency, OutcomeKind};

use super::{SOON, is, is_closed, is_open, outcome, send, stands};

/// The merchant asks to wait, in seconds or until a date: it is left alone so long, and the orders
/// have lost no attempt.
#[tokio::test(flavor = "multi_thread")]
async fn retry_after_closes_the_merchant_and_uses_no_attempt() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(6));
    let cases = [
        (
            "seconds",
            Step::status(429).header("retry-after", "3"),
            2_900,
        ),
        (
            "unavailable",
            Step::status(503).header("retry-after", "3"),
            2_900,
        ),
        (
            "date",
            Step::status(429).header("retry-after", &date),
            2_000,
        ),
        ("silent", Step::status(429), 900),
    ];
    let cases = cases.map(|(id, step, least_ms)| {
        let world = &world;
        async move {
            let behaviour = Behaviour::default().scripted(vec![step.clone(), step]);
            world.fleet.set(id, behaviour)?;
            let mut merchant = world.merchant(id);
            merchant.limits.concurrency = 1;
            merchant.adapter.idempotency = Idempotency::None;
            // The first answer would be the last if it used up an attempt.
            merchant.retry.max_attempts = 1;
            world.register(&merchant).await?;
            world.publish(id, 3).await?;
            world.arrived(id, 5, Duration::from_secs(14)).await?;
            let arrivals = world.fleet.arrivals(id);
            // The date is the same in both answers, and may be over at the second one.
            let gap = (arrivals[1].at_us - arrivals[0].at_us) / 1_000;
            ensure!(gap >= least_ms, "{id}: only {gap} ms: {arrivals:?}");
            ensure!(arrivals.iter().all(|a| a.attempt == 1), "{arrivals:?}");
            let too_early = world.fleet.merchant_stats(id).too_early;
            ensure!(too_early == 0, "{id}: {too_early} were too early");
            Ok(())
        }
    });
    futures::future::try_join_all(cases).await?;
    world.settled(SOON).await?;
    world.oracle().judge().await?;
    node.check(&[]).await
}

/// Credentials are refused: nothing is tried but a probe a minute, everything is kept, and another
/// manifest opens the merchant at once.
#[tokio::test(flavor = "multi_thread")]
async fn suspended_and_misconfigured_merchants_keep_their_orders() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let target = world.fleet.url("elsewhere");
    let redirect = |status: u16| Behaviour {
        headers: vec![("location".into(), target.clone())],
        ..Behaviour::status(status)
    };
    use ClosedBecause::{Misconfigured, Suspended};
    let cases = [
        ("s401", Behaviour::status(401), Suspended),
        ("s403", Behaviour::status(403), Suspended),
        ("s407", Behaviour::status(407), Suspended),
        ("s404", Behaviour::status(404), Misconfigured),
        ("s405", Behaviour::status(405), Misconfigured),
        ("s410", Behaviour::status(410), Misconfigured),
        ("s501", Behaviour::status(501), Misconfigured),
        ("s301", redirect(301), Misconfigured),
        ("s302", redirect(302), Misconfigured),
        ("s303", redirect(303), Misconfigured),
        ("s307", redirect(307), Misconfigured),
        ("s308", redirect(308), Misconfigured),
        ("s304", Behaviour::status(304), Misconfigured),
    ];
    let closed = cases.map(|(id, behaviour, because)| {
        let world = &world;
        async move {
            world.fleet.set(id, behaviour)?;
            let mut merchant = world.merchant(id);
            merchant.limits.concurrency = 1;
            merchant.adapter.idempotency = Idempotency::None;
            merchant.retry.max_attempts = 1;
            world.register(&merchant).await?;
            let orders = world.publish(id, 10).await?;
            let closed = |s: &_| is_closed(s) && s.backlog == 10;
            let status = stands(world, id, SOON, closed).await?;
            ensure!(status.closed_because == Some(because), "{status:?}");
            ensure!(status.last_error.is_some(), "{status:?}");
            Ok::<_, anyhow::Error>((merchant, orders))
        }
    });
    let closed = futures::future::try_join_all(closed).await?;
    super::gauge(&node, "expediter_merchants_closed", 13.0).await?;
    let alarm = |kind: &str| format!("expediter_alarms{{kind=\"{kind}\"}}");
    super::gauge(&node, &alarm("merchant_suspended"), 3.0).await?;
    super::gauge(&node, &alarm("merchant_misconfigured"), 10.0).await?;
    for (merchant, orders) in closed {
        let id = merchant.id.to_string();
        let stats = world.fleet.merchant_stats(&id);
        ensure!(stats.arrived == 1, "{id} is not left alone: {stats:?}");
        ensure!(is_open(&world, &orders[0]).await?);
        world.fleet.set(&id, Behaviour::fast())?;
        let mut mended = merchant;
        mended.name = "Mended".to_owned();
        world.register(&mended).await?;
    }
    world.settled(SOON).await?;
    ensure!(world.fleet.merchant_stats("elsewhere").arrived == 0);
    world.oracle().judge().await?;
    super::gauge(&node, "expediter_merchants_closed", 0.0).await?;
    node.check(&["closed", "suspended", "misconfigured"]).await
}

/// Nobody changes anything: one order a minute finds out whether the merchant is back.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: just test-long"]
async fn long_a_probe_opens_a_suspended_merchant() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    world.fleet.set("closed", Behaviour::status(403))?;
    let mut merchant = world.merchant("closed");
    merchant.limits.concurrency = 1;
    world.register(&merchant).await?;
    world.publish("closed", 30).await?;
    stands(&world, "closed", SOON, is_closed).await?;
    world.arrived("closed", 2, Duration::from_secs(70)).await?;
    let arrivals = world.fleet.arrivals("closed");
    let gap = (arrivals[1].at_us - arrivals[0].at_us) / 1_000_000;
    ensure!((59..=65).contains(&gap), "probed after {gap} s");
    world.fleet.set("closed", Behaviour::fast())?;
    world.settled(Duration::from_secs(70)).await?;
    world.oracle().judge().await?;
    node.check(&["closed", "suspended"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_merchant_s_orders_expire_at_their_deadlines() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    world.fleet.set("closed", Behaviour::status(401))?;
    let mut merchant = world.merchant("closed");
    merchant.retry.deadline = Duration::from_secs(3);
    merchant.limits.concurrency = 1;
    world.register(&merchant).await?;
    let start = Instant::now();
    let first = send(&world, "closed").await?;
    let second = send(&world, "closed").await?;
    for order in [first, second] {
        is(
            &outcome(&world, order.seq, SOON).await?,
            OutcomeKind::Expired,
        )?;
    }
    ensure!(start.elapsed() > Duration::from_millis(2_900));
    ensure!(world.fleet.merchant_stats("closed").arrived == 1);
    node.check(&["closed", "suspended"]).await
}
