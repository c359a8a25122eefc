//! Orders that are held back until a time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use expediter_fleet::merchants::Behaviour;
use expediter_harness::{NewOrder, World, eventually};
use expediter_wire::Rfc3339;

/// A multitude becomes due in one second: nothing goes early, and two seconds later each merchant is
/// as busy as its limit allows.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: just test-long"]
async fn long_a_hundred_thousand_orders_become_due_at_once() -> Result<()> {
    const MERCHANTS: usize = 200;
    const ORDERS: usize = 100_000;
    const CONCURRENCY: u32 = 16;
    const LATENCY: Duration = Duration::from_millis(500);
    let world = World::with(16).await?;
    world.fleet.set_default(Behaviour {
        latency: LATENCY,
        ..Behaviour::default()
    })?;
    for n in 0..MERCHANTS {
        let mut merchant = world.merchant(&format!("m-{n}"));
        merchant.limits.concurrency = CONCURRENCY;
        world.register(&merchant).await?;
    }
    let node = world.node("node").set("store.cache", "64MiB");
    let node = node.start().await?;
    let due = SystemTime::now() + Duration::from_secs(90);
    let due_ms = u64::try_from(due.duration_since(UNIX_EPOCH)?.as_millis())?;
    let header = Rfc3339(due_ms).to_string();
    let published = Instant::now();
    for n in 0..ORDERS {
        let order = NewOrder::to(&format!("m-{}", n % MERCHANTS));
        let order = order.header("Expediter-Not-Before", header.as_str());
        world.publisher().offer(order).await?;
    }
    world.publisher().flush().await;
    println!("{ORDERS} published in {:?}", published.elapsed());
    eventually(
        "all are in the store",
        Duration::from_secs(60),
        async || {
            let stored = node.metric("expediter_orders_stored").await?;
            Ok((stored >= ORDERS as f64).then_some(()))
        },
    )
    .await?;
    let left = due.duration_since(SystemTime::now());
    let left = left.context("publishing took longer than the orders wait")?;
    ensure!(world.fleet.stats().arrived == 0, "some went early");
    println!(
        "all stored {left:?} before they are due, {:.0} MiB",
        node.rss_mib()?
    );
    tokio::time::sleep(due.duration_since(SystemTime::now()).unwrap_or_default()).await;
    let busy = || {
        let stats = world.fleet.stats();
        let full = stats.merchants.values();
        full.filter(|m| m.max_in_flight >= CONCURRENCY).count()
    };
    let started = eventually(
        "each merchant has all it can take",
        super::SOON,
        async || {
            let took = SystemTime::now().duration_since(due).unwrap_or_default();
            Ok((busy() == MERCHANTS).then_some(took))
        },
    )
    .await?;
    println!(
        "all merchants were busy after {started:?}, {:.0} MiB",
        node.rss_mib()?
    );
    let (before, since) = (world.fleet.stats().arrived, Instant::now());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let rate = (world.fleet.stats().arrived - before) as f64 / since.elapsed().as_secs_f64();
    let most = MERCHANTS as f64 * f64::from(CONCURRENCY) / LATENCY.as_secs_f64();
    println!("{rate:.0} orders a second of {most:.0} that the limits allow");
    world.fleet.set_default(Behaviour::default())?;
    let outcomes = world.settled(Duration::from_secs(300)).await?;
    for arrival in world.fleet.all_arrivals() {
        ensure!(
            arrival.at_us / 1_000 >= due_ms,
            "{arrival:?} was due at {due_ms}"
        );
    }
    for (id, stats) in world.fleet.stats().merchants {
        ensure!(stats.max_in_flight <= CONCURRENCY, "{id}: {stats:?}");
    }
    world.oracle().judge_with(&outcomes)?;
    ensure!(started < Duration::from_secs(2), "{started:?}");
    node.check(&[]).await
}
