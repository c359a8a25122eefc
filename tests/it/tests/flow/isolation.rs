//! One merchant's trouble is nobody else's.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use expediter_fleet::merchants::{Behaviour, Ending};
use expediter_harness::{Load, NewOrder, World};
use expediter_types::Idempotency;

/// Publishes to healthy merchants for a while, beside merchants that hang, trickle, send without end
/// and panic the network, each with a backlog; healthy orders take less than a second.
#[tokio::test(flavor = "multi_thread")]
async fn troubled_merchants_disturb_no_other() -> Result<()> {
    let world = World::with(8).await?;
    // So few that the troubled ones could take all of it.
    let node = world
        .node("node")
        .set_toml("node.in_flight", "400")
        .start()
        .await?;
    let with = |ending: Ending| Behaviour {
        ending,
        body: "x".repeat(4_000),
        ..Behaviour::default()
    };
    let troubled = [
        ("hung-1", with(Ending::Hang)),
        ("hung-2", with(Ending::Hang)),
        ("hung-3", with(Ending::Hang)),
        ("hung-4", with(Ending::Hang)),
        ("hung-5", with(Ending::Hang)),
        ("endless", with(Ending::Endless)),
        ("trickle", with(Ending::Trickle(Duration::from_millis(100)))),
        ("reset", with(Ending::Reset)),
        ("slow", Behaviour::slow()),
    ];
    for (id, behaviour) in troubled {
        world.fleet.set(id, behaviour)?;
        let mut merchant = world.merchant(id);
        merchant.adapter.timeout = Duration::from_secs(30);
        merchant.limits.concurrency = 200;
        merchant.adapter.idempotency = match id {
            "slow" => Idempotency::None,
            _ => Idempotency::Native,
        };
        world.register(&merchant).await?;
        world.publish(id, 300).await?;
    }
    for n in 0..20 {
        world
            .register(&world.merchant(&format!("healthy-{n}")))
            .await?;
    }
    let flows = world.fleet.wait_until(super::SOON, |stats| {
        stats
            .merchants
            .get("hung-5")
            .is_some_and(|m| m.in_flight > 0)
    });
    ensure!(flows.await, "hung merchants get nothing");
    let healthy = |n: u64| {
        let sent = unix_micros();
        NewOrder::to(&format!("healthy-{}", n % 20)).body(sent.to_string())
    };
    let load = Load::start(&world.publisher(), 100, healthy);
    let end = Instant::now() + Duration::from_secs(5);
    tokio::time::sleep_until(end.into()).await;
    load.stop().await;

    let sent: Vec<_> = world.ledger.accepted();
    let sent: Vec<_> = sent
        .iter()
        .filter(|o| o.merchant.starts_with("healthy"))
        .collect();
    ensure!(sent.len() > 200, "{}", sent.len());
    let mut latencies = Vec::new();
    for order in &sent {
        world.arrived(&order.merchant, 1, super::SOON).await?;
    }
    let all = world.fleet.wait_until(super::SOON, |stats| {
        let healthy = stats
            .merchants
            .iter()
            .filter(|(id, _)| id.starts_with("healthy"));
        healthy.map(|(_, m)| m.arrived).sum::<u64>() >= sent.len() as u64
    });
    ensure!(all.await, "healthy orders are stuck");
    for order in sent {
        let arrivals = world.fleet.arrivals(&order.merchant);
        let arrival = arrivals.iter().find(|a| a.order_id == order.id);
        let at: u64 = arrival.map_or(u64::MAX, |a| a.at_us);
        let published: u64 = std::str::from_utf8(&order.body)?.parse()?;
        latencies.push(at.saturating_sub(published) / 1_000);
    }
    latencies.sort_unstable();
    let p99 = latencies[latencies.len() * 99 / 100];
    ensure!(
        p99 < 1_000,
        "p99 {p99} ms, {:?}",
        &latencies[latencies.len() - 5..]
    );
    for id in ["hung-1", "hung-5"] {
        let stats = world.fleet.merchant_stats(id);
        ensure!(
            stats.in_flight > 0 && stats.arrived < 300,
            "{id}: {stats:?}"
        );
    }
    node.check(&[]).await
}

fn unix_micros() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(0))
}
