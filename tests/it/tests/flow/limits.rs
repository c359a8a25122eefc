//! What a merchant can bear, measured at the merchant.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use expediter_fleet::merchants::{Arrival, Behaviour, Step};
use expediter_harness::{NewOrder, World};
use expediter_types::{Idempotency, Ordering, Rate};

use super::SOON;

/// In no stretch of time there are more arrivals than the rate and the burst allow. Arrivals that
/// were delayed on the way count as that much slack.
fn holds(arrivals: &[Arrival], per_second: f64, burst: f64) -> Result<()> {
    const SLACK: f64 = 0.15;
    let times: Vec<f64> = arrivals.iter().map(|a| a.at_us as f64 / 1e6).collect();
    for (first, start) in times.iter().enumerate() {
        for (count, end) in times[first..].iter().enumerate() {
            let allowed = burst + per_second * (end - start + SLACK);
            ensure!(
                (count + 1) as f64 <= allowed + 1.0,
                "{} arrivals within {:.3} s from number {first}, {allowed:.1} are allowed",
                count + 1,
                end - start
            );
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_and_burst_hold_at_the_merchant() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let cases = [
        ("steady", "20/s", 1, 60),
        ("bursty", "20/s", 15, 70),
        ("by-minute", "600/min", 2, 30),
        ("windowed", "9000/15min", 1, 30),
    ];
    let mut merchants = Vec::new();
    for (id, rate, burst, count) in cases {
        let mut merchant = world.merchant(id);
        merchant.limits.rates = vec![rate.parse::<Rate>().map_err(anyhow::Error::msg)?];
        merchant.limits.burst = burst;
        merchant.limits.concurrency = 50;
        world.register(&merchant).await?;
        merchants.push((id, merchant, count));
    }
    let start = Instant::now();
    for (id, _, count) in &merchants {
        world.publish(id, *count).await?;
    }
    world.settled(Duration::from_secs(15)).await?;
    let took = start.elapsed();
    ensure!(took > Duration::from_millis(2_500), "{took:?}");
    for (id, merchant, count) in merchants {
        let arrivals = world.fleet.arrivals(id);
        ensure!(arrivals.len() == count);
        let per_second = match id {
            "by-minute" | "windowed" => 10.0,
            _ => 20.0,
        };
        holds(&arrivals, per_second, f64::from(merchant.limits.burst))?;
        // And the rate is used: half of it at least, on a busy machine.
        let span = (arrivals[count - 1].at_us - arrivals[0].at_us) as f64 / 1e6;
        let least = count as f64 / per_second;
        ensure!(span < 2.0 * least + 1.0, "{id} took {span:.1} s");
    }
    world.oracle().judge().await?;
    node.check(&[]).await
}

/// A merchant that was idle for long has a burst, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_rested_merchant_gets_one_burst() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").set("orders.idle_after", "1s");
    let node = node.start().await?;
    let mut merchant = world.merchant("rested");
    merchant.limits.rates = Vec::from_iter("10/s".parse().ok());
    merchant.limits.burst = 5;
    world.register(&merchant).await?;
    for round in 1..=2 {
        world.publish("rested", 15).await?;
        world.settled(SOON).await?;
        let arrivals = world.fleet.arrivals("rested");
        holds(&arrivals, 10.0, 5.0)?;
        ensure!(arrivals.len() == 15 * round);
        // Its actor is let go in between, which must not make the bucket fuller.
        super::registry::all_let_go(&node).await?;
    }
    node.check(&[]).await
}

/// A new owner does not know what the merchant got a moment ago: it begins without a burst, and with
/// what the merchant has asked for.
#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_over_a_crash() -> Result<()> {
    let world = World::start().await?;
    let mut node = world.node("node").start().await?;
    let mut limited = world.merchant("limited");
    limited.limits.rates = Vec::from_iter("10/s".parse().ok());
    limited.limits.burst = 10;
    world.register(&limited).await?;
    let wait = Step::status(429).header("retry-after", "6");
    world
        .fleet
        .set("waiting", Behaviour::default().scripted(vec![wait]))?;
    let mut waiting = world.merchant("waiting");
    waiting.limits.concurrency = 1;
    world.register(&waiting).await?;
    world.publish("waiting", 5).await?;
    world.publish("limited", 60).await?;
    world.arrived("waiting", 1, SOON).await?;
    world.arrived("limited", 15, SOON).await?;
    // The request to wait has to be written down, which takes a moment.
    tokio::time::sleep(Duration::from_secs(1)).await;
    node.kill9();
    node.restart().await?;
    world.settled(Duration::from_secs(14)).await?;
    holds(&world.fleet.arrivals("limited"), 10.0, 10.0)?;
    let arrivals = world.fleet.arrivals("waiting");
    let gap = (arrivals[1].at_us - arrivals[0].at_us) / 1_000;
    ensure!(gap > 5_900, "only {gap} ms");
    world.oracle().after_crashes().judge().await?;
    node.check(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrency_is_reached_and_never_exceeded() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let cases = [(1_u32, 12), (3, 40), (16, 120)];
    for (concurrency, count) in cases {
        let id = format!("width-{concurrency}");
        let behaviour = Behaviour {
            latency: Duration::from_millis(100),
            ..Behaviour::default()
        };
        world.fleet.set(&id, behaviour)?;
        let mut merchant = world.merchant(&id);
        merchant.limits.concurrency = concurrency;
        // Smaller than the concurrency on purpose: the concurrency counts.
        merchant.limits.mailbox = 2;
        world.register(&merchant).await?;
        world.publish(&id, count).await?;
    }
    world.settled(SOON).await?;
    for (concurrency, _) in cases {
        let stats = world.fleet.merchant_stats(&format!("width-{concurrency}"));
        ensure!(stats.max_in_flight == concurrency, "{stats:?}");
    }
    world.oracle().judge().await?;
    node.check(&[]).await
}

/// Orders that share a key go in publish order, whatever has to be repeated; the others do not wait.
#[tokio::test(flavor = "multi_thread")]
async fn order_holds_over_retries() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let flaky = |status: u16| Behaviour {
        fail_ratio: 0.25,
        fail_status: status,
        latency: Duration::from_millis(3),
        ..Behaviour::default()
    };
    let cases = [
        ("queue-503", Ordering::Merchant, Idempotency::None, 503),
        ("queue-500", Ordering::Merchant, Idempotency::Native, 500),
        ("keys-503", Ordering::Order, Idempotency::None, 503),
        ("keys-500", Ordering::Order, Idempotency::Native, 500),
    ];
    for (id, ordering, idempotency, status) in cases {
        world.fleet.set(id, flaky(status))?;
        let mut merchant = world.merchant(id);
        merchant.limits.ordering = ordering;
        merchant.limits.mailbox = 8;
        merchant.adapter.idempotency = idempotency;
        merchant.retry.max = Duration::from_millis(100);
        world.register(&merchant).await?;
    }
    let publisher = world.publisher();
    for n in 0..60 {
        for (id, ..) in cases {
            publisher
                .send(NewOrder::to(id).key(format!("table-{}", n % 5)))
                .await?;
        }
    }
    world.settled(Duration::from_secs(20)).await?;
    // The oracle compares the order of arrival with the order of publishing, key by key.
    let oracle = world.oracle();
    oracle
        .allow_repeats("queue-500")
        .allow_repeats("keys-500")
        .judge()
        .await?;
    for (id, ..) in cases {
        let arrivals = world.fleet.arrivals(id);
        // No order is tried before the one ahead of it has been taken.
        for pair in arrivals.windows(2) {
            let same_key = |a: &Arrival, b: &Arrival| number(a) % 5 == number(b) % 5;
            let ordered = id.starts_with("queue") || same_key(&pair[0], &pair[1]);
            let moves_on = number(&pair[1]) > number(&pair[0]);
            ensure!(
                !ordered || !moves_on || pair[0].is_taken(),
                "{id}: {pair:?}"
            );
        }
    }
    let keys = world.fleet.merchant_stats("keys-503");
    ensure!(keys.max_in_flight > 1, "keys wait for each other: {keys:?}");
    node.check(&[]).await
}

/// The number in `<merchant>-<number>`.
fn number(arrival: &Arrival) -> u64 {
    let number = arrival.order_id.rsplit('-').next();
    number.and_then(|n| n.parse().ok()).unwrap_or(0)
}
